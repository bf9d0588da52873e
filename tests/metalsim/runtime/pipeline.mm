#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>

#include "runtime/library.h"
#include "runtime/memory.h"
#include "runtime/objects.h"

// Compute pipelines, their reflection, binary archives.

NSErrorDomain const MTLBinaryArchiveDomain = @"MTLBinaryArchiveDomain";

using metalsim::FunctionState;
using metalsim::PipelineData;
using metalsim::PipelineState;

namespace {

constexpr const char* kArchiveHeader = "metalsim binary archive 1";
// Apple names no domain for errors of pipelines; its drivers use this one.
NSString* const kPipelineDomain = @"AGXMetal";

struct ArchiveState : metalsim::Counted {
    id<MTLDevice> device = nil;
    std::mutex mutex;
    std::set<std::string> keys;
    metalsim::Ref<NSString*> label;
};

struct BindingState {
    metalsim::msl::Argument argument;
};

struct ReflectionState {
    metalsim::Ref<NSArray*> bindings;
};

// Required constants that nobody set and that the function is known to need: its arguments depend on them, or it is
// alone in its library.
std::string missing_constants(const FunctionState& function) {
    std::string names;
    const bool alone = function.code->functions().size() == 1;
    for (const auto& constant : function.code->constants()) {
        if (!constant.required || function.constants[constant.defined] != 0) continue;
        const auto& arguments = function.function->arguments;
        const bool decides = std::any_of(arguments.begin(), arguments.end(), [&](const auto& argument) {
            return argument.function_constant == constant.index;
        });
        if (alone || decides) names += (names.empty() ? "" : ", ") + constant.name;
    }
    return names;
}

std::shared_ptr<PipelineData> data_of(const FunctionState& function, MTLComputePipelineDescriptor* descriptor) {
    auto data = std::make_shared<PipelineData>();
    data->code = function.code;
    data->function = function.function;
    data->mode = function.mode;
    data->constants = function.constants;
    for (const auto& argument : function.function->arguments) {
        if (argument.function_constant && !function.flag(*argument.function_constant)) continue;
        (argument.kind == metalsim::msl::ArgumentKind::buffer ? data->buffers : data->threadgroup).push_back(argument);
    }
    const auto wanted = static_cast<uint32_t>([descriptor maxTotalThreadsPerThreadgroup]);
    data->max_threads = wanted != 0 ? wanted : function.function->max_total_threads;
    data->static_bytes = function.function->threadgroup_bytes;
    data->multiple_of_width = [descriptor threadGroupSizeIsMultipleOfThreadExecutionWidth];
    data->name = function.name;
    return data;
}

// Says why a pipeline cannot be made, or nothing.
std::string pipeline_problem(const FunctionState& function, const PipelineData& data, uint32_t threadgroup_limit) {
    const std::string missing = missing_constants(function);
    if (!missing.empty()) return "kernel " + data.name + ": no value for function constants " + missing;
    if (data.static_bytes > threadgroup_limit) {
        return "kernel " + data.name + ": " + std::to_string(data.static_bytes) +
               " bytes of threadgroup memory are more than " + std::to_string(threadgroup_limit);
    }
    if (data.max_threads == 0 || data.max_threads > 1024) {
        return "kernel " + data.name + ": maxTotalThreadsPerThreadgroup is " + std::to_string(data.max_threads);
    }
    return {};
}

bool any_archive_has(NSArray<id<MTLBinaryArchive>>* archives, const std::string& key) {
    for (id<MTLBinaryArchive> archive in archives) {
        if (metalsim::archive_has(archive, key)) return true;
    }
    return false;
}

std::string device_key(id<MTLDevice> device, const FunctionState& function) {
    const metalsim::DeviceModel& model = metalsim::state<metalsim::DeviceState>(device).model;
    return "apple" + std::to_string(model.apple_family) + " " + function.key();
}

}  // namespace

namespace metalsim {

NSArray* make_bindings(const PipelineData& pipeline) {
    std::vector<id> bindings;
    for (const auto* list : {&pipeline.buffers, &pipeline.threadgroup}) {
        for (const msl::Argument& argument : *list) {
            MetalsimBinding* binding = [[[MetalsimBinding alloc] init] autorelease];
            attach<BindingState>(binding, argument);
            bindings.push_back(binding);
        }
    }
    return [NSArray arrayWithObjects:bindings.data() count:bindings.size()];
}

id<MTLComputePipelineState> make_pipeline(id<MTLDevice> device, MTLComputePipelineDescriptor* descriptor,
                                          MTLPipelineOption options, MTLComputePipelineReflection** reflection,
                                          NSError** error) {
    set_error(error, nil);
    const auto refuse = [&](const std::string& why) {
        set_error(error, make_error(kPipelineDomain, 3, why));
        return static_cast<id<MTLComputePipelineState>>(nil);
    };
    id<MTLFunction> computed = [descriptor computeFunction];
    if (computed == nil) return refuse("computeFunction is nil");
    if (take_fault(FaultKind::pipeline)) return refuse("an injected failure");
    const FunctionState& function = state<FunctionState>(computed);
    auto data = data_of(function, descriptor);
    const std::string wrong = pipeline_problem(function, *data, state<DeviceState>(device).model.max_threadgroup_bytes);
    if (!wrong.empty()) return refuse(wrong);
    if (any_archive_has([descriptor binaryArchives], device_key(device, function))) {
        count(counters().archive_hits);
    } else if ((options & MTLPipelineOptionFailOnBinaryArchiveMiss) != 0) {
        return refuse("kernel " + data->name + " is in none of the binary archives");
    }
    count(counters().pipelines);
    if (reflection != nullptr && (options & MTLPipelineOptionBindingInfo) != 0) {
        *reflection = [[[MTLComputePipelineReflection alloc] init] autorelease];
        attach<ReflectionState>(*reflection, Ref<NSArray*>(make_bindings(*data)));
    }
    MetalsimPipeline* pipeline = [[MetalsimPipeline alloc] init];
    auto& made = attach<PipelineState>(pipeline);
    made.device = device;
    made.data = std::move(data);
    made.label = Ref<NSString*>::adopt([[descriptor label] copy]);
    made.indirect = [descriptor supportIndirectCommandBuffers];
    return pipeline;
}

id<MTLBinaryArchive> make_archive(id<MTLDevice> device, NSURL* url, NSError** error) {
    set_error(error, nil);
    std::set<std::string> keys;
    if (url != nil) {
        std::ifstream file([url fileSystemRepresentation]);
        std::string line;
        if (!std::getline(file, line) || line != kArchiveHeader) {
            set_error(error, make_error(MTLBinaryArchiveDomain, MTLBinaryArchiveErrorInvalidFile,
                                        std::string("no binary archive: ") + [url fileSystemRepresentation]));
            return nil;
        }
        while (std::getline(file, line)) keys.insert(line);
    }
    MetalsimBinaryArchive* archive = [[MetalsimBinaryArchive alloc] init];
    auto& made = attach<ArchiveState>(archive);
    made.device = device;
    made.keys = std::move(keys);
    return archive;
}

bool archive_has(id<MTLBinaryArchive> archive, const std::string& key) {
    ArchiveState& from = state<ArchiveState>(archive);
    const std::lock_guard lock(from.mutex);
    return from.keys.count(key) != 0;
}

}  // namespace metalsim

@implementation MetalsimPipeline
- (NSString*)label {
    return metalsim::state<PipelineState>(self).label.get();
}
- (id<MTLDevice>)device {
    return metalsim::state<PipelineState>(self).device;
}
- (NSUInteger)allocatedSize {
    return 0;
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
    return metalsim::state<PipelineState>(self).data->max_threads;
}
- (NSUInteger)threadExecutionWidth {
    return kMetalsimSimdWidth;
}
- (NSUInteger)staticThreadgroupMemoryLength {
    return metalsim::state<PipelineState>(self).data->static_bytes;
}
- (BOOL)supportIndirectCommandBuffers {
    return metalsim::state<PipelineState>(self).indirect;
}
@end

@implementation MTLComputePipelineReflection
- (NSArray<id<MTLBinding>>*)bindings {
    return metalsim::state<ReflectionState>(self).bindings.get();
}
@end

@implementation MetalsimBinding
- (NSString*)name {
    return metalsim::string_of(metalsim::state<BindingState>(self).argument.name);
}
- (MTLBindingType)type {
    return metalsim::state<BindingState>(self).argument.kind == metalsim::msl::ArgumentKind::buffer
               ? MTLBindingTypeBuffer
               : MTLBindingTypeThreadgroupMemory;
}
- (MTLBindingAccess)access {
    return metalsim::state<BindingState>(self).argument.writable ? MTLBindingAccessReadWrite : MTLBindingAccessReadOnly;
}
- (NSUInteger)index {
    return metalsim::state<BindingState>(self).argument.index;
}
- (BOOL)isUsed {
    return YES;
}
- (BOOL)isArgument {
    return YES;
}
- (NSUInteger)bufferAlignment {
    return metalsim::state<BindingState>(self).argument.alignment;
}
- (NSUInteger)bufferDataSize {
    return metalsim::state<BindingState>(self).argument.minimum_bytes;
}
- (NSUInteger)threadgroupMemoryAlignment {
    return metalsim::state<BindingState>(self).argument.alignment;
}
- (NSUInteger)threadgroupMemoryDataSize {
    return metalsim::state<BindingState>(self).argument.minimum_bytes;
}
@end

@implementation MetalsimBinaryArchive
METALSIM_COPIED(ArchiveState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<ArchiveState>(self).device;
}
- (BOOL)addComputePipelineFunctionsWithDescriptor:(MTLComputePipelineDescriptor*)descriptor error:(NSError**)error {
    metalsim::set_error(error, nil);
    ArchiveState& archive = metalsim::state<ArchiveState>(self);
    id<MTLFunction> function = [descriptor computeFunction];
    const std::string missing =
        function != nil ? missing_constants(metalsim::state<FunctionState>(function)) : "computeFunction";
    if (!missing.empty()) {
        metalsim::set_error(error, metalsim::make_error(MTLBinaryArchiveDomain, MTLBinaryArchiveErrorCompilationFailure,
                                                        "not set: " + missing));
        return NO;
    }
    const std::lock_guard lock(archive.mutex);
    archive.keys.insert(device_key(archive.device, metalsim::state<FunctionState>(function)));
    return YES;
}
- (BOOL)serializeToURL:(NSURL*)url error:(NSError**)error {
    metalsim::set_error(error, nil);
    ArchiveState& archive = metalsim::state<ArchiveState>(self);
    const std::lock_guard lock(archive.mutex);
    std::ofstream file([url fileSystemRepresentation], std::ios::trunc);
    file << kArchiveHeader << '\n';
    for (const std::string& key : archive.keys) file << key << '\n';
    file.close();
    if (file) return YES;
    metalsim::set_error(error, metalsim::make_error(MTLBinaryArchiveDomain, MTLBinaryArchiveErrorInternalError,
                                                    std::string("cannot write ") + [url fileSystemRepresentation]));
    return NO;
}
@end

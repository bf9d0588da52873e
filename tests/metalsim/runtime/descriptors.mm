#include "runtime/memory.h"
#include "runtime/object.h"

// The classes that only carry settings.

using metalsim::Ref;

namespace {

struct HeapDescriptor {
    NSUInteger size = 0;
    MTLStorageMode storage = MTLStorageModePrivate;
    MTLCPUCacheMode cache = MTLCPUCacheModeDefaultCache;
    MTLHazardTrackingMode hazards = MTLHazardTrackingModeDefault;
    MTLHeapType type = MTLHeapTypeAutomatic;
};

struct ResidencySetDescriptor {
    Ref<NSString*> label;
    NSUInteger capacity = 0;
};

struct SampleBufferDescriptor {
    Ref<id<MTLCounterSet>> set;
    Ref<NSString*> label{@""};
    MTLStorageMode storage = MTLStorageModeShared;
    NSUInteger count = 0;
};

struct CommandBufferDescriptor {
    BOOL retained = YES;
    MTLCommandBufferErrorOption options = MTLCommandBufferErrorOptionNone;
};

struct CommandQueueDescriptor {
    NSUInteger count = 64;
};

struct PassAttachment {
    Ref<id<MTLCounterSampleBuffer>> buffer;
    NSUInteger start = 0, end = 0;
};

template <class T>
struct Attachments {
    static constexpr size_t kCount = 4;
    Ref<T*> items[kCount];
};

template <class T>
struct PassDescriptor {
    MTLDispatchType type = MTLDispatchTypeSerial;
    Ref<T*> attachments;
};

struct CompileOptions {
    Ref<NSDictionary*> macros;
    MTLMathMode math = MTLMathModeFast;
    MTLMathFloatingPointFunctions functions = MTLMathFloatingPointFunctionsFast;
    MTLLanguageVersion version = MTLLanguageVersion3_2;
    MTLLibraryType type = MTLLibraryTypeExecutable;
    Ref<NSString*> install_name;
    BOOL invariance = NO;
    MTLLibraryOptimizationLevel level = MTLLibraryOptimizationLevelDefault;
    NSUInteger max_threads = 0;
};

struct FunctionDescriptor {
    Ref<NSString*> name, specialised;
    Ref<MTLFunctionConstantValues*> values;
    MTLFunctionOptions options = MTLFunctionOptionNone;
    Ref<NSArray*> archives;
};

struct BufferDescriptor {
    MTLMutability mutability = MTLMutabilityDefault;
};

struct PipelineDescriptor {
    Ref<NSString*> label;
    Ref<id<MTLFunction>> function;
    BOOL multiple = NO;
    NSUInteger max_threads = 0;
    Ref<MTLPipelineBufferDescriptorArray*> buffers;
    BOOL indirect = NO;
    Ref<NSArray*> archives;
};

struct ArchiveDescriptor {
    Ref<NSURL*> url;
};

struct Architecture {
    Ref<NSString*> name{@"metalsim"};
};

struct BufferDescriptors {
    Ref<MTLPipelineBufferDescriptor*> items[31];
};

// The item at an index, made when first asked for; nil beyond the end, with a report.
template <class T, size_t N>
T* item_at(Ref<T*> (&items)[N], NSUInteger index) {
    if (index >= N) {
        metalsim::report_misuse("index " + std::to_string(index) + " of an array of " + std::to_string(N) +
                                " descriptors");
        return nil;
    }
    if (!items[index]) items[index] = Ref<T*>::adopt([[T alloc] init]);
    return items[index].get();
}

template <class T, size_t N>
void set_item(Ref<T*> (&items)[N], NSUInteger index, T* item) {
    if (item_at(items, index) != nil) items[index] = Ref<T*>::adopt([item copy]);
}

}  // namespace

@implementation MTLHeapDescriptor
METALSIM_COPYABLE(HeapDescriptor)
METALSIM_VALUE(HeapDescriptor, NSUInteger, size, setSize, size)
METALSIM_VALUE(HeapDescriptor, MTLStorageMode, storageMode, setStorageMode, storage)
METALSIM_VALUE(HeapDescriptor, MTLCPUCacheMode, cpuCacheMode, setCpuCacheMode, cache)
METALSIM_VALUE(HeapDescriptor, MTLHazardTrackingMode, hazardTrackingMode, setHazardTrackingMode, hazards)
METALSIM_VALUE(HeapDescriptor, MTLHeapType, type, setType, type)
- (MTLResourceOptions)resourceOptions {
    const HeapDescriptor& from = metalsim::state<HeapDescriptor>(self);
    return from.cache << MTLResourceCPUCacheModeShift | from.storage << MTLResourceStorageModeShift |
           from.hazards << MTLResourceHazardTrackingModeShift;
}
- (void)setResourceOptions:(MTLResourceOptions)options {
    HeapDescriptor& to = metalsim::state<HeapDescriptor>(self);
    to.cache = static_cast<MTLCPUCacheMode>((options & MTLResourceCPUCacheModeMask) >> MTLResourceCPUCacheModeShift);
    to.storage = static_cast<MTLStorageMode>((options & MTLResourceStorageModeMask) >> MTLResourceStorageModeShift);
    to.hazards = static_cast<MTLHazardTrackingMode>((options & MTLResourceHazardTrackingModeMask) >>
                                                    MTLResourceHazardTrackingModeShift);
}
@end

@implementation MTLResidencySetDescriptor
METALSIM_COPYABLE(ResidencySetDescriptor)
METALSIM_COPIED(ResidencySetDescriptor, NSString*, label, setLabel, label)
METALSIM_VALUE(ResidencySetDescriptor, NSUInteger, initialCapacity, setInitialCapacity, capacity)
@end

@implementation MTLCounterSampleBufferDescriptor
METALSIM_COPYABLE(SampleBufferDescriptor)
METALSIM_OBJECT(SampleBufferDescriptor, id<MTLCounterSet>, counterSet, setCounterSet, set)
METALSIM_COPIED(SampleBufferDescriptor, NSString*, label, setLabel, label)
METALSIM_VALUE(SampleBufferDescriptor, MTLStorageMode, storageMode, setStorageMode, storage)
METALSIM_VALUE(SampleBufferDescriptor, NSUInteger, sampleCount, setSampleCount, count)
@end

@implementation MTLCommandBufferDescriptor
METALSIM_COPYABLE(CommandBufferDescriptor)
METALSIM_VALUE(CommandBufferDescriptor, BOOL, retainedReferences, setRetainedReferences, retained)
METALSIM_VALUE(CommandBufferDescriptor, MTLCommandBufferErrorOption, errorOptions, setErrorOptions, options)
@end

@implementation MTLCommandQueueDescriptor
METALSIM_COPYABLE(CommandQueueDescriptor)
METALSIM_VALUE(CommandQueueDescriptor, NSUInteger, maxCommandBufferCount, setMaxCommandBufferCount, count)
@end

#define METALSIM_ATTACHMENT                                                                                    \
    METALSIM_COPYABLE(PassAttachment)                                                                          \
    METALSIM_OBJECT(PassAttachment, id<MTLCounterSampleBuffer>, sampleBuffer, setSampleBuffer, buffer)         \
    METALSIM_VALUE(PassAttachment, NSUInteger, startOfEncoderSampleIndex, setStartOfEncoderSampleIndex, start) \
    METALSIM_VALUE(PassAttachment, NSUInteger, endOfEncoderSampleIndex, setEndOfEncoderSampleIndex, end)

#define METALSIM_ATTACHMENT_ARRAY(type)                                              \
    -(instancetype)init {                                                            \
        self = [super init];                                                         \
        if (self) metalsim::attach<Attachments<type>>(self);                         \
        return self;                                                                 \
    }                                                                                \
    -(type*)objectAtIndexedSubscript : (NSUInteger)index {                           \
        return item_at(metalsim::state<Attachments<type>>(self).items, index);       \
    }                                                                                \
    -(void)setObject : (type*)attachment atIndexedSubscript : (NSUInteger)index {    \
        set_item(metalsim::state<Attachments<type>>(self).items, index, attachment); \
    }

@implementation MTLComputePassSampleBufferAttachmentDescriptor
METALSIM_ATTACHMENT
@end
@implementation MTLComputePassSampleBufferAttachmentDescriptorArray
METALSIM_ATTACHMENT_ARRAY(MTLComputePassSampleBufferAttachmentDescriptor)
@end
@implementation MTLBlitPassSampleBufferAttachmentDescriptor
METALSIM_ATTACHMENT
@end
@implementation MTLBlitPassSampleBufferAttachmentDescriptorArray
METALSIM_ATTACHMENT_ARRAY(MTLBlitPassSampleBufferAttachmentDescriptor)
@end

#define METALSIM_PASS(array)                                                                             \
    -(instancetype)init {                                                                                \
        self = [super init];                                                                             \
        if (self) {                                                                                      \
            metalsim::attach<PassDescriptor<array>>(self).attachments = Ref<array*>::adopt([array new]); \
        }                                                                                                \
        return self;                                                                                     \
    }                                                                                                    \
    -(id)copyWithZone : (void*)zone {                                                                    \
        (void)zone;                                                                                      \
        return metalsim::copy_with_state<PassDescriptor<array>>(self);                                   \
    }                                                                                                    \
    -(array*)sampleBufferAttachments {                                                                   \
        return metalsim::state<PassDescriptor<array>>(self).attachments.get();                           \
    }

using ComputePass = PassDescriptor<MTLComputePassSampleBufferAttachmentDescriptorArray>;

@implementation MTLComputePassDescriptor
METALSIM_PASS(MTLComputePassSampleBufferAttachmentDescriptorArray)
METALSIM_VALUE(ComputePass, MTLDispatchType, dispatchType, setDispatchType, type)
+ (MTLComputePassDescriptor*)computePassDescriptor {
    return [[[self alloc] init] autorelease];
}
@end

@implementation MTLBlitPassDescriptor
METALSIM_PASS(MTLBlitPassSampleBufferAttachmentDescriptorArray)
+ (MTLBlitPassDescriptor*)blitPassDescriptor {
    return [[[self alloc] init] autorelease];
}
@end

@implementation MTLCompileOptions
METALSIM_COPYABLE(CompileOptions)
METALSIM_COPIED(CompileOptions, NSDictionary*, preprocessorMacros, setPreprocessorMacros, macros)
METALSIM_VALUE(CompileOptions, MTLMathMode, mathMode, setMathMode, math)
- (BOOL)fastMathEnabled {  // the older name of a part of mathMode
    return self.mathMode == MTLMathModeFast;
}
- (void)setFastMathEnabled:(BOOL)enabled {
    self.mathMode = enabled ? MTLMathModeFast : MTLMathModeSafe;
}
METALSIM_VALUE(CompileOptions, MTLMathFloatingPointFunctions, mathFloatingPointFunctions, setMathFloatingPointFunctions,
               functions)
METALSIM_VALUE(CompileOptions, MTLLanguageVersion, languageVersion, setLanguageVersion, version)
METALSIM_VALUE(CompileOptions, MTLLibraryType, libraryType, setLibraryType, type)
METALSIM_COPIED(CompileOptions, NSString*, installName, setInstallName, install_name)
METALSIM_VALUE(CompileOptions, BOOL, preserveInvariance, setPreserveInvariance, invariance)
METALSIM_VALUE(CompileOptions, MTLLibraryOptimizationLevel, optimizationLevel, setOptimizationLevel, level)
METALSIM_VALUE(CompileOptions, NSUInteger, maxTotalThreadsPerThreadgroup, setMaxTotalThreadsPerThreadgroup, max_threads)
@end

@implementation MTLFunctionDescriptor
METALSIM_COPYABLE(FunctionDescriptor)
+ (MTLFunctionDescriptor*)functionDescriptor {
    return [[[self alloc] init] autorelease];
}
METALSIM_COPIED(FunctionDescriptor, NSString*, name, setName, name)
METALSIM_COPIED(FunctionDescriptor, NSString*, specializedName, setSpecializedName, specialised)
METALSIM_COPIED(FunctionDescriptor, MTLFunctionConstantValues*, constantValues, setConstantValues, values)
METALSIM_VALUE(FunctionDescriptor, MTLFunctionOptions, options, setOptions, options)
METALSIM_COPIED(FunctionDescriptor, NSArray*, binaryArchives, setBinaryArchives, archives)
@end

@implementation MTLPipelineBufferDescriptor
METALSIM_COPYABLE(BufferDescriptor)
METALSIM_VALUE(BufferDescriptor, MTLMutability, mutability, setMutability, mutability)
@end

@implementation MTLPipelineBufferDescriptorArray
- (instancetype)init {
    self = [super init];
    if (self) metalsim::attach<BufferDescriptors>(self);
    return self;
}
- (MTLPipelineBufferDescriptor*)objectAtIndexedSubscript:(NSUInteger)bufferIndex {
    return item_at(metalsim::state<BufferDescriptors>(self).items, bufferIndex);
}
- (void)setObject:(MTLPipelineBufferDescriptor*)buffer atIndexedSubscript:(NSUInteger)bufferIndex {
    set_item(metalsim::state<BufferDescriptors>(self).items, bufferIndex, buffer);
}
@end

@implementation MTLComputePipelineDescriptor
- (instancetype)init {
    self = [super init];
    if (self) {
        metalsim::attach<PipelineDescriptor>(self);
        [self reset];
    }
    return self;
}
- (id)copyWithZone:(void*)zone {
    (void)zone;
    return metalsim::copy_with_state<PipelineDescriptor>(self);
}
METALSIM_COPIED(PipelineDescriptor, NSString*, label, setLabel, label)
METALSIM_OBJECT(PipelineDescriptor, id<MTLFunction>, computeFunction, setComputeFunction, function)
METALSIM_VALUE(PipelineDescriptor, BOOL, threadGroupSizeIsMultipleOfThreadExecutionWidth,
               setThreadGroupSizeIsMultipleOfThreadExecutionWidth, multiple)
METALSIM_VALUE(PipelineDescriptor, NSUInteger, maxTotalThreadsPerThreadgroup, setMaxTotalThreadsPerThreadgroup,
               max_threads)
METALSIM_VALUE(PipelineDescriptor, BOOL, supportIndirectCommandBuffers, setSupportIndirectCommandBuffers, indirect)
METALSIM_COPIED(PipelineDescriptor, NSArray*, binaryArchives, setBinaryArchives, archives)
- (MTLPipelineBufferDescriptorArray*)buffers {
    return metalsim::state<PipelineDescriptor>(self).buffers.get();
}
- (void)reset {
    PipelineDescriptor& all = metalsim::state<PipelineDescriptor>(self);
    all = {};
    all.buffers = Ref<MTLPipelineBufferDescriptorArray*>::adopt([MTLPipelineBufferDescriptorArray new]);
}
@end

@implementation MTLBinaryArchiveDescriptor
METALSIM_COPYABLE(ArchiveDescriptor)
METALSIM_COPIED(ArchiveDescriptor, NSURL*, url, setUrl, url)
@end

@implementation MTLArchitecture
METALSIM_COPYABLE(Architecture)
- (NSString*)name {
    return metalsim::state<Architecture>(self).name.get();
}
@end

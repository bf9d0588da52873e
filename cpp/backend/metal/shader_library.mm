#include "backend/metal/shader_library.h"

#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <unistd.h>

#include <cstdlib>

#include "backend/metal/errors.h"
#include "core/error.h"

namespace metallic::metal {
namespace {

namespace fs = std::filesystem;

// FNV-1a, 64 bits: http://www.isthe.com/chongo/tech/comp/fnv/
uint64_t hash(uint64_t state, std::string_view bytes) {
    for (const char byte : bytes) state = (state ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    return (state ^ 0xffu) * 0x100000001b3u;  // ends a part
}
constexpr uint64_t kHashStart = 0xcbf29ce484222325u;

// METALLIC_CACHE, or the place that the system has for caches; empty where there is none.
fs::path cache_folder() {
    const auto variable = [](const char* name) {
        const char* value = std::getenv(name);
        return fs::path(value ? value : "");
    };
    if (std::getenv("METALLIC_CACHE")) return variable("METALLIC_CACHE");
    const fs::path home = variable("HOME");
#ifdef __APPLE__
    return home.empty() ? home : home / "Library" / "Caches" / "metallic-native";
#else
    const fs::path caches = variable("XDG_CACHE_HOME");
    if (!caches.empty()) return caches / "metallic-native";
    return home.empty() ? home : home / ".cache" / "metallic-native";
#endif
}

Ref<NSURL*> file_url(const fs::path& path) {
    return Ref<NSURL*>::adopt([[NSURL alloc] initFileURLWithPath:to_ns_string(path.native()).get()]);
}

std::string pipeline_key(std::string_view family, std::string_view name, std::span<const FunctionConstant> constants) {
    std::string key = std::string(family) + "/" + std::string(name);
    for (const FunctionConstant& constant : constants) {
        key += " " + std::to_string(constant.index) + "=" + std::to_string(static_cast<int>(constant.type)) + ":" +
               std::to_string(constant.bits);
    }
    return key;
}

Ref<MTLFunctionConstantValues*> constant_values(std::span<const FunctionConstant> constants) {
    auto values = Ref<MTLFunctionConstantValues*>::adopt([[MTLFunctionConstantValues alloc] init]);
    for (const FunctionConstant& constant : constants) {
        switch (constant.type) {
            case FunctionConstant::Type::boolean: {
                const bool value = constant.bits != 0;
                [values.get() setConstantValue:&value type:MTLDataTypeBool atIndex:constant.index];
                break;
            }
            case FunctionConstant::Type::uint:
                [values.get() setConstantValue:&constant.bits type:MTLDataTypeUInt atIndex:constant.index];
                break;
            case FunctionConstant::Type::floating:
                [values.get() setConstantValue:&constant.bits type:MTLDataTypeFloat atIndex:constant.index];
                break;
        }
    }
    return values;
}

[[noreturn]] void fail(const std::string& what, const std::string& scope, NSError* error, const char* status) {
    throw DeviceError(scope + ": " + what + ": " + description(error), scope, status);
}

}  // namespace

ShaderLibrary::ShaderLibrary(id<MTLDevice> device, const ShaderSources& sources) : device_(device), sources_(sources) {}

// Safe arithmetic: attention relies on infinities. Kernels name the fast functions that they want.
Ref<id<MTLLibrary>> ShaderLibrary::compile(std::string_view family) const {
    const std::string_view text = sources_.source(family);
    const std::string scope = "metal/library/" + std::string(family);
    if (text.empty()) throw DeviceError(scope + ": there are no such kernels", scope, "library");
    const auto options = Ref<MTLCompileOptions*>::adopt([[MTLCompileOptions alloc] init]);
    [options.get() setLanguageVersion:MTLLanguageVersion3_0];
    if (__builtin_available(macOS 14.0, *)) [options.get() setLanguageVersion:MTLLanguageVersion3_1];  // has bfloat
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"  // mathMode is of macOS 15
    [options.get() setFastMathEnabled:NO];
#pragma clang diagnostic pop
    NSError* error = nil;
    auto library = Ref<id<MTLLibrary>>::adopt([device_ newLibraryWithSource:to_ns_string(text).get()
                                                                    options:options.get()
                                                                      error:&error]);
    if (!library) fail("the shader compiler refused it", scope, error, "library");
    return library;
}

Ref<id<MTLLibrary>> ShaderLibrary::load(std::string_view family) {
    if (sources_.metallib.empty()) return compile(family);
    if (!compiled_) {
        const auto nothing = ^{
        };  // the bytes are the program's own
        const dispatch_data_t data =
            dispatch_data_create(sources_.metallib.data(), sources_.metallib.size(), nullptr, nothing);
        NSError* error = nil;
        compiled_ = Ref<id<MTLLibrary>>::adopt([device_ newLibraryWithData:data error:&error]);
        dispatch_release(data);
    }
    // A library that this system cannot read, being older than its build's, is made from source.
    return compiled_ ? compiled_ : compile(family);
}

void ShaderLibrary::open_archive(std::string_view name, Family& family) const {
    const fs::path folder = cache_folder();
    if (folder.empty()) return;
    uint64_t key = hash(kHashStart, to_string([device_ name]));
    key = hash(key, to_string([[NSProcessInfo processInfo] operatingSystemVersionString]));
    key = hash(key, sources_.source(name));
    key = hash(key, {reinterpret_cast<const char*>(sources_.metallib.data()), sources_.metallib.size()});
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(key));
    family.archive_path = folder / (std::string(name) + "-" + digits + ".metalarchive");

    const auto descriptor = Ref<MTLBinaryArchiveDescriptor*>::adopt([[MTLBinaryArchiveDescriptor alloc] init]);
    const auto open = [&] {
        NSError* error = nil;
        family.archive = Ref<id<MTLBinaryArchive>>::adopt([device_ newBinaryArchiveWithDescriptor:descriptor.get()
                                                                                            error:&error]);
    };
    std::error_code ignored;
    if (fs::exists(family.archive_path, ignored)) {
        [descriptor.get() setUrl:file_url(family.archive_path).get()];
        open();
    }
    if (family.archive) return;
    [descriptor.get() setUrl:nil];  // none, or a damaged one, which is replaced
    open();
}

ShaderLibrary::Family& ShaderLibrary::family(std::string_view name) {
    const auto known = families_.find(name);
    if (known != families_.end()) return known->second;
    Family made;
    made.library = load(name);
    open_archive(name, made);
    return families_.emplace(name, std::move(made)).first->second;
}

id<MTLComputePipelineState> ShaderLibrary::pipeline(std::string_view family_name, std::string_view name,
                                                    std::span<const FunctionConstant> constants) {
    const AutoreleasePool pool;
    const std::lock_guard lock(mutex_);
    const std::string key = pipeline_key(family_name, name, constants);
    const auto known = pipelines_.find(key);
    if (known != pipelines_.end()) return known->second.get();

    Family& from = family(family_name);
    const std::string scope = "metal/pipeline/" + key;
    NSError* error = nil;
    const auto function =
        Ref<id<MTLFunction>>::adopt([from.library.get() newFunctionWithName:to_ns_string(name).get()
                                                             constantValues:constant_values(constants).get()
                                                                      error:&error]);
    if (!function) fail("there is no such kernel", scope, error, "function");

    const auto descriptor = Ref<MTLComputePipelineDescriptor*>::adopt([[MTLComputePipelineDescriptor alloc] init]);
    [descriptor.get() setLabel:to_ns_string(key).get()];
    [descriptor.get() setComputeFunction:function.get()];
    const auto make = [&](MTLPipelineOption options) {
        error = nil;
        return Ref<id<MTLComputePipelineState>>::adopt([device_ newComputePipelineStateWithDescriptor:descriptor.get()
                                                                                              options:options
                                                                                           reflection:nullptr
                                                                                                error:&error]);
    };
    Ref<id<MTLComputePipelineState>> made;
    if (from.archive) {
        [descriptor.get() setBinaryArchives:[NSArray arrayWithObject:from.archive.get()]];
        made = make(MTLPipelineOptionFailOnBinaryArchiveMiss);
        if (!made) {
            [descriptor.get() setBinaryArchives:nil];
            NSError* unwritten = nil;
            if ([from.archive.get() addComputePipelineFunctionsWithDescriptor:descriptor.get() error:&unwritten]) {
                from.archive_changed = true;
            }
        }
    }
    if (!made) made = make(MTLPipelineOptionNone);
    if (!made) fail("the kernel does not compile for this device", scope, error, "pipeline");
    return pipelines_.emplace(key, std::move(made)).first->second.get();
}

void ShaderLibrary::save() noexcept {
    const AutoreleasePool pool;
    const std::lock_guard lock(mutex_);
    for (auto& [name, family] : families_) {
        if (!family.archive_changed) continue;
        family.archive_changed = false;
        try {
            std::error_code failed;
            fs::create_directories(family.archive_path.parent_path(), failed);
            const fs::path draft = family.archive_path.native() + "." + std::to_string(getpid());
            NSError* error = nil;
            if (![family.archive.get() serializeToURL:file_url(draft).get() error:&error]) continue;
            fs::rename(draft, family.archive_path, failed);
            if (failed) fs::remove(draft, failed);
        } catch (const std::exception&) {  // the next process compiles again
        }
    }
}

}  // namespace metallic::metal

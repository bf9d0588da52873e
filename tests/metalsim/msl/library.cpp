#include "msl/library.h"

#include <dlfcn.h>

#include "executor/executor.h"
#include "msl/compiler.h"
#include "msl/include/metalsim/library_info.h"

namespace metalsim::msl {

namespace {

class LoadedLibrary final : public Library {
  public:
    explicit LoadedLibrary(const std::filesystem::path& path) {
        handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ == nullptr) throw CompileError(std::string("cannot load a compiled library: ") + dlerror());
        using Bind = const MetalsimLibraryInfo* (*)(const MetalsimServices*);
        const auto bind = reinterpret_cast<Bind>(dlsym(handle_, "metalsim_bind"));
        const MetalsimLibraryInfo* info = bind != nullptr ? bind(&services()) : nullptr;
        if (info == nullptr || info->version != kMetalsimLibraryVersion) {
            dlclose(handle_);
            throw CompileError("not a library of this version of metalsim: " + path.string());
        }
        try {
            read(*info);
        } catch (...) {
            dlclose(handle_);
            throw;
        }
    }
    ~LoadedLibrary() override { dlclose(handle_); }
    LoadedLibrary(const LoadedLibrary&) = delete;
    LoadedLibrary& operator=(const LoadedLibrary&) = delete;

    const std::vector<Function>& functions() const noexcept override { return functions_; }
    const std::vector<FunctionConstant>& constants() const noexcept override { return constants_; }
    uint32_t constants_bytes() const noexcept override { return constants_bytes_; }

  private:
    void read(const MetalsimLibraryInfo& info) {
        constants_bytes_ = info.constants_bytes;
        for (uint32_t i = 0; i < info.constant_count; ++i) {
            const MetalsimConstantInfo& c = info.constants[i];
            for (const FunctionConstant& other : constants_)
                if (other.index == c.index)
                    throw CompileError("error: function constants '" + other.name + "' and '" + c.name +
                                       "' have the same index " + std::to_string(c.index));
            if (c.index > 65535)
                throw CompileError("error: the index of function constant '" + std::string(c.name) + "' exceeds 65535");
            constants_.push_back({c.name, c.type, c.index, c.offset, c.defined, c.bytes, c.required != 0});
        }
        for (uint32_t i = 0; i < info.function_count; ++i) {
            const MetalsimFunctionInfo& f = info.functions[i];
            Function function;
            function.name = f.name;
            function.entry = f.entry;
            function.max_total_threads = f.max_total_threads;
            for (uint32_t j = 0; j < f.argument_count; ++j) function.arguments.push_back(argument(f.arguments[j]));
            function.threadgroup_bytes = threadgroup_bytes(info, f.tag);
            if (function.threadgroup_bytes > kMetalsimThreadgroupBytes)
                throw CompileError(
                    "error: kernel '" + function.name + "' declares " + std::to_string(function.threadgroup_bytes) +
                    " bytes of threadgroup memory; the limit is " + std::to_string(kMetalsimThreadgroupBytes));
            functions_.push_back(std::move(function));
        }
    }
    static Argument argument(const MetalsimArgumentInfo& a) {
        Argument out;
        out.kind = a.is_threadgroup ? ArgumentKind::threadgroup : ArgumentKind::buffer;
        out.index = a.index;
        out.name = a.name;
        out.type = a.type;
        out.constant = a.constant_space != 0;
        out.writable = a.writable != 0;
        out.alignment = a.alignment;
        out.minimum_bytes = a.minimum_bytes;
        if (a.function_constant >= 0) out.function_constant = static_cast<uint32_t>(a.function_constant);
        return out;
    }
    static uint32_t threadgroup_bytes(const MetalsimLibraryInfo& info, const void* tag) {
        uint64_t total = 0;
        for (const MetalsimThreadgroupInfo* v = info.threadgroup_begin; v != info.threadgroup_end; ++v)
            if (v->tag == tag) total = (total + v->alignment - 1) / v->alignment * v->alignment + v->bytes;
        return static_cast<uint32_t>(std::min<uint64_t>(total, UINT32_MAX));
    }

    void* handle_ = nullptr;
    std::vector<Function> functions_;
    std::vector<FunctionConstant> constants_;
    uint32_t constants_bytes_ = 0;
};

}  // namespace

const Function* Library::find(std::string_view name) const noexcept {
    for (const Function& f : functions())
        if (f.name == name) return &f;
    return nullptr;
}

std::shared_ptr<const Library> compile(std::string_view source, const Options& options) {
    return std::make_shared<LoadedLibrary>(build(preprocess(source, options), options));
}

}  // namespace metalsim::msl

#pragma once

#import <Metal/Metal.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "backend/metal/objc_ref.h"
#include "backend/metal/shader_source.h"

namespace metallic::metal {

// A value for [[function_constant(index)]].
struct FunctionConstant {
    enum class Type : uint8_t { boolean, uint, floating };
    uint32_t index = 0;
    Type type = Type::boolean;
    uint32_t bits = 0;

    static FunctionConstant of(uint32_t index, bool value) { return {index, Type::boolean, value ? 1u : 0u}; }
    static FunctionConstant of(uint32_t index, uint32_t value) { return {index, Type::uint, value}; }
    static FunctionConstant of(uint32_t index, float value) {
        return {index, Type::floating, std::bit_cast<uint32_t>(value)};
    }
};

// Where kernels come from.
struct ShaderSources {
    std::string_view (*source)(std::string_view family) noexcept = shader_source;
    std::span<const std::byte> metallib = embedded_metallib();
};

// Pipelines by family, name and constants, made on first use: from the compiled library that the build embedded, or
// from the family's source. An archive on disk, keyed by device, system and source, spares the next process the work;
// one that cannot be read or written is done without. Thread-safe.
class ShaderLibrary {
  public:
    ShaderLibrary(id<MTLDevice> device, const ShaderSources& sources);

    // Throws DeviceError with the compiler's text. Lives as long as this object.
    id<MTLComputePipelineState> pipeline(std::string_view family, std::string_view name,
                                         std::span<const FunctionConstant> constants);
    // Writes the archive if pipelines were added to it.
    void save() noexcept;

  private:
    struct Family {
        Ref<id<MTLLibrary>> library;
        Ref<id<MTLBinaryArchive>> archive;
        std::filesystem::path archive_path;
        bool archive_changed = false;
    };
    Family& family(std::string_view name);
    Ref<id<MTLLibrary>> load(std::string_view family);
    Ref<id<MTLLibrary>> compile(std::string_view family) const;
    void open_archive(std::string_view name, Family& family) const;

    id<MTLDevice> device_;
    const ShaderSources sources_;
    std::mutex mutex_;
    Ref<id<MTLLibrary>> compiled_;  // of the embedded metallib, if there is one
    std::map<std::string, Family, std::less<>> families_;
    std::map<std::string, Ref<id<MTLComputePipelineState>>, std::less<>> pipelines_;
};

}  // namespace metallic::metal

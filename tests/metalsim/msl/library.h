#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "abi/kernel_abi.h"

// MSL source to running code: preprocessed and compiled by clang, kernels found by their signatures.
namespace metalsim::msl {

enum class ArgumentKind : uint8_t { buffer, threadgroup };

struct Argument {
    ArgumentKind kind = ArgumentKind::buffer;
    uint32_t index = 0;
    std::string name;
    std::string type;            // as written
    bool constant = false;       // the constant address space
    bool writable = false;       // device, and not const
    uint32_t alignment = 1;      // that an offset must have: of the element type; at least 4 in the constant space
    uint32_t minimum_bytes = 0;  // of a reference argument: sizeof its type; else 0
    std::optional<uint32_t> function_constant;  // the argument exists only where this constant is true
};

struct FunctionConstant {
    std::string name;
    std::string type;  // "bool", "uint", "float", "ushort4", ...
    uint32_t index = 0;
    uint32_t offset = 0;  // of its value in the block; a byte at `defined` says whether it was set
    uint32_t defined = 0;
    uint32_t bytes = 0;
    bool required = false;  // no default (is_function_constant_defined is never asked of it)
};

struct Function {
    std::string name;  // host name
    std::vector<Argument> arguments;
    uint32_t max_total_threads = 1024;  // [[max_total_threads_per_threadgroup(n)]]
    uint32_t threadgroup_bytes = 0;     // of variables declared in the body
    MetalsimKernel entry = nullptr;
};

// Thrown with what the compiler, or a rule of MSL that it does not know, said; lines are those of the source.
class CompileError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Math : uint8_t { safe, relaxed, fast };

struct Options {
    uint32_t version = 310;            // of the language, as __METAL_VERSION__ says it: 100 * major + 10 * minor
    Math math = Math::safe;            // what the compiler may assume of floats
    bool checked = false;              // every load and store calls the executor's checks
    std::vector<std::string> defines;  // NAME or NAME=VALUE
    std::vector<std::filesystem::path> include_folders;  // for #include "..."
    // Of compiled libraries, by content. Empty: METALSIM_CACHE, the build's folder, or the system's temporary one.
    std::filesystem::path cache;
};

// A compiled library, loaded into the process until it is destroyed.
class Library {
  public:
    virtual ~Library() = default;
    virtual const std::vector<Function>& functions() const noexcept = 0;
    virtual const std::vector<FunctionConstant>& constants() const noexcept = 0;
    virtual uint32_t constants_bytes() const noexcept = 0;  // of the block of function constants
    const Function* find(std::string_view name) const noexcept;
};

// Thread-safe. Throws CompileError.
std::shared_ptr<const Library> compile(std::string_view source, const Options& options);

}  // namespace metalsim::msl

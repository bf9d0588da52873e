#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "msl/structure.h"
#include "msl/tokens.h"

// Preprocessed MSL to C++14 over our headers: what clang lacks is written out, what MSL forbids is refused.
namespace metalsim::msl {

// C++ whose lines are those of the source, with an entry for each kernel and a table of all. Throws CompileError.
// `version` of the language: see Options.
// `lenient`: for a compilation where members may be called in any address space; see compiler.h.
std::string translate(std::string_view preprocessed, uint32_t version, bool lenient);

// ---- its parts, in their order ----

// Refuses words and forms that this version of MSL does not have.
void check_rules(const Tokens& tokens, const Structure& structure, uint32_t version);

// Literals of half and bfloat, and conversions to types that may be vectors: T(a, b), (T)a, static_cast<T>(a).
void rewrite_casts(Tokens& tokens, const Structure& structure);

// Function constants, and the constants at program scope that are made of them.
struct Constants {
    struct Entry {
        std::string name, type;
        std::string index;  // an expression
        uint32_t offset = 0, defined = 0, bytes = 0;
        bool asked = false;  // is_function_constant_defined
    };
    std::vector<Entry> entries;
    uint32_t bytes = 0;
    const Entry* find(std::string_view name) const noexcept;
    std::string table() const;  // C++ of its description
};
Constants rewrite_constants(Tokens& tokens, const Structure& structure);

// Classes can be copied from every address space; of members that are overloaded by address space one is kept.
void rewrite_classes(Tokens& tokens, const Structure& structure, bool lenient);

// Attributes are taken off kernels; each host name gets an entry. Yields the table of functions as C++.
std::string rewrite_kernels(Tokens& tokens, const Structure& structure, const Constants& constants);

}  // namespace metalsim::msl

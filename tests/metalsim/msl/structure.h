#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "msl/tokens.h"

// What a source declares: found by reading declarations, not expressions.
namespace metalsim::msl {

struct TemplateHead {
    size_t begin = 0, end = 0;           // from `template` to after `>`; equal: none
    std::vector<std::string> arguments;  // its parameters as arguments of itself
};

struct Routine {       // a definition or declaration
    size_t begin = 0;  // after the template head
    size_t name = 0;
    size_t open = 0, close = 0;  // of its parameters
    size_t body = 0;             // its `{`; 0: a declaration
    size_t end = 0;              // after `}` or `;`
    size_t class_index = SIZE_MAX;
    TemplateHead head;
};

struct Class {
    std::string name;
    size_t key = 0;   // `struct`, `class` or `union`
    size_t body = 0;  // `{`
};

struct Variable {  // at namespace or class scope, with its declaration from begin to after `;`
    size_t begin = 0, end = 0;
    size_t class_index = SIZE_MAX;
    TemplateHead head;
};

struct Instantiation {  // template <declaration>;
    size_t begin = 0, end = 0;
};

struct Structure {
    std::vector<Routine> functions;
    std::vector<Class> classes;
    std::vector<Variable> variables;
    std::vector<Instantiation> instantiations;
    std::unordered_set<std::string_view> class_names;
    // Names of types that may be vectors: aliases and template parameters, anywhere.
    std::unordered_set<std::string_view> type_names;
};

Structure read_structure(const Tokens& tokens);

// Parts of a list between `open` and `close` (exclusive), split at its commas.
struct Range {
    size_t begin = 0, end = 0;
};
std::vector<Range> split_list(const Tokens& tokens, size_t begin, size_t end);

bool is_keyword(std::string_view word) noexcept;
bool is_address_space(std::string_view word) noexcept;

}  // namespace metalsim::msl

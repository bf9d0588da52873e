#include <unordered_map>
#include <unordered_set>

#include "msl/translate.h"

namespace metalsim::msl {

namespace {

// Metal Shading Language Specification, "Metal Restrictions" and "Scalar Data Types".
const std::unordered_map<std::string_view, std::string_view> kForbidden = {
    {"double", "'double' is not supported in Metal"},
    {"goto", "'goto' is not supported in Metal"},
    {"virtual", "virtual functions are not supported in Metal"},
    {"dynamic_cast", "'dynamic_cast' is not supported in Metal"},
    {"typeid", "'typeid' is not supported in Metal"},
    {"throw", "exceptions are not supported in Metal"},
    {"try", "exceptions are not supported in Metal"},
    {"catch", "exceptions are not supported in Metal"},
    {"register", "'register' is not supported in Metal"},
    {"thread_local", "'thread_local' is not supported in Metal"},
    {"new", "'new' is not supported in Metal"},
    {"asm", "inline assembly is not supported in Metal"},
    {"co_await", "coroutines are not supported in Metal"},
    {"co_return", "coroutines are not supported in Metal"},
    {"co_yield", "coroutines are not supported in Metal"},
};

// What came with Metal 3.1.
const std::unordered_set<std::string_view> kBfloat = {
    "bfloat",         "bfloat2",        "bfloat3",        "bfloat4",
    "packed_bfloat2", "packed_bfloat3", "packed_bfloat4", "simdgroup_bfloat8x8"};

class Rules {
  public:
    Rules(const Tokens& tokens, const Structure& structure, uint32_t version)
        : t_(tokens), s_(structure), version_(version) {}

    void run() {
        for (size_t i = 0; i + 1 < t_.size(); ++i) {
            if (t_[i].identifier()) word(i);
            if (t_.is(i, "[")) bracket(i);
        }
        for (const Routine& f : s_.functions) function(f);
        for (const Variable& v : s_.variables) variable(v);
    }

  private:
    void word(size_t i) {
        const auto found = kForbidden.find(t_[i].text);
        if (found != kForbidden.end()) fail(t_, i, found->second);
        if (t_.is(i, "long") && (t_.is(i + 1, "long") || (i > 0 && t_.is(i - 1, "double"))))
            fail(t_, i, "'long long' is not supported in Metal");
        if (t_.is(i, "delete") && !(i > 0 && t_.is(i - 1, "="))) fail(t_, i, "'delete' is not supported in Metal");
        if ((t_.is(i, "vertex") || t_.is(i, "fragment")) && t_[i + 1].identifier() && i > 0 &&
            (t_.is(i - 1, ";") || t_.is(i - 1, "}")))
            fail(t_, i, "only compute kernels are supported here, not graphics functions");
        if (version_ < 310 && kBfloat.contains(t_[i].text))
            fail(t_, i, "'" + std::string(t_[i].text) + "' is not supported before Metal 3.1");
        if (t_.is(i, "main") && t_.is(i + 1, "(")) fail(t_, i, "a Metal function cannot be called 'main'");
    }

    // A bracket at the start of an expression opens a lambda.
    void bracket(size_t i) {
        if (t_.attribute_end(i) || (i > 0 && t_.attribute_end(i - 1))) return;
        if (i == 0) return;
        const Token& before = t_[i - 1];
        const bool subscript = (before.identifier() && !is_keyword(before.text)) || before.is(")") || before.is("]") ||
                               before.is(">") || before.is("}") || before.is("operator") ||
                               before.kind == TokenKind::string;
        const auto close = static_cast<size_t>(t_[i].match);
        if (version_ < 320 && !subscript && (t_.is(close + 1, "(") || t_.is(close + 1, "{")))
            fail(t_, i, "lambda expressions are not supported before Metal 3.2");
    }

    void function(const Routine& f) {
        if (f.body == 0) return;
        for (const Range& p : split_list(t_, f.open + 1, f.close)) pointer(p);
        for (size_t i = f.body; i < f.end; ++i) {
            if (t_.is(i, "static") && !t_.is(i + 1, "_assert")) local_static(i);
            if (statement_start(i)) local_pointer(i);
        }
    }

    // static T x = ...; in a function: only as a constant.
    void local_static(size_t i) {
        bool constant = false;
        for (size_t j = i; !t_.is(j, ";") && !t_.is(j, "=") && !t_.is(j, "{") && !t_.is(j, "("); ++j)
            constant = constant || t_.is(j, "constant") || t_.is(j, "constexpr");
        if (i > 0) constant = constant || t_.is(i - 1, "constant") || t_.is(i - 1, "constexpr");
        if (!constant) fail(t_, i, "static variables must be in the constant address space");
    }

    void variable(const Variable& v) {
        if (v.class_index != SIZE_MAX) {
            bool is_static = false, constant = false;
            for (size_t i = v.begin; i < v.end && !t_.is(i, "="); ++i) {
                is_static = is_static || t_.is(i, "static");
                constant = constant || t_.is(i, "constant") || t_.is(i, "constexpr");
            }
            if (is_static && !constant) fail(t_, v.begin, "static members must be in the constant address space");
            if (!is_static) pointer({v.begin, v.end});
            return;
        }
        if (v.begin + 2 >= v.end) return;
        for (size_t i = v.begin; i < v.end; ++i) {
            if (t_.is(i, "(") || t_.is(i, "["))
                i = static_cast<size_t>(t_[i].match);
            else if (t_.is(i, "constant"))
                return;
            else if (t_.is(i, "typedef") || t_.is(i, "enum") || t_.is(i, "extern"))
                return;
            else if (t_.is(i, "=") || t_.is(i, "{"))
                break;
        }
        if (!v.head.arguments.empty()) return;  // a variable template: its type may bring the address space
        fail(t_, v.begin, "program scope variables must be in the constant address space");
    }

    bool statement_start(size_t i) const {
        const Token& before = t_[i - 1];
        return t_[i].identifier() && (before.is(";") || before.is("{") || before.is("}") || before.is(")")) &&
               !is_keyword(t_[i].text);
    }

    // [const] T [<...>] * name = ...: a pointer that names no address space. Only known types: a * b; is a product.
    void local_pointer(size_t i) {
        size_t j = i;
        if (t_.is(j, "const")) ++j;
        static const std::unordered_set<std::string_view> builtin = {
            "void",     "bool",    "char",     "uchar",  "short",  "ushort",  "int",     "uint",     "long",
            "ulong",    "half",    "bfloat",   "float",  "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t",
            "uint32_t", "int64_t", "uint64_t", "size_t", "float2", "float3",  "float4",  "half2",    "half3",
            "half4",    "uint2",   "uint3",    "uint4",  "int2",   "int3",    "int4"};
        if (!builtin.contains(t_[j].text) && !s_.class_names.contains(t_[j].text)) return;
        ++j;
        if (t_.is(j, "<")) {
            const size_t after = t_.close_angle(j);
            if (after == 0) return;
            j = after;
        }
        if (t_.is(j, "const")) ++j;
        if ((!t_.is(j, "*") && !t_.is(j, "&")) || !t_[j + 1].identifier()) return;
        const Token& next = t_[j + 2];
        if (next.is("=") || next.is(";") || next.is("{"))
            fail(t_, j,
                 std::string(t_.is(j, "*") ? "pointer" : "reference") +
                     " type must have explicit address space qualifier");
    }

    // Of a parameter or member.
    void pointer(const Range& p) {
        size_t star = 0;
        for (size_t i = p.begin; i < p.end && !t_.is(i, "=") && !t_.is(i, ";"); ++i) {
            if (t_[i].identifier() && (is_address_space(t_[i].text) || t_.is(i, "decltype") || t_.is(i, "auto")))
                return;
            if (t_.is(i, "(") || t_.is(i, "[") || t_.is(i, "{"))
                i = static_cast<size_t>(t_[i].match);
            else if (t_.is(i, "<")) {
                const size_t after = t_.close_angle(i);
                if (after != 0 && after <= p.end) i = after - 1;
            }
            if ((t_.is(i, "*") || t_.is(i, "&") || t_.is(i, "&&")) && star == 0) star = i;
        }
        if (star != 0 && t_.is(star, "*")) fail(t_, star, "pointer type must have explicit address space qualifier");
        if (star != 0) fail(t_, star, "reference type must have explicit address space qualifier");
    }

    const Tokens& t_;
    const Structure& s_;
    const uint32_t version_;
};

}  // namespace

void check_rules(const Tokens& tokens, const Structure& structure, uint32_t version) {
    Rules(tokens, structure, version).run();
}

}  // namespace metalsim::msl

#include "backend/kv_types.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/error.h"

namespace metallic {
namespace {

struct NamedType {
    std::string_view name;
    DType dtype;
};
constexpr std::array<NamedType, 5> kNames{
    {{"f16", DType::F16}, {"bf16", DType::BF16}, {"f32", DType::F32}, {"q8_0", DType::Q8_0}, {"q4_0", DType::Q4_0}}};

constexpr size_t kLongest = 200;  // of a text; the longest that makes sense has a quarter of that

std::string name_of(DType dtype) {
    for (const NamedType& type : kNames) {
        if (type.dtype == dtype) return std::string(type.name);
    }
    return std::string(dtype_info(dtype).name);
}

// Text from outside, for a message: printable and short.
std::string quoted(std::string_view text) {
    std::string shown = "\"";
    for (const char c : text.substr(0, 40)) shown += c >= ' ' && c <= '~' ? c : '?';
    return shown + (text.size() > 40 ? "...\"" : "\"");
}

[[noreturn]] void refuse(const std::string& what) {
    throw RequestError(what +
                       "; kv_type is f16, bf16, f32, q8_0 or q4_0, or rules [full:|window:][k=|v=]TYPE with commas "
                       "between them, such as k=q8_0,v=q4_0 or f16,window:q8_0");
}

// Which of full keys, full values, window keys and window values a rule is for, as bits.
struct Rule {
    std::string_view text;
    uint32_t slots = 15;
    DType dtype = DType::F16;
};

bool take(std::string_view& text, std::string_view prefix) {
    if (!text.starts_with(prefix)) return false;
    text.remove_prefix(prefix.size());
    return true;
}

Rule parse_rule(std::string_view text) {
    Rule rule;
    rule.text = text;
    std::string_view rest = text;
    if (take(rest, "full:")) {
        rule.slots = 3;
    } else if (take(rest, "window:")) {
        rule.slots = 12;
    }
    if (take(rest, "k=")) {
        rule.slots &= 5;
    } else if (take(rest, "v=")) {
        rule.slots &= 10;
    }
    const auto* const found = std::find_if(kNames.begin(), kNames.end(), [&](const auto& t) { return t.name == rest; });
    if (found == kNames.end()) refuse(quoted(text) + " is no type of keys and values");
    rule.dtype = found->dtype;
    return rule;
}

}  // namespace

KvTypes KvTypes::parse(std::string_view text) {
    if (text.size() > kLongest) refuse("a kv_type of " + std::to_string(text.size()) + " characters");
    std::string lower(text);
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    std::vector<Rule> rules;
    for (std::string_view rest = lower;;) {
        const size_t comma = rest.find(',');
        rules.push_back(parse_rule(rest.substr(0, comma)));
        if (comma == std::string_view::npos) break;
        rest.remove_prefix(comma + 1);
    }
    std::array<DType, 4> types{DType::F16, DType::F16, DType::F16, DType::F16};
    uint32_t decided = 0;
    for (auto rule = rules.rbegin(); rule != rules.rend(); ++rule) {
        if ((rule->slots & ~decided) == 0) refuse("the rule " + quoted(rule->text) + " has no effect");
        for (uint32_t i = 0; i < types.size(); ++i) {
            if ((rule->slots & ~decided) >> i & 1) types[i] = rule->dtype;
        }
        decided |= rule->slots;
    }
    KvTypes result;
    result.full = {types[0], types[1]};
    result.window = {types[2], types[3]};
    return result;
}

std::string KvTypes::text() const {
    const auto pair = [](const KvPair& types, const std::string& group) {
        if (types.keys == types.values) return group + name_of(types.keys);
        return group + "k=" + name_of(types.keys) + "," + group + "v=" + name_of(types.values);
    };
    return full == window ? pair(full, "") : pair(full, "full:") + "," + pair(window, "window:");
}

}  // namespace metallic

#include <algorithm>
#include <cctype>
#include <charconv>

#include "core/error.h"
#include "runtime/placement.h"

namespace metallic {
namespace {

constexpr size_t kLongestText = 1 << 16;
constexpr std::string_view kPlaces[kWeightPlaces] = {"mapped", "private", "shared", "cpu"};
constexpr std::string_view kBlocks = "blk.";
constexpr std::string_view kEndings[] = {".weight", ".bias"};

std::string_view trimmed(std::string_view text) {
    const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
    while (!text.empty() && blank(text.front())) text.remove_prefix(1);
    while (!text.empty() && blank(text.back())) text.remove_suffix(1);
    return text;
}

// A user's text in a message: short, and without what terminals would obey.
std::string quoted(std::string_view text) {
    constexpr size_t kShown = 60;
    std::string shown;
    for (const char c : text.substr(0, kShown)) shown += c >= ' ' && c <= '~' ? c : '?';
    return "'" + shown + (text.size() > kShown ? "…'" : "'");
}

[[noreturn]] void refuse(std::string_view rule, const std::string& what) {
    throw RequestError("placement rule " + quoted(rule) + ": " + what +
                       "; write PLACE or PATTERN=PLACE, separated by commas, where PLACE is mapped, private, shared or "
                       "cpu, and PATTERN is blk.RANGE (0-15, 3, 20-, -7 or *), blk.RANGE.GLOB or a GLOB over tensor "
                       "names; or auto, alone or as the first rule");
}

std::string lower_case(std::string_view text) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return lower;
}

std::optional<WeightPlace> find_place(std::string_view text) {
    const auto* const found = std::find(std::begin(kPlaces), std::end(kPlaces), lower_case(text));
    if (found == std::end(kPlaces)) return std::nullopt;
    return static_cast<WeightPlace>(found - std::begin(kPlaces));
}

std::optional<uint32_t> find_number(std::string_view text) {
    uint32_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || text.empty() || number == kNoBlock) {
        return std::nullopt;
    }
    return number;
}

// Whether `*` (any characters) and `?` (one) make the pattern equal to the text. In time proportional to the product of
// their lengths: after a mismatch only the last `*` takes one character more.
bool glob_matches(std::string_view pattern, std::string_view text) {
    size_t p = 0, t = 0, star = std::string_view::npos, star_text = 0;
    while (t < text.size()) {
        if (p < pattern.size() && pattern[p] == '*') {
            star = p++;
            star_text = t;
        } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
            ++p, ++t;
        } else if (star != std::string_view::npos) {
            p = star + 1;
            t = ++star_text;
        } else {
            return false;
        }
    }
    while (p < pattern.size() && pattern[p] == '*') ++p;
    return p == pattern.size();
}

bool name_matches(std::string_view glob, std::string_view name) {
    if (glob_matches(glob, name)) return true;
    return std::any_of(std::begin(kEndings), std::end(kEndings), [&](std::string_view ending) {
        return name.ends_with(ending) && glob_matches(glob, name.substr(0, name.size() - ending.size()));
    });
}

}  // namespace

std::string_view place_name(WeightPlace place) noexcept {
    return kPlaces[static_cast<size_t>(place)];
}

bool PlacementRules::Rule::matches(const Weight& weight) const {
    if (!of_blocks) return name_matches(glob, weight.name);
    if (weight.block == kNoBlock || weight.block < first || weight.block > last) return false;
    if (glob.empty()) return true;
    // GGUF puts the block before the tensor's own name.
    std::string_view name = weight.name;
    const std::string prefix = std::string(kBlocks) + std::to_string(weight.block) + ".";
    if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
    return name_matches(glob, name);
}

void PlacementRules::parse_blocks(std::string_view pattern, Rule& rule) {
    const std::string_view rest = pattern.substr(kBlocks.size());
    const size_t dot = rest.find('.');
    const std::string_view range = rest.substr(0, dot);
    rule.of_blocks = true;
    rule.first = 0;
    rule.last = kNoBlock - 1;
    if (dot != std::string_view::npos) {
        rule.glob = rest.substr(dot + 1);
        if (rule.glob.empty()) refuse(rule.text, "nothing follows the block");
    }
    if (range == "*") return;
    const size_t dash = range.find('-');
    const std::string_view low = range.substr(0, dash);
    const std::string_view high = dash == std::string_view::npos ? low : range.substr(dash + 1);
    const auto first = find_number(low), last = find_number(high);
    const bool open = dash != std::string_view::npos && (first || last);
    if ((!first && !(open && low.empty())) || (!last && !(open && high.empty()))) {
        refuse(rule.text, quoted(range) + " is no range of blocks");
    }
    if (first) rule.first = *first;
    if (last) rule.last = *last;
    if (rule.first > rule.last) refuse(rule.text, quoted(range) + " is a range that ends before it begins");
}

PlacementRules::Rule PlacementRules::parse_rule(std::string_view text) {
    Rule rule;
    rule.text = text;
    const size_t equals = text.rfind('=');
    const std::string_view place = equals == std::string_view::npos ? text : trimmed(text.substr(equals + 1));
    const auto known = find_place(place);
    if (!known) refuse(text, place.empty() ? "no place is given" : "there is no place " + quoted(place));
    rule.place = *known;
    const std::string_view pattern = equals == std::string_view::npos ? "*" : trimmed(text.substr(0, equals));
    if (pattern.empty()) refuse(text, "the pattern is empty");
    if (pattern.find_first_of("= \t\r\n") != std::string_view::npos || pattern.find('\0') != std::string_view::npos) {
        refuse(text, "there is no pattern " + quoted(pattern));
    }
    if (pattern.starts_with(kBlocks)) {
        parse_blocks(pattern, rule);
    } else {
        rule.glob = pattern;
    }
    return rule;
}

PlacementRules PlacementRules::parse(std::string_view text) {
    PlacementRules result;
    if (text.size() > kLongestText) {
        throw RequestError("the placement of weights is " + std::to_string(text.size()) + " bytes long; at most " +
                           std::to_string(kLongestText) + " are read");
    }
    for (size_t at = 0, index = 0; at <= text.size(); ++index) {
        const size_t comma = std::min(text.find(',', at), text.size());
        const std::string_view rule = trimmed(text.substr(at, comma - at));
        at = comma + 1;
        if (rule.empty()) refuse(text, "a rule is empty");
        if (index == 0 && lower_case(rule) == "auto") {
            result.automatic_ = true;
        } else {
            result.rules_.push_back(parse_rule(rule));
        }
    }
    return result;
}

void PlacementRules::apply(const Program& program, std::vector<WeightPlace>& places) const {
    for (size_t id = 0; id < program.weights.size(); ++id) {
        const auto last = std::find_if(rules_.rbegin(), rules_.rend(),
                                       [&](const Rule& rule) { return rule.matches(program.weights[id]); });
        if (last != rules_.rend()) places[id] = last->place;
    }
}

std::vector<std::string> PlacementRules::unmatched(const Program& program) const {
    std::vector<std::string> result;
    for (const Rule& rule : rules_) {
        const auto matches = [&](const Weight& weight) { return rule.matches(weight); };
        if (std::none_of(program.weights.begin(), program.weights.end(), matches)) result.push_back(rule.text);
    }
    return result;
}

}  // namespace metallic

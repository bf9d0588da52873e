#pragma once

#include <string>
#include <string_view>

#include "backend/kv_layout.h"

namespace metallic {

// In which types a model keeps keys and values: those of cache groups that keep all tokens, and those of windows.
struct KvTypes {
    KvTypes(KvPair all = {}) noexcept : full(all), window(all) {}  // NOLINT(*-explicit-*)
    friend bool operator==(const KvTypes&, const KvTypes&) = default;

    KvPair of(const CacheGroup& group) const noexcept { return group.window == 0 ? full : window; }

    // From text: rules, separated by commas, of the form [group:][side=]type. The group is `full` or `window`, the side
    // `k` or `v`; without them a rule is for all. Rules count from left to right, and what no rule names is f16:
    //     q8_0      k=q8_0,v=q4_0      f16,window:q8_0      window:q8_0,full:k=q8_0,full:v=q4_0
    // Names are taken in any case. Throws RequestError for anything else, and for a rule that later ones leave without
    // effect.
    static KvTypes parse(std::string_view text);
    // The shortest text that parse() makes the same types from.
    std::string text() const;

    KvPair full;
    KvPair window;
};

}  // namespace metallic

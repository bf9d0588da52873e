#include "sampling/history.h"

#include <algorithm>

namespace metallic {
namespace {

constexpr size_t kInitialEntries = 256;

bool is_live(const TokenCounts::Entry& entry) noexcept {
    return entry.token >= 0 && (entry.recent != 0 || entry.generated != 0);
}

}  // namespace

TokenCounts::TokenCounts() : entries_(kInitialEntries) {}

void TokenCounts::clear() noexcept {
    std::fill(entries_.begin(), entries_.end(), Entry{});
    used_ = 0;
}

size_t TokenCounts::slot_of(int32_t token) const noexcept {
    const size_t mask = entries_.size() - 1;
    size_t slot = (static_cast<uint32_t>(token) * 2654435769u >> 7) & mask;  // Fibonacci hashing (Knuth)
    while (entries_[slot].token >= 0 && entries_[slot].token != token) slot = (slot + 1) & mask;
    return slot;
}

TokenCounts::Entry& TokenCounts::at(int32_t token) {
    size_t slot = slot_of(token);
    if (entries_[slot].token < 0) {
        if (2 * (used_ + 1) > entries_.size()) {
            make_room();
            slot = slot_of(token);
        }
        entries_[slot].token = token;
        ++used_;
    }
    return entries_[slot];
}

// Drops entries that have become zero, and doubles the table when that is not enough.
void TokenCounts::make_room() {
    const std::vector<Entry> old = entries_;
    const size_t live = static_cast<size_t>(std::count_if(old.begin(), old.end(), is_live));
    const size_t size = 4 * (live + 1) > old.size() ? 2 * old.size() : old.size();
    entries_.assign(size, Entry{});
    used_ = live;
    for (const Entry& entry : old) {
        if (is_live(entry)) entries_[slot_of(entry.token)] = entry;
    }
}

void History::clear() noexcept {
    tokens_.clear();
    counts_.clear();
}

void History::add(int32_t token, bool generated) {
    tokens_.push_back(token);
    if (count_recent_) {
        ++counts_.at(token).recent;
        const size_t window = static_cast<size_t>(window_);
        if (window_ > 0 && tokens_.size() > window) --counts_.at(tokens_[tokens_.size() - 1 - window]).recent;
    }
    if (count_generated_ && generated) ++counts_.at(token).generated;
}

}  // namespace metallic

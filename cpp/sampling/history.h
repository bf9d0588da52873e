#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace metallic {

// How often each of a few tokens occurs: a small open-addressed table, so that a sequence does not hold one counter per
// token of the vocabulary.
class TokenCounts {
  public:
    struct Entry {
        int32_t token = -1;      // -1: free
        uint32_t recent = 0;     // occurrences within the repetition penalty's window
        uint32_t generated = 0;  // occurrences among generated tokens
    };

    TokenCounts();
    // The reference is good until the next call of `at`.
    Entry& at(int32_t token);
    // Includes free entries and entries whose counts have fallen to zero.
    std::span<const Entry> entries() const noexcept { return entries_; }
    void clear() noexcept;

  private:
    size_t slot_of(int32_t token) const noexcept;
    void make_room();

    std::vector<Entry> entries_;
    size_t used_ = 0;
};

// The tokens of one sequence, prompt and generated, with the counts that the penalties need.
class History {
  public:
    // `window`: tokens that count as recent, -1 for all.
    History(int32_t window, bool count_recent, bool count_generated) noexcept
        : window_(window), count_recent_(count_recent && window != 0), count_generated_(count_generated) {}

    void add_prompt(int32_t token) { add(token, false); }
    void add_generated(int32_t token) { add(token, true); }
    void clear() noexcept;

    std::span<const int32_t> tokens() const noexcept { return tokens_; }
    const TokenCounts& counts() const noexcept { return counts_; }

  private:
    void add(int32_t token, bool generated);

    std::vector<int32_t> tokens_;
    TokenCounts counts_;
    int32_t window_;
    bool count_recent_;
    bool count_generated_;
};

}  // namespace metallic

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"

namespace metallic::metal {

// GPU addresses that a submission uses until it has completed, and for what.
struct Loan {
    uint64_t begin = 0, end = 0;
    std::string scope;
};

// What the submissions in flight borrow: memory that is freed or handed out again before they complete is found here.
// Kept in debug builds, or where METALLIC_LEDGER is 1; otherwise empty. Thread-safe.
class Ledger {
  public:
    Ledger();

    bool kept() const noexcept { return kept_; }
    void lend(Ticket ticket, std::vector<Loan> loans);
    // Returns what was said against the submission while it was in flight; empty if nothing was.
    std::string settle(Ticket ticket);

    // Throws DeviceError, naming both scopes, when a submission in flight uses some of the addresses.
    void check(uint64_t begin, uint64_t end, std::string_view owner) const;
    // The same for those who cannot throw: the submission fails when it is waited for.
    void accuse(uint64_t begin, uint64_t end, std::string_view owner) noexcept;

  private:
    struct Entry {
        std::vector<Loan> loans;
        std::string fault;
    };
    const Loan* find(uint64_t begin, uint64_t end, Ticket* ticket) const;

    const bool kept_;
    mutable std::mutex mutex_;
    std::map<Ticket, Entry> entries_;
};

}  // namespace metallic::metal

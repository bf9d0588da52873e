#include "backend/metal/ledger.h"

#include <cstdlib>

#include "core/error.h"

namespace metallic::metal {
namespace {

#if !defined(__OPTIMIZE__) || __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kDebugBuild = true;
#else
constexpr bool kDebugBuild = false;
#endif

bool wanted() {
    const char* const set = std::getenv("METALLIC_LEDGER");
    return set ? std::string_view(set) == "1" : kDebugBuild;
}

std::string sentence(std::string_view owner, const Loan& loan, Ticket ticket) {
    return std::string(owner) + " takes memory that " + loan.scope + " still uses: submission " +
           std::to_string(ticket) + " is in flight";
}

}  // namespace

Ledger::Ledger() : kept_(wanted()) {}

void Ledger::lend(Ticket ticket, std::vector<Loan> loans) {
    const std::lock_guard lock(mutex_);
    entries_[ticket].loans = std::move(loans);
}

std::string Ledger::settle(Ticket ticket) {
    const std::lock_guard lock(mutex_);
    const auto entry = entries_.find(ticket);
    if (entry == entries_.end()) return {};
    std::string fault = std::move(entry->second.fault);
    entries_.erase(entry);
    return fault;
}

const Loan* Ledger::find(uint64_t begin, uint64_t end, Ticket* ticket) const {
    for (const auto& [number, entry] : entries_) {
        for (const Loan& loan : entry.loans) {
            if (loan.begin >= end || begin >= loan.end) continue;
            *ticket = number;
            return &loan;
        }
    }
    return nullptr;
}

void Ledger::check(uint64_t begin, uint64_t end, std::string_view owner) const {
    if (!kept_) return;
    const std::lock_guard lock(mutex_);
    Ticket ticket = 0;
    if (const Loan* loan = find(begin, end, &ticket)) {
        throw DeviceError(sentence(owner, *loan, ticket), loan->scope, "in flight");
    }
}

void Ledger::accuse(uint64_t begin, uint64_t end, std::string_view owner) noexcept {
    if (!kept_) return;
    const std::lock_guard lock(mutex_);
    Ticket ticket = 0;
    try {
        if (const Loan* loan = find(begin, end, &ticket)) {
            entries_[ticket].fault = sentence(owner, *loan, ticket) + "; it was freed";
        }
    } catch (const std::bad_alloc&) {  // the accusation is lost, nothing else
    }
}

}  // namespace metallic::metal

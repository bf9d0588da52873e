#include "backend/metal/tickets.h"

#include <algorithm>

#include "core/error.h"

namespace metallic::metal {

Tickets::Holder Tickets::find(Ticket ticket) {
    const std::lock_guard lock(mutex_);
    if (ticket == 0 || ticket > last_) throw Error("wait: an unknown ticket");
    for (const Open& open : open_) {
        if (open.ticket == ticket) return open.holder;
    }
    const auto failed =
        std::find_if(failed_.begin(), failed_.end(), [&](const Failed& one) { return one.ticket == ticket; });
    if (failed == failed_.end()) return {};
    const std::exception_ptr failure = failed->failure;
    failed_.erase(failed);
    std::rethrow_exception(failure);
}

void Tickets::close(Ticket ticket, std::exception_ptr failure) {
    const std::lock_guard lock(mutex_);
    std::erase_if(open_, [&](const Open& open) { return open.ticket == ticket; });
    if (!failure) return;
    if (failed_.size() == kMostFailures) failed_.erase(failed_.begin());
    failed_.push_back({ticket, std::move(failure)});
}

}  // namespace metallic::metal

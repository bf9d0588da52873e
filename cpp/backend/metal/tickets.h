#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "backend/backend.h"

namespace metallic::metal {

class MetalPlan;

// Which plan serves a ticket, and what became of those that ended before anybody waited for them. Thread-safe.
class Tickets {
  public:
    struct Holder {
        MetalPlan* plan = nullptr;  // null: it has ended
        uint32_t slot = 0;
    };

    Tickets() { open_.reserve(kMostFailures); }

    Ticket issue(const Holder& holder) {
        const std::lock_guard lock(mutex_);
        open_.push_back({++last_, holder});
        return last_;
    }
    // Throws Error for a ticket that was never issued, or what the submission failed with.
    Holder find(Ticket ticket);
    // `failure` is kept for who waits for the ticket, if it is not thrown now.
    void close(Ticket ticket, std::exception_ptr failure);

  private:
    static constexpr size_t kMostFailures = 64;  // of tickets that nobody waits for; the oldest are forgotten
    struct Open {
        Ticket ticket;
        Holder holder;
    };
    struct Failed {
        Ticket ticket;
        std::exception_ptr failure;
    };
    std::mutex mutex_;
    Ticket last_ = 0;
    std::vector<Open> open_;
    std::vector<Failed> failed_;
};

}  // namespace metallic::metal

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "executor/executor.h"
#include "metalsim/control.h"

// What the whole process shares: mode, model, faults, counters, reports, the executor.
namespace metalsim {

DeviceModel device_model();
uint64_t device_generation();  // changes with set_device
double seconds_now();          // of the clock that all timestamps come from
uint64_t nanoseconds_now();

// Runs everything on the device; made when first asked for.
Executor& executor();

// True, with the fault, if the call that is being made is one to fail.
std::optional<Fault> take_fault(FaultKind kind);

// A report that no command buffer is to blame for.
void report_misuse(const std::string& detail);
void add_report(Report report);

struct Counters {
    std::atomic<uint64_t> command_buffers{0}, encoders{0}, dispatches{0}, barriers{0}, blits{0};
    std::atomic<uint64_t> buffers_alive{0}, heaps_alive{0}, bytes_allocated{0}, peak_bytes{0};
    std::atomic<uint64_t> libraries_compiled{0}, pipelines{0}, archive_hits{0};
    std::atomic<uint64_t> objects_alive{0}, retains{0}, signposts{0};
};
Counters& counters() noexcept;

inline void count(std::atomic<uint64_t>& counter) noexcept {
    counter.fetch_add(1, std::memory_order_relaxed);
}
inline void count_retain() noexcept {
    count(counters().retains);
}

// A base of the states of Metal objects.
struct Counted {
    Counted() { count(counters().objects_alive); }
    Counted(const Counted&) : Counted() {}
    Counted& operator=(const Counted&) = default;
    ~Counted() { counters().objects_alive.fetch_sub(1, std::memory_order_relaxed); }
};

}  // namespace metalsim

#pragma once

#include <os/signpost.h>

#include <cstdint>

// Intervals for Instruments, by ticket; they cost next to nothing while nobody looks.
namespace metallic::metal {

inline os_log_t signpost_log() {
    static const os_log_t log = os_log_create("metallic-native", "submissions");
    return log;
}

inline void signpost_begin(uint64_t ticket, uint32_t rows, uint32_t outputs) {
    os_signpost_interval_begin(signpost_log(), ticket, "submission", "%u rows, %u outputs", rows, outputs);
}

inline void signpost_end(uint64_t ticket) {
    os_signpost_interval_end(signpost_log(), ticket, "submission");
}

}  // namespace metallic::metal

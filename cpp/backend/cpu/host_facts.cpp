#include "backend/cpu/host_facts.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <thread>

namespace metallic::cpu {
namespace {

// The number in a control file; the greatest where there is none, or where it says "max".
uint64_t control_number(const char* path) {
    std::ifstream file(path);
    uint64_t value = 0;
    return file >> value ? value : std::numeric_limits<uint64_t>::max();
}

// Cores that the control group's quota allows, rounded up; 0: no limit. Linux cgroup v2, then v1.
uint32_t quota_cores() {
    double quota = 0, period = 0;
    std::ifstream v2("/sys/fs/cgroup/cpu.max");
    if (!(v2 >> quota >> period)) {
        quota = period = 0;
        std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> quota;
        std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
    }
    if (!(quota > 0) || !(period > 0)) return 0;
    return static_cast<uint32_t>(std::clamp((quota + period - 1) / period, 1.0, 65536.0));
}

uint32_t scheduled_cores() noexcept {
#if defined(CPU_COUNT)  // an extension of sched.h
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return static_cast<uint32_t>(CPU_COUNT(&set));
    }
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

uint32_t usable_cores() noexcept {
    try {
        const uint32_t quota = quota_cores();
        return quota ? std::min(quota, scheduled_cores()) : scheduled_cores();
    } catch (...) {
        return scheduled_cores();
    }
}

uint64_t memory_bytes() noexcept {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    uint64_t bytes = pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page)
                                           : std::numeric_limits<uint64_t>::max();
    try {
        bytes = std::min(bytes, control_number("/sys/fs/cgroup/memory.max"));
        bytes = std::min(bytes, control_number("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
    } catch (...) {
        return bytes;
    }
    return bytes;
}

std::string processor_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(':');
        if (line.starts_with("model name") && colon != std::string::npos && colon + 2 < line.size()) {
            return line.substr(colon + 2);
        }
    }
    return "CPU";
}

}  // namespace metallic::cpu

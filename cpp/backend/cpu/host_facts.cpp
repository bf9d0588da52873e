#include "backend/cpu/host_facts.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace metallic::cpu {
namespace {

#if defined(__APPLE__)
uint64_t sysctl_number(const char* name) noexcept {
    uint64_t value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
#endif

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
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return static_cast<uint32_t>(CPU_COUNT(&set));
    }
#elif defined(__APPLE__)
    if (const uint64_t performance = sysctl_number("hw.perflevel0.logicalcpu")) {
        return static_cast<uint32_t>(performance);
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
#if defined(__APPLE__)
    return sysctl_number("hw.memsize");
#else
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
#endif
}

std::string processor_name() {
#if defined(__APPLE__)
    char name[256] = {};
    size_t size = sizeof(name) - 1;
    if (sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) == 0 && name[0]) return name;
#else
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(':');
        if (line.starts_with("model name") && colon != std::string::npos && colon + 2 < line.size()) {
            return line.substr(colon + 2);
        }
    }
#endif
    return "CPU";
}

}  // namespace metallic::cpu

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "executor/executor.h"

// Kernels written in C++ against the ABI of compiled ones, for tests of the executor alone.
namespace metalsim::test {

inline void sum_lanes(const void* const* inputs, void* const* outputs, uint32_t active, const void*) {
    float sum = 0;
    for (uint32_t i = 0; i < 32; ++i) {
        if (active >> i & 1) sum += *static_cast<const float*>(inputs[i]);
    }
    for (uint32_t i = 0; i < 32; ++i) {
        if (active >> i & 1) *static_cast<float*>(outputs[i]) = sum;
    }
}

[[gnu::always_inline]] inline float simd_sum(float value) {
    float out;
    metalsim_simdgroup_collective(&sum_lanes, &value, &out, nullptr);
    return out;
}

[[gnu::always_inline]] inline float quad_sum(float value) {
    float out;
    metalsim_quadgroup_collective(&sum_lanes, &value, &out, nullptr);
    return out;
}

inline void active_lanes(const void* const*, void* const* outputs, uint32_t active, const void*) {
    for (uint32_t i = 0; i < 32; ++i) {
        if (active >> i & 1) *static_cast<uint32_t*>(outputs[i]) = active;
    }
}

[[gnu::always_inline]] inline uint32_t active_mask() {
    uint32_t out;
    metalsim_simdgroup_collective(&active_lanes, nullptr, &out, nullptr);
    return out;
}

// For kernels whose calls must stay where they are written: a C++ compiler that knows nothing of lanes may merge the
// calls of two branches into one, or make two of one. The compiler of shaders is told not to.
#if defined(__clang__)
#define METALSIM_AS_WRITTEN [[clang::optnone]]
#else
#define METALSIM_AS_WRITTEN [[gnu::optimize("O0")]]
#endif

// Loads and stores as an instrumented library makes them.
template <class T>
constexpr int size_index() {
    return sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : sizeof(T) == 8 ? 3 : 4;
}
template <class T>
[[gnu::always_inline]] inline T get(const T* at) {
    services().load[size_index<T>()](at);
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(at), sizeof value);  // at any alignment
    return value;
}
template <class T>
[[gnu::always_inline]] inline void put(T* at, T value) {
    services().store[size_index<T>()](at);
    std::memcpy(reinterpret_cast<char*>(at), &value, sizeof value);
}
inline void add_atomically(uint32_t* at, uint32_t value) {
    metalsim_check_atomic(at, sizeof *at);
    __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
template <class T>
T* argument(const MetalsimArguments* arguments, uint32_t index) {
    return static_cast<T*>(arguments->buffers[index]);
}

// A launch with its arguments.
class Dispatch {
  public:
    explicit Dispatch(MetalsimKernel kernel, std::string name = "kernel") {
        function_.name = std::move(name);
        function_.entry = kernel;
    }
    Dispatch& buffer(uint32_t index, void* at, uint64_t bytes) {
        arguments_.buffers[index] = at;
        arguments_.buffer_bytes[index] = bytes;
        return *this;
    }
    template <class T>
    Dispatch& buffer(uint32_t index, std::vector<T>& values) {
        return buffer(index, values.data(), values.size() * sizeof(T));
    }
    Dispatch& threadgroup(uint32_t index, uint32_t bytes) {
        arguments_.threadgroup_bytes[index] = bytes;
        return *this;
    }
    Dispatch& groups(Size3 groups, Size3 threads) {
        launch_.threadgroups = groups;
        launch_.threads_per_threadgroup = threads;
        launch_.threads = {0, 0, 0};
        return *this;
    }
    Dispatch& threads(Size3 threads, Size3 per_group) {
        launch_.threads = threads;
        launch_.threads_per_threadgroup = per_group;
        return *this;
    }
    Dispatch& scope(std::string_view scope) {
        launch_.scope = scope;
        return *this;
    }
    Dispatch& resident(const std::vector<Memory::Id>& ids) {
        launch_.resident = &ids;
        return *this;
    }
    bool run(Executor& executor) {
        launch_.function = &function_;
        launch_.arguments = &arguments_;
        return executor.run(launch_);
    }
    msl::Function& function() { return function_; }
    MetalsimArguments& arguments() { return arguments_; }

  private:
    msl::Function function_;
    MetalsimArguments arguments_{};
    Launch launch_;
};

inline std::string texts(const std::vector<Report>& reports) {
    std::string out;
    for (const Report& report : reports) out += report.text() + "\n";
    return out;
}

}  // namespace metalsim::test

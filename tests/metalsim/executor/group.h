#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>

#include "executor/executor.h"
#include "executor/fiber.h"

// One threadgroup on one worker: which of its threads can go on, and what the others wait for.
namespace metalsim {

class LaunchRun;
class Checker;
class Group;

constexpr uint32_t kLanes = kMetalsimSimdWidth;
constexpr uint32_t kSimdgroups = 32;
constexpr uint32_t kThreads = kLanes * kSimdgroups;

// metal::mem_flags, Metal Shading Language Specification, "Threadgroup and SIMD-group synchronization functions".
enum MemFlags : uint32_t { kMemNone = 0, kMemDevice = 1, kMemThreadgroup = 2 };

// Where a lane waits. Two lanes meet if all of it is equal.
struct Stop {
    const void* site = nullptr;  // the call
    MetalsimCombine combine = nullptr;
    const void* context = nullptr;
    bool operator==(const Stop&) const = default;
};

struct alignas(64) Simdgroup {
    uint32_t index = 0;  // in the threadgroup
    uint32_t all = 0;    // lanes that exist
    uint32_t live = 0;   // that have not ended
    uint32_t ready = 0;  // that can go on
    uint32_t fresh = 0;  // of the ready ones: not started
    uint32_t at_collective = 0, at_quad = 0, at_simd_barrier = 0, at_group_barrier = 0;
    bool mixed = false;  // not all lanes that wait in this simdgroup wait at `first`
    uint32_t fence = 0;  // mem_flags that all lanes at the simdgroup barrier named
    Stop first;
    std::array<const void*, kLanes> inputs{};
    std::array<void*, kLanes> outputs{};
    std::array<Stop, kLanes> stops{};
    std::array<Fiber*, kLanes> fibers{};
};

// Threadgroup memory: the arguments, then variables in the order in which they were first met.
class Arena {
  public:
    // Between allocations, so that running over the end of one is no access to the next. Not counted in the limit.
    static constexpr uint32_t kGap = 64;
    static constexpr uint32_t kVariables = 64;
    static constexpr uint32_t kBytes =
        kMetalsimThreadgroupBytes + (kVariables + kMetalsimThreadgroupArguments) * kGap * 2;

    Arena();
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // False if the arguments alone are over the limit.
    bool begin(const MetalsimArguments& arguments);
    void* find(const void* site) noexcept {
        for (uint32_t i = 0; i < count_; ++i) {
            if (variables_[i].site == site) return base_ + variables_[i].offset;
        }
        return nullptr;
    }
    // Null when over the limit.
    void* add(const void* site, uint32_t bytes, uint32_t alignment);
    void* const* arguments() const noexcept { return arguments_.data(); }
    unsigned char* base() const noexcept { return base_; }
    uint32_t used() const noexcept { return used_; }  // counted as Metal does
    struct Variable {
        const void* site = nullptr;
        uint32_t offset = 0, bytes = 0;
    };
    // The one that the offset lies in, or else the nearest before or after it; null if there is none.
    const Variable* near(uint32_t offset) const noexcept;

  private:
    unsigned char* base_ = nullptr;
    size_t mapped_ = 0;
    uint32_t count_ = 0, used_ = 0, extent_ = 0;
    std::array<Variable, kVariables + kMetalsimThreadgroupArguments> variables_{};
    std::array<void*, kMetalsimThreadgroupArguments> arguments_{};
};

// Why a threadgroup was given up.
enum class Stopped : uint8_t { no, reported, no_stack, stack_overflow, bad_address, misaligned };

class Group {
  public:
    Group();
    ~Group();

    // Of one launch, until end(): what all its threadgroups have in common. False: reported, do not run.
    bool begin(LaunchRun& launch);
    void end();
    // Runs threadgroup `index` of the launch. False: a problem that ends the launch, reported.
    bool run(uint64_t index);

    // ---- called by kernels, on their fibers ----
    [[gnu::always_inline]] inline void collective(const Stop& stop, const void* input, void* output);
    void quad_collective(const Stop& stop, const void* input, void* output);
    void simd_barrier(const void* site, uint32_t flags);
    void group_barrier(const void* site, uint32_t flags);
    void* storage(const void* site, uint32_t bytes, uint32_t alignment);
    // Gives the threadgroup up. Does not return.
    [[noreturn]] void abandon(Stopped why);

    // ---- state, read by the checks and reports ----
    Simdgroup* simdgroup = nullptr;  // of the running thread
    uint32_t lane = 0;
    Fiber* fiber = nullptr;
    Checker* checker = nullptr;  // of this worker
    bool combining = false;      // a combine runs: on one lane's stack, with the values of all
    bool running = false;        // a kernel runs, not the executor's own code
    const void* bad_address = nullptr;
    LaunchRun* launch = nullptr;
    uint64_t index = 0;    // of the threadgroup
    uint32_t threads = 0;  // in it
    Arena arena;
    FiberStacks stacks;

    uint32_t thread_index() const noexcept { return simdgroup->index * kLanes + lane; }
    bool is_table(const void* address) const noexcept {
        return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(simdgroups_.get()) <
               kSimdgroups * sizeof(Simdgroup);
    }
    MetalsimUint3 position(uint32_t thread) const noexcept;  // in the grid
    void fiber_main();

  private:
    void begin_threads();
    void set_shape(const MetalsimUint3& size);
    void start_thread();
    void end_thread();
    // Makes the next thread that can go on the current one; false if there is none: all have ended.
    bool next();
    void pick(Simdgroup& group);
    [[gnu::always_inline]] inline Fiber* current_fiber();
    [[gnu::always_inline]] inline void suspend();
    void suspend_slowly();
    bool resolve(Simdgroup& group);
    void combine(Simdgroup& group, uint32_t active);
    void combine_some(Simdgroup& group, uint32_t active);
    void combine_quad(Simdgroup& group, uint32_t quad, uint32_t active);
    void pass_simd_barrier(Simdgroup& group, uint32_t active);
    bool release_barrier();

    std::unique_ptr<Simdgroup[]> simdgroups_;
    uint32_t simdgroup_count_ = 0;
    uint32_t ready_groups_ = 0;
    uint32_t live_ = 0;  // threads
    Fiber host_;         // the worker's own stack
    Fiber discarded_;
    Stopped stopped_ = Stopped::no;

    const void* barrier_site_ = nullptr;
    bool barrier_mixed_ = false;
    uint32_t barrier_fence_ = 0;
    uint32_t at_barrier_ = 0;

    uint64_t shape_ = 0;  // counts the distinct contents of template_, those of the threadgroup's position apart
    MetalsimUint3 shape_size_{};
    MetalsimThread template_{};
    std::array<MetalsimUint3, kThreads> positions_{};
};

// The threadgroup whose thread this is; null outside of kernels.
[[gnu::tls_model("initial-exec")]] inline constinit thread_local Group* current_group = nullptr;

inline uint32_t first_lane(uint32_t mask) noexcept {
    return static_cast<uint32_t>(std::countr_zero(mask));
}

// The next set bit after `lane`, around.
inline uint32_t lane_after(uint32_t mask, uint32_t lane) noexcept {
    const uint32_t later = mask & (~1u << lane);
    return first_lane(later != 0 ? later : mask);
}

Fiber* Group::current_fiber() {
    const uint32_t bit = 1u << lane;
    if (simdgroup->fresh & bit) {
        simdgroup->fresh &= ~bit;
        Fiber* const taken = stacks.take();
        if (taken == nullptr) [[unlikely]]
            abandon(Stopped::no_stack);
        simdgroup->fibers[lane] = taken;
    }
    return simdgroup->fibers[lane];
}

// The running thread has said what it waits for.
void Group::suspend() {
    Simdgroup& group = *simdgroup;
    if (group.ready == 0) return suspend_slowly();
    Fiber& from = *fiber;
    lane = lane_after(group.ready, lane);
    fiber = current_fiber();
    switch_fiber(from, *fiber);
}

void Group::collective(const Stop& stop, const void* input, void* output) {
    Simdgroup& group = *simdgroup;
    const uint32_t bit = 1u << lane;
    group.inputs[lane] = input;
    group.outputs[lane] = output;
    group.stops[lane] = stop;
    if (group.at_collective == 0) group.first = stop;
    group.mixed |= !(stop == group.first);
    group.at_collective |= bit;
    group.ready &= ~bit;
    if (group.at_collective == group.live && !group.mixed) return combine(group, group.live);
    suspend();
}

}  // namespace metalsim

#include "executor/group.h"

#include <algorithm>
#include <string>

#include "executor/checker.h"
#include "executor/launch.h"

namespace metalsim {
namespace {

void fiber_entry() {
    current_group->fiber_main();
}

uint32_t lanes(uint32_t count) {
    return count >= kLanes ? ~0u : (1u << count) - 1;
}

}  // namespace

Group::Group() : stacks(&fiber_entry), simdgroups_(new Simdgroup[kSimdgroups]) {
    simdgroup = simdgroups_.get();
}
Group::~Group() = default;

bool Group::begin(LaunchRun& run) {
    launch = &run;
    threads = 0;
    const Launch& what = run.launch();
    adopt_thread(host_);
    current_group = this;
    if (!arena.begin(*what.arguments)) {
        report(*this, Problem::limit,
               "the threadgroup arguments take more than " + std::to_string(kMetalsimThreadgroupBytes) +
                   " bytes of threadgroup memory");
        return false;
    }
    ++shape_;
    shape_size_ = {0, 0, 0};
    const MetalsimUint3 dispatched = {what.threads_per_threadgroup.x, what.threads_per_threadgroup.y,
                                      what.threads_per_threadgroup.z};
    const auto count = static_cast<uint32_t>(what.threads_per_threadgroup.count());
    template_ = {};
    template_.threads_per_grid = run.grid();
    template_.grid_size = run.grid();
    template_.dispatch_threads_per_threadgroup = dispatched;
    template_.threadgroups_per_grid = {run.groups().x, run.groups().y, run.groups().z};
    template_.dispatch_simdgroups_per_threadgroup = (count + kLanes - 1) / kLanes;
    template_.dispatch_quadgroups_per_threadgroup = (count + 3) / 4;
    template_.threads_per_simdgroup = kLanes;
    template_.thread_execution_width = kLanes;
    checker->begin(run);
    return true;
}

void Group::end() {
    checker->end();
    current_group = nullptr;
    launch = nullptr;
}

void Group::set_shape(const MetalsimUint3& size) {
    ++shape_;
    shape_size_ = size;
    threads = size.x * size.y * size.z;
    simdgroup_count_ = (threads + kLanes - 1) / kLanes;
    template_.threads_per_threadgroup = size;
    template_.simdgroups_per_threadgroup = simdgroup_count_;
    template_.quadgroups_per_threadgroup = (threads + 3) / 4;
    uint32_t i = 0;
    for (uint32_t z = 0; z < size.z; ++z) {
        for (uint32_t y = 0; y < size.y; ++y) {
            for (uint32_t x = 0; x < size.x; ++x) positions_[i++] = {x, y, z};
        }
    }
}

bool Group::run(uint64_t group_index) {
    index = group_index;
    const MetalsimUint3 position = launch->position_of(group_index);
    const MetalsimUint3 size = launch->size_of(position);
    if (size.x != shape_size_.x || size.y != shape_size_.y || size.z != shape_size_.z) set_shape(size);
    template_.threadgroup_position_in_grid = position;
    begin_threads();
    checker->begin_group();

    stopped_ = Stopped::no;
    simdgroup = &simdgroups_[0];
    lane = 0;
    fiber = stacks.take();
    if (fiber != nullptr) {
        simdgroup->fresh &= ~1u;
        simdgroup->fibers[0] = fiber;
        running = true;
        switch_fiber(host_, *fiber);
        running = false;
        if (stopped_ == Stopped::no) return true;
        stacks.reset();
    } else {
        stopped_ = Stopped::no_stack;
    }
    combining = false;
    if (stopped_ == Stopped::no_stack) {
        report(*this, Problem::limit, "no memory for the stacks of " + std::to_string(threads) + " threads");
    } else if (stopped_ == Stopped::stack_overflow) {
        report(*this, Problem::limit,
               "the stack of a thread, " + std::to_string(FiberStacks::kStackBytes >> 10) + " KB, overflowed");
    } else if (stopped_ == Stopped::bad_address) {
        report_bad_address(*this, bad_address);
    } else if (stopped_ == Stopped::misaligned) {
        checker->tell_misaligned();
    }
    return false;
}

void Group::begin_threads() {
    for (uint32_t i = 0; i < simdgroup_count_; ++i) {
        Simdgroup& group = simdgroups_[i];
        const uint32_t all = lanes(threads - i * kLanes);
        group.index = i;
        group.all = group.live = group.ready = group.fresh = all;
        group.at_collective = group.at_quad = group.at_simd_barrier = group.at_group_barrier = 0;
        group.mixed = false;
    }
    ready_groups_ = lanes(simdgroup_count_);
    live_ = threads;
    at_barrier_ = 0;
    barrier_mixed_ = false;
}

MetalsimUint3 Group::position(uint32_t thread) const noexcept {
    const MetalsimUint3& group = template_.threadgroup_position_in_grid;
    const MetalsimUint3& size = template_.dispatch_threads_per_threadgroup;
    const MetalsimUint3& inside = positions_[thread];
    return {group.x * size.x + inside.x, group.y * size.y + inside.y, group.z * size.z + inside.z};
}

void Group::start_thread() {
    MetalsimThread& thread = *fiber->thread;
    if (fiber->shape != shape_) {
        thread = template_;
        fiber->shape = shape_;
    }
    const uint32_t i = thread_index();
    thread.threadgroup_position_in_grid = template_.threadgroup_position_in_grid;
    thread.thread_position_in_grid = position(i);
    thread.thread_position_in_threadgroup = positions_[i];
    thread.thread_index_in_threadgroup = i;
    thread.thread_index_in_simdgroup = lane;
    thread.simdgroup_index_in_threadgroup = i / kLanes;
    thread.thread_index_in_quadgroup = i % 4;
    thread.quadgroup_index_in_threadgroup = i / 4;
}

void Group::fiber_main() {
    Fiber& self = *fiber;
    arrived(self);
    for (;;) {
        start_thread();
        const Launch& what = launch->launch();
        what.function->entry(what.arguments, arena.arguments(), self.thread);
        end_thread();
    }
}

// Returns once this fiber has been given another thread, which has not started yet.
void Group::end_thread() {
    Fiber& self = *fiber;
    const uint32_t bit = 1u << lane;
    simdgroup->live &= ~bit;
    simdgroup->ready &= ~bit;
    --live_;
    if (!next()) {
        stacks.give_back(&self);
        switch_fiber(self, host_);
        return;
    }
    const uint32_t chosen = 1u << lane;
    if (simdgroup->fresh & chosen) {
        simdgroup->fresh &= ~chosen;
        simdgroup->fibers[lane] = &self;
        return;
    }
    stacks.give_back(&self);
    fiber = simdgroup->fibers[lane];
    switch_fiber(self, *fiber);
}

void Group::abandon(Stopped why) {
    stopped_ = why;
    switch_fiber(discarded_, host_);
    __builtin_unreachable();
}

bool Group::next() {
    for (;;) {
        Simdgroup& group = *simdgroup;
        if (group.ready != 0) {
            lane = lane_after(group.ready, lane);
            return true;
        }
        if (resolve(group)) continue;
        const uint32_t here = simdgroup->index;
        ready_groups_ &= ~(1u << here);
        if (ready_groups_ == 0 && !release_barrier()) return false;
        simdgroup = &simdgroups_[lane_after(ready_groups_, here)];
        lane = kLanes - 1;
    }
}

void Group::suspend_slowly() {
    Fiber& from = *fiber;
    if (!next()) __builtin_unreachable();  // this thread has not ended
    fiber = current_fiber();
    if (fiber != &from) switch_fiber(from, *fiber);
}

void Group::combine(Simdgroup& group, uint32_t active) {
    if (active != ~0u) return combine_some(group, active);
    const Stop& stop = group.stops[0];
    combining = true;
    stop.combine(group.inputs.data(), group.outputs.data(), active, stop.context);
    combining = false;
    group.at_collective = 0;
    group.mixed = false;
    group.ready = active;
}

// The other lanes do not exist, have ended or wait for something else, whose values are to be kept.
void Group::combine_some(Simdgroup& group, uint32_t active) {
    std::array<const void*, kLanes> inputs{};
    std::array<void*, kLanes> outputs{};
    for (uint32_t rest = active; rest != 0; rest &= rest - 1) {
        inputs[first_lane(rest)] = group.inputs[first_lane(rest)];
        outputs[first_lane(rest)] = group.outputs[first_lane(rest)];
    }
    const Stop& stop = group.stops[first_lane(active)];
    combining = true;
    stop.combine(inputs.data(), outputs.data(), active, stop.context);
    combining = false;
    group.at_collective &= ~active;
    group.mixed = group.at_collective != 0;
    group.ready |= active;
}

void Group::combine_quad(Simdgroup& group, uint32_t quad, uint32_t active) {
    const uint32_t base = quad * 4;
    std::array<const void*, 4> inputs{};
    std::array<void*, 4> outputs{};
    for (uint32_t i = 0; i < 4; ++i) {
        if (!(active >> (base + i) & 1)) continue;
        inputs[i] = group.inputs[base + i];
        outputs[i] = group.outputs[base + i];
    }
    const Stop& stop = group.stops[first_lane(active)];
    combining = true;
    stop.combine(inputs.data(), outputs.data(), active >> base, stop.context);
    combining = false;
    group.at_quad &= ~active;
    group.ready |= active;
}

void Group::quad_collective(const Stop& stop, const void* input, void* output) {
    Simdgroup& group = *simdgroup;
    const uint32_t bit = 1u << lane;
    group.inputs[lane] = input;
    group.outputs[lane] = output;
    group.stops[lane] = stop;
    group.at_quad |= bit;
    group.ready &= ~bit;
    const uint32_t quad = lane / 4;
    const uint32_t members = group.live & 15u << quad * 4;
    if ((group.at_quad & members) == members) {
        bool together = true;
        for (uint32_t rest = members; rest != 0; rest &= rest - 1) together &= group.stops[first_lane(rest)] == stop;
        if (together) return combine_quad(group, quad, members);
    }
    suspend();
}

void Group::simd_barrier(const void* site, uint32_t flags) {
    Simdgroup& group = *simdgroup;
    const uint32_t bit = 1u << lane;
    group.stops[lane] = {site, nullptr, nullptr};
    group.fence = group.at_simd_barrier == 0 ? flags : group.fence & flags;
    group.at_simd_barrier |= bit;
    group.ready &= ~bit;
    suspend();
}

void Group::pass_simd_barrier(Simdgroup& group, uint32_t active) {
    if (active != group.all) {
        const uint32_t missing = group.all & ~active;
        const uint32_t other = simdgroup->index * kLanes + first_lane(missing);
        report(*this, Problem::barrier_divergence,
               "at a simdgroup barrier; thread " + text(position(other)) +
                   (group.live & 1u << first_lane(missing) ? " waits elsewhere" : " has ended"),
               group.stops[first_lane(active)].site);
    }
    group.at_simd_barrier &= ~active;
    group.ready |= active;
    checker->simd_barrier(simdgroup->index, group.fence);
}

// When no lane can go on: of the calls that lanes wait in, the first in the code is made by those that are there, as
// in hardware that brings diverged lanes together again as early as it can: code before a join comes before the join.
bool Group::resolve(Simdgroup& group) {
    const uint32_t waiting = group.at_collective | group.at_quad | group.at_simd_barrier;
    if (waiting == 0) return false;
    uint32_t best = first_lane(waiting);
    for (uint32_t rest = waiting; rest != 0; rest &= rest - 1) {
        if (group.stops[first_lane(rest)].site < group.stops[best].site) best = first_lane(rest);
    }
    const uint32_t bit = 1u << best;
    uint32_t kind = group.at_collective & bit ? group.at_collective : group.at_simd_barrier;
    if (group.at_quad & bit) kind = group.at_quad & 15u << best / 4 * 4;
    uint32_t active = 0;
    for (uint32_t rest = kind; rest != 0; rest &= rest - 1) {
        if (group.stops[first_lane(rest)] == group.stops[best]) active |= rest & (~rest + 1);
    }
    lane = first_lane(active);
    if (group.at_collective & bit) {
        combine(group, active);
    } else if (group.at_quad & bit) {
        combine_quad(group, best / 4, active);
    } else {
        pass_simd_barrier(group, active);
    }
    lane = kLanes - 1;
    return true;
}

void Group::group_barrier(const void* site, uint32_t flags) {
    Simdgroup& group = *simdgroup;
    const uint32_t bit = 1u << lane;
    group.stops[lane].site = site;
    if (at_barrier_ == 0) {
        barrier_site_ = site;
        barrier_fence_ = flags;
    }
    barrier_mixed_ |= site != barrier_site_;
    barrier_fence_ &= flags;
    ++at_barrier_;
    group.at_group_barrier |= bit;
    group.ready &= ~bit;
    suspend();
}

// Every thread waits at a barrier or has ended. False: all have ended.
bool Group::release_barrier() {
    if (at_barrier_ == 0) return false;
    if (at_barrier_ != threads || barrier_mixed_) {
        report_barrier_divergence(*this, simdgroups_.get(), barrier_site_);
        if (barrier_mixed_) abandon(Stopped::reported);
    }
    for (uint32_t i = 0; i < simdgroup_count_; ++i) {
        Simdgroup& group = simdgroups_[i];
        group.ready = group.at_group_barrier;
        group.at_group_barrier = 0;
        if (group.ready != 0) ready_groups_ |= 1u << i;
    }
    at_barrier_ = 0;
    checker->group_barrier(barrier_fence_);
    return true;
}

void* Group::storage(const void* site, uint32_t bytes, uint32_t alignment) {
    if (void* const found = arena.find(site)) return found;
    void* const added = arena.add(site, bytes, alignment);
    if (added == nullptr) {
        report(*this, Problem::limit,
               "threadgroup memory: " + std::to_string(arena.used()) + " bytes in use, " + std::to_string(bytes) +
                   " more are over the limit of " + std::to_string(kMetalsimThreadgroupBytes));
        abandon(Stopped::reported);
    }
    return added;
}

}  // namespace metalsim

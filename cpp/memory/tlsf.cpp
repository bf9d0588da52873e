#include "memory/tlsf.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "core/error.h"

namespace metallic {

Tlsf::Tlsf(uint64_t granule) : granule_(granule), nodes_(1), regions_(1) {
    steps_[kLevels] = 1;
}

uint32_t Tlsf::class_of(uint32_t granules) noexcept {
    const uint32_t shift = static_cast<uint32_t>(std::bit_width(granules | kSteps)) - kStepBits - 1;
    return (shift << kStepBits) + (granules >> shift);
}

// The first block of a region must keep its descriptor, for it names the region: it is the lower one of a merge.
uint32_t Tlsf::new_node() {
    if (unused_ != kNone) return std::exchange(unused_, nodes_[unused_].next);
    regions_.reserve(std::max(regions_.capacity(), std::bit_ceil(nodes_.size() + 1)));
    nodes_.emplace_back();
    regions_.emplace_back();
    return static_cast<uint32_t>(nodes_.size() - 1);
}

void Tlsf::release_node(uint32_t node) noexcept {
    nodes_[node].next = unused_;
    unused_ = node;
}

// Without branches, here and in unlink: which blocks have neighbours in their list is as random as their sizes, and a
// branch that is guessed wrongly costs more than all of this. What nobody has goes to the descriptor kNone.
inline void Tlsf::link(uint32_t index) noexcept {
    Node& node = nodes_[index];
    const uint32_t list = class_of(node.size);
    node.state = State::free;
    node.list = static_cast<uint16_t>(list);
    node.previous = kNone;
    node.next = heads_[list];
    nodes_[node.next].previous = index;
    heads_[list] = index;
    levels_ |= 1u << (list >> kStepBits);
    steps_[list >> kStepBits] |= 1u << (list % kSteps);
}

inline void Tlsf::unlink(uint32_t index) noexcept {
    const Node& node = nodes_[index];
    const uint32_t list = node.list;
    nodes_[node.next].previous = node.previous;
    uint32_t* const from = node.previous != kNone ? &nodes_[node.previous].next : &heads_[list];
    *from = node.next;
    uint32_t& steps = steps_[list >> kStepBits];
    const bool empty = (node.previous | node.next) == kNone;
    steps &= ~(uint32_t{empty} << (list % kSteps));
    levels_ &= ~(uint32_t{steps == 0} << (list >> kStepBits));
}

uint32_t Tlsf::add_region(uint64_t bytes, uint32_t number) {
    const uint64_t granules = bytes / granule_;
    if (granules == 0 || granules > kMostGranules) {
        throw Error("a region of " + std::to_string(bytes) + " bytes cannot be divided");
    }
    const uint32_t region = new_node();
    nodes_[region] = Node{};
    nodes_[region].size = static_cast<uint32_t>(granules);
    nodes_[region].region = region;
    regions_[region] = {number, 0, false};
    link(region);
    free_ += granules;
    return region;
}

void Tlsf::remove_region(uint32_t region) noexcept {
    free_ -= nodes_[region].size;
    if (nodes_[region].state == State::free) unlink(region);
    release_node(region);
}

void Tlsf::set_closed(uint32_t region, bool closed) noexcept {
    if (regions_[region].closed == closed) return;
    regions_[region].closed = closed;
    for (uint32_t at = region; at != kNone; at = nodes_[at].after) {
        if (nodes_[at].state == State::taken) continue;
        if (closed) {
            unlink(at);
            nodes_[at].state = State::free_in_closed;
        } else {
            link(at);
        }
    }
}

inline uint32_t Tlsf::find(uint32_t granules, uint32_t probes) const noexcept {
    const uint32_t own = class_of(granules), level = own >> kStepBits;
    // Blocks of the own class first: what a request of the same size gave back is there.
    for (uint32_t at = heads_[own]; at != kNone && probes > 0; at = nodes_[at].next, --probes) {
        if (nodes_[at].size >= granules) return at;
    }
    const uint32_t above = steps_[level] & (~1u << (own % kSteps));
    const auto higher = static_cast<uint32_t>(std::countr_zero(levels_ & (~1u << level)));
    const uint32_t steps = above ? above : steps_[higher];
    return heads_[((above ? level : higher) << kStepBits) + static_cast<uint32_t>(std::countr_zero(steps))];
}

std::optional<Tlsf::Block> Tlsf::place(uint64_t bytes, uint32_t probes) {
    const uint64_t wanted = bytes / granule_ + (bytes % granule_ != 0);
    if (wanted == 0 || wanted > kMostGranules) return std::nullopt;
    const uint32_t granules = static_cast<uint32_t>(wanted);
    const uint32_t index = find(granules, probes);
    if (index == kNone) return std::nullopt;
    const uint32_t rest = nodes_[index].size > granules ? new_node() : kNone;  // before anything changes
    unlink(index);
    Node& node = nodes_[index];
    if (rest != kNone) {
        Node& right = nodes_[rest];
        right.offset = node.offset + granules;
        right.size = node.size - granules;
        right.before = index;
        right.after = node.after;
        right.region = node.region;
        nodes_[right.after].before = rest;
        node.after = rest;
        node.size = granules;
        link(rest);
    }
    node.state = State::taken;
    free_ -= granules;
    Region& region = regions_[node.region];
    const bool fresh = node.offset >= region.fresh_from;
    region.fresh_from = std::max(region.fresh_from, node.offset + granules);
    return Block{index, region.number, node.offset * granule_, fresh};
}

inline void Tlsf::absorb_next(uint32_t index) noexcept {
    Node& node = nodes_[index];
    const uint32_t gone = node.after;
    node.size += nodes_[gone].size;
    node.after = nodes_[gone].after;
    nodes_[node.after].before = index;
    release_node(gone);
}

void Tlsf::give(uint32_t index) noexcept {
    free_ += nodes_[index].size;
    const bool closed = regions_[nodes_[index].region].closed;
    const uint32_t after = nodes_[index].after;
    if (nodes_[after].state != State::taken) {
        if (!closed) unlink(after);
        absorb_next(index);
    }
    const uint32_t before = nodes_[index].before;
    if (nodes_[before].state != State::taken) {
        if (!closed) unlink(before);
        absorb_next(before);
        index = before;
    }
    if (closed) {
        nodes_[index].state = State::free_in_closed;
    } else {
        link(index);
    }
}

uint64_t Tlsf::largest() const noexcept {
    const uint32_t levels = levels_ & ~(1u << kLevels);
    if (!levels) return 0;
    const uint32_t level = static_cast<uint32_t>(std::bit_width(levels)) - 1;
    const uint32_t step = static_cast<uint32_t>(std::bit_width(steps_[level])) - 1;
    uint32_t most = 0;
    for (uint32_t at = heads_[level * kSteps + step]; at != kNone; at = nodes_[at].next) {
        most = std::max(most, nodes_[at].size);
    }
    return most * granule_;
}

Tlsf::RegionUse Tlsf::region_use(uint32_t region) const noexcept {
    RegionUse use;
    for (uint32_t at = region; at != kNone; at = nodes_[at].after) {
        const uint64_t bytes = nodes_[at].size * granule_;
        if (nodes_[at].state == State::taken) {
            use.used += bytes;
            ++use.blocks;
        } else {
            use.largest_free = std::max(use.largest_free, bytes);
        }
    }
    return use;
}

}  // namespace metallic

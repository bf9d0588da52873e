#pragma once

#import <Metal/Metal.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "backend/metal/encoder.h"

// Sizes of dispatches.
namespace metallic::metal {

inline constexpr uint32_t kSimdWidth = 32;  // of every Apple GPU; pipelines are checked for it

constexpr uint32_t ceil_div(uint32_t a, uint32_t b) noexcept {
    return a / b + (a % b != 0);
}

// Whole simdgroups of at least one thread, near to `wanted` and within what the pipeline can run.
inline uint32_t whole_simdgroups(id<MTLComputePipelineState> pipeline, uint32_t wanted) noexcept {
    const uint32_t most = static_cast<uint32_t>([pipeline maxTotalThreadsPerThreadgroup]);
    return std::max(std::min(ceil_div(wanted, kSimdWidth), most / kSimdWidth), 1u) * kSimdWidth;
}

// Whether kernels may read the places as float4. Buffers themselves are aligned to more than that.
inline bool fours(std::initializer_list<Binding> places) noexcept {
    return std::all_of(places.begin(), places.end(), [](const Binding& place) { return place.offset % 16 == 0; });
}

}  // namespace metallic::metal

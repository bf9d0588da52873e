#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__clang__)
// A fused multiply-add rounds once where the baseline rounds twice: the same seed must give the same text everywhere.
#pragma clang fp contract(off)
#endif

// Four-lane float arithmetic by the vector extension that GCC and clang share. The width is fixed, so sums associate
// alike on every processor; NaNs and infinities keep their IEEE meaning (no -ffast-math in this room).
namespace metallic {

using f32x4 = float __attribute__((vector_size(16)));
using i32x4 = int32_t __attribute__((vector_size(16)));
using u32x4 = uint32_t __attribute__((vector_size(16)));

// Arrays of the sampler are padded to whole runs of this many floats, so that loops need no tail.
inline constexpr size_t kRun = 64;

inline size_t round_up_to_run(size_t n) noexcept {
    return (n + kRun - 1) / kRun * kRun;
}

inline f32x4 load4(const float* from) noexcept {
    f32x4 v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store4(float* to, f32x4 v) noexcept {
    std::memcpy(to, &v, sizeof v);
}

inline f32x4 splat4(float x) noexcept {
    return f32x4{x, x, x, x};
}

inline f32x4 max4(f32x4 a, f32x4 b) noexcept {
    return a > b ? a : b;
}

inline float max_lane(f32x4 v) noexcept {
    const float a = v[0] > v[1] ? v[0] : v[1];
    const float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

inline float sum_lanes(f32x4 v) noexcept {
    return (v[0] + v[1]) + (v[2] + v[3]);
}

// Below this e^x counts as zero: the sampler only ever adds such masses to masses of at least 1.
inline constexpr float kExpFloor = -86.0f;

// e^x for x <= 0, within 2e-7 relative; exactly 0 below kExpFloor, also for -inf.
// x = n ln 2 + r with |r| <= (ln 2) / 2, and the Taylor series of e^r to the 7th power (remainder below 6e-9).
inline f32x4 exp4(f32x4 x) noexcept {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    const f32x4 floor = splat4(kExpFloor);
    const f32x4 clamped = max4(x, floor);
    const f32x4 shifted = clamped * 1.44269504f + kRound;
    const f32x4 n = shifted - kRound;
    const f32x4 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
    f32x4 p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const u32x4 bits = std::bit_cast<u32x4>(p) + (std::bit_cast<u32x4>(shifted) << 23);
    const i32x4 in_range = x > floor;
    return std::bit_cast<f32x4>(bits & std::bit_cast<u32x4>(in_range));
}

// The greatest of one run.
inline float run_max(const float* run) noexcept {
    f32x4 best = load4(run);
    for (size_t i = 4; i < kRun; i += 4) best = max4(best, load4(run + i));
    return max_lane(best);
}

// False when one of the run is NaN or +inf.
inline bool run_below_infinity(const float* run) noexcept {
    const f32x4 infinity = splat4(std::numeric_limits<float>::infinity());
    i32x4 good = {-1, -1, -1, -1};
    for (size_t i = 0; i < kRun; i += 4) good &= load4(run + i) < infinity;
    return (good[0] & good[1] & good[2] & good[3]) != 0;
}

// The sum of e^((v - max) scale) over one run.
inline double run_mass(const float* run, float max, float scale) noexcept {
    f32x4 low = splat4(0.0f);
    f32x4 high = splat4(0.0f);
    for (size_t i = 0; i < kRun; i += 8) {
        low += exp4((load4(run + i) - max) * scale);
        high += exp4((load4(run + i + 4) - max) * scale);
    }
    return static_cast<double>(sum_lanes(low)) + static_cast<double>(sum_lanes(high));
}

// Descending order of floats as ascending order of integers; the two zeros are one value.
inline uint32_t descending_key(float value) noexcept {
    const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
    return bits ^ (~static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) & 0x7fffffffu);
}

}  // namespace metallic

#pragma once

#include "metalsim/math.h"
#include "metalsim/services.h"

// metal_simdgroup and metal_quadgroup.
namespace metalsim {

enum { lanes = kMetalsimSimdWidth };

METALSIM_UNCHECKED METAL_FUNC bool is_active(uint32_t active, int lane) {
    return (active >> lane) & 1;
}

// The lanes' values joined pairwise, which is how close to hardware as order goes; inactive lanes do not take part.
template <typename Op, typename T>
struct reduction {
    static METALSIM_UNCHECKED void combine(const T* const* in, T* const* out, uint32_t active) {
        T value[lanes];
        bool has[lanes];
        for (int i = 0; i < lanes; ++i) {
            has[i] = is_active(active, i);
            if (has[i]) value[i] = *in[i];
        }
        for (int step = lanes / 2; step > 0; step /= 2)
            for (int i = 0; i < step; ++i) {
                if (has[i] && has[i + step])
                    value[i] = Op::of(value[i], value[i + step]);
                else if (has[i + step])
                    value[i] = value[i + step];
                has[i] = has[i] || has[i + step];
            }
        for (int i = 0; i < lanes; ++i)
            if (is_active(active, i)) *out[i] = value[0];
    }
};
template <typename Op, typename T, bool Inclusive>
struct prefix {
    static METALSIM_UNCHECKED void combine(const T* const* in, T* const* out, uint32_t active) {
        T value = Op::template identity<T>();
        for (int i = 0; i < lanes; ++i) {
            if (!is_active(active, i)) continue;
            const T next = Op::of(value, *in[i]);
            *out[i] = Inclusive ? next : value;
            value = next;
        }
    }
};

struct op_add {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return T(a + b);
    }
    template <typename T>
    static METALSIM_UNCHECKED T identity() {
        return (T)(0);
    }
};
struct op_multiply {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return T(a * b);
    }
    template <typename T>
    static METALSIM_UNCHECKED T identity() {
        return (T)(1);
    }
};
struct op_min {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return metal::min(a, b);
    }
    static METALSIM_UNCHECKED bfloat of(bfloat a, bfloat b) { return b < a ? b : a; }
};
struct op_max {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return metal::max(a, b);
    }
    static METALSIM_UNCHECKED bfloat of(bfloat a, bfloat b) { return b > a ? b : a; }
};
struct op_and {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return T(a & b);
    }
};
struct op_or {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return T(a | b);
    }
};
struct op_xor {
    template <typename T>
    static METALSIM_UNCHECKED T of(T a, T b) {
        return T(a ^ b);
    }
    static METALSIM_UNCHECKED float of(float a, float b) { return as_type<float>(as_type<uint>(a) ^ as_type<uint>(b)); }
};

// A value, and the lane that it comes from or goes by. Lanes that are out of range or inactive give an unspecified
// value in MSL; here a lane gets its own (0 lanes of `Width` away: quadgroups are 4 wide).
template <typename T>
struct from_lane {
    T value;
    uint32_t lane;
};
template <typename T>
struct shuffle {
    static METALSIM_UNCHECKED void combine(const from_lane<T>* const* in, T* const* out, uint32_t active) {
        for (int i = 0; i < lanes; ++i) {
            if (!is_active(active, i)) continue;
            const uint32_t j = in[i]->lane;
            *out[i] = j < lanes && is_active(active, int(j)) ? in[j]->value : in[i]->value;
        }
    }
};
template <typename T>
struct first_lane {
    static METALSIM_UNCHECKED void combine(const T* const* in, T* const* out, uint32_t active) {
        const int first = __builtin_ctz(active);
        for (int i = 0; i < lanes; ++i)
            if (is_active(active, i)) *out[i] = *in[first];
    }
};
struct votes {
    static METALSIM_UNCHECKED void combine(const bool* const* in, uint32_t* const* out, uint32_t active) {
        uint32_t mask = 0;
        for (int i = 0; i < lanes; ++i)
            if (is_active(active, i) && *in[i]) mask |= 1u << i;
        for (int i = 0; i < lanes; ++i)
            if (is_active(active, i)) *out[i] = mask;
    }
};
struct active_lanes {
    static METALSIM_UNCHECKED void combine(const bool* const*, uint32_t* const* out, uint32_t active) {
        for (int i = 0; i < lanes; ++i)
            if (is_active(active, i)) *out[i] = active;
    }
};
template <typename T>
struct filled {
    T value, fill;
    uint32_t lane, delta, modulo;
    bool up;
};
template <typename T>
struct shuffle_fill {
    // The lane that lane i reads in its group of `modulo`; past an end, that of the filling data.
    static METALSIM_UNCHECKED void combine(const filled<T>* const* in, T* const* out, uint32_t active) {
        for (int i = 0; i < lanes; ++i) {
            if (!is_active(active, i)) continue;
            const int m = int(in[i]->modulo), group = i / m * m, at = i - group, delta = int(in[i]->delta);
            int from = in[i]->up ? at - delta : at + delta;
            const bool fill = from < 0 || from >= m;
            from = group + ((from % m) + m) % m;
            const int j = is_active(active, from) ? from : i;
            *out[i] = fill ? in[j]->fill : in[j]->value;
        }
    }
};

}  // namespace metalsim

namespace metal {

struct simd_vote {
    using vote_t = ulong;
    explicit constexpr simd_vote(vote_t v = 0) : v(v) {}
    explicit constexpr operator vote_t() const { return v; }
    bool all() const { return v == 0xffffffffu; }
    bool any() const { return v != 0; }

  private:
    vote_t v;
};
struct quad_vote {
    using vote_t = uint;
    explicit constexpr quad_vote(vote_t v = 0) : v(v) {}
    explicit constexpr operator vote_t() const { return v; }
    bool all() const { return (v & 0xf) == 0xf; }
    bool any() const { return (v & 0xf) != 0; }

  private:
    vote_t v;
};

#define METALSIM_REDUCE(name, op)                                                    \
    template <typename T>                                                            \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T simd_##name(T x) {         \
        return metalsim::meet_simdgroup<metalsim::reduction<metalsim::op, T>, T>(x); \
    }                                                                                \
    template <typename T>                                                            \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T quad_##name(T x) {         \
        return metalsim::meet_quadgroup<metalsim::reduction<metalsim::op, T>, T>(x); \
    }
METALSIM_REDUCE(sum, op_add)
METALSIM_REDUCE(product, op_multiply)
METALSIM_REDUCE(min, op_min)
METALSIM_REDUCE(max, op_max)
METALSIM_REDUCE(and, op_and)
METALSIM_REDUCE(or, op_or)
METALSIM_REDUCE(xor, op_xor)
#undef METALSIM_REDUCE

#define METALSIM_PREFIX(name, op, inclusive)                                                 \
    template <typename T>                                                                    \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T simd_prefix_##name(T x) {          \
        return metalsim::meet_simdgroup<metalsim::prefix<metalsim::op, T, inclusive>, T>(x); \
    }                                                                                        \
    template <typename T>                                                                    \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T quad_prefix_##name(T x) {          \
        return metalsim::meet_quadgroup<metalsim::prefix<metalsim::op, T, inclusive>, T>(x); \
    }
METALSIM_PREFIX(inclusive_sum, op_add, true)
METALSIM_PREFIX(exclusive_sum, op_add, false)
METALSIM_PREFIX(inclusive_product, op_multiply, true)
METALSIM_PREFIX(exclusive_product, op_multiply, false)
#undef METALSIM_PREFIX

#define METALSIM_SHUFFLES(group, meet, width, index)                                                               \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle(T x, ushort lane) {                      \
        return metalsim::meet<metalsim::shuffle<T>, T>(metalsim::from_lane<T>{x, lane});                           \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_broadcast(T x, ushort lane) {                    \
        return group##_shuffle(x, lane);                                                                           \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_broadcast_first(T x) {                           \
        return metalsim::meet<metalsim::first_lane<T>, T>(x);                                                      \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_xor(T x, ushort mask) {                  \
        return group##_shuffle(x, ushort(metalsim::this_thread().index ^ mask));                                   \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_up(T x, ushort delta) {                  \
        return group##_shuffle(x, ushort(metalsim::this_thread().index - delta));                                  \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_down(T x, ushort delta) {                \
        const uint lane = metalsim::this_thread().index + delta;                                                   \
        return group##_shuffle(x, ushort(lane < width ? lane : 0xffff));                                           \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_rotate_up(T x, ushort delta) {           \
        return group##_shuffle(x, ushort((metalsim::this_thread().index - delta) % width));                        \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_rotate_down(T x, ushort delta) {         \
        return group##_shuffle(x, ushort((metalsim::this_thread().index + delta) % width));                        \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_and_fill_up(T x, T fill, ushort delta,   \
                                                                                      ushort modulo = width) {     \
        return metalsim::meet<metalsim::shuffle_fill<T>, T>(                                                       \
            metalsim::filled<T>{x, fill, metalsim::this_thread().index, delta, modulo, true});                     \
    }                                                                                                              \
    template <typename T>                                                                                          \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC T group##_shuffle_and_fill_down(T x, T fill, ushort delta, \
                                                                                        ushort modulo = width) {   \
        return metalsim::meet<metalsim::shuffle_fill<T>, T>(                                                       \
            metalsim::filled<T>{x, fill, metalsim::this_thread().index, delta, modulo, false});                    \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC group##_vote group##_ballot(bool x) {                      \
        return group##_vote(metalsim::meet<metalsim::votes, uint32_t>(x));                                         \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC group##_vote group##_active_threads_mask() {               \
        return group##_vote(metalsim::meet<metalsim::active_lanes, uint32_t>(true));                               \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC bool group##_any(bool x) {                                 \
        return metalsim::meet<metalsim::votes, uint32_t>(x) != 0;                                                  \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC bool group##_all(bool x) {                                 \
        return metalsim::meet<metalsim::votes, uint32_t>(!x) == 0;                                                 \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC bool group##_is_first() {                                  \
        const uint32_t active = metalsim::meet<metalsim::active_lanes, uint32_t>(true);                            \
        return uint32_t(__builtin_ctz(active)) == metalsim::this_thread().index;                                   \
    }                                                                                                              \
    [[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC bool group##_is_helper_thread() {                          \
        return false;                                                                                              \
    }
METALSIM_SHUFFLES(simd, meet_simdgroup, 32, thread_index_in_simdgroup)
METALSIM_SHUFFLES(quad, meet_quadgroup, 4, thread_index_in_quadgroup)
#undef METALSIM_SHUFFLES

}  // namespace metal

#pragma once

#include "metalsim/math.h"
#include "metalsim/services.h"

// metal_simdgroup_matrix: 8 x 8 matrices spread over the lanes of a simdgroup.
namespace metalsim {

// Lane i holds two neighbours of a row. The specification leaves the layout open; this is the one that Apple's GPUs
// have, which MLX's steel/gemm/mma.h documents and sources rely on.
struct matrix_place {
    uint row, column;
};
METALSIM_UNCHECKED METAL_FUNC constexpr matrix_place place_of_lane(uint lane) {
    return matrix_place{((lane / 4) & 4) + (lane / 2) % 4, ((lane / 4) & 2) * 2 + (lane % 2) * 2};
}

template <typename A, typename B, typename C>
struct factors {
    A a[2];
    B b[2];
    C c[2];
};

typedef float row_of_8 __attribute__((ext_vector_type(8)));

// a * b + c of whole matrices, in float.
template <typename D, typename A, typename B, typename C>
struct product_of_lanes {
    struct result {
        D d[2];
    };
    static METALSIM_UNCHECKED void combine(const factors<A, B, C>* const* in, result* const* out, uint32_t active) {
        float a[8][8];
        row_of_8 b[8], d[8];
        for (uint lane = 0; lane < 32; ++lane) {
            const matrix_place at = place_of_lane(lane);
            const bool has = (active >> lane) & 1;
            for (uint i = 0; i < 2; ++i) {
                a[at.row][at.column + i] = has ? float(in[lane]->a[i]) : 0.0f;
                b[at.row][at.column + i] = has ? float(in[lane]->b[i]) : 0.0f;
                d[at.row][at.column + i] = has ? float(in[lane]->c[i]) : 0.0f;
            }
        }
        for (int row = 0; row < 8; ++row)
            for (int k = 0; k < 8; ++k) d[row] = __builtin_elementwise_fma((row_of_8)(a[row][k]), b[k], d[row]);
        for (uint lane = 0; lane < 32; ++lane) {
            if (!((active >> lane) & 1)) continue;
            const matrix_place at = place_of_lane(lane);
            for (uint i = 0; i < 2; ++i) out[lane]->d[i] = to<D>(float(d[at.row][at.column + i]));
        }
    }
};

}  // namespace metalsim

namespace metal {

template <typename T, int Columns = 8, int Rows = Columns>
struct simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "simdgroup_matrix is 8 x 8");
    static_assert(metalsim::same<T, float>::value || metalsim::same<T, half>::value || metalsim::same<T, bfloat>::value,
                  "simdgroup_matrix is of float, half or bfloat");

    simdgroup_matrix() = default;
    METALSIM_UNCHECKED explicit simdgroup_matrix(T diagonal) {
        const metalsim::matrix_place at = metalsim::place_of_lane(metalsim::this_thread().thread_index_in_simdgroup);
        for (uint i = 0; i < 2; ++i) elements[i] = at.row == at.column + i ? diagonal : T(0);
    }
    thread vec<T, 2>& thread_elements() { return elements; }
    const thread vec<T, 2>& thread_elements() const { return elements; }

  private:
    vec<T, 2> elements;
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int Columns, int Rows = Columns>
METAL_FUNC simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, Columns, Rows> m;
    m.thread_elements() = (vec<T, 2>)(value);
    return m;
}
template <typename T, int Columns, int Rows = Columns>
METAL_FUNC simdgroup_matrix<T, Columns, Rows> make_diagonal_simdgroup_matrix(T value) {
    return simdgroup_matrix<T, Columns, Rows>(value);
}

// Each lane touches its own elements, so that the checks see whose access it is.
#define METALSIM_MATRIX_MEMORY(SPACE)                                                                                 \
    template <typename T>                                                                                             \
    METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const SPACE T* from, ulong stride = 8,        \
                                   ulong2 origin = 0, bool transpose = false) {                                       \
        const metalsim::matrix_place at = metalsim::place_of_lane(metalsim::this_thread().thread_index_in_simdgroup); \
        for (uint i = 0; i < 2; ++i) {                                                                                \
            const ulong row = transpose ? at.column + i : at.row, column = transpose ? at.row : at.column + i;        \
            m.thread_elements()[i] = from[(origin.y + row) * stride + origin.x + column];                             \
        }                                                                                                             \
    }                                                                                                                 \
    template <typename T>                                                                                             \
    METAL_FUNC void simdgroup_store(thread const simdgroup_matrix<T, 8, 8>& m, SPACE T* to, ulong stride = 8,         \
                                    ulong2 origin = 0, bool transpose = false) {                                      \
        const metalsim::matrix_place at = metalsim::place_of_lane(metalsim::this_thread().thread_index_in_simdgroup); \
        for (uint i = 0; i < 2; ++i) {                                                                                \
            const ulong row = transpose ? at.column + i : at.row, column = transpose ? at.row : at.column + i;        \
            to[(origin.y + row) * stride + origin.x + column] = m.thread_elements()[i];                               \
        }                                                                                                             \
    }
METALSIM_MATRIX_MEMORY(device)
METALSIM_MATRIX_MEMORY(threadgroup)
#undef METALSIM_MATRIX_MEMORY

// d = a * b + c.
template <typename D, typename A, typename B, typename C>
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC void simdgroup_multiply_accumulate(
    thread simdgroup_matrix<D, 8, 8>& d, thread const simdgroup_matrix<A, 8, 8>& a,
    thread const simdgroup_matrix<B, 8, 8>& b, thread const simdgroup_matrix<C, 8, 8>& c) {
    using product = metalsim::product_of_lanes<D, A, B, C>;
    const vec<A, 2> x = a.thread_elements();
    const vec<B, 2> y = b.thread_elements();
    const vec<C, 2> z = c.thread_elements();
    const typename product::result r = metalsim::meet_simdgroup<product, typename product::result>(
        metalsim::factors<A, B, C>{{x[0], x[1]}, {y[0], y[1]}, {z[0], z[1]}});
    d.thread_elements() = vec<D, 2>{r.d[0], r.d[1]};
}
template <typename D, typename A, typename B>
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                                                            thread const simdgroup_matrix<A, 8, 8>& a,
                                                                            thread const simdgroup_matrix<B, 8, 8>& b) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)));
}
template <typename T>
[[clang::convergent]] METAL_FUNC simdgroup_matrix<T, 8, 8> operator*(simdgroup_matrix<T, 8, 8> a,
                                                                     simdgroup_matrix<T, 8, 8> b) {
    simdgroup_matrix<T, 8, 8> d;
    simdgroup_multiply(d, a, b);
    return d;
}

}  // namespace metal

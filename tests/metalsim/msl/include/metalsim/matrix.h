#pragma once

#include "metalsim/math.h"

// metal_matrix: column-major matrices of float and half.
namespace metal {

template <typename T, int Columns, int Rows>
struct matrix {
    using Column = vec<T, Rows>;
    Column columns[Columns];

    matrix() = default;
    METALSIM_COPIES(matrix)
    explicit matrix(T diagonal) {
        for (int i = 0; i < Columns; ++i)
            for (int j = 0; j < Rows; ++j) columns[i][j] = i == j ? diagonal : T(0);
    }
    template <typename... C, typename = metalsim::enable_t<sizeof...(C) + 2 == Columns>>
    matrix(Column a, Column b, C... rest) : columns{a, b, Column(rest)...} {}
    template <typename... C, typename = metalsim::enable_t<sizeof...(C) + 3 == Columns * Rows>>
    matrix(T a, T b, T c, C... rest) {
        const T all[] = {a, b, c, T(rest)...};
        for (int i = 0; i < Columns; ++i)
            for (int j = 0; j < Rows; ++j) columns[i][j] = all[i * Rows + j];
    }
    template <typename U, typename = metalsim::enable_t<!metalsim::same<T, U>::value>>
    explicit matrix(const matrix<U, Columns, Rows>& m) {
        for (int i = 0; i < Columns; ++i) columns[i] = metalsim::make<Column>(m[i]);
    }
    Column& operator[](int i) { return columns[i]; }
    const Column& operator[](int i) const { return columns[i]; }
    matrix& operator+=(const matrix& m) { return *this = *this + m; }
    matrix& operator-=(const matrix& m) { return *this = *this - m; }
    matrix& operator*=(T s) { return *this = *this * s; }
};

template <typename T, int C, int R>
METAL_FUNC matrix<T, C, R> operator+(matrix<T, C, R> a, matrix<T, C, R> b) {
    for (int i = 0; i < C; ++i) a[i] += b[i];
    return a;
}
template <typename T, int C, int R>
METAL_FUNC matrix<T, C, R> operator-(matrix<T, C, R> a, matrix<T, C, R> b) {
    for (int i = 0; i < C; ++i) a[i] -= b[i];
    return a;
}
template <typename T, int C, int R>
METAL_FUNC matrix<T, C, R> operator*(matrix<T, C, R> a, T s) {
    for (int i = 0; i < C; ++i) a[i] *= s;
    return a;
}
template <typename T, int C, int R>
METAL_FUNC matrix<T, C, R> operator*(T s, matrix<T, C, R> a) {
    return a * s;
}
template <typename T, int C, int R>
METAL_FUNC vec<T, R> operator*(matrix<T, C, R> m, vec<T, C> v) {
    vec<T, R> r = m[0] * v[0];
    for (int i = 1; i < C; ++i) r += m[i] * v[i];
    return r;
}
template <typename T, int C, int R>
METAL_FUNC vec<T, C> operator*(vec<T, R> v, matrix<T, C, R> m) {
    vec<T, C> r;
    for (int i = 0; i < C; ++i) r[i] = dot(v, m[i]);
    return r;
}
template <typename T, int K, int C, int R>
METAL_FUNC matrix<T, C, R> operator*(matrix<T, K, R> a, matrix<T, C, K> b) {
    matrix<T, C, R> m;
    for (int i = 0; i < C; ++i) m[i] = a * b[i];
    return m;
}
template <typename T, int C, int R>
METAL_FUNC matrix<T, R, C> transpose(matrix<T, C, R> a) {
    matrix<T, R, C> m;
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) m[i][j] = a[j][i];
    return m;
}

}  // namespace metal

#define METALSIM_MATRICES(T)               \
    typedef metal::matrix<T, 2, 2> T##2x2; \
    typedef metal::matrix<T, 2, 3> T##2x3; \
    typedef metal::matrix<T, 2, 4> T##2x4; \
    typedef metal::matrix<T, 3, 2> T##3x2; \
    typedef metal::matrix<T, 3, 3> T##3x3; \
    typedef metal::matrix<T, 3, 4> T##3x4; \
    typedef metal::matrix<T, 4, 2> T##4x2; \
    typedef metal::matrix<T, 4, 3> T##4x3; \
    typedef metal::matrix<T, 4, 4> T##4x4;
METALSIM_MATRICES(float)
METALSIM_MATRICES(half)
#undef METALSIM_MATRICES

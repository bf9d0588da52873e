#include <cstring>

#include "backend/cpu/isa/matmul_activation.h"
#include "backend/cpu/isa/matmul_kernels.h"
#include "core/dequantise.h"

// The definition of the matrix kernels in plain C++: what the vector files must reproduce bit for bit.
namespace metallic::cpu {
namespace {

constexpr int kTile = 16;    // activation rows that share one unpacking of a weight block
constexpr int kChunk = 256;  // elements of a float row that are converted at a time

struct Operands {
    const uint8_t* w;
    size_t w_stride, rows, k;
    const uint8_t* a;
    size_t a_stride;
    float* out;
    size_t out_stride;
};

int32_t dot(const uint8_t* codes, const int8_t* q, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) sum += codes[i] * q[i];
    return sum;
}

template <DType T>
void plain_tile(const Operands& o, size_t n, int m_rows) {
    using F = Format<T>;
    float acc[kTile] = {};
    for (size_t b = 0; b < o.k / kBlock; ++b) {
        const auto& block =
            *reinterpret_cast<const typename F::Block*>(o.w + n * o.w_stride + b * sizeof(typename F::Block));
        uint8_t codes[kBlock];
        F::codes(block, codes);
        const float d = F::scale(block), minimum = F::minimum(block);
        for (int m = 0; m < m_rows; ++m) {
            const Q8Group& g =
                reinterpret_cast<const Q8Group*>(o.a + static_cast<size_t>(m) * o.a_stride)[b / kGroupBlocks];
            const size_t j = b % kGroupBlocks;
            const int32_t sum = dot(codes, g.q + j * kBlock, kBlock) + g.bias[j] / 128 * F::kZero;
            acc[m] = __builtin_fmaf(d * g.d[j], static_cast<float>(sum), acc[m]);
            if (F::kMin) acc[m] = __builtin_fmaf(minimum, g.s[j], acc[m]);
        }
    }
    for (int m = 0; m < m_rows; ++m) o.out[static_cast<size_t>(m) * o.out_stride + n] = acc[m];
}

template <DType T>
void super_tile(const Operands& o, size_t n, int m_rows) {
    using F = Format<T>;
    constexpr int kSubs = kSuperBlock / F::kSub;
    float acc[kTile] = {};
    for (size_t b = 0; b < o.k / kSuperBlock; ++b) {
        const auto& block =
            *reinterpret_cast<const typename F::Block*>(o.w + n * o.w_stride + b * sizeof(typename F::Block));
        uint8_t codes[kSuperBlock];
        int16_t sc[kSubs], mn[kSubs] = {};
        F::codes(block, codes);
        F::scales(block, sc, mn);
        const float d = F::scale(block), minimum = F::minimum(block);
        for (int m = 0; m < m_rows; ++m) {
            const Q8KBlock& x = reinterpret_cast<const Q8KBlock*>(o.a + static_cast<size_t>(m) * o.a_stride)[b];
            const int16_t* sums = F::kSub == 32 ? x.sums32 : x.sums16;
            int32_t sum = 0, min_sum = 0;
            for (int j = 0; j < kSubs; ++j) {
                sum += sc[j] * (dot(codes + j * F::kSub, x.q + j * F::kSub, F::kSub) - F::kZero * sums[j]);
                min_sum += mn[j] * sums[j];
            }
            acc[m] = __builtin_fmaf(d * x.d, static_cast<float>(sum), acc[m]);
            if (F::kMin) acc[m] = __builtin_fmaf(-(minimum * x.d), static_cast<float>(min_sum), acc[m]);
        }
    }
    for (int m = 0; m < m_rows; ++m) o.out[static_cast<size_t>(m) * o.out_stride + n] = acc[m];
}

float reduce_lanes(const float* acc) {
    float t[8];
    for (int i = 0; i < 8; ++i) t[i] = acc[i] + acc[i + 8];
    for (int i = 0; i < 4; ++i) t[i] = t[i] + t[i + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}

template <DType T>
void float_tile(const Operands& o, size_t n, int m_rows) {
    const size_t width = T == DType::F32 ? 4 : 2;
    float acc[kTile][16] = {};
    for (size_t k0 = 0; k0 < o.k; k0 += kChunk) {
        const size_t count = o.k - k0 < kChunk ? o.k - k0 : kChunk;
        float w[kChunk] = {};
        dequantise_row(T, o.w + n * o.w_stride + k0 * width, count, w);
        for (int m = 0; m < m_rows; ++m) {
            const float* x = reinterpret_cast<const float*>(o.a + static_cast<size_t>(m) * o.a_stride) + k0;
            for (size_t i = 0; i < count; i += 16) {
                for (size_t l = 0; l < 16; ++l) acc[m][l] = __builtin_fmaf(w[i + l], x[i + l], acc[m][l]);
            }
        }
    }
    for (int m = 0; m < m_rows; ++m) o.out[static_cast<size_t>(m) * o.out_stride + n] = reduce_lanes(acc[m]);
}

template <typename Tile>
void for_each_tile(Operands o, size_t m_rows, Tile tile) {
    for (size_t m = 0; m < m_rows; m += kTile) {
        const int count = static_cast<int>(m_rows - m < kTile ? m_rows - m : kTile);
        for (size_t n = 0; n < o.rows; ++n) tile(o, n, count);
        o.a += kTile * o.a_stride;
        o.out += kTile * o.out_stride;
    }
}

void multiply(DType type, const void* w, size_t w_stride_bytes, size_t rows, size_t k, const void* a,
              size_t a_stride_bytes, size_t m_rows, float* out, size_t out_stride, void*) {
    const Operands o{static_cast<const uint8_t*>(w), w_stride_bytes, rows, k,
                     static_cast<const uint8_t*>(a), a_stride_bytes, out,  out_stride};
    switch (type) {
        case DType::F32:
            return for_each_tile(o, m_rows, float_tile<DType::F32>);
        case DType::F16:
            return for_each_tile(o, m_rows, float_tile<DType::F16>);
        case DType::BF16:
            return for_each_tile(o, m_rows, float_tile<DType::BF16>);
        case DType::Q4_0:
            return for_each_tile(o, m_rows, plain_tile<DType::Q4_0>);
        case DType::Q4_1:
            return for_each_tile(o, m_rows, plain_tile<DType::Q4_1>);
        case DType::Q5_0:
            return for_each_tile(o, m_rows, plain_tile<DType::Q5_0>);
        case DType::Q5_1:
            return for_each_tile(o, m_rows, plain_tile<DType::Q5_1>);
        case DType::Q8_0:
            return for_each_tile(o, m_rows, plain_tile<DType::Q8_0>);
        case DType::IQ4_NL:
            return for_each_tile(o, m_rows, plain_tile<DType::IQ4_NL>);
        case DType::MXFP4:
            return for_each_tile(o, m_rows, plain_tile<DType::MXFP4>);
        case DType::Q2_K:
            return for_each_tile(o, m_rows, super_tile<DType::Q2_K>);
        case DType::Q3_K:
            return for_each_tile(o, m_rows, super_tile<DType::Q3_K>);
        case DType::Q4_K:
            return for_each_tile(o, m_rows, super_tile<DType::Q4_K>);
        case DType::Q5_K:
            return for_each_tile(o, m_rows, super_tile<DType::Q5_K>);
        case DType::Q6_K:
            return for_each_tile(o, m_rows, super_tile<DType::Q6_K>);
        case DType::IQ4_XS:
            return for_each_tile(o, m_rows, super_tile<DType::IQ4_XS>);
        case DType::I32:
            break;
    }
    for (size_t m = 0; m < m_rows; ++m) std::memset(out + m * out_stride, 0, rows * sizeof(float));
}

void dequantise(DType type, const void* row, size_t k, float* out) {
    dequantise_row(type, row, k, out);
}

}  // namespace

const MatmulKernels& matmul_portable() {
    static const MatmulKernels kernels{"portable", quantise_row, multiply, dequantise};
    return kernels;
}

}  // namespace metallic::cpu

#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

// Matrix products of weights in a file's own (quantised) layout with float activations.
//
// The law: out[m][n] depends on weight row n and activation row m alone. It is bitwise the same for every split of rows
// and m_rows over calls and threads, and for every instruction set. Each result is a fixed chain of IEEE operations
// around exact integer dot products (fma is the fused operation, rounded once):
//   Q8 activations:   for every block of 32 in order:   acc = fma(d_w d_a, float(sum q_w q_a), acc),
//                     and for types with a minimum      acc = fma(m_w, d_a float(sum q_a), acc)
//   Q8K activations:  for every block of 256 in order:  acc = fma(d_w d_a, float(sum_j sc_j sum q_w q_a), acc),
//                     and for types with a minimum      acc = fma(-(dmin_w d_a), float(sum_j m_j sum q_a), acc)
//   F32 activations:  16 lanes, lane k mod 16:          acc[lane] = fma(w, a, acc[lane]), k padded with zeros to 16 n;
//                     then lanes i and i + 8, i + 4, i + 2, i + 1 are added, in this order.
namespace metallic::cpu {

enum class ActivationFormat : uint8_t {
    F32,  // as they are, zero-padded to a multiple of 16
    Q8,   // int8 in blocks of 32 with a scale each
    Q8K,  // int8 in blocks of 256 with a scale each
};

// The format in which `multiply` wants the activations for weights of this type.
ActivationFormat activation_format(DType weight) noexcept;

// Bytes of one activation row of k elements, a multiple of 64. k is a multiple of the weight type's block.
size_t activation_row_bytes(ActivationFormat format, size_t k) noexcept;

// Bytes of scratch, aligned to 64, that one call of `multiply` needs; each thread has its own.
size_t matmul_scratch_bytes(size_t k) noexcept;

// Every function takes a k that is a multiple of the weight type's block, reads no byte outside the rows it is given,
// allocates nothing and throws nothing. DType::I32 is no weight type; it leaves the output zero.
struct MatmulKernels {
    const char* name;  // "portable", "avx2", "avx512"

    // One row of k floats to activation_row_bytes(format, k) bytes at `out`, aligned to 64. A block that holds a NaN or
    // an infinity gets a NaN scale, one whose magnitudes are all below 2^-120 becomes zero.
    void (*quantise)(ActivationFormat format, const float* x, size_t k, void* out);

    // out[m * out_stride + n] = sum_k w[n][k] a[m][k] for n in [0, rows), m in [0, m_rows). Weight rows are
    // w_stride_bytes apart and aligned to 2 bytes (F32: 4), as all rows of a GGUF file are; activation rows are
    // a_stride_bytes (a multiple of 64) apart, in activation_format(type), aligned to 64. `out_stride` counts floats.
    void (*multiply)(DType type, const void* w, size_t w_stride_bytes, size_t rows, size_t k, const void* a,
                     size_t a_stride_bytes, size_t m_rows, float* out, size_t out_stride, void* scratch);

    // One weight row as floats: bit for bit the values of gguf-py.
    void (*dequantise_row)(DType type, const void* row, size_t k, float* out);
};

const MatmulKernels& matmul_portable();
// Defined on x86-64 only, and to be called only where the processor has AVX2, FMA, F16C and BMI2.
const MatmulKernels& matmul_avx2();
// Defined on x86-64 only, and to be called only where the processor has, besides, AVX-512 F, BW, VL, DQ and VNNI.
const MatmulKernels& matmul_avx512();

}  // namespace metallic::cpu

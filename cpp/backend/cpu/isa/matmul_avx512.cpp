#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers pass an undefined register to unmasked intrinsics and warn of it here (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "backend/cpu/isa/matmul_avx512_float.h"
#include "backend/cpu/isa/matmul_avx512_gemm.h"
#include "backend/cpu/isa/matmul_avx512_gemv_low.h"
#include "backend/cpu/isa/matmul_avx512_gemv_plain.h"
#include "backend/cpu/isa/matmul_kernels.h"
#include "core/dequantise.h"
#include "core/dequantise_rows.h"

namespace metallic::cpu {
namespace {

// Up to this many activation rows, reading the weights once per row from the caches is faster than unpacking them.
constexpr size_t kGemvPlain = 6;
constexpr size_t kGemvSuper = 6;

template <DType T>
void multiply_plain(const Operands& o, void* scratch) {
    if (o.m_rows <= kGemvPlain) return gemv_plain<T>(o);
    multiply_panels<Avx512, T>(o, scratch);
}

template <DType T>
void multiply_super(const Operands& o, void* scratch) {
    if (o.m_rows <= kGemvSuper) return gemv_super<T>(o);
    multiply_panels<Avx512, T>(o, scratch);
}

void multiply(DType type, const void* w, size_t w_stride_bytes, size_t rows, size_t k, const void* a,
              size_t a_stride_bytes, size_t m_rows, float* out, size_t out_stride, void* scratch) {
    const Operands o{static_cast<const uint8_t*>(w),
                     w_stride_bytes,
                     rows,
                     k,
                     static_cast<const uint8_t*>(a),
                     a_stride_bytes,
                     m_rows,
                     out,
                     out_stride};
    if (rows == 0 || m_rows == 0) return;
    if (k == 0) type = DType::I32;
    switch (type) {
        case DType::F32:
            return multiply_float<FloatAvx512, DType::F32>(o, scratch);
        case DType::F16:
            return multiply_float<FloatAvx512, DType::F16>(o, scratch);
        case DType::BF16:
            return multiply_float<FloatAvx512, DType::BF16>(o, scratch);
        case DType::Q4_0:
            return multiply_plain<DType::Q4_0>(o, scratch);
        case DType::Q4_1:
            return multiply_plain<DType::Q4_1>(o, scratch);
        case DType::Q5_0:
            return multiply_plain<DType::Q5_0>(o, scratch);
        case DType::Q5_1:
            return multiply_plain<DType::Q5_1>(o, scratch);
        case DType::Q8_0:
            return multiply_plain<DType::Q8_0>(o, scratch);
        case DType::IQ4_NL:
            return multiply_plain<DType::IQ4_NL>(o, scratch);
        case DType::MXFP4:
            return multiply_plain<DType::MXFP4>(o, scratch);
        case DType::Q4_K:
            return multiply_super<DType::Q4_K>(o, scratch);
        case DType::Q5_K:
            return multiply_super<DType::Q5_K>(o, scratch);
        case DType::Q6_K:
            return multiply_super<DType::Q6_K>(o, scratch);
        case DType::Q2_K:
            return multiply_super<DType::Q2_K>(o, scratch);
        case DType::Q3_K:
            return multiply_super<DType::Q3_K>(o, scratch);
        case DType::IQ4_XS:
            return multiply_super<DType::IQ4_XS>(o, scratch);
        case DType::I32:
            break;
    }
    for (size_t m = 0; m < m_rows; ++m) memset(out + m * out_stride, 0, rows * sizeof(float));
}

void dequantise(DType type, const void* row, size_t k, float* out) {
    if (!dequantise_blocks(type, row, k, out)) dequantise_row(type, row, k, out);
}

}  // namespace

const MatmulKernels& matmul_avx512() {
    static const MatmulKernels kernels{"avx512", quantise_row, multiply, dequantise};
    return kernels;
}

}  // namespace metallic::cpu

#endif

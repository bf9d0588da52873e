#pragma once

#include <cstring>

#include "backend/cpu/isa/matmul_float.h"
#include "backend/cpu/isa/matmul_kernels.h"
#include "backend/cpu/isa/matmul_panel.h"
#include "core/dequantise.h"
#include "core/dequantise_rows.h"

// From a tensor type to its kernel, for the vector instruction sets. An `Isa` has
//   Panels, Floats                the sets of multiply_panels and multiply_float
//   kGemvRows<T>                  up to this many activation rows, reading the weights once per row from the caches is
//                                 faster than unpacking them; 0 where there is no such kernel
// and its file the kernels for so few rows.
namespace metallic::cpu {
namespace {

template <DType T>
void gemv_plain(const Operands& o);
template <DType T>
void gemv_super(const Operands& o);

template <class Isa, DType T>
void multiply_quantised(const Operands& o, void* scratch) {
    if constexpr (Isa::template kGemvRows<T> > 0) {
        if (o.m_rows <= Isa::template kGemvRows<T>) {
            if constexpr (Format<T>::kSuper) {
                return gemv_super<T>(o);
            } else {
                return gemv_plain<T>(o);
            }
        }
    }
    multiply_panels<typename Isa::Panels, T>(o, scratch);
}

template <class Isa>
void multiply_type(DType type, const Operands& o, void* scratch) {
    using Floats = typename Isa::Floats;
    switch (type) {
        case DType::F32:
            return multiply_float<Floats, DType::F32>(o, scratch);
        case DType::F16:
            return multiply_float<Floats, DType::F16>(o, scratch);
        case DType::BF16:
            return multiply_float<Floats, DType::BF16>(o, scratch);
        case DType::Q4_0:
            return multiply_quantised<Isa, DType::Q4_0>(o, scratch);
        case DType::Q4_1:
            return multiply_quantised<Isa, DType::Q4_1>(o, scratch);
        case DType::Q5_0:
            return multiply_quantised<Isa, DType::Q5_0>(o, scratch);
        case DType::Q5_1:
            return multiply_quantised<Isa, DType::Q5_1>(o, scratch);
        case DType::Q8_0:
            return multiply_quantised<Isa, DType::Q8_0>(o, scratch);
        case DType::IQ4_NL:
            return multiply_quantised<Isa, DType::IQ4_NL>(o, scratch);
        case DType::MXFP4:
            return multiply_quantised<Isa, DType::MXFP4>(o, scratch);
        case DType::Q2_K:
            return multiply_quantised<Isa, DType::Q2_K>(o, scratch);
        case DType::Q3_K:
            return multiply_quantised<Isa, DType::Q3_K>(o, scratch);
        case DType::Q4_K:
            return multiply_quantised<Isa, DType::Q4_K>(o, scratch);
        case DType::Q5_K:
            return multiply_quantised<Isa, DType::Q5_K>(o, scratch);
        case DType::Q6_K:
            return multiply_quantised<Isa, DType::Q6_K>(o, scratch);
        case DType::IQ4_XS:
            return multiply_quantised<Isa, DType::IQ4_XS>(o, scratch);
        case DType::I32:
            break;
    }
}

template <class Isa>
void multiply(DType type, const void* w, size_t w_stride_bytes, size_t rows, size_t k, const void* a,
              size_t a_stride_bytes, size_t m_rows, float* out, size_t out_stride, void* scratch) {
    if (rows == 0 || m_rows == 0) return;
    if (k == 0 || type == DType::I32) {
        for (size_t m = 0; m < m_rows; ++m) std::memset(out + m * out_stride, 0, rows * sizeof(float));
        return;
    }
    const Operands o{static_cast<const uint8_t*>(w),
                     w_stride_bytes,
                     rows,
                     k,
                     static_cast<const uint8_t*>(a),
                     a_stride_bytes,
                     m_rows,
                     out,
                     out_stride};
    multiply_type<Isa>(type, o, scratch);
}

void dequantise(DType type, const void* row, size_t k, float* out) {
    if (!dequantise_blocks(type, row, k, out)) dequantise_row(type, row, k, out);
}

}  // namespace
}  // namespace metallic::cpu

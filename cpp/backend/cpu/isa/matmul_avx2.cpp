#if defined(__x86_64__)

#include "backend/cpu/isa/matmul_avx2_float.h"
#include "backend/cpu/isa/matmul_avx2_gemm.h"
#include "backend/cpu/isa/matmul_avx2_gemv.h"
#include "backend/cpu/isa/matmul_dispatch.h"

namespace metallic::cpu {
namespace {

constexpr size_t gemv_rows(DType type) {
    if (type == DType::Q2_K || type == DType::Q3_K || type == DType::IQ4_XS) return 0;
    return type == DType::Q4_K || type == DType::Q5_K || type == DType::Q6_K ? 6 : 3;
}

struct MatmulAvx2 {
    using Panels = Avx2;
    using Floats = FloatAvx2;
    template <DType T>
    static constexpr size_t kGemvRows = gemv_rows(T);
};

}  // namespace

const MatmulKernels& matmul_avx2() {
    static const MatmulKernels kernels{"avx2", quantise_row, multiply<MatmulAvx2>, dequantise};
    return kernels;
}

}  // namespace metallic::cpu

#endif

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
#include "backend/cpu/isa/matmul_dispatch.h"

namespace metallic::cpu {
namespace {

struct MatmulAvx512 {
    using Panels = Avx512;
    using Floats = FloatAvx512;
    template <DType T>
    static constexpr size_t kGemvRows = 6;
};

}  // namespace

const MatmulKernels& matmul_avx512() {
    static const MatmulKernels kernels{"avx512", quantise_row, multiply<MatmulAvx512>, dequantise};
    return kernels;
}

}  // namespace metallic::cpu

#endif

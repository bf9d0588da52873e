// clang-format off: the lanes come first, the kernels are written over them.
#include "backend/cpu/isa/vector_lanes_avx512.h"
#include "backend/cpu/isa/attention_kernels.h"
// clang-format on

namespace metallic::cpu {

const VectorKernels& vector_avx512() {
    static constexpr VectorKernels table = kernels("avx512");
    return table;
}

}  // namespace metallic::cpu

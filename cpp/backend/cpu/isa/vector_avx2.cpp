// clang-format off: the lanes come first, the kernels are written over them.
#include "backend/cpu/isa/vector_lanes_avx2.h"
#include "backend/cpu/isa/attention_kernels.h"
// clang-format on

namespace metallic::cpu {

const VectorKernels& vector_avx2() {
    static constexpr VectorKernels table = kernels("avx2");
    return table;
}

}  // namespace metallic::cpu

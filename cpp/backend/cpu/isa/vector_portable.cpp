// clang-format off: the lanes come first, the kernels are written over them.
#include "backend/cpu/isa/vector_lanes_portable.h"
#include "backend/cpu/isa/attention_kernels.h"
// clang-format on

namespace metallic::cpu {

const VectorKernels& vector_portable() {
    static constexpr VectorKernels table = kernels("portable");
    return table;
}

}  // namespace metallic::cpu

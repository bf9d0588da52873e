#pragma once

#include <span>

#include "backend/cpu/isa/matmul_kernels.h"
#include "backend/cpu/isa/vector_kernels.h"

namespace metallic::cpu {

// The kernels of one instruction set.
struct Isa {
    const char* name;
    const MatmulKernels* matmul;
    const VectorKernels* vector;
};

// The instruction sets that this build has kernels for and that this processor and operating system support, the
// plainest
// ("portable") first.
std::span<const Isa> supported_isas();

// The last of them, or the one that the environment variable METALLIC_CPU_ISA names. Throws RequestError when it names
// none that is supported.
const Isa& select_isa();

}  // namespace metallic::cpu

#include "backend/cpu/isa/matmul_kernels.h"

#include "backend/cpu/isa/matmul_activation.h"
#include "backend/cpu/isa/matmul_panel.h"

namespace metallic::cpu {

ActivationFormat activation_format(DType weight) noexcept {
    switch (weight) {
        case DType::Q4_0:
        case DType::Q4_1:
        case DType::Q5_0:
        case DType::Q5_1:
        case DType::Q8_0:
        case DType::IQ4_NL:
        case DType::MXFP4:
            return ActivationFormat::Q8;
        case DType::Q2_K:
        case DType::Q3_K:
        case DType::Q4_K:
        case DType::Q5_K:
        case DType::Q6_K:
        case DType::IQ4_XS:
            return ActivationFormat::Q8K;
        case DType::F32:
        case DType::F16:
        case DType::BF16:
        case DType::I32:
            break;
    }
    return ActivationFormat::F32;
}

namespace {

size_t packed_bytes(ActivationFormat format, size_t k) noexcept {
    switch (format) {
        case ActivationFormat::Q8:
            return (k + kGroup - 1) / kGroup * sizeof(Q8Group);
        case ActivationFormat::Q8K:
            return k / kSuperBlock * sizeof(Q8KBlock);
        case ActivationFormat::F32:
            break;
    }
    return (k + 15) / 16 * 16 * sizeof(float);
}

}  // namespace

size_t activation_row_bytes(ActivationFormat format, size_t k) noexcept {
    // An odd multiple of 512: eight rows of a tile then fall on different sets of a first-level cache of 4 KiB ways.
    return (packed_bytes(format, k) + 511) / 1024 * 1024 + 512;
}

size_t matmul_scratch_bytes(size_t) noexcept {
    return kScratchBytes;
}

}  // namespace metallic::cpu

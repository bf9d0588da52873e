#include "core/dtype.h"

#include <array>

namespace metallic {
namespace {

constexpr std::array<DTypeInfo, 17> kTypes{{
    {DType::F32, "F32", 1, 4, false},
    {DType::F16, "F16", 1, 2, false},
    {DType::Q4_0, "Q4_0", 32, 18, true},
    {DType::Q4_1, "Q4_1", 32, 20, true},
    {DType::Q5_0, "Q5_0", 32, 22, true},
    {DType::Q5_1, "Q5_1", 32, 24, true},
    {DType::Q8_0, "Q8_0", 32, 34, true},
    {DType::Q2_K, "Q2_K", 256, 84, true},
    {DType::Q3_K, "Q3_K", 256, 110, true},
    {DType::Q4_K, "Q4_K", 256, 144, true},
    {DType::Q5_K, "Q5_K", 256, 176, true},
    {DType::Q6_K, "Q6_K", 256, 210, true},
    {DType::IQ4_NL, "IQ4_NL", 32, 18, true},
    {DType::IQ4_XS, "IQ4_XS", 256, 136, true},
    {DType::I32, "I32", 1, 4, false},
    {DType::BF16, "BF16", 1, 2, false},
    {DType::MXFP4, "MXFP4", 32, 17, true},
}};

constexpr std::array<std::string_view, 41> kGgufNames{
    "F32",   "F16",    "Q4_0",  "Q4_1", "",     "",        "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8",    "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16",  "",       "",
    "",      "TQ1_0",  "TQ2_0", "",     "",     "",        "MXFP4",  "NVFP4"};

}  // namespace

const DTypeInfo* find_dtype(uint32_t gguf_type) noexcept {
    for (const DTypeInfo& info : kTypes) {
        if (static_cast<uint32_t>(info.dtype) == gguf_type) return &info;
    }
    return nullptr;
}

const DTypeInfo* find_dtype(std::string_view name) noexcept {
    for (const DTypeInfo& info : kTypes) {
        if (info.name == name) return &info;
    }
    return nullptr;
}

const DTypeInfo& dtype_info(DType dtype) noexcept {
    const DTypeInfo* info = find_dtype(static_cast<uint32_t>(dtype));
    return info ? *info : kTypes[0];
}

std::string_view gguf_type_name(uint32_t gguf_type) noexcept {
    return gguf_type < kGgufNames.size() ? kGgufNames[gguf_type] : std::string_view{};
}

}  // namespace metallic

#include "backend/kv_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/blocks.h"
#include "core/half.h"

namespace metallic {
namespace {

template <typename T>
T load_at(const std::byte* bytes) noexcept {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

half_t scale_of(const std::byte* block) noexcept {
    return load_at<half_t>(block);
}

float read_q8_0(const std::byte* row, uint32_t i) noexcept {
    const std::byte* block = row + i / kBlock * sizeof(BlockQ8_0);
    return to_float(scale_of(block)) * static_cast<float>(load_at<int8_t>(block + sizeof(half_t) + i % kBlock));
}

float read_q4_0(const std::byte* row, uint32_t i) noexcept {
    const std::byte* block = row + i / kBlock * sizeof(BlockQ4_0);
    const uint32_t pair = load_at<uint8_t>(block + sizeof(half_t) + i % 16);
    const int quant = static_cast<int>(i % kBlock < 16 ? pair & 15u : pair >> 4) - 8;
    return to_float(scale_of(block)) * static_cast<float>(quant);
}

using Block = std::array<float, kBlock>;

// Quants of a block by the scale that they are divided by, or zeros where the block has a NaN; the scale's F16.
half_t quantise(const Block& x, float scale, float lowest, float highest, std::array<int, kBlock>& quants) noexcept {
    quants.fill(0);
    for (const float v : x) {
        if (std::isnan(v)) return {0x7e00};
    }
    // Below the smallest F16 the stored scale is 0, whatever the quants; so a reciprocal that overflows is not needed.
    const float inverse = std::abs(scale) < 0x1p-30f ? 0.0f : 1.0f / scale;
    for (size_t i = 0; i < x.size(); ++i) {
        const float magic = 0x1.8p23f;  // adding it rounds to an integer, to nearest even
        quants[i] = static_cast<int>((std::clamp(x[i] * inverse, lowest, highest) + magic) - magic);
    }
    return to_half(std::clamp(scale, -65504.0f, 65504.0f));
}

void write_q8_0(const Block& x, std::byte* out) noexcept {
    float most = 0;
    for (const float v : x) most = std::max(most, std::abs(v));
    std::array<int, kBlock> quants;
    BlockQ8_0 block;
    block.d = quantise(x, std::min(most / 127.0f, 65504.0f), -127.0f, 127.0f, quants);
    for (size_t i = 0; i < quants.size(); ++i) block.qs[i] = static_cast<int8_t>(quants[i]);
    std::memcpy(out, &block, sizeof block);
}

void write_q4_0(const Block& x, std::byte* out) noexcept {
    float lowest = 0, highest = 0;
    for (const float v : x) {
        lowest = std::min(lowest, v);
        highest = std::max(highest, v);
    }
    const float extreme = highest > -lowest ? highest : lowest;
    std::array<int, kBlock> quants;
    BlockQ4_0 block;
    block.d = quantise(x, std::clamp(extreme * -0.125f, -65504.0f, 65504.0f), -8.0f, 7.0f, quants);
    for (size_t i = 0; i < 16; ++i) {
        block.qs[i] = static_cast<uint8_t>((quants[i] + 8) | (quants[i + 16] + 8) << 4);
    }
    std::memcpy(out, &block, sizeof block);
}

void write_blocks(DType dtype, const float* x, uint32_t n, std::byte* row) noexcept {
    const size_t bytes = dtype_info(dtype).block_bytes;
    for (uint32_t first = 0; first < n; first += kBlock, row += bytes) {
        Block block{};
        std::copy_n(x + first, std::min<uint32_t>(n - first, kBlock), block.begin());
        dtype == DType::Q8_0 ? write_q8_0(block, row) : write_q4_0(block, row);
    }
}

float saturated(float x, float limit) noexcept {
    return std::isnan(x) ? x : std::clamp(x, -limit, limit);
}

}  // namespace

void rotate_kv_row(std::span<float> head) noexcept {
    for (size_t first = 0; first < head.size();) {
        const size_t length = std::bit_floor(std::min<size_t>(head.size() - first, kBlock));
        float* const x = head.data() + first;
        for (size_t step = length / 2; step > 0; step /= 2) {
            for (size_t i = 0; i < length; ++i) {
                if (i & step) continue;
                const float a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
        }
        const float factor = static_cast<float>(1 / std::sqrt(static_cast<double>(length)));
        for (size_t i = 0; i < length; ++i) x[i] *= factor;
        first += length;
    }
}

void read_kv_row(const KvLayout& layout, KvSide side, const std::byte* row, float* out) noexcept {
    const KvRows& rows = layout.rows(side);
    const uint32_t n = layout.head_size;
    switch (rows.dtype) {
        case DType::F32:
            std::memcpy(out, row, n * sizeof(float));
            break;
        case DType::F16:
            for (uint32_t i = 0; i < n; ++i) out[i] = to_float(load_at<half_t>(row + i * sizeof(half_t)));
            break;
        case DType::BF16:
            for (uint32_t i = 0; i < n; ++i) out[i] = to_float(load_at<bf16_t>(row + i * sizeof(bf16_t)));
            break;
        case DType::Q4_0:
            for (uint32_t i = 0; i < n; ++i) out[i] = read_q4_0(row, i);
            break;
        default:
            for (uint32_t i = 0; i < n; ++i) out[i] = read_q8_0(row, i);
    }
    if (rows.rotated) rotate_kv_row({out, n});
}

void write_kv_row(const KvLayout& layout, KvSide side, const float* x, std::byte* row) noexcept {
    const KvRows& rows = layout.rows(side);
    const uint32_t n = layout.head_size;
    if (rows.rotated) {
        // Runs lie within blocks, so a row goes block by block.
        for (uint32_t first = 0; first < n; first += kBlock) {
            Block block;
            const uint32_t count = std::min<uint32_t>(n - first, kBlock);
            std::copy_n(x + first, count, block.begin());
            rotate_kv_row({block.data(), count});
            write_blocks(rows.dtype, block.data(), count, row + first / kBlock * dtype_info(rows.dtype).block_bytes);
        }
        return;
    }
    for (uint32_t i = 0; i < n; ++i) {
        const half_t half = to_half(saturated(x[i], 65504.0f));
        const bf16_t brain = to_bf16(saturated(x[i], 0x1.fep127f));
        if (rows.dtype == DType::F16) std::memcpy(row + i * sizeof half, &half, sizeof half);
        if (rows.dtype == DType::BF16) std::memcpy(row + i * sizeof brain, &brain, sizeof brain);
    }
    if (rows.dtype == DType::F32) std::memcpy(row, x, n * sizeof(float));
    if (dtype_info(rows.dtype).quantised) write_blocks(rows.dtype, x, n, row);
}

std::unique_ptr<std::byte[]> convert_kv_page(const KvLayout& from, const std::byte* page, const KvLayout& to) {
    auto result = std::make_unique_for_overwrite<std::byte[]>(to.page_bytes);
    std::vector<float> row(from.head_size);
    for (uint32_t layer = 0; layer < from.layers; ++layer) {
        for (const KvSide side : {KvSide::keys, KvSide::values}) {
            for (uint32_t head = 0; head < from.kv_heads; ++head) {
                const std::byte* in = page + from.at(side, layer, head);
                std::byte* out = result.get() + to.at(side, layer, head);
                for (uint32_t token = 0; token < kPageTokens; ++token) {
                    read_kv_row(from, side, in + uint64_t{token} * from.rows(side).row_bytes, row.data());
                    write_kv_row(to, side, row.data(), out + uint64_t{token} * to.rows(side).row_bytes);
                }
            }
        }
    }
    return result;
}

}  // namespace metallic

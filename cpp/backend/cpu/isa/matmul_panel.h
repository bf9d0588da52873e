#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backend/cpu/isa/matmul_activation.h"
#include "core/unpack.h"

// The driver of products with many activation rows, shared by the vector instruction sets.
//
// W weight rows times one chunk of k are unpacked once into a panel, [k / 4][W rows][4 codes], with their scales beside
// it; a register tile of W rows times a few activation rows then broadcasts four activations at a time against it.
// Results are carried from chunk to chunk in `out`, which changes no rounding. A row block is swept chunk by chunk, so
// that the activations of a chunk are read from the near caches.
namespace metallic::cpu {

// Scratch of one `multiply` call on any instruction set.
inline constexpr size_t kScratchBytes = 64 * 1024;

inline constexpr int kChunk = 512;                         // elements of k in one panel
inline constexpr int kChunkBlocks = kChunk / kBlock;       // of 32
inline constexpr int kChunkSupers = kChunk / kSuperBlock;  // of 256
inline constexpr size_t kRowBlock = 64;

struct Operands {
    const uint8_t* w;
    size_t w_stride, rows, k;
    const uint8_t* a;
    size_t a_stride, m_rows;
    float* out;
    size_t out_stride;
};

template <int W>
struct alignas(64) PlainPanel {
    uint8_t codes[kChunkBlocks][kBlock * W];
    float d[kChunkBlocks][W];
    float m[kChunkBlocks][W];
};

template <int W>
struct alignas(64) SuperPanel {
    uint8_t codes[kSuperBlock * W];
    int32_t sc[16][W];       // as the tile wants them: Isa::pack_scale
    int16_t pairs[8][W][2];  // of sub-blocks 2 i and 2 i + 1: minima, or -kZero sc
    float d[W];
    float m[W];
};

template <int W>
struct alignas(64) PanelScratch {
    uint8_t staged[W][kChunk];  // codes in their natural order
    union {
        PlainPanel<W> plain;
        SuperPanel<W> super[kChunkSupers];
    };
};
static_assert(sizeof(PanelScratch<16>) <= kScratchBytes);

namespace {

template <int I>
struct Constant {
    static constexpr int value = I;
};

template <int kFirst, int kEnd, class Body>
[[gnu::always_inline]] inline void unrolled_from(const Body& body) {
    if constexpr (kFirst < kEnd) {
        body(Constant<kFirst>{});
        unrolled_from<kFirst + 1, kEnd>(body);
    }
}

// body(0), body(1), ... body(N - 1), each with its index as a constant, so that arrays that are indexed by it are
// registers from the start; loops that the optimiser unrolls leave them in memory.
template <int N, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
    unrolled_from<0, N>(body);
}

// What a tile needs to know: its panel's part of the activations and of the output.
struct Tile {
    const uint8_t* a;  // first activation row, at the chunk's first group
    size_t a_stride;
    int count;   // blocks, or super-blocks, in the chunk
    bool first;  // no result is carried in
    float* out;
    size_t out_stride;
    int rows;  // valid weight rows, 1..W
};

// Codes in their natural order; Isa::interleave looks up the tables of the formats that have one.
template <class F>
inline void stage(const typename F::Block& block, uint8_t* codes) {
    if constexpr (F::kTabled) {
        F::raw(block, codes);
    } else {
        F::codes(block, codes);
    }
}

template <class Isa, DType T>
inline void fill_plain(PanelScratch<Isa::kRows>& s, const Operands& o, size_t row, size_t block0, int count) {
    using F = Format<T>;
    constexpr int kRows = Isa::kRows;
    for (int r = 0; r < kRows; ++r) {
        const size_t n = row + static_cast<size_t>(r) < o.rows ? row + static_cast<size_t>(r) : o.rows - 1;
        const uint8_t* p = o.w + n * o.w_stride + block0 * sizeof(typename F::Block);
        for (int b = 0; b < count; ++b) {
            const auto& block =
                *reinterpret_cast<const typename F::Block*>(p + static_cast<size_t>(b) * sizeof(typename F::Block));
            stage<F>(block, s.staged[r] + b * kBlock);
            s.plain.d[b][r] = F::scale(block);
            if (F::kMin) s.plain.m[b][r] = F::minimum(block);
        }
    }
    Isa::template interleave<F>(&s.staged[0][0], count * kBlock, &s.plain.codes[0][0]);
}

template <class Isa, DType T>
inline void fill_super(PanelScratch<Isa::kRows>& s, const Operands& o, size_t row, size_t block0, int count) {
    using F = Format<T>;
    constexpr int kRows = Isa::kRows, kSubs = kSuperBlock / F::kSub;
    for (int r = 0; r < kRows; ++r) {
        const size_t n = row + static_cast<size_t>(r) < o.rows ? row + static_cast<size_t>(r) : o.rows - 1;
        const uint8_t* p = o.w + n * o.w_stride + block0 * sizeof(typename F::Block);
        for (int b = 0; b < count; ++b) {
            SuperPanel<kRows>& panel = s.super[b];
            const auto& block =
                *reinterpret_cast<const typename F::Block*>(p + static_cast<size_t>(b) * sizeof(typename F::Block));
            stage<F>(block, s.staged[r] + b * kSuperBlock);
            int16_t sc[kSubs], mn[kSubs] = {};
            F::scales(block, sc, mn);
            panel.d[r] = F::scale(block);
            if (F::kMin) panel.m[r] = F::minimum(block);
            for (int j = 0; j < kSubs; ++j) {
                panel.sc[j][r] = Isa::pack_scale(sc[j]);
                panel.pairs[j / 2][r][j % 2] = F::kMin ? mn[j] : static_cast<int16_t>(-Isa::template zero<F>() * sc[j]);
            }
        }
    }
    for (int b = 0; b < count; ++b) {
        Isa::template interleave<F>(&s.staged[0][b * kSuperBlock], kSuperBlock, s.super[b].codes);
    }
}

template <class Isa, DType T, int M>
inline void run_tile(const PanelScratch<Isa::kRows>& s, const Tile& tile) {
    using F = Format<T>;
    if constexpr (F::kSuper) {
        Isa::template super_tile<F, M>(s.super, tile);
    } else {
        Isa::template plain_tile<F, M>(s.plain, tile);
    }
}

template <class Isa, DType T>
inline void sweep_activations(const PanelScratch<Isa::kRows>& s, Tile tile, size_t m_rows) {
    static_assert(Isa::kTile == 8 || Isa::kTile == 4);
    const auto skip = [&](size_t rows) {
        tile.a += rows * tile.a_stride;
        tile.out += rows * tile.out_stride;
    };
    if constexpr (Isa::kTile == 8) {
        for (; m_rows >= 8; m_rows -= 8, skip(8)) run_tile<Isa, T, 8>(s, tile);
    }
    for (; m_rows >= 4; m_rows -= 4, skip(4)) run_tile<Isa, T, 4>(s, tile);
    for (; m_rows >= 2; m_rows -= 2, skip(2)) run_tile<Isa, T, 2>(s, tile);
    if (m_rows > 0) run_tile<Isa, T, 1>(s, tile);
}

template <class Isa, DType T>
void multiply_panels(const Operands& o, void* scratch) {
    using F = Format<T>;
    constexpr size_t kPerChunk = kChunk / F::kElements;
    constexpr size_t kChunkBytes = F::kSuper ? kChunkSupers * sizeof(Q8KBlock) : kChunk / kGroup * sizeof(Q8Group);
    auto& s = *static_cast<PanelScratch<Isa::kRows>*>(scratch);
    const size_t blocks = o.k / F::kElements;
    for (size_t row0 = 0; row0 < o.rows; row0 += kRowBlock) {
        const size_t row_end = o.rows - row0 < kRowBlock ? o.rows : row0 + kRowBlock;
        for (size_t b = 0; b < blocks; b += kPerChunk) {
            const int count = static_cast<int>(blocks - b < kPerChunk ? blocks - b : kPerChunk);
            for (size_t row = row0; row < row_end; row += Isa::kRows) {
                if constexpr (F::kSuper) {
                    fill_super<Isa, T>(s, o, row, b, count);
                } else {
                    fill_plain<Isa, T>(s, o, row, b, count);
                }
                const size_t left = row_end - row;
                const Tile tile{o.a + b / kPerChunk * kChunkBytes,
                                o.a_stride,
                                count,
                                b == 0,
                                o.out + row,
                                o.out_stride,
                                static_cast<int>(left < Isa::kRows ? left : Isa::kRows)};
                sweep_activations<Isa, T>(s, tile, o.m_rows);
            }
        }
    }
}

}  // namespace
}  // namespace metallic::cpu

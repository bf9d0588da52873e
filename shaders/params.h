#pragma once

// Structures and constants that host code and kernels share: plain scalars in natural alignment, the same layout on
// both sides. METALLIC_SIZE checks it on both sides.
#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

#define METALLIC_SIZE(type, bytes) static_assert(sizeof(type) == bytes, "layout of " #type)

#ifdef __METAL_VERSION__
#define METALLIC_PARAMS_BEGIN
#define METALLIC_PARAMS_END
#else
#define METALLIC_PARAMS_BEGIN namespace metallic::metal {
#define METALLIC_PARAMS_END }
#endif

METALLIC_PARAMS_BEGIN

// ---- what a batch brings with it (see Batch in backend.h) ----

struct RowParams {  // one token
    uint32_t run;
    uint32_t position;
};
METALLIC_SIZE(RowParams, 8);

struct RunParams {
    uint32_t first_row;
    uint32_t length;
    uint32_t position;
    uint32_t rope_extended;
};
METALLIC_SIZE(RunParams, 16);

// Page table of run r and cache group g: tables[r * groups + g]. Token t of the sequence lies in
// pages[first + t / page_tokens - first_page].
struct TableParams {
    uint32_t first;  // index into the batch's page addresses
    uint32_t first_page;
    uint32_t count;
    uint32_t reserved;
};
METALLIC_SIZE(TableParams, 16);

#ifdef __METAL_VERSION__
// An entry of the array of page addresses: the device address of a page.
struct Page {
    device uchar* bytes;
};
METALLIC_SIZE(Page, 8);
#endif

// ---- matmul ----

enum MatmulShape : uint32_t {
    kMatmulParts = 4,
    kMatvecSimdgroups = 2,    // of a threadgroup
    kMatvecRows = 8,          // most activation rows that share a pass over the weights
    kMatmulTileWeights = 64,  // weight rows of a threadgroup's tile: half of them gate, half up where gated
    kMatmulTileRows = 32,     // activation rows of the tile
    kMatmulThreads = 128,
    kRowScaleSimdgroups = 4,  // rows of a threadgroup
    kExpertGroupThreads = 256,
    kExpertGroupLimit = 1024,  // most experts whose pairs can be grouped
};

// Weight rows of a simdgroup, by the activation rows that share them.
constexpr uint32_t matvec_weights(uint32_t rows) {
    return rows <= 2 ? 4 : 2;
}

struct MatmulPart {
    uint64_t expert_bytes;
    uint32_t row_bytes;
    uint32_t count;        // of weight rows
    uint32_t first_group;  // the first threadgroup (along the weight rows) that works on this part
    uint32_t bias_stride;  // elements from one expert's bias to the next
};
METALLIC_SIZE(MatmulPart, 24);

struct MatmulParams {
    MatmulPart parts[kMatmulParts];  // of a gated pair: gate and up
    uint32_t rows;                   // of activations; of experts: (token, slot) pairs
    uint32_t cols;
    float epsilon;
    uint32_t pairs_per_input;  // of experts: how many consecutive pairs share an input row
    uint32_t experts;
    uint32_t order;  // of grouped experts: where the order of pairs starts, after the tiles
};
METALLIC_SIZE(MatmulParams, 120);

struct RowScaleParams {
    uint32_t rows;
    uint32_t cols;
    float epsilon;
};
METALLIC_SIZE(RowScaleParams, 12);

// One tile of grouped experts: pairs order[first .. first + count) of one expert. Unused tiles have a count of 0.
struct ExpertTile {
    uint32_t expert;
    uint32_t first;
    uint32_t count;
    uint32_t reserved;
};
METALLIC_SIZE(ExpertTile, 16);

struct ExpertGroupParams {
    uint32_t pairs;
    uint32_t experts;
    uint32_t tiles;
};
METALLIC_SIZE(ExpertGroupParams, 12);

// ---- embedding, norm, activation, copy ----

struct EmbeddingParams {
    uint32_t cols;
    uint32_t rows;
    uint32_t row_bytes;
    float scale;
};
METALLIC_SIZE(EmbeddingParams, 16);

struct NormParams {
    uint32_t groups;
    uint32_t group;  // elements
    uint32_t count;  // of a group, in units of what the kernel loads at once
    float epsilon;
};
METALLIC_SIZE(NormParams, 16);

struct ElementParams {
    uint32_t count;
    float factor;
};
METALLIC_SIZE(ElementParams, 8);

struct SelectParams {
    uint32_t width;
    uint32_t rows;
};
METALLIC_SIZE(SelectParams, 8);

struct MoveParams {
    uint32_t page_quads;  // a page's bytes / 16
    uint32_t moves;
};
METALLIC_SIZE(MoveParams, 8);

// ---- mixtures of experts ----

struct RouteParams {
    uint32_t experts;
    uint32_t top_k;
    float scale;
};
METALLIC_SIZE(RouteParams, 12);

struct CombineParams {
    uint32_t width;  // in units of what the kernel loads at once
    uint32_t rows;
    uint32_t top_k;
};
METALLIC_SIZE(CombineParams, 12);

// ---- sampling ----

enum : uint32_t {
    kSelectThreads = 256,  // also the most candidates of a row
    kSelectChunk = 4096,   // logits, or candidates, that one threadgroup looks through
};

enum : uint32_t {
    kLogitBan,      // to -inf
    kLogitBias,     // + bias
    kLogitPenalty,  // if repeated, * repetition up to 0 and / repetition above; then - less
};

// One change of one logit. Doubles as their two halves.
struct LogitEditParams {
    uint32_t row;
    uint32_t token;
    uint32_t kind;
    uint32_t repeated;
    uint32_t bias;  // the bits of a float
    uint32_t reserved;
    uint32_t repetition_low, repetition_high;
    uint32_t less_low, less_high;
};
METALLIC_SIZE(LogitEditParams, 40);

struct EditParams {
    uint32_t edits;
    uint32_t vocabulary;
};
METALLIC_SIZE(EditParams, 8);

struct SelectRowParams {
    uint32_t k;
    uint32_t masked;  // whether token i is allowed by bit i % 32 of word mask_word + i / 32
    uint32_t mask_word;
    uint32_t reserved;
};
METALLIC_SIZE(SelectRowParams, 16);

struct SelectTopParams {
    uint32_t vocabulary;
    uint32_t count;  // elements per row that are looked through
    uint32_t most;   // the greatest k of all rows
};
METALLIC_SIZE(SelectTopParams, 12);

struct CandidateParams {
    int32_t token;   // -1: there is none
    uint32_t logit;  // the bits of a float
};
METALLIC_SIZE(CandidateParams, 8);

// ---- the cache: kv_write, rope and attention ----

// What one page of a cache group holds, and the history that one dispatch of attention covers: see kv.h.
enum KvType : uint32_t { KvF32, KvF16, KvBF16, KvQ8_0, KvQ4_0 };
enum : uint32_t { kMostRotatedHead = 1024 };  // larger heads are kept as they are; see kv.h

// Where a layer's keys, or its values, lie in a page: those of a kv head from `first` + head * `head_bytes` on.
struct KvSideParams {
    uint64_t first;
    uint64_t head_bytes;
    uint32_t row_bytes;
    uint32_t reserved;
};
METALLIC_SIZE(KvSideParams, 24);

struct KvPlaceParams {
    KvSideParams keys;
    KvSideParams values;
    uint32_t group;  // this cache group, and how many there are: indices of page tables
    uint32_t groups;
};
METALLIC_SIZE(KvPlaceParams, 56);

struct KvWriteParams {
    KvPlaceParams kv;
    uint32_t rows;
    uint32_t q_heads;
    uint32_t kv_heads;
    float epsilon;
    float magnitudes[2];  // of the rotation: base, extended
};
METALLIC_SIZE(KvWriteParams, 80);

struct RopeParams {
    uint32_t rows;
    uint32_t heads;
    float magnitudes[2];
};
METALLIC_SIZE(RopeParams, 16);

struct AttentionParams {
    KvPlaceParams kv;
    uint32_t heads;
    uint32_t group_heads;  // query heads of one kv head
    uint32_t window;
    uint32_t blocks;  // threadgroups that share the queries of one tile and kv head
    uint32_t pages;   // attention_few: pages between two barriers
    float factor;     // of queries: the scale, over the soft-cap where there is one
    float softcap;
    uint32_t reserved;
};
METALLIC_SIZE(AttentionParams, 88);

// Consecutive queries of one run, and the tokens [begin, end) that they are to look at: all that they see, or a segment
// of it, whose sums go to partials[partial + row * heads + head].
struct AttentionTile {
    uint32_t row;  // of what is bound as queries and as the output
    uint32_t rows;
    uint32_t position;  // of the first
    uint32_t run;
    uint32_t begin, end;
    uint32_t partial;  // kWholeTile: the tile is not cut, and the output is written
    uint32_t reserved;
};
METALLIC_SIZE(AttentionTile, 32);
enum : uint32_t { kWholeTile = 0xffffffffu };

// A tile that was cut: segment s of its query (row, head) is partials[partial + (s * rows + row) * heads + head].
struct AttentionMerge {
    uint32_t row;
    uint32_t rows;
    uint32_t partial;
    uint32_t segments;
};
METALLIC_SIZE(AttentionMerge, 16);

METALLIC_PARAMS_END

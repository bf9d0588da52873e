#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backend/metal/ops/attention_schedule.h"
#include "metal_checks.h"
#include "reference_check.h"

// Attention, cache writes and rotation on the Metal backend: queries, keys and values straight from tables, so that
// nothing but these steps is measured, against a forward in double precision.
//
// Tolerances are parts of the root mean square of the outputs. A weight's relative error is that of its score, which is
// head_size products of up to 1 with roundings of 2^-24 each (at most 2e-5 for 512 of them, in practice a tenth), and
// of an exponential of 4 ulp; sums of the values add a rounding per page. 3e-5 holds that. A cache of 16 bits rounds
// keys and values the same way on both sides, so it costs nothing where they come straight from a table; where norms
// and rotation come first, and always for Q8_0, whose quants come from a quotient, a value at the border of two
// roundings may fall on the other side here; a step of Q4_0 is a seventh of the block's largest element.
namespace metallic::testing {
namespace {

constexpr double kFloat = 3e-5;

double tolerance_of(DType kv, bool direct) {
    if (kv == DType::Q4_0) return 1e-1;
    if (kv == DType::Q8_0 || (kv == DType::BF16 && !direct)) return 5e-3;
    return kv == DType::F16 && !direct ? 1e-3 : kFloat;
}
double tolerance_of(KvPair kv, bool direct = true) {
    return std::max(tolerance_of(kv.keys, direct), tolerance_of(kv.values, direct));
}

struct Shape {
    uint32_t heads = 4;
    uint32_t kv_heads = 2;
    uint32_t head_size = 64;
    uint32_t window = 0;
    float softcap = 0;
    bool sinks = false;
    float spread = 1;      // of queries and keys
    bool changes = false;  // norms and rotation before the write
    RopePairing pairing = RopePairing::neox;
    uint32_t dims = 0;    // that are rotated, where `changes`
    uint32_t layers = 1;  // the attention is of the last one
};

std::string describe(const Shape& s, KvPair kv) {
    return std::string(dtype_info(kv.keys).name) + "/" + std::string(dtype_info(kv.values).name) + " heads " +
           std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " of " + std::to_string(s.head_size) +
           " window " + std::to_string(s.window) + " softcap " + std::to_string(s.softcap) + (s.sinks ? " sinks" : "");
}

TestModel make_model(const Shape& shape) {
    TestModel model;
    model.program.groups.push_back({shape.window, shape.kv_heads, shape.head_size, shape.layers});
    const uint32_t width = shape.heads * shape.head_size, kv_width = shape.kv_heads * shape.head_size;
    const ValueId q = model.input(width, shape.spread), k = model.input(kv_width, shape.spread);
    const ValueId v = model.input(kv_width);
    KvWriteStep write{};
    write.layer = shape.layers - 1, write.k = k, write.v = v;
    AttentionStep attention{};
    attention.layer = write.layer, attention.heads = shape.heads, attention.softcap = shape.softcap;
    attention.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
    attention.q = q;
    if (shape.changes) {
        write.q = q, write.q_out = attention.q = model.value(width);
        write.q_norm = model.weight(DType::F32, shape.head_size, 1, 1, 0.3f, 1.0f);
        write.k_norm = model.weight(DType::F16, shape.head_size, 1, 1, 0.3f, 1.0f);
        write.norm_epsilon = 1e-5f, write.rope = model.rope(shape.dims, shape.pairing);
    }
    model.step(write);
    attention.sinks = shape.sinks ? model.weight(DType::F32, shape.heads, 1, 1, 2.0f) : kNone;
    attention.out = model.value(width);
    model.step(attention);
    model.finish(attention.out);
    return model;
}

Session::Options on_metal(KvPair kv, uint32_t max_tokens = 64, uint32_t pages = 64) {
    Session::Options options;
    options.device = "metal";
    options.kv = kv;
    options.max_tokens = options.max_outputs = max_tokens;
    options.pages = pages;
    return options;
}

std::vector<uint32_t> all_rows(const std::vector<RunSpec>& runs) {
    size_t rows = 0;
    for (const RunSpec& run : runs) rows += run.tokens.size();
    std::vector<uint32_t> all(rows);
    for (uint32_t i = 0; i < rows; ++i) all[i] = i;
    return all;
}

// Runs batches and compares every row of each.
void expect_attention(const Shape& shape, const std::vector<std::vector<RunSpec>>& batches,
                      const Session::Options& options) {
    SCOPED_TRACE(describe(shape, options.kv));
    const TestModel model = make_model(shape);
    ReferenceForward reference(model, options.kv);
    Session session(model, options);
    for (size_t b = 0; b < batches.size(); ++b) {
        const std::vector<uint32_t> rows = all_rows(batches[b]);
        const std::vector<float> got = session.forward(batches[b], rows);
        EXPECT_LE(relative_error(got, reference.forward(batches[b], rows)), tolerance_of(options.kv, !shape.changes))
            << "batch " << b;
    }
}

// A prompt whose end is in the middle of a page, more of it together with another prompt and single tokens of both, in
// an order that mixes them; then single tokens alone.
std::vector<std::vector<RunSpec>> conversation(uint32_t prompt) {
    std::vector<std::vector<RunSpec>> batches;
    batches.push_back({{0, some_tokens(prompt, 1)}});
    batches.push_back({{1, some_tokens(1, 2)}, {0, some_tokens(11, 3)}, {2, some_tokens(2, 4)}});
    batches.push_back({{2, some_tokens(9, 5)}, {0, some_tokens(1, 6)}, {1, some_tokens(3, 7)}, {3, some_tokens(1, 8)}});
    batches.push_back({{0, some_tokens(1, 9)}, {1, some_tokens(1, 10)}, {2, some_tokens(1, 11)}});
    return batches;
}

constexpr DType kTypes[] = {DType::F16, DType::BF16, DType::F32, DType::Q8_0, DType::Q4_0};
// Each type on each side, and all ways in which they meet: 16 bits, floats, blocks, rotated blocks.
constexpr KvPair kPairs[] = {DType::F16,
                             DType::BF16,
                             DType::F32,
                             DType::Q8_0,
                             DType::Q4_0,
                             {DType::Q8_0, DType::Q4_0},
                             {DType::Q4_0, DType::F16},
                             {DType::F16, DType::Q4_0},
                             {DType::BF16, DType::F16},
                             {DType::F32, DType::Q8_0}};

class MetalAttention : public ::testing::TestWithParam<uint32_t> {};

// By head size: those with kernels of their own, and others, down to 1, that are no multiple of anything.
TEST_P(MetalAttention, EveryTypeOfCache) {
    const Checks unchecked(false);
    for (const KvPair kv : kPairs) {
        Shape shape;
        shape.head_size = GetParam();
        expect_attention(shape, conversation(37), on_metal(kv));
    }
}

TEST_P(MetalAttention, EveryTypeOfCacheChecked) {
    const Checks checked(true);
    for (const KvPair kv : kPairs) {
        Shape shape;
        shape.head_size = GetParam();
        shape.heads = GetParam() > 128 ? 2 : 3, shape.kv_heads = 1;
        shape.window = 11;
        expect_attention(shape, {{{0, some_tokens(9, 1)}}, {{1, some_tokens(1, 2)}, {0, some_tokens(6, 3)}}},
                         on_metal(kv, 16, 8));
    }
}

INSTANTIATE_TEST_SUITE_P(HeadSizes, MetalAttention,
                         ::testing::Values(64, 80, 96, 128, 192, 256, 512, 32, 40, 65, 72, 1, 19, 130, 320, 20));

// Beyond what matrices and staging in threadgroup memory can hold.
TEST(MetalAttentionSteps, HugeHeads) {
    const Checks unchecked(false);
    for (const uint32_t head_size : {1000u, 1026u, 2048u, 8200u}) {
        for (const KvPair kv : {KvPair(DType::F16), KvPair(DType::Q4_0)}) {  // 4 bits are rotated up to 1024
            Shape shape;
            shape.heads = 2, shape.kv_heads = 1, shape.head_size = head_size;
            expect_attention(shape, {{{0, some_tokens(5, 1)}}, {{0, some_tokens(1, 2)}, {1, some_tokens(2, 3)}}},
                             on_metal(kv, 8, 2));
        }
    }
}

TEST(MetalAttentionSteps, HeadsPerKvHead) {
    const Checks unchecked(false);
    for (const uint32_t group : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 16u, 40u}) {
        Shape shape;
        shape.head_size = 32, shape.kv_heads = group < 5 ? 2 : 1, shape.heads = group * shape.kv_heads;
        expect_attention(shape, conversation(45), on_metal(DType::F16));
    }
}

TEST(MetalAttentionSteps, Windows) {
    const Checks unchecked(false);
    for (const uint32_t window : {1u, 5u, 31u, 32u, 33u, 40u, 64u, 1000u, 0x80000001u, 0xffffffffu}) {
        for (const uint32_t group : {1u, 4u}) {
            Shape shape;
            shape.head_size = 40, shape.window = window, shape.kv_heads = 1, shape.heads = group;
            expect_attention(shape, conversation(60), on_metal(DType::F16));
        }
    }
}

TEST(MetalAttentionSteps, SoftcapAndSinks) {
    const Checks checked(true);
    for (const float softcap : {0.0f, 2.0f, 30.0f}) {
        for (const bool sinks : {false, true}) {
            Shape shape;
            shape.head_size = 16, shape.heads = 3, shape.kv_heads = 1, shape.softcap = softcap, shape.sinks = sinks;
            shape.spread = 3;
            expect_attention(shape, {{{0, some_tokens(13, 1)}}, {{0, some_tokens(1, 2)}}}, on_metal(DType::F32, 16, 8));
        }
    }
}

// Scores far apart: weights that vanish, and a maximum that moves from page to page.
TEST(MetalAttentionSteps, SharpScores) {
    const Checks unchecked(false);
    for (const float spread : {8.0f, 30.0f}) {
        Shape shape;
        shape.spread = spread;
        // A score's rounding grows with it: its parts are up to spread^2 sqrt(head_size), and 2^-24 of that is
        // absolute.
        const TestModel model = make_model(shape);
        ReferenceForward reference(model, DType::F32);
        Session session(model, on_metal(DType::F32));
        for (const auto& batch : conversation(60)) {
            const std::vector<uint32_t> rows = all_rows(batch);
            EXPECT_LE(relative_error(session.forward(batch, rows), reference.forward(batch, rows)),
                      kFloat * std::max(1.0f, spread * spread / 8));
        }
    }
}

TEST(MetalAttentionSteps, NormsAndRotationBeforeTheWrite) {
    const Checks checked(true);
    for (const KvPair kv : {KvPair(DType::F16), KvPair(DType::BF16), KvPair(DType::F32), KvPair(DType::Q8_0),
                            KvPair(DType::Q4_0, DType::Q8_0)}) {
        for (const RopePairing pairing : {RopePairing::normal, RopePairing::neox}) {
            for (const uint32_t dims : {2u, 20u, 36u}) {
                Shape shape;
                shape.head_size = 36, shape.heads = 2, shape.kv_heads = 1, shape.changes = true;
                shape.pairing = pairing, shape.dims = dims, shape.layers = 3;
                for (const bool alias : {false, true}) {
                    Session::Options options = on_metal(kv, 16, 8);
                    options.alias_queries = alias;
                    expect_attention(shape,
                                     {{{0, some_tokens(5, 1)}}, {{1, some_tokens(3, 2), true}, {0, some_tokens(1, 3)}}},
                                     options);
                }
            }
        }
    }
}

// Histories that are cut into segments: for single tokens, for a few, and for a prompt's further chunk, alone and
// mixed.
TEST(MetalAttentionSteps, LongHistories) {
    const Checks unchecked(false);
    for (const uint32_t window : {0u, 700u}) {
        Shape shape;
        shape.heads = 6, shape.head_size = 32, shape.window = window, shape.sinks = true;
        std::vector<std::vector<RunSpec>> batches{{{0, some_tokens(1500, 1)}}, {{0, some_tokens(1, 2)}}};
        batches.push_back({{0, some_tokens(2, 3)}, {1, some_tokens(400, 4)}});
        batches.push_back({{0, some_tokens(13, 5)}, {1, some_tokens(1, 6)}, {2, some_tokens(1, 7)}});
        batches.push_back({{1, some_tokens(40, 8)}, {0, some_tokens(70, 9)}});
        expect_attention(shape, batches, on_metal(DType::F16, 1500, 80));
    }
}

TEST(MetalAttentionSteps, SegmentsAreCheckedToo) {
    const Checks checked(true);
    Shape shape;
    shape.heads = 3, shape.kv_heads = 1, shape.head_size = 8, shape.sinks = true;
    expect_attention(shape, {{{0, some_tokens(300, 1)}}, {{0, some_tokens(1, 2)}}, {{0, some_tokens(7, 3)}}},
                     on_metal({DType::Q8_0, DType::Q4_0}, 300, 12));
}

// Every pair of types at once in one layout of pages, with several layers and windows.
TEST(MetalAttentionSteps, EveryPairOfTypes) {
    const Checks unchecked(false);
    for (const DType keys : kTypes) {
        for (const DType values : kTypes) {
            Shape shape;
            shape.head_size = 48, shape.layers = 3, shape.window = 21, shape.sinks = true;
            expect_attention(shape, conversation(37), on_metal({keys, values}));
        }
    }
}

// What a later token wrote is nothing to an earlier one of the same tile, even if it is no number. (A table's row of
// NaNs is token 49.)
TEST(MetalAttentionSteps, LaterTokensAreNotSeen) {
    const Checks unchecked(false);
    for (const DType kv : {DType::F32, DType::F16, DType::BF16}) {
        for (const uint32_t heads : {1u, 4u}) {
            for (const uint32_t length : {3u, 40u}) {  // attention_few and attention_many
                Shape shape;
                shape.heads = heads, shape.kv_heads = 1, shape.head_size = 24;
                TestModel model = make_model(shape);
                std::vector<int32_t> tokens = some_tokens(length, 5);
                for (int32_t& token : tokens) token %= 49;
                Session clean(model, on_metal(kv));
                const std::vector<float> wanted = clean.forward({{0, tokens}}, {length - 3, length - 2});
                const float nan = std::numeric_limits<float>::quiet_NaN();
                for (WeightId id = 0; id < 3; ++id) {
                    for (uint32_t i = 0; i < model.program.weights[id].cols; ++i) {
                        std::memcpy(model.bytes[id].data() + (49 * model.program.weights[id].cols + i) * 4, &nan, 4);
                    }
                }
                tokens.back() = 49;
                Session spoilt(model, on_metal(kv));
                const std::vector<float> got = spoilt.forward({{0, tokens}}, {length - 3, length - 2, length - 1});
                const size_t width = got.size() / 3;
                EXPECT_LE(relative_error({got.begin(), got.begin() + static_cast<ptrdiff_t>(2 * width)}, wanted),
                          kFloat);
                for (size_t i = 2 * width; i < got.size(); ++i) EXPECT_TRUE(std::isnan(got[i]));
            }
        }
    }
}

// The angle of a pair is position * frequency, to float accuracy at every position that there can be.
TEST(MetalRotation, AnglesAtAnyPosition) {
    const Checks unchecked(false);
    TestModel model;
    const ValueId in = model.input(64), out = model.value(64);
    model.step(RopeStep{model.rope(64, RopePairing::neox), 64, in, out});
    RopeTable& table = model.program.ropes[0];
    for (float* frequency : {&table.base.inverse_frequencies[1], &table.extended.inverse_frequencies[1]})
        *frequency *= -1;
    table.base.inverse_frequencies[2] = 1e-30f;
    table.base.inverse_frequencies[3] = 0.0f;
    table.base.inverse_frequencies[4] = 3.0e7f;
    table.base.inverse_frequencies[5] = 6.2831855f;
    model.finish(out);
    Session session(model, on_metal(DType::F32));
    const std::vector<double> elements = model.elements(0);
    for (const uint32_t position : {0u, 1u, 100u, 4095u, 131072u, 16777217u, 99999999u, 2147483640u}) {
        for (const bool extended : {false, true}) {
            const Batch batch = session.prepare({{0, some_tokens(5), extended}}, {0, 4});
            session.runs[0].position = position;
            session.submit(batch);
            const RopeTable::Variant& variant = extended ? table.extended : table.base;
            for (const uint32_t row : {0u, 4u}) {
                for (uint32_t i = 0; i < 32; ++i) {
                    const double angle = static_cast<double>(static_cast<float>(position + row)) *
                                         static_cast<double>(variant.inverse_frequencies[i]);
                    const size_t token = static_cast<size_t>(some_tokens(5)[row]);
                    const double a = elements[token * 64 + i], b = elements[token * 64 + i + 32];
                    const double c = std::cos(angle) * static_cast<double>(variant.magnitude);
                    const double s = std::sin(angle) * static_cast<double>(variant.magnitude);
                    const float* const got = session.logits.data() + (row == 0 ? 0 : 64);
                    // cos and sin of 4 ulp, two products of at most 1.25 and a sum.
                    EXPECT_NEAR(got[i], a * c - b * s, 1.2e-6) << position << " pair " << i;
                    EXPECT_NEAR(got[i + 32], b * c + a * s, 1.2e-6) << position << " pair " << i;
                }
            }
        }
    }
}

// ---- the schedule ----

struct Pieces {
    std::vector<metal::AttentionTile> few, many;
    std::vector<metal::AttentionMerge> merges;
};

Pieces pieces_of(const metal::AttentionSchedule& schedule) {
    Pieces pieces;
    pieces.few.resize(schedule.few.tiles);
    pieces.many.resize(schedule.many.tiles);
    pieces.merges.resize(schedule.merges());
    schedule.write(pieces.few.data(), pieces.many.data(), pieces.merges.data());
    return pieces;
}

// Every token that a query sees is in exactly one piece of it; pieces that are parts have partials of their own, which
// exactly one merge collects.
void check_schedule(const Batch& batch, const metal::AttentionShape& shape) {
    const metal::AttentionSchedule schedule(batch, shape);
    const Pieces pieces = pieces_of(schedule);
    uint32_t tokens = 0;
    for (const Run& run : batch.runs) tokens += run.length;
    ASSERT_LE(pieces.few.size() + pieces.many.size(), metal::AttentionSchedule::most_tiles(tokens));
    ASSERT_LE(pieces.merges.size(), metal::AttentionSchedule::most_merges(tokens));
    ASSERT_LE(uint64_t{schedule.few.partials} + schedule.many.partials, shape.most_partials);
    metal::AttentionShape unbounded = shape;
    unbounded.most_partials = UINT64_MAX;
    const metal::AttentionSchedule wanted(batch, unbounded);
    ASSERT_LE(uint64_t{wanted.few.partials} + wanted.many.partials,
              metal::AttentionSchedule::most_partials(shape, tokens));
    std::vector<uint64_t> covered(tokens, 0), parts(tokens, 0);
    std::vector<uint32_t> partial_row(schedule.few.partials + schedule.many.partials, ~0u);
    for (const bool few : {true, false}) {
        const metal::TileList& list = few ? schedule.few : schedule.many;
        for (const metal::AttentionTile& tile : few ? pieces.few : pieces.many) {
            const Run& run = batch.runs[tile.run];
            ASSERT_EQ(run.length <= shape.few_tokens, few);
            ASSERT_LE(tile.rows, few ? shape.few.rows : shape.many.rows);
            ASSERT_LT(tile.begin, tile.end);
            for (uint32_t r = 0; r < tile.rows; ++r) {
                const uint32_t row = list.first_row + tile.row + r, position = tile.position + r;
                ASSERT_EQ(position, run.position + row - run.first_row);
                ASSERT_LT(row, list.end_row);
                const uint32_t oldest = shape.window && position >= shape.window ? position - shape.window + 1 : 0;
                const uint32_t begin = std::max(oldest, tile.begin), end = std::min(position + 1, tile.end);
                covered[row] += begin < end ? end - begin : 0;
                if (tile.partial == metal::kWholeTile) {
                    ASSERT_EQ(parts[row]++, 0u);
                    continue;
                }
                parts[row] += 2;
                for (uint32_t h = 0; h < shape.heads; ++h) {
                    uint32_t& owner = partial_row.at(list.first_partial + tile.partial + r * shape.heads + h);
                    ASSERT_EQ(owner, ~0u);
                    owner = row * shape.heads + h;
                }
            }
        }
    }
    for (const Run& run : batch.runs) {
        for (uint32_t r = 0; r < run.length; ++r) {
            const uint32_t seen = run.position + r + 1;
            ASSERT_EQ(covered[run.first_row + r], shape.window ? std::min(seen, shape.window) : seen);
        }
    }
    for (const metal::AttentionMerge& merge : pieces.merges) {
        ASSERT_LE(merge.rows, schedule.most_merge_rows);
        for (uint32_t i = 0; i < merge.segments * merge.rows * shape.heads; ++i) {
            const uint32_t row = merge.row + i / shape.heads % merge.rows;
            ASSERT_EQ(partial_row.at(merge.partial + i), row * shape.heads + i % shape.heads);
            partial_row[merge.partial + i] = ~0u;
            parts[row] -= i % shape.heads == 0 ? 2 : 0;
        }
    }
    for (const uint32_t owner : partial_row) ASSERT_EQ(owner, ~0u);  // collected
    for (uint32_t row = 0; row < tokens; ++row) ASSERT_LE(parts[row], 1u);
}

TEST(MetalAttentionSchedule, CoversWhatIsSeenOnce) {
    std::mt19937 random(3);
    const auto upto = [&random](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    for (int i = 0; i < 400; ++i) {
        std::vector<metallic::Run> runs;
        uint32_t row = 0;
        for (uint32_t r = 0; r <= upto(6); ++r) {
            const uint32_t length = upto(2) ? 1 : 1 + upto(100);
            runs.push_back({row, length, upto(3) ? upto(5000) : upto(3) ? 0 : 3000000 + upto(100000), false});
            row += length;
        }
        Batch batch;
        batch.runs = runs;
        metal::AttentionShape shape;
        shape.heads = 1 + upto(40);
        shape.window = upto(2) ? 0 : 1 + upto(6000);
        shape.few_tokens = upto(4) ? upto(9) : 0xffffffffu;
        shape.few = {1 + upto(8), 1 + upto(16), 1 + upto(8)};
        shape.many = {1 + upto(32), 1 + upto(16), 1 + upto(8)};
        shape.most_partials = upto(4) ? 1u << upto(20) : 0;
        ASSERT_NO_FATAL_FAILURE(check_schedule(batch, shape)) << i;
    }
}

// One token at the end of the longest history there is: many segments, within the memory for them.
TEST(MetalAttentionSchedule, LongestHistory) {
    const std::vector<metallic::Run> runs{{0, 1, 0x7fffffffu, false}};
    Batch batch;
    batch.runs = runs;
    metal::AttentionShape shape;
    shape.heads = 32;
    shape.few = {1, 8, 4};
    shape.few_tokens = 1;
    shape.most_partials = 32 * 64;
    const metal::AttentionSchedule schedule(batch, shape);
    EXPECT_EQ(schedule.few.tiles, 32u);
    const Pieces pieces = pieces_of(schedule);
    EXPECT_EQ(pieces.few.front().begin, 0u);
    EXPECT_EQ(pieces.few.back().end, 0x80000000u);
    EXPECT_EQ(pieces.merges.front().segments, 32u);
}

}  // namespace
}  // namespace metallic::testing

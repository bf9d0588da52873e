#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "core/dtype.h"
#include "trace/scope.h"

// A model as data: a flat list of typed steps over named tensors. The same structures hold a program as traced (one
// operation a step) and as planned (fused; see planner.h); a backend reads the planned form and nothing else.
namespace metallic {

using ValueId = uint32_t;
using WeightId = uint32_t;
using RopeId = uint32_t;
inline constexpr uint32_t kNone = ~uint32_t{0};

enum class Rows : uint8_t { tokens, outputs };  // one row per token of the batch, or one per requested output

// An activation: a row-major matrix [rows, width] of F32 (or of I32 where a step says so).
struct Value {
    uint32_t width;
    Rows rows;
};

// A weight as the file has it: `experts` matrices [rows, cols], each row `row_bytes(dtype, cols)` long, contiguous.
struct Weight {
    std::string name;
    DType dtype;
    uint64_t cols;
    uint64_t rows;
    uint64_t experts;
    uint32_t block = kNoBlock;  // the model's block that it belongs to
};

// A view of consecutive rows of a weight.
struct WeightRows {
    WeightId weight = kNone;
    uint32_t first = 0;
    uint32_t count = 0;
};

enum class RopePairing : uint8_t { normal, neox };  // pairs (2i, 2i+1), or (i, i + dims/2)

// Rotary embedding of the first `dims` elements of each head: angle = position * inverse_frequency[i]; cos and sin are
// multiplied by `magnitude`. A sequence that will outgrow the trained context uses the long variant where there is one.
struct RopeTable {
    struct Variant {
        std::vector<float> inverse_frequencies;  // dims / 2
        float magnitude = 1.0f;
    };
    RopePairing pairing = RopePairing::normal;
    uint32_t dims = 0;
    Variant base;
    Variant extended;  // empty when there is none
};

// Layers that keep history alike, and so share pages.
struct CacheGroup {
    uint32_t window = 0;  // tokens a query sees, itself included; 0 = all
    uint32_t kv_heads = 0;
    uint32_t head_size = 0;  // of keys and of values
    uint32_t layers = 0;
};

enum class Activation : uint8_t { silu, gelu, gelu_tanh, relu };

// ---- steps ----------------------------------------------------------------------------------------------------

struct EmbeddingStep {  // out = scale * weight[token]
    WeightId weight;
    float scale;
    ValueId out;
};

struct NormStep {  // root-mean-square norm of each group of `group` elements, times weight[group]; then + residual
    ValueId in;
    WeightId weight;  // kNone: no weight
    float epsilon;
    uint32_t group;
    ValueId residual;  // kNone: none
    ValueId out;
};

struct LinearPart {
    WeightRows weight;
    WeightId bias = kNone;  // F32 or F16 [>= first + count]; a view takes the same rows of the bias
    ValueId out = kNone;
};
inline constexpr int kMaxLinearParts = 4;

struct NormPrologue {
    WeightId weight = kNone;
    float epsilon = 0;
    bool enabled = false;
};

struct LinearStep {  // part.out = [norm](in) weight^T + bias, for up to four parts that share `in`
    ValueId in;
    NormPrologue norm;
    std::array<LinearPart, kMaxLinearParts> parts;
    uint32_t part_count = 1;
    bool gated = false;  // two parts, gate and up: gated_out = activation(gate) * up, and the parts' outs are kNone
    Activation activation = Activation::silu;
    ValueId gated_out = kNone;
    ValueId residual = kNone;  // one part: out += residual
};

struct AddStep {
    ValueId a, b, out;
};

enum class UnaryOp : uint8_t { scale, softcap };  // x * factor; factor * tanh(x / factor)
struct UnaryStep {
    UnaryOp op;
    float factor;
    ValueId in, out;
};

struct GatedActivationStep {  // out = activation(gate) * up
    Activation activation;
    ValueId gate, up, out;
};

struct RopeStep {  // rotates heads of `head_size`
    RopeId rope;
    uint32_t head_size;
    ValueId in, out;
};

// Appends keys and values of the batch's tokens to the cache. As planned it also carries what precedes it: per-head
// norms of queries and keys and the rotation of both; the queries are then rewritten in place (q_out aliases q).
struct KvWriteStep {
    uint32_t group;
    uint32_t layer;  // within the group
    ValueId k, v;
    ValueId q = kNone, q_out = kNone;
    WeightId q_norm = kNone, k_norm = kNone;  // [head_size]
    float norm_epsilon = 0;
    RopeId rope = kNone;
};

struct AttentionStep {
    uint32_t group;
    uint32_t layer;
    uint32_t heads;
    float scale;
    float softcap;   // 0: none
    WeightId sinks;  // F32 [heads]: a logit that joins the softmax and adds no value; kNone: none
    ValueId q, out;  // [tokens, heads * head_size]
};

enum class RouterGate : uint8_t { softmax, softmax_of_chosen, sigmoid };

// Chooses top_k experts per token: ids (I32) and weights, each [tokens, top_k], best first, lowest id winning ties.
struct RouteStep {
    ValueId logits;
    RouterGate gate;
    uint32_t top_k;
    bool normalise;  // weights divided by their sum
    float scale;
    ValueId ids, weights;
};

// part.out[slot] = in weight[ids[slot]]^T, for each of top_k slots; a value of width top_k * rows.
struct ExpertLinearStep {
    ValueId in;  // [tokens, cols], or [tokens, top_k * cols] if per_slot
    ValueId ids;
    uint32_t top_k;
    bool per_slot;
    std::array<LinearPart, kMaxLinearParts> parts;
    uint32_t part_count = 1;
    bool gated = false;
    Activation activation = Activation::silu;
    ValueId gated_out = kNone;
};

struct CombineStep {  // out = sum over slots of weights[slot] * in[slot]  [+ residual]
    ValueId in, weights;
    uint32_t top_k;
    ValueId residual;  // kNone: none
    ValueId out;
};

struct SelectStep {  // the rows of `in` whose outputs were asked for
    ValueId in, out;
};

using StepOp = std::variant<EmbeddingStep, NormStep, LinearStep, AddStep, UnaryStep, GatedActivationStep, RopeStep,
                            KvWriteStep, AttentionStep, RouteStep, ExpertLinearStep, CombineStep, SelectStep>;

struct Step {
    StepOp op;
    ScopeId scope = 0;
    uint32_t stage = 0;  // see stages.h
};

struct Program {
    std::vector<Weight> weights;
    std::vector<Value> values;
    std::vector<RopeTable> ropes;
    std::vector<CacheGroup> groups;
    std::vector<Step> steps;
    ValueId logits = kNone;  // [outputs, vocabulary]; kNone in a stage that does not compute them
    // Of a stage (see stages.h): values that are in the arena before its first step, and that are wanted there after
    // its last. A whole program has neither.
    std::vector<ValueId> inputs, outputs;
    ScopeTree scopes;
};

// Logits of one row; 0 where the program, a stage of another, has none.
inline uint32_t logit_width(const Program& program) noexcept {
    return program.logits == kNone ? 0 : program.values[program.logits].width;
}

// The values that a step reads and those that it writes, in declaration order, kNone left out.
void for_each_read(const StepOp& op, const auto& visit);
void for_each_write(const StepOp& op, const auto& visit);
// The weights that a step reads, kNone left out.
void for_each_weight(const StepOp& op, const auto& visit);
const char* step_name(const StepOp& op) noexcept;

}  // namespace metallic

#include "program/step_operands.h"

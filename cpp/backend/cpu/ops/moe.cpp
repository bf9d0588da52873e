#include "backend/cpu/ops/moe.h"

#include <cmath>
#include <cstring>

#include "backend/cpu/ops/matmul.h"

namespace metallic::cpu {
namespace {

class Route final : public Operation {
  public:
    Route(const RouteStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), experts_(p.value(step.logits).width), rows_(p.value(step.logits).rows) {
        p.check(step.top_k >= 1 && step.top_k <= experts_, "more experts chosen than there are");
        p.expect(step.ids, step.top_k, rows_, "the ids");
        p.expect(step.weights, step.top_k, rows_, "the weights");
        p.experts_of_ids[step.ids] = experts_;
        p.reserve_scratch(2 * size_t{experts_} * sizeof(float));
    }

    void run(Worker& worker) const noexcept override {
        const Worker::Range rows = worker.share(worker.submission.count(rows_));
        float* const scores = reinterpret_cast<float*>(worker.scratch);
        float* const remaining = scores + experts_;
        for (uint64_t row = rows.first; row < rows.last; ++row) {
            const float* const logits = worker.value(step_.logits) + row * experts_;
            for (uint32_t e = 0; e < experts_; ++e) {
                // A NaN is the worst score, and the bounds keep all differences finite.
                scores[e] = logits[e] > -kBound ? std::min(logits[e], kBound) : -kBound;
                remaining[e] = scores[e];
            }
            int32_t* const ids = worker.ids(step_.ids) + row * step_.top_k;
            choose(remaining, ids);
            weigh(scores, ids, worker.value(step_.weights) + row * step_.top_k);
        }
    }

  private:
    static constexpr float kBound = 1e30f;
    static constexpr float kTaken = -3e38f;  // below every bounded score

    void choose(float* remaining, int32_t* ids) const noexcept {
        for (uint32_t slot = 0; slot < step_.top_k; ++slot) {
            uint32_t best = 0;
            for (uint32_t e = 1; e < experts_; ++e) {
                if (remaining[e] > remaining[best]) best = e;
            }
            remaining[best] = kTaken;
            ids[slot] = static_cast<int32_t>(best);
        }
    }

    void weigh(float* scores, const int32_t* ids, float* weights) const noexcept {
        if (step_.gate == RouterGate::softmax) kernels_.softmax(scores, experts_);
        for (uint32_t slot = 0; slot < step_.top_k; ++slot) {
            const float score = scores[ids[slot]];
            weights[slot] = step_.gate == RouterGate::sigmoid ? 1.0f / (1.0f + std::exp(-score)) : score;
        }
        if (step_.gate == RouterGate::softmax_of_chosen) kernels_.softmax(weights, step_.top_k);
        float factor = step_.scale;
        if (step_.normalise) {
            float sum = 0;
            for (uint32_t slot = 0; slot < step_.top_k; ++slot) sum += weights[slot];
            if (sum > 0) factor /= sum;
        }
        for (uint32_t slot = 0; slot < step_.top_k; ++slot) weights[slot] *= factor;
    }

    const VectorKernels& kernels_;
    const RouteStep step_;
    const uint32_t experts_;
    const Rows rows_;
};

constexpr uint32_t kPrivateRows = 8;  // up to here every thread converts all rows itself, which saves a barrier

struct Part {
    Matrix matrix;
    const float* bias = nullptr;  // of expert 0
    uint32_t bias_stride = 0;
    uint32_t format = 0;
    ValueId out = kNone;
};

// A batch's (token, slot) pairs by expert, in a thread's scratch; every thread makes the same.
struct Grouping {
    uint32_t* first;   // [experts + 1]: where an expert's pairs start in `order`
    uint32_t* order;   // [pairs]: pairs by expert, ascending within one
    uint32_t* place;   // [pairs]: where a pair is in `order`
    uint32_t* active;  // [active_count]: experts that have pairs
    uint32_t active_count;
    uint32_t pairs;
};

class ExpertLinear final : public Operation {
  public:
    ExpertLinear(const ExpertLinearStep& step, Preparation& p)
        : matmul_(p.matmul),
          vector_(p.vector),
          step_(step),
          top_k_(step.top_k),
          cols_(p.value(step.in).width / (step.per_slot && step.top_k ? step.top_k : 1)),
          rows_(p.value(step.in).rows),
          products_(p, cols_),
          formats_(cols_) {
        p.check(step.part_count >= 1 && step.part_count <= kMaxLinearParts, "a wrong number of parts");
        p.check(top_k_ >= 1, "no expert chosen");
        p.expect(step.ids, top_k_, rows_, "the ids");
        p.expect(step.in, uint64_t{cols_} * (step.per_slot ? top_k_ : 1), rows_, "the input");
        experts_ = p.experts_of_ids[step.ids];
        p.check(experts_ > 0, "ids that no routing has written");
        for (uint32_t i = 0; i < step.part_count; ++i) add_part(step.parts[i], p);
        if (step.gated) {
            p.check(part_count_ == 2 && parts_[0].matrix.count == parts_[1].matrix.count, "gate and up that differ");
            p.expect(step.gated_out, uint64_t{top_k_} * parts_[0].matrix.count, rows_, "the gated output");
        }
        lay_out_scratch(p);
    }

    void run(Worker& worker) const noexcept override {
        const uint32_t tokens = worker.submission.count(rows_);
        const Grouping grouping = group(worker, tokens);
        const uint32_t inputs = step_.per_slot ? grouping.pairs : tokens;
        const bool keep_private = is_private(inputs, grouping.pairs);
        std::byte* const activations = keep_private ? worker.scratch : worker.submission.shared;
        const Worker::Range mine = keep_private ? Worker::Range{0, inputs} : worker.share(inputs);
        for (uint64_t i = mine.first; i < mine.last; ++i) convert(worker, grouping, i, activations, tokens);
        if (!keep_private && !worker.sync()) return;

        uint64_t total = 0;
        for (uint32_t i = 0; i < (step_.gated ? 1 : part_count_); ++i) {
            total += uint64_t{grouping.active_count} * parts_[i].matrix.count;
        }
        const uint32_t chunk = chunk_rows(total, worker.threads, std::min(tokens, kMostTileRows));
        uint32_t per_expert = 0;
        for (uint32_t i = 0; i < (step_.gated ? 1 : part_count_); ++i) per_expert += chunks(parts_[i], chunk);
        worker.for_each_item(grouping.active_count * per_expert, [&](uint32_t item) {
            const uint32_t expert = grouping.active[item / per_expert];
            uint32_t index = item % per_expert, part = 0;
            for (uint32_t n; index >= (n = chunks(parts_[part], chunk)); ++part) index -= n;
            multiply_expert(worker, grouping, activations, expert, part, index * chunk, chunk);
        });
    }

  private:
    static uint32_t chunks(const Part& part, uint32_t chunk) noexcept {
        return (part.matrix.count + chunk - 1) / chunk;
    }

    // Few rows to convert, and few copies of them.
    bool is_private(uint32_t inputs, uint32_t pairs) const noexcept {
        return inputs <= kPrivateRows && pairs <= std::max(kPrivateRows, top_k_);
    }

    void add_part(const LinearPart& source, Preparation& p) {
        Part& part = parts_[part_count_++];
        part.matrix = p.matrix(source.weight);
        p.check(part.matrix.cols == cols_, "a weight that does not fit the input's width");
        p.check(part.matrix.experts == experts_, "a weight that holds another number of experts than the router");
        part.format = formats_.add(products_.add(part.matrix.dtype));
        part.out = source.out;
        if (source.bias != kNone) {
            // [experts, rows of the whole weight]
            const uint64_t stride = p.program.weights[source.weight.weight].rows;
            part.bias = p.floats(source.bias, stride * experts_, "bias") + source.weight.first;
            part.bias_stride = static_cast<uint32_t>(stride);
        }
        p.check(step_.gated == (source.out == kNone), "a part's output is missing, or one too many");
        if (!step_.gated) p.expect(source.out, uint64_t{top_k_} * part.matrix.count, rows_, "the output");
    }

    // A thread's scratch: converted rows, the kernel's own, tiles of products, then the grouping.
    void lay_out_scratch(Preparation& p) {
        const uint64_t pairs = uint64_t{p.max_rows(rows_)} * top_k_;
        p.check(pairs < 0x7fffffffu, "too many experts chosen for the batch");
        kernel_at_ = aligned_size(formats_.bytes(std::max(kPrivateRows, top_k_)));
        tiles_at_ = kernel_at_ + products_.scratch_bytes();
        grouping_at_ = tiles_at_ + kTileFloats * sizeof(float);
        p.reserve_scratch(grouping_at_ + (2 * size_t{experts_} + 1 + 2 * pairs) * sizeof(uint32_t));
        p.reserve_shared(formats_.bytes(pairs));
    }

    // A stable counting sort.
    Grouping group(const Worker& worker, uint32_t tokens) const noexcept {
        Grouping g{};
        g.pairs = tokens * top_k_;
        g.first = reinterpret_cast<uint32_t*>(worker.scratch + grouping_at_);
        g.active = g.first + experts_ + 1;
        g.order = g.active + experts_;
        g.place = g.order + g.pairs;
        const int32_t* const ids = worker.ids(step_.ids);
        std::fill_n(g.first, experts_ + 1, 0u);
        for (uint32_t pair = 0; pair < g.pairs; ++pair) ++g.first[static_cast<uint32_t>(ids[pair]) + 1];
        for (uint32_t e = 0; e < experts_; ++e) {
            if (g.first[e + 1] > 0) g.active[g.active_count++] = e;
            g.first[e + 1] += g.first[e];
        }
        // Filling advances every start to the next one; moving them up by one expert restores them.
        for (uint32_t pair = 0; pair < g.pairs; ++pair) {
            g.place[pair] = g.first[ids[pair]]++;
            g.order[g.place[pair]] = pair;
        }
        for (uint32_t e = experts_; e > 0; --e) g.first[e] = g.first[e - 1];
        g.first[0] = 0;
        return g;
    }

    // Input row i (of a token, or of a pair) to the place, or places, of its pairs.
    void convert(const Worker& worker, const Grouping& grouping, uint64_t i, std::byte* activations,
                 uint32_t tokens) const noexcept {
        const float* const x = worker.value(step_.in) + i * cols_;
        if (step_.per_slot) {
            formats_.convert(matmul_, x, activations, grouping.pairs, grouping.place[i]);
            return;
        }
        const uint32_t* const places = grouping.place + i * top_k_;
        formats_.convert(matmul_, x, activations, grouping.pairs, tokens == 1 ? 0 : places[0]);
        if (tokens == 1) return;  // all pairs share the only row
        for (uint32_t slot = 1; slot < top_k_; ++slot) {
            formats_.duplicate(activations, grouping.pairs, places[0], places[slot]);
        }
    }

    void multiply_expert(const Worker& worker, const Grouping& grouping, std::byte* activations, uint32_t expert,
                         uint32_t part, uint32_t first, uint32_t most) const noexcept {
        const uint32_t width = parts_[part].matrix.count;
        const uint32_t count = std::min(most, width - first);
        const uint32_t end = grouping.first[expert + 1];
        // As many activation rows as two tiles of products of this chunk allow; not less than one.
        const uint32_t tile_rows = std::max(1u, std::min(kMostTileRows, kTileFloats / 2 / count));
        float* const tile = reinterpret_cast<float*>(worker.scratch + tiles_at_);
        for (uint32_t place = grouping.first[expert]; place < end; place += tile_rows) {
            const uint32_t rows = std::min(tile_rows, end - place);
            const bool only_row = !step_.per_slot && grouping.pairs == top_k_;
            const uint32_t row = only_row ? 0 : place;
            multiply(worker, grouping, activations, parts_[part], expert, first, count, row, rows, tile);
            float* const up = tile + size_t{rows} * count;
            if (step_.gated) multiply(worker, grouping, activations, parts_[1], expert, first, count, row, rows, up);
            float* const out = worker.value(step_.gated ? step_.gated_out : parts_[part].out);
            for (uint32_t m = 0; m < rows; ++m) {
                const float* const product = tile + size_t{m} * count;
                float* const to = out + size_t{grouping.order[place + m]} * width + first;
                if (step_.gated) {
                    vector_.gated_activation(static_cast<uint8_t>(step_.activation), product, up + size_t{m} * count,
                                             count, to);
                } else {
                    std::memcpy(to, product, count * sizeof(float));
                }
            }
        }
    }

    void multiply(const Worker& worker, const Grouping& grouping, std::byte* activations, const Part& part,
                  uint32_t expert, uint32_t first, uint32_t count, uint32_t row, uint32_t rows,
                  float* out) const noexcept {
        const Matrix& matrix = part.matrix;
        const std::byte* const weights = matrix.data + expert * matrix.expert_bytes + first * matrix.row_bytes;
        products_.multiply(matrix, weights, count, formats_.row(activations, grouping.pairs, part.format, row),
                           formats_.row_bytes(part.format), rows, out, count, worker.scratch + kernel_at_);
        if (!part.bias) return;
        const float* const bias = part.bias + size_t{expert} * part.bias_stride + first;
        for (uint32_t m = 0; m < rows; ++m) vector_.add(out + size_t{m} * count, bias, count, out + size_t{m} * count);
    }

    const MatmulKernels& matmul_;
    const VectorKernels& vector_;
    const ExpertLinearStep step_;
    const uint32_t top_k_;
    const uint32_t cols_;
    const Rows rows_;
    uint32_t experts_ = 0;
    Products products_;
    ActivationRows formats_;
    std::array<Part, kMaxLinearParts> parts_{};
    uint32_t part_count_ = 0;
    size_t kernel_at_ = 0, tiles_at_ = 0, grouping_at_ = 0;
};

class Combine final : public Operation {
  public:
    Combine(const CombineStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), width_(p.value(step.out).width), rows_(p.value(step.out).rows) {
        p.check(step.top_k >= 1, "no expert chosen");
        p.expect(step.in, uint64_t{step.top_k} * width_, rows_, "the input");
        p.expect(step.weights, step.top_k, rows_, "the weights");
        if (step.residual != kNone) p.expect(step.residual, width_, rows_, "the residual");
    }

    void run(Worker& worker) const noexcept override {
        const float* const in = worker.value(step_.in);
        const float* const weights = worker.value(step_.weights);
        const float* const residual = step_.residual != kNone ? worker.value(step_.residual) : nullptr;
        float* const out = worker.value(step_.out);
        worker.for_each_block(worker.submission.count(rows_), width_, [&](uint64_t row, uint64_t first, uint64_t n) {
            const uint64_t at = row * width_ + first;
            kernels_.weighted_sum(in + row * step_.top_k * width_ + first, width_, weights + row * step_.top_k,
                                  step_.top_k, residual ? residual + at : nullptr, n, out + at);
        });
    }

  private:
    const VectorKernels& kernels_;
    const CombineStep step_;
    const uint32_t width_;
    const Rows rows_;
};

}  // namespace

std::unique_ptr<Operation> prepare(const RouteStep& step, Preparation& preparation) {
    return std::make_unique<Route>(step, preparation);
}
std::unique_ptr<Operation> prepare(const ExpertLinearStep& step, Preparation& preparation) {
    return std::make_unique<ExpertLinear>(step, preparation);
}
std::unique_ptr<Operation> prepare(const CombineStep& step, Preparation& preparation) {
    return std::make_unique<Combine>(step, preparation);
}

}  // namespace metallic::cpu

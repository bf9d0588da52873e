#include "backend/cpu/ops/kv_write.h"

#include <cstring>
#include <optional>

#include "backend/cpu/ops/rope.h"

namespace metallic::cpu {
namespace {

// One item is one head of one token: a query, a key or a value.
class KvWrite final : public Operation {
  public:
    KvWrite(const KvWriteStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), group_(p.group(step.group, step.layer)), layout_(p.kv_layout(step.group)) {
        const uint32_t head = group_.head_size;
        p.expect(step.k, uint64_t{group_.kv_heads} * head, Rows::tokens, "keys");
        p.expect(step.v, uint64_t{group_.kv_heads} * head, Rows::tokens, "values");
        p.check((step.q == kNone) == (step.q_out == kNone), "queries without an output, or the reverse");
        if (step.q != kNone) {
            const uint32_t width = p.value(step.q).width;
            p.check(width % head == 0, "queries that are no whole heads");
            p.expect(step.q, width, Rows::tokens, "queries");
            p.expect(step.q_out, width, Rows::tokens, "the queries' output");
            q_heads_ = width / head;
        }
        if (step.q_norm != kNone) q_norm_ = p.floats(step.q_norm, head, "query norm");
        if (step.k_norm != kNone) k_norm_ = p.floats(step.k_norm, head, "key norm");
        if (step.rope != kNone) rotation_.emplace(step.rope, p.rope(step.rope, head));
        p.reserve_scratch(head * sizeof(float));
    }

    void run(Worker& worker) const noexcept override {
        const uint32_t per_row = q_heads_ + 2 * group_.kv_heads;
        const Worker::Range range = worker.share(uint64_t{worker.submission.count(Rows::tokens)} * per_row);
        for (uint64_t i = range.first; i < range.last; ++i) {
            const uint32_t row = static_cast<uint32_t>(i / per_row);
            const uint32_t head = static_cast<uint32_t>(i % per_row);
            if (head < q_heads_) {
                rewrite_query(worker, row, head);
            } else if (head < q_heads_ + group_.kv_heads) {
                store_key(worker, row, head - q_heads_);
            } else {
                store_value(worker, row, head - q_heads_ - group_.kv_heads);
            }
        }
    }

  private:
    void rewrite_query(Worker& worker, uint32_t row, uint32_t head) const noexcept {
        const size_t at = (size_t{row} * q_heads_ + head) * group_.head_size;
        transform(worker, row, q_norm_, worker.value(step_.q) + at, worker.value(step_.q_out) + at);
    }

    void store_key(Worker& worker, uint32_t row, uint32_t head) const noexcept {
        const float* k = worker.value(step_.k) + (size_t{row} * group_.kv_heads + head) * group_.head_size;
        if (k_norm_ || rotation_) {
            float* const changed = reinterpret_cast<float*>(worker.scratch);
            transform(worker, row, k_norm_, k, changed);
            k = changed;
        }
        kernels_.store_kv(layout_.key_rows, k, group_.head_size, slot(worker, row, KvSide::keys, head));
    }

    void store_value(Worker& worker, uint32_t row, uint32_t head) const noexcept {
        const float* const v = worker.value(step_.v) + (size_t{row} * group_.kv_heads + head) * group_.head_size;
        kernels_.store_kv(layout_.value_rows, v, group_.head_size, slot(worker, row, KvSide::values, head));
    }

    // One head, normed and rotated; `in` and `out` may be the same.
    void transform(Worker& worker, uint32_t row, const float* norm, const float* in, float* out) const noexcept {
        const uint32_t head = group_.head_size;
        if (norm) {
            kernels_.rms_norm(in, norm, nullptr, step_.norm_epsilon, head, out);
        } else if (in != out) {
            std::memcpy(out, in, head * sizeof(float));
        }
        if (rotation_) rotation_->apply(kernels_, worker, row, out, 1, head);
    }

    // Where the row of this token and kv head lies.
    void* slot(const Worker& worker, uint32_t row, KvSide side, uint32_t head) const noexcept {
        const Submission& submission = worker.submission;
        const PageTableView& table = submission.table(submission.run_of_row[row], step_.group);
        const uint32_t position = submission.position(row);
        const uint64_t page = table.pages[position / kPageTokens - table.first_page];
        const uint64_t within = uint64_t{position % kPageTokens} * layout_.rows(side).row_bytes;
        return reinterpret_cast<void*>(page + layout_.at(side, step_.layer, head) + within);
    }

    const VectorKernels& kernels_;
    const KvWriteStep step_;
    const CacheGroup group_;
    const KvLayout layout_;
    uint32_t q_heads_ = 0;
    const float* q_norm_ = nullptr;
    const float* k_norm_ = nullptr;
    std::optional<RowRotation> rotation_;
};

}  // namespace

std::unique_ptr<Operation> prepare(const KvWriteStep& step, Preparation& preparation) {
    return std::make_unique<KvWrite>(step, preparation);
}

}  // namespace metallic::cpu

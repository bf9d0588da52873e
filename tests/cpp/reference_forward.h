#pragma once

#include <algorithm>

#include "test_model.h"

// A plain forward of any program in double precision.
namespace metallic::testing {

// Executes steps one by one as program.h defines them; keeps the history of every sequence, rounded to the cache's
// type.
class ReferenceForward {
  public:
    explicit ReferenceForward(const TestModel& model, KvPair kv = DType::F32);
    // Logits of the given rows.
    std::vector<double> forward(const std::vector<RunSpec>& runs, const std::vector<uint32_t>& output_rows);

  private:
    using Rowset = std::vector<double>;
    struct RowInfo {
        uint32_t sequence;
        uint32_t position;
        bool extended;
        int32_t token;
    };
    struct History {
        std::vector<Rowset> keys, values;  // by position
    };

    void run(const EmbeddingStep& s);
    void run(const NormStep& s);
    void run(const LinearStep& s);
    void run(const AddStep& s);
    void run(const UnaryStep& s);
    void run(const GatedActivationStep& s);
    void run(const RopeStep& s);
    void run(const KvWriteStep& s);
    void run(const AttentionStep& s);
    void run(const RouteStep& s);
    void run(const ExpertLinearStep& s);
    void run(const CombineStep& s);
    void run(const SelectStep& s);

    size_t rows(ValueId id) const;
    uint32_t width(ValueId id) const { return program_.values[id].width; }
    Rowset rotated(RopeId rope, uint32_t head_size, size_t row, Rowset x) const;
    Rowset normed(const Rowset& x, WeightId weight, double epsilon, uint32_t group) const;
    Rowset attend(const AttentionStep& s, size_t row, uint32_t head, const double* q) const;
    double product(const LinearPart& part, uint32_t expert, uint32_t row, const double* x) const;

    const Program& program_;
    const KvPair kv_;
    std::vector<std::vector<double>> weights_;
    std::vector<Rowset> values_;
    std::vector<RowInfo> rows_;
    std::vector<uint32_t> output_rows_;
    std::map<uint32_t, uint32_t> lengths_;
    std::map<std::pair<uint32_t, std::pair<uint32_t, uint32_t>>, History> history_;  // sequence, group, layer
};

namespace detail {

inline double activate(Activation activation, double x) {
    switch (activation) {
        case Activation::silu:
            return x / (1 + std::exp(-x));
        case Activation::gelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh:
            // 0.5 x (1 + tanh(u)), without its cancellation
            return x / (1 + std::exp(-2 * std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
        case Activation::relu:
            return std::max(x, 0.0);
    }
    return 0;
}

inline std::vector<double> softmax(std::vector<double> x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& e : x) sum += e = std::exp(e - most);
    for (double& e : x) e /= sum;
    return x;
}

inline std::vector<double> row_of(const std::vector<double>& all, size_t row, size_t width) {
    return {all.begin() + static_cast<ptrdiff_t>(row * width), all.begin() + static_cast<ptrdiff_t>((row + 1) * width)};
}

inline void put_row(std::vector<double>& all, size_t row, const std::vector<double>& x) {
    std::copy(x.begin(), x.end(), all.begin() + static_cast<ptrdiff_t>(row * x.size()));
}

// The transform of kv_rows.h, by its matrix: the sign of (i, j) is that of the number of bits that both have.
inline std::vector<double> hadamard(const std::vector<double>& x) {
    std::vector<double> out;
    while (out.size() < x.size()) {
        const size_t first = out.size(), n = std::bit_floor(std::min<size_t>(x.size() - first, 32));
        for (size_t i = 0; i < n; ++i) {
            double sum = 0;
            for (size_t j = 0; j < n; ++j) sum += std::popcount(i & j) % 2 == 0 ? x[first + j] : -x[first + j];
            out.push_back(sum / std::sqrt(static_cast<double>(n)));
        }
    }
    return out;
}

// One head through Q4_0 blocks, behind that transform unless it is too large.
inline std::vector<double> rotated_to_four_bits(const std::vector<double>& head) {
    const bool rotated = head.size() <= kMostRotatedHead;
    std::vector<double> x = rotated ? hadamard(head) : head;
    for (size_t first = 0; first < x.size(); first += kBlock) {
        const size_t end = std::min(first + kBlock, x.size());
        double extreme = 0;
        for (size_t i = first; i < end; ++i) extreme = std::abs(x[i]) > std::abs(extreme) ? x[i] : extreme;
        const double scale = extreme / -8;
        const double kept = static_cast<double>(to_float(to_half(static_cast<float>(scale))));
        for (size_t i = first; i < end; ++i) {
            x[i] = scale != 0 ? std::clamp(std::nearbyint(x[i] / scale), -8.0, 7.0) * kept : 0;
        }
    }
    return rotated ? hadamard(x) : x;
}

// Keys or values of some heads, as a cache of this type keeps them.
inline std::vector<double> rounded(DType kv, size_t head_size, std::vector<double> x) {
    const auto half = [](double v) { return static_cast<double>(to_float(to_half(static_cast<float>(v)))); };
    if (kv == DType::F16) std::transform(x.begin(), x.end(), x.begin(), half);
    if (kv == DType::BF16) {
        for (double& v : x) v = static_cast<double>(to_float(to_bf16(static_cast<float>(v))));
    }
    if (kv == DType::Q4_0) {
        for (size_t first = 0; first < x.size(); first += head_size) {
            const auto at = x.begin() + static_cast<ptrdiff_t>(first);
            const std::vector<double> head = rotated_to_four_bits({at, at + static_cast<ptrdiff_t>(head_size)});
            std::copy(head.begin(), head.end(), at);
        }
    }
    for (size_t i = 0; kv == DType::Q8_0 && i < x.size();) {
        const size_t end = std::min(i + kBlock, (i / head_size + 1) * head_size);
        double most = 0;
        for (size_t j = i; j < end; ++j) most = std::max(most, std::abs(x[j]));
        const double scale = most / 127;
        for (; i < end; ++i) x[i] = scale > 0 ? std::nearbyint(x[i] / scale) * half(scale) : 0;
    }
    return x;
}

}  // namespace detail

inline ReferenceForward::ReferenceForward(const TestModel& model, KvPair kv) : program_(model.program), kv_(kv) {
    for (WeightId id = 0; id < program_.weights.size(); ++id) weights_.push_back(model.elements(id));
}

inline size_t ReferenceForward::rows(ValueId id) const {
    return program_.values[id].rows == Rows::tokens ? rows_.size() : output_rows_.size();
}

inline std::vector<double> ReferenceForward::forward(const std::vector<RunSpec>& runs,
                                                     const std::vector<uint32_t>& output_rows) {
    rows_.clear();
    for (const RunSpec& spec : runs) {
        uint32_t& length = lengths_[spec.sequence];
        for (const int32_t token : spec.tokens) rows_.push_back({spec.sequence, length++, spec.rope_extended, token});
    }
    output_rows_ = output_rows;
    values_.assign(program_.values.size(), {});
    for (ValueId id = 0; id < values_.size(); ++id) values_[id].resize(rows(id) * width(id));
    for (const Step& step : program_.steps) {
        std::visit([&](const auto& op) { run(op); }, step.op);
    }
    return values_[program_.logits];
}

inline void ReferenceForward::run(const EmbeddingStep& s) {
    const size_t n = width(s.out);
    for (size_t i = 0; i < values_[s.out].size(); ++i) {
        const size_t token = static_cast<size_t>(rows_[i / n].token);
        values_[s.out][i] = static_cast<double>(s.scale) * weights_[s.weight][token * n + i % n];
    }
}

inline ReferenceForward::Rowset ReferenceForward::normed(const Rowset& x, WeightId weight, double epsilon,
                                                         uint32_t group) const {
    Rowset out(x.size());
    for (size_t first = 0; first < x.size(); first += group) {
        double squares = 0;
        for (size_t i = 0; i < group; ++i) squares += x[first + i] * x[first + i];
        const double factor = 1 / std::sqrt(squares / group + epsilon);
        for (size_t i = 0; i < group; ++i) {
            out[first + i] = x[first + i] * factor * (weight == kNone ? 1 : weights_[weight][i]);
        }
    }
    return out;
}

inline void ReferenceForward::run(const NormStep& s) {
    values_[s.out] = normed(values_[s.in], s.weight, static_cast<double>(s.epsilon), s.group);
    for (size_t i = 0; s.residual != kNone && i < values_[s.out].size(); ++i)
        values_[s.out][i] += values_[s.residual][i];
}

inline double ReferenceForward::product(const LinearPart& part, uint32_t expert, uint32_t row, const double* x) const {
    const Weight& w = program_.weights[part.weight.weight];
    const double* const weight =
        weights_[part.weight.weight].data() + (expert * w.rows + part.weight.first + row) * w.cols;
    double sum = part.bias == kNone ? 0 : weights_[part.bias][expert * w.rows + part.weight.first + row];
    for (size_t i = 0; i < w.cols; ++i) sum += weight[i] * x[i];
    return sum;
}

inline void ReferenceForward::run(const LinearStep& s) {
    const size_t cols = width(s.in);
    for (size_t m = 0; m < rows(s.in); ++m) {
        Rowset x(values_[s.in].begin() + static_cast<ptrdiff_t>(m * cols),
                 values_[s.in].begin() + static_cast<ptrdiff_t>((m + 1) * cols));
        if (s.norm.enabled)
            x = normed(x, s.norm.weight, static_cast<double>(s.norm.epsilon), static_cast<uint32_t>(cols));
        if (s.gated) {
            for (uint32_t n = 0; n < s.parts[0].weight.count; ++n) {
                values_[s.gated_out][m * width(s.gated_out) + n] =
                    detail::activate(s.activation, product(s.parts[0], 0, n, x.data())) *
                    product(s.parts[1], 0, n, x.data());
            }
            continue;
        }
        for (uint32_t p = 0; p < s.part_count; ++p) {
            for (uint32_t n = 0; n < s.parts[p].weight.count; ++n) {
                const size_t at = m * width(s.parts[p].out) + n;
                values_[s.parts[p].out][at] =
                    product(s.parts[p], 0, n, x.data()) + (s.residual == kNone ? 0 : values_[s.residual][at]);
            }
        }
    }
}

inline void ReferenceForward::run(const AddStep& s) {
    for (size_t i = 0; i < values_[s.out].size(); ++i) values_[s.out][i] = values_[s.a][i] + values_[s.b][i];
}

inline void ReferenceForward::run(const UnaryStep& s) {
    const double factor = static_cast<double>(s.factor);
    for (size_t i = 0; i < values_[s.out].size(); ++i) {
        const double x = values_[s.in][i];
        values_[s.out][i] = s.op == UnaryOp::scale ? x * factor : factor * std::tanh(x / factor);
    }
}

inline void ReferenceForward::run(const GatedActivationStep& s) {
    for (size_t i = 0; i < values_[s.out].size(); ++i) {
        values_[s.out][i] = detail::activate(s.activation, values_[s.gate][i]) * values_[s.up][i];
    }
}

inline ReferenceForward::Rowset ReferenceForward::rotated(RopeId rope, uint32_t head_size, size_t row, Rowset x) const {
    const RopeTable& table = program_.ropes[rope];
    const bool extended = rows_[row].extended && !table.extended.inverse_frequencies.empty();
    const RopeTable::Variant& variant = extended ? table.extended : table.base;
    const bool neox = table.pairing == RopePairing::neox;
    const size_t half = table.dims / 2;
    for (size_t head = 0; head < x.size(); head += head_size) {
        for (size_t i = 0; i < half; ++i) {
            const double angle = rows_[row].position * static_cast<double>(variant.inverse_frequencies[i]);
            double& a = x[head + (neox ? i : 2 * i)];
            double& b = x[head + (neox ? i + half : 2 * i + 1)];
            const double c = std::cos(angle) * static_cast<double>(variant.magnitude);
            const double d = std::sin(angle) * static_cast<double>(variant.magnitude);
            const double turned = a * c - b * d;
            b = a * d + b * c;
            a = turned;
        }
    }
    return x;
}

inline void ReferenceForward::run(const RopeStep& s) {
    for (size_t row = 0; row < rows(s.in); ++row) {
        detail::put_row(values_[s.out], row,
                        rotated(s.rope, s.head_size, row, detail::row_of(values_[s.in], row, width(s.in))));
    }
}

inline void ReferenceForward::run(const KvWriteStep& s) {
    const uint32_t head = program_.groups[s.group].head_size;
    const auto change = [&](ValueId id, WeightId norm, size_t row) {
        Rowset x = detail::row_of(values_[id], row, width(id));
        if (norm != kNone) x = normed(x, norm, static_cast<double>(s.norm_epsilon), head);
        return s.rope == kNone ? x : rotated(s.rope, head, row, std::move(x));
    };
    for (size_t row = 0; row < rows(s.k); ++row) {
        if (s.q != kNone) detail::put_row(values_[s.q_out], row, change(s.q, s.q_norm, row));
        History& history = history_[{rows_[row].sequence, {s.group, s.layer}}];
        history.keys.resize(rows_[row].position);
        history.values.resize(rows_[row].position);
        history.keys.push_back(detail::rounded(kv_.keys, head, change(s.k, s.k_norm, row)));
        history.values.push_back(detail::rounded(kv_.values, head, detail::row_of(values_[s.v], row, width(s.v))));
    }
}

inline ReferenceForward::Rowset ReferenceForward::attend(const AttentionStep& s, size_t row, uint32_t head,
                                                         const double* q) const {
    const CacheGroup& group = program_.groups[s.group];
    const History& history = history_.at({rows_[row].sequence, {s.group, s.layer}});
    const uint32_t position = rows_[row].position;
    const uint32_t first = group.window && position >= group.window ? position - group.window + 1 : 0;
    const size_t at = size_t{head} / (s.heads / group.kv_heads) * group.head_size;
    Rowset scores;
    for (uint32_t p = first; p <= position; ++p) {
        double dot = 0;
        for (size_t i = 0; i < group.head_size; ++i) dot += q[i] * history.keys[p][at + i];
        dot *= static_cast<double>(s.scale);
        const double cap = static_cast<double>(s.softcap);
        scores.push_back(cap != 0 ? cap * std::tanh(dot / cap) : dot);
    }
    if (s.sinks != kNone) scores.push_back(weights_[s.sinks][head]);
    scores = detail::softmax(scores);
    Rowset out(group.head_size, 0);
    for (uint32_t p = first; p <= position; ++p) {
        for (size_t i = 0; i < group.head_size; ++i) out[i] += scores[p - first] * history.values[p][at + i];
    }
    return out;
}

inline void ReferenceForward::run(const AttentionStep& s) {
    const uint32_t size = program_.groups[s.group].head_size;
    for (size_t row = 0; row < rows(s.q); ++row) {
        for (uint32_t head = 0; head < s.heads; ++head) {
            const size_t index = row * s.heads + head;
            detail::put_row(values_[s.out], index, attend(s, row, head, values_[s.q].data() + index * size));
        }
    }
}

inline void ReferenceForward::run(const RouteStep& s) {
    for (size_t row = 0; row < rows(s.logits); ++row) {
        const Rowset logits = detail::row_of(values_[s.logits], row, width(s.logits));
        std::vector<uint32_t> order(logits.size());
        for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
        std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
        order.resize(s.top_k);
        Rowset chosen;
        const Rowset all = detail::softmax(logits);
        for (const uint32_t id : order) {
            chosen.push_back(s.gate == RouterGate::softmax   ? all[id]
                             : s.gate == RouterGate::sigmoid ? 1 / (1 + std::exp(-logits[id]))
                                                             : logits[id]);
        }
        if (s.gate == RouterGate::softmax_of_chosen) chosen = detail::softmax(chosen);
        double sum = 0;
        for (const double w : chosen) sum += w;
        for (uint32_t i = 0; i < s.top_k; ++i) {
            values_[s.ids][row * s.top_k + i] = order[i];
            values_[s.weights][row * s.top_k + i] = chosen[i] * static_cast<double>(s.scale) / (s.normalise ? sum : 1);
        }
    }
}

inline void ReferenceForward::run(const ExpertLinearStep& s) {
    const size_t cols = program_.weights[s.parts[0].weight.weight].cols;
    for (size_t pair = 0; pair < values_[s.ids].size(); ++pair) {
        const uint32_t expert = static_cast<uint32_t>(values_[s.ids][pair]);
        const double* const x = values_[s.in].data() + (s.per_slot ? pair : pair / s.top_k) * cols;
        for (uint32_t p = 0; p < (s.gated ? 1 : s.part_count); ++p) {
            const uint32_t count = s.parts[p].weight.count;
            for (uint32_t n = 0; n < count; ++n) {
                double y = product(s.parts[p], expert, n, x);
                if (s.gated) y = detail::activate(s.activation, y) * product(s.parts[1], expert, n, x);
                values_[s.gated ? s.gated_out : s.parts[p].out][pair * count + n] = y;
            }
        }
    }
}

inline void ReferenceForward::run(const CombineStep& s) {
    const size_t n = width(s.out);
    for (size_t i = 0; i < values_[s.out].size(); ++i) {
        double sum = s.residual == kNone ? 0 : values_[s.residual][i];
        for (size_t slot = 0; slot < s.top_k; ++slot) {
            const size_t pair = i / n * s.top_k + slot;
            sum += values_[s.weights][pair] * values_[s.in][pair * n + i % n];
        }
        values_[s.out][i] = sum;
    }
}

inline void ReferenceForward::run(const SelectStep& s) {
    for (size_t i = 0; i < output_rows_.size(); ++i) {
        detail::put_row(values_[s.out], i, detail::row_of(values_[s.in], output_rows_[i], width(s.in)));
    }
}

}  // namespace metallic::testing

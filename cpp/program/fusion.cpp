#include "program/fusion.h"

#include <algorithm>
#include <optional>

namespace metallic {
namespace {

// The program's steps with their uses; fused-away steps are holes until `compact`.
class Graph {
  public:
    explicit Graph(Program& program) : program_(program) {
        steps_.assign(program.steps.begin(), program.steps.end());
        rebuild();
    }

    size_t size() const { return steps_.size(); }
    template <typename T>
    T* get(size_t index) {
        return steps_[index] ? std::get_if<T>(&steps_[index]->op) : nullptr;
    }
    // The step of type T that writes `id` in the same stage as step `reader`; null when another kind does.
    template <typename T>
    T* writer(ValueId id, size_t reader, size_t* index = nullptr) {
        if (id == kNone || writers_[id] == kNone || !same_stage(writers_[id], reader)) return nullptr;
        if (index) *index = writers_[id];
        return get<T>(writers_[id]);
    }
    const std::vector<uint32_t>& readers(ValueId id) const { return readers_[id]; }
    bool read_once(ValueId id) const { return readers_[id].size() == 1 && id != program_.logits; }

    void erase(size_t index) { steps_[index].reset(); }
    ScopeId scope(size_t index) const { return steps_[index]->scope; }
    bool same_stage(size_t a, size_t b) const { return steps_[a]->stage == steps_[b]->stage; }
    void replace(size_t index, const StepOp& op, ScopeId scope) {
        steps_[index] = Step{op, scope, steps_[index]->stage};
    }

    void rebuild() {
        writers_.assign(program_.values.size(), kNone);
        readers_.assign(program_.values.size(), {});
        for (uint32_t i = 0; i < steps_.size(); ++i) {
            if (!steps_[i]) continue;
            for_each_write(steps_[i]->op, [&](ValueId id) { writers_[id] = i; });
            for_each_read(steps_[i]->op, [&](ValueId id) { readers_[id].push_back(i); });
        }
    }
    void store() {
        program_.steps.clear();
        for (auto& step : steps_) {
            if (step) program_.steps.push_back(*step);
        }
    }
    Program& program() { return program_; }

  private:
    Program& program_;
    std::vector<std::optional<Step>> steps_;
    std::vector<uint32_t> writers_;
    std::vector<std::vector<uint32_t>> readers_;
};

bool is_plain(const LinearStep& linear) {
    return linear.part_count == 1 && !linear.gated && linear.residual == kNone && !linear.norm.enabled;
}

// linear, linear, gated activation -> one gated linear. For both dense and expert linears.
template <typename Linear>
bool fuse_gate(Graph& graph, size_t index, const GatedActivationStep& act) {
    size_t gate_index = 0, up_index = 0;
    const Linear* gate = graph.writer<Linear>(act.gate, index, &gate_index);
    const Linear* up = graph.writer<Linear>(act.up, index, &up_index);
    if (!gate || !up || gate == up || gate->in != up->in) return false;
    if (gate->part_count != 1 || up->part_count != 1 || gate->gated || up->gated) return false;
    if (!graph.read_once(act.gate) || !graph.read_once(act.up)) return false;
    if constexpr (std::is_same_v<Linear, LinearStep>) {
        if (!is_plain(*gate) || !is_plain(*up)) return false;
    } else {
        if (gate->ids != up->ids) return false;
    }
    Linear fused = *gate;
    fused.parts[1] = up->parts[0];
    fused.parts[0].out = fused.parts[1].out = kNone;
    fused.part_count = 2;
    fused.gated = true;
    fused.activation = act.activation;
    fused.gated_out = act.out;
    const ScopeId scope = graph.scope(gate_index);
    graph.erase(gate_index);
    graph.erase(up_index);
    graph.replace(index, fused, scope);
    return true;
}

void fuse_gates(Graph& graph) {
    for (size_t i = 0; i < graph.size(); ++i) {
        const auto* found = graph.get<GatedActivationStep>(i);
        if (!found) continue;
        const GatedActivationStep act = *found;
        if (fuse_gate<LinearStep>(graph, i, act) || fuse_gate<ExpertLinearStep>(graph, i, act)) graph.rebuild();
    }
}

// `producer` (norm, plain linear or combine, used only here) + other -> the producer with a residual, at the add's
// place.
template <typename Producer>
bool fuse_residual_into(Graph& graph, size_t index, const AddStep& add, ValueId produced, ValueId other) {
    size_t at = 0;
    const Producer* producer = graph.writer<Producer>(produced, index, &at);
    if (!producer || !graph.read_once(produced) || producer->residual != kNone) return false;
    if constexpr (std::is_same_v<Producer, LinearStep>) {
        if (!is_plain(*producer)) return false;
    }
    Producer fused = *producer;
    fused.residual = other;
    if constexpr (std::is_same_v<Producer, LinearStep>) {
        fused.parts[0].out = add.out;
    } else {
        fused.out = add.out;
    }
    const ScopeId scope = graph.scope(at);
    graph.erase(at);
    graph.replace(index, fused, scope);
    return true;
}

void fuse_residuals(Graph& graph) {
    for (size_t i = 0; i < graph.size(); ++i) {
        const auto* found = graph.get<AddStep>(i);
        if (!found || found->a == found->b) continue;
        const AddStep add = *found;
        const auto attempt = [&](ValueId produced, ValueId other) {
            return fuse_residual_into<LinearStep>(graph, i, add, produced, other) ||
                   fuse_residual_into<CombineStep>(graph, i, add, produced, other) ||
                   fuse_residual_into<NormStep>(graph, i, add, produced, other);
        };
        // The later operand is the branch; the earlier one the stream.
        if (attempt(add.b, add.a) || attempt(add.a, add.b)) graph.rebuild();
    }
}

// Plain linears that read the same value -> one linear of several parts, at the first one's place.
void fuse_shared_inputs(Graph& graph) {
    for (size_t i = 0; i < graph.size(); ++i) {
        const auto* found = graph.get<LinearStep>(i);
        if (!found || !is_plain(*found)) continue;
        LinearStep fused = *found;
        std::vector<uint32_t> siblings = graph.readers(fused.in);
        std::sort(siblings.begin(), siblings.end());
        for (const uint32_t sibling : siblings) {
            const auto* other = graph.get<LinearStep>(sibling);
            if (sibling <= i || !other || !is_plain(*other) || fused.part_count == kMaxLinearParts) continue;
            if (!graph.same_stage(sibling, i)) continue;
            fused.parts[fused.part_count++] = other->parts[0];
            graph.erase(sibling);
        }
        if (fused.part_count == 1) continue;
        graph.replace(i, fused, graph.scope(i));
        graph.rebuild();
    }
}

// norm -> linear, when nobody else reads the norm.
void fuse_norm_prologues(Graph& graph) {
    for (size_t i = 0; i < graph.size(); ++i) {
        auto* linear = graph.get<LinearStep>(i);
        if (!linear || linear->norm.enabled) continue;
        size_t at = 0;
        const NormStep* norm = graph.writer<NormStep>(linear->in, i, &at);
        if (!norm || !graph.read_once(linear->in) || norm->residual != kNone) continue;
        if (norm->group != graph.program().values[norm->in].width) continue;
        linear->norm = {norm->weight, norm->epsilon, true};
        linear->in = norm->in;
        graph.erase(at);
        graph.rebuild();
    }
}

// What lies between a projection and the attention: [norm per head] then [rotation].
struct HeadChain {
    ValueId source = kNone;
    const NormStep* norm = nullptr;
    const RopeStep* rope = nullptr;
    std::vector<size_t> steps;
};

HeadChain head_chain(Graph& graph, ValueId id, size_t write, uint32_t head_size) {
    HeadChain chain;
    chain.source = id;
    size_t at = 0;
    const RopeStep* rope = graph.writer<RopeStep>(id, write, &at);
    if (rope && rope->head_size == head_size && graph.read_once(id)) {
        chain.rope = rope;
        chain.source = rope->in;
        chain.steps.push_back(at);
    }
    const NormStep* norm = graph.writer<NormStep>(chain.source, write, &at);
    if (norm && norm->group == head_size && norm->residual == kNone && norm->weight != kNone &&
        graph.read_once(chain.source)) {
        chain.norm = norm;
        chain.source = norm->in;
        chain.steps.push_back(at);
    }
    return chain;
}

// norm and RoPE of queries and keys + key-and-value write -> one step.
void fuse_kv_writes(Graph& graph) {
    for (size_t i = 0; i + 1 < graph.size(); ++i) {
        auto* write = graph.get<KvWriteStep>(i);
        if (!write || write->q != kNone) continue;
        AttentionStep* attention = nullptr;
        size_t at = i;
        while (!attention && ++at < graph.size()) attention = graph.get<AttentionStep>(at);
        if (!attention || !graph.same_stage(at, i) || attention->group != write->group ||
            attention->layer != write->layer)
            continue;
        const uint32_t head_size = graph.program().groups[write->group].head_size;
        HeadChain q = head_chain(graph, attention->q, i, head_size);
        HeadChain k = head_chain(graph, write->k, i, head_size);
        if (!q.rope && !q.norm) continue;
        if ((q.rope != nullptr) != (k.rope != nullptr) || (q.rope && q.rope->rope != k.rope->rope)) continue;
        if (q.norm && k.norm && q.norm->epsilon != k.norm->epsilon) continue;
        // The queries are rewritten in place, so nobody else may read them.
        if (!graph.read_once(q.source) || !graph.read_once(attention->q)) continue;
        write->q = q.source;
        write->q_out = attention->q;
        write->k = k.source;
        if (q.rope) write->rope = q.rope->rope;
        if (q.norm) write->q_norm = q.norm->weight, write->norm_epsilon = q.norm->epsilon;
        if (k.norm) write->k_norm = k.norm->weight, write->norm_epsilon = k.norm->epsilon;
        for (const size_t step : q.steps) graph.erase(step);
        for (const size_t step : k.steps) graph.erase(step);
        graph.rebuild();
    }
}

}  // namespace

void replace_reads(StepOp& op, ValueId from, ValueId to) {
    const auto swap = [&](ValueId& id) {
        if (id == from) id = to;
    };
    std::visit(detail::Overloaded{
                   [&](EmbeddingStep&) {},
                   [&](NormStep& s) { swap(s.in), swap(s.residual); },
                   [&](LinearStep& s) { swap(s.in), swap(s.residual); },
                   [&](AddStep& s) { swap(s.a), swap(s.b); },
                   [&](UnaryStep& s) { swap(s.in); },
                   [&](GatedActivationStep& s) { swap(s.gate), swap(s.up); },
                   [&](RopeStep& s) { swap(s.in); },
                   [&](KvWriteStep& s) { swap(s.k), swap(s.v), swap(s.q); },
                   [&](AttentionStep& s) { swap(s.q); },
                   [&](RouteStep& s) { swap(s.logits); },
                   [&](ExpertLinearStep& s) { swap(s.in), swap(s.ids); },
                   [&](CombineStep& s) { swap(s.in), swap(s.weights), swap(s.residual); },
                   [&](SelectStep& s) { swap(s.in); },
               },
               op);
}

void fuse_steps(Program& program) {
    Graph graph(program);
    fuse_gates(graph);
    fuse_residuals(graph);
    fuse_shared_inputs(graph);
    fuse_norm_prologues(graph);
    fuse_kv_writes(graph);
    graph.store();
}

}  // namespace metallic

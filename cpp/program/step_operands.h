#pragma once

// Part of program.h: the operands of each step, for liveness and fusion.
namespace metallic {

namespace detail {
template <typename... Fs>
struct Overloaded : Fs... {
    using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;
}  // namespace detail

void for_each_read(const StepOp& op, const auto& visit) {
    const auto one = [&](ValueId id) {
        if (id != kNone) visit(id);
    };
    std::visit(detail::Overloaded{
                   [&](const EmbeddingStep&) {},
                   [&](const NormStep& s) { one(s.in), one(s.residual); },
                   [&](const LinearStep& s) { one(s.in), one(s.residual); },
                   [&](const AddStep& s) { one(s.a), one(s.b); },
                   [&](const UnaryStep& s) { one(s.in); },
                   [&](const GatedActivationStep& s) { one(s.gate), one(s.up); },
                   [&](const RopeStep& s) { one(s.in); },
                   [&](const KvWriteStep& s) { one(s.k), one(s.v), one(s.q); },
                   [&](const AttentionStep& s) { one(s.q); },
                   [&](const RouteStep& s) { one(s.logits); },
                   [&](const ExpertLinearStep& s) { one(s.in), one(s.ids); },
                   [&](const CombineStep& s) { one(s.in), one(s.weights), one(s.residual); },
                   [&](const SelectStep& s) { one(s.in); },
               },
               op);
}

void for_each_write(const StepOp& op, const auto& visit) {
    const auto one = [&](ValueId id) {
        if (id != kNone) visit(id);
    };
    const auto parts = [&](const auto& s) {
        for (uint32_t i = 0; i < s.part_count; ++i) one(s.parts[i].out);
        one(s.gated_out);
    };
    std::visit(detail::Overloaded{
                   [&](const EmbeddingStep& s) { one(s.out); },
                   [&](const NormStep& s) { one(s.out); },
                   [&](const LinearStep& s) { parts(s); },
                   [&](const AddStep& s) { one(s.out); },
                   [&](const UnaryStep& s) { one(s.out); },
                   [&](const GatedActivationStep& s) { one(s.out); },
                   [&](const RopeStep& s) { one(s.out); },
                   [&](const KvWriteStep& s) { one(s.q_out); },
                   [&](const AttentionStep& s) { one(s.out); },
                   [&](const RouteStep& s) { one(s.ids), one(s.weights); },
                   [&](const ExpertLinearStep& s) { parts(s); },
                   [&](const CombineStep& s) { one(s.out); },
                   [&](const SelectStep& s) { one(s.out); },
               },
               op);
}

void for_each_weight(const StepOp& op, const auto& visit) {
    const auto one = [&](WeightId id) {
        if (id != kNone) visit(id);
    };
    const auto parts = [&](const auto& s) {
        for (uint32_t i = 0; i < s.part_count; ++i) one(s.parts[i].weight.weight), one(s.parts[i].bias);
    };
    std::visit(detail::Overloaded{
                   [&](const EmbeddingStep& s) { one(s.weight); },
                   [&](const NormStep& s) { one(s.weight); },
                   [&](const LinearStep& s) { parts(s), one(s.norm.weight); },
                   [&](const KvWriteStep& s) { one(s.q_norm), one(s.k_norm); },
                   [&](const AttentionStep& s) { one(s.sinks); },
                   [&](const ExpertLinearStep& s) { parts(s); },
                   [&](const auto&) {},
               },
               op);
}

}  // namespace metallic

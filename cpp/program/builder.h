#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "program/program.h"

namespace metallic {

// Traces a model function into a Program. Every call checks shapes and throws ModelFormatError (a weight that is absent
// or has another shape) or RequestError (a call that makes no sense), naming the weight or the scope.
class Builder {
  public:
    struct WeightSource {
        std::string name;
        DType dtype = DType::F32;
        uint64_t cols = 1, rows = 1, experts = 1;
        uint64_t offset = 0;  // in its file, for messages
    };

    Builder(std::string file, std::vector<WeightSource> sources);

    // `block`: the scope is that block of the model, and the weights first named in it are the block's.
    void enter_scope(std::string_view name, uint32_t block = kNoBlock);
    void leave_scope();

    // A dimension of 0 is not checked.
    WeightRows weight(const std::string& name, uint64_t rows = 0, uint64_t cols = 0, uint64_t experts = 0);
    std::optional<WeightRows> find(const std::string& name, uint64_t rows = 0, uint64_t cols = 0, uint64_t experts = 0);
    WeightRows slice(WeightRows weight, uint64_t first, uint64_t count) const;
    const Weight& info(WeightRows weight) const { return program_.weights.at(weight.weight); }
    uint32_t width(ValueId value) const { return program_.values.at(value).width; }

    ValueId embedding(WeightRows weight, float scale);
    ValueId rms_norm(ValueId x, std::optional<WeightRows> weight, float epsilon, uint32_t group);
    ValueId linear(ValueId x, WeightRows weight, std::optional<WeightRows> bias);
    ValueId add(ValueId a, ValueId b);
    ValueId unary(UnaryOp op, ValueId x, float factor);
    ValueId gated_activation(Activation activation, ValueId gate, ValueId up);
    RopeId rope_table(RopeTable table);
    ValueId rope(ValueId x, RopeId table, uint32_t head_size);
    uint32_t cache_group(uint32_t kv_heads, uint32_t head_size, uint32_t window);
    ValueId attention(ValueId q, ValueId k, ValueId v, uint32_t group, uint32_t heads, float scale, float softcap,
                      std::optional<WeightRows> sinks);
    struct Routing {
        ValueId ids, weights;
        uint32_t top_k;
        uint64_t experts;
    };
    Routing route(ValueId logits, uint32_t top_k, RouterGate gate, bool normalise, float scale);
    ValueId expert_linear(ValueId x, WeightRows weight, const Routing& routing);
    ValueId combine(ValueId x, const Routing& routing);
    void output(ValueId logits);

    // The traced program; the builder is spent. Throws when no output was named or a scope is still open.
    Program finish();

  private:
    [[noreturn]] void refuse(const std::string& what) const;
    void check_value(ValueId value) const;
    void check_experts(WeightRows weight, uint64_t experts) const;
    WeightId vector_weight(WeightRows weight, uint64_t length, const char* role) const;
    ValueId value(uint64_t width);
    void step(const StepOp& op) { program_.steps.push_back({op, scopes_.back(), 0}); }

    std::string file_;
    std::vector<WeightSource> sources_;
    std::unordered_map<std::string, size_t> by_name_;
    std::unordered_map<std::string, WeightId> used_;
    std::vector<ScopeId> scopes_{0};
    Program program_;
};

}  // namespace metallic

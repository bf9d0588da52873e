#include "program/builder.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace metallic {
namespace {

constexpr uint64_t kMaxKeyWidth = uint64_t{1} << 20;
constexpr uint64_t kMaxWidth = std::numeric_limits<uint32_t>::max() / 2;

std::string shape_text(uint64_t rows, uint64_t cols, uint64_t experts) {
    const auto one = [](uint64_t n) { return n == 0 ? std::string("any") : std::to_string(n); };
    return "[" + (experts > 1 ? one(experts) + ", " : std::string()) + one(rows) + ", " + one(cols) + "]";
}

}  // namespace

Builder::Builder(std::string file, std::vector<WeightSource> sources)
    : file_(std::move(file)), sources_(std::move(sources)) {
    for (size_t i = 0; i < sources_.size(); ++i) by_name_.emplace(sources_[i].name, i);
}

void Builder::refuse(const std::string& what) const {
    const std::string& path = program_.scopes.path(scopes_.back());
    throw RequestError("model function" + (path.empty() ? "" : " in " + path) + ": " + what);
}

void Builder::check_value(ValueId id) const {
    if (id >= program_.values.size()) refuse("a value that this builder did not make");
}

ValueId Builder::value(uint64_t width_) {
    if (width_ == 0 || width_ > kMaxWidth) refuse("a value of width " + std::to_string(width_));
    program_.values.push_back({static_cast<uint32_t>(width_), Rows::tokens});
    return static_cast<ValueId>(program_.values.size() - 1);
}

void Builder::enter_scope(std::string_view name, uint32_t block) {
    if (name.empty()) refuse("an empty scope name");
    scopes_.push_back(program_.scopes.child(scopes_.back(), name, block));
}

void Builder::leave_scope() {
    if (scopes_.size() == 1) refuse("leaving a scope that was not entered");
    scopes_.pop_back();
}

std::optional<WeightRows> Builder::find(const std::string& name, uint64_t rows, uint64_t cols, uint64_t experts) {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return std::nullopt;
    const WeightSource& source = sources_[found->second];
    if ((rows && rows != source.rows) || (cols && cols != source.cols) || (experts && experts != source.experts)) {
        throw ModelFormatError("tensor has shape " + shape_text(source.rows, source.cols, source.experts) +
                                   ", the model's configuration needs " + shape_text(rows, cols, experts),
                               file_, name, source.offset);
    }
    if (source.rows > kMaxWidth || source.cols > kMaxWidth || source.experts > kMaxWidth) {
        throw ModelFormatError("tensor is too large", file_, name, source.offset);
    }
    auto [used, inserted] = used_.try_emplace(name, static_cast<WeightId>(program_.weights.size()));
    if (inserted) {
        program_.weights.push_back({source.name, source.dtype, source.cols, source.rows, source.experts,
                                    program_.scopes.block(scopes_.back())});
    }
    return WeightRows{used->second, 0, static_cast<uint32_t>(source.rows)};
}

WeightRows Builder::weight(const std::string& name, uint64_t rows, uint64_t cols, uint64_t experts) {
    if (auto found = find(name, rows, cols, experts)) return *found;
    throw ModelFormatError("tensor is missing", file_, name, ModelFormatError::kNowhere);
}

WeightRows Builder::slice(WeightRows whole, uint64_t first, uint64_t count) const {
    if (count == 0 || first > whole.count || count > whole.count - first) {
        refuse("rows " + std::to_string(first) + " to " + std::to_string(first + count) + " of " + info(whole).name +
               ", which has " + std::to_string(whole.count));
    }
    return {whole.weight, static_cast<uint32_t>(whole.first + first), static_cast<uint32_t>(count)};
}

WeightId Builder::vector_weight(WeightRows rows, uint64_t length, const char* role) const {
    const Weight& weight = info(rows);
    // A vector is one row in GGUF, so its length is `cols`.
    if (weight.rows != 1 || weight.experts != 1 || weight.cols != length) {
        throw ModelFormatError(std::string(role) + " has shape " +
                                   shape_text(weight.rows, weight.cols, weight.experts) + " but " +
                                   std::to_string(length) + " elements are needed",
                               file_, weight.name, sources_[by_name_.at(weight.name)].offset);
    }
    if (dtype_info(weight.dtype).quantised || weight.dtype == DType::I32) {
        throw UnsupportedModelError(file_ + ": " + weight.name + ": " + role + " of type " +
                                    std::string(dtype_info(weight.dtype).name) + "; F32, F16 and BF16 are supported");
    }
    return rows.weight;
}

void Builder::check_experts(WeightRows rows, uint64_t experts) const {
    const Weight& weight = info(rows);
    if (weight.experts == experts) return;
    throw ModelFormatError(
        "tensor holds " + std::to_string(weight.experts) + " experts where " + std::to_string(experts) + " are needed",
        file_, weight.name, sources_[by_name_.at(weight.name)].offset);
}

ValueId Builder::embedding(WeightRows rows, float scale) {
    check_experts(rows, 1);
    const ValueId out = value(info(rows).cols);
    step(EmbeddingStep{rows.weight, scale, out});
    return out;
}

ValueId Builder::rms_norm(ValueId x, std::optional<WeightRows> weight, float epsilon, uint32_t group) {
    check_value(x);
    const uint32_t size = group ? group : width(x);
    if (width(x) % size != 0)
        refuse("norm groups of " + std::to_string(size) + " in width " + std::to_string(width(x)));
    if (!(epsilon >= 0)) refuse("a negative epsilon");
    const WeightId id = weight ? vector_weight(*weight, size, "norm weight") : kNone;
    const ValueId out = value(width(x));
    step(NormStep{x, id, epsilon, size, kNone, out});
    return out;
}

ValueId Builder::linear(ValueId x, WeightRows rows, std::optional<WeightRows> bias) {
    check_value(x);
    const Weight& weight = info(rows);
    check_experts(rows, 1);
    if (weight.cols != width(x)) {
        throw ModelFormatError(
            "tensor takes " + std::to_string(weight.cols) + " inputs but is given " + std::to_string(width(x)), file_,
            weight.name, sources_[by_name_.at(weight.name)].offset);
    }
    LinearStep linear{};
    linear.in = x;
    linear.parts[0].weight = rows;
    if (bias) linear.parts[0].bias = vector_weight(*bias, weight.rows, "bias");
    linear.parts[0].out = value(rows.count);
    step(linear);
    return linear.parts[0].out;
}

ValueId Builder::add(ValueId a, ValueId b) {
    check_value(a), check_value(b);
    if (width(a) != width(b)) refuse("add of widths " + std::to_string(width(a)) + " and " + std::to_string(width(b)));
    const ValueId out = value(width(a));
    step(AddStep{a, b, out});
    return out;
}

ValueId Builder::unary(UnaryOp op, ValueId x, float factor) {
    check_value(x);
    const ValueId out = value(width(x));
    step(UnaryStep{op, factor, x, out});
    return out;
}

ValueId Builder::gated_activation(Activation activation, ValueId gate, ValueId up) {
    check_value(gate), check_value(up);
    if (width(gate) != width(up)) refuse("gate and up differ in width");
    const ValueId out = value(width(gate));
    step(GatedActivationStep{activation, gate, up, out});
    return out;
}

RopeId Builder::rope_table(RopeTable table) {
    const auto fits = [&](const RopeTable::Variant& v) { return v.inverse_frequencies.size() * 2 == table.dims; };
    if (table.dims == 0 || !fits(table.base)) refuse("a RoPE table needs dims / 2 inverse frequencies");
    if (!table.extended.inverse_frequencies.empty() && !fits(table.extended)) refuse("extended RoPE table differs");
    for (size_t i = 0; i < program_.ropes.size(); ++i) {
        const RopeTable& known = program_.ropes[i];
        if (known.pairing == table.pairing && known.dims == table.dims &&
            known.base.magnitude == table.base.magnitude &&
            known.base.inverse_frequencies == table.base.inverse_frequencies &&
            known.extended.inverse_frequencies == table.extended.inverse_frequencies &&
            known.extended.magnitude == table.extended.magnitude) {
            return static_cast<RopeId>(i);
        }
    }
    program_.ropes.push_back(std::move(table));
    return static_cast<RopeId>(program_.ropes.size() - 1);
}

ValueId Builder::rope(ValueId x, RopeId table, uint32_t head_size) {
    check_value(x);
    if (table >= program_.ropes.size()) refuse("a RoPE table that this builder did not make");
    if (head_size == 0 || width(x) % head_size != 0 || program_.ropes[table].dims > head_size) {
        refuse("RoPE of " + std::to_string(program_.ropes[table].dims) + " dimensions on heads of " +
               std::to_string(head_size) + " in width " + std::to_string(width(x)));
    }
    const ValueId out = value(width(x));
    step(RopeStep{table, head_size, x, out});
    return out;
}

uint32_t Builder::cache_group(uint32_t kv_heads, uint32_t head_size, uint32_t window) {
    if (kv_heads == 0 || head_size == 0) refuse("a cache group needs heads and a head size");
    if (uint64_t{kv_heads} * head_size > kMaxKeyWidth) {
        throw UnsupportedModelError(file_ + ": keys of " + std::to_string(kv_heads) + " heads of " +
                                    std::to_string(head_size) + " elements; " + std::to_string(kMaxKeyWidth) +
                                    " elements are supported");
    }
    auto& groups = program_.groups;
    for (size_t i = 0; i < groups.size(); ++i) {
        if (groups[i].kv_heads == kv_heads && groups[i].head_size == head_size && groups[i].window == window) {
            return static_cast<uint32_t>(i);
        }
    }
    groups.push_back({window, kv_heads, head_size, 0});
    return static_cast<uint32_t>(groups.size() - 1);
}

ValueId Builder::attention(ValueId q, ValueId k, ValueId v, uint32_t group, uint32_t heads, float scale, float softcap,
                           std::optional<WeightRows> sinks) {
    check_value(q), check_value(k), check_value(v);
    if (group >= program_.groups.size()) refuse("a cache group that this builder did not make");
    CacheGroup& cache = program_.groups[group];
    const uint64_t kv_width = uint64_t{cache.kv_heads} * cache.head_size;
    if (heads == 0 || heads % cache.kv_heads != 0 || width(q) != uint64_t{heads} * cache.head_size ||
        width(k) != kv_width || width(v) != kv_width) {
        refuse("attention of " + std::to_string(heads) + " heads over " + std::to_string(cache.kv_heads) +
               " kv heads of size " + std::to_string(cache.head_size) + " with widths q " + std::to_string(width(q)) +
               ", k " + std::to_string(width(k)) + ", v " + std::to_string(width(v)));
    }
    const WeightId sink_id = sinks ? vector_weight(*sinks, heads, "attention sinks") : kNone;
    const uint32_t layer = cache.layers++;
    KvWriteStep write{};
    write.group = group;
    write.layer = layer;
    write.k = k;
    write.v = v;
    step(write);
    const ValueId out = value(width(q));
    step(AttentionStep{group, layer, heads, scale, softcap, sink_id, q, out});
    return out;
}

Builder::Routing Builder::route(ValueId logits, uint32_t top_k, RouterGate gate, bool normalise, float scale) {
    check_value(logits);
    if (top_k == 0 || top_k > width(logits)) {
        refuse("routing to " + std::to_string(top_k) + " of " + std::to_string(width(logits)) + " experts");
    }
    const ValueId ids = value(top_k);
    const ValueId weights = value(top_k);
    step(RouteStep{logits, gate, top_k, normalise, scale, ids, weights});
    return {ids, weights, top_k, width(logits)};
}

ValueId Builder::expert_linear(ValueId x, WeightRows rows, const Routing& routing) {
    check_value(x), check_value(routing.ids);
    const Weight& weight = info(rows);
    check_experts(rows, routing.experts);
    const bool per_slot = width(x) == weight.cols * routing.top_k && routing.top_k > 1;
    if (!per_slot && width(x) != weight.cols) {
        refuse(weight.name + " takes " + std::to_string(weight.cols) + " inputs but is given " +
               std::to_string(width(x)));
    }
    ExpertLinearStep linear{};
    linear.in = x;
    linear.ids = routing.ids;
    linear.top_k = routing.top_k;
    linear.per_slot = per_slot;
    linear.parts[0].weight = rows;
    linear.parts[0].out = value(uint64_t{rows.count} * routing.top_k);
    step(linear);
    return linear.parts[0].out;
}

ValueId Builder::combine(ValueId x, const Routing& routing) {
    check_value(x), check_value(routing.weights);
    if (width(x) % routing.top_k != 0) refuse("combine of width " + std::to_string(width(x)));
    const ValueId out = value(width(x) / routing.top_k);
    step(CombineStep{x, routing.weights, routing.top_k, kNone, out});
    return out;
}

void Builder::output(ValueId logits) {
    check_value(logits);
    program_.logits = logits;
}

Program Builder::finish() {
    if (program_.logits == kNone) refuse("no output was named");
    if (scopes_.size() != 1) refuse("a scope is still open");
    return std::move(program_);
}

}  // namespace metallic

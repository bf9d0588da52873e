#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "bindings/bindings.h"
#include "core/error.h"
#include "gguf/model_file.h"
#include "program/builder.h"

namespace nb = nanobind;

namespace metallic {
namespace {

using Frequencies = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Opaque handles, so that Python cannot mix up what are all integers here.
struct ValueHandle {
    ValueId id;
};
struct RopeHandle {
    RopeId id;
};
struct GroupHandle {
    uint32_t id;
};
struct WeightHandle {
    WeightRows rows;
    std::string name;
    DType dtype;
    uint64_t cols, experts;
};

std::vector<Builder::WeightSource> weight_sources(const ModelFile& file) {
    std::vector<Builder::WeightSource> sources;
    for (const TensorInfo& tensor : file.tensors()) {
        Builder::WeightSource source{tensor.name, tensor.dtype, 1, 1, 1, tensor.offset};
        if (tensor.n_dims > 3 && tensor.shape[3] != 1) continue;  // no step takes four dimensions
        source.cols = tensor.shape[0];
        if (tensor.n_dims > 1) source.rows = tensor.shape[1];
        if (tensor.n_dims > 2) source.experts = tensor.shape[2];
        sources.push_back(std::move(source));
    }
    return sources;
}

// `with builder.scope(name):`
struct Scope {
    Builder* builder;
    std::string name;
    uint32_t block;
};

template <typename Enum, size_t N>
Enum choose(const std::string& name, const std::pair<const char*, Enum> (&choices)[N], const char* what) {
    std::string known;
    for (const auto& [text, value] : choices) {
        if (name == text) return value;
        known += (known.empty() ? "" : ", ") + std::string(text);
    }
    throw RequestError(std::string("no such ") + what + ": " + name + "; there are " + known);
}

Activation activation_named(const std::string& name) {
    static constexpr std::pair<const char*, Activation> kChoices[] = {{"silu", Activation::silu},
                                                                      {"gelu", Activation::gelu},
                                                                      {"gelu_tanh", Activation::gelu_tanh},
                                                                      {"relu", Activation::relu}};
    return choose(name, kChoices, "activation");
}

RouterGate gate_named(const std::string& name) {
    static constexpr std::pair<const char*, RouterGate> kChoices[] = {
        {"softmax", RouterGate::softmax},
        {"softmax_of_chosen", RouterGate::softmax_of_chosen},
        {"sigmoid", RouterGate::sigmoid}};
    return choose(name, kChoices, "router gate");
}

WeightHandle handle(const Builder& builder, WeightRows rows) {
    const Weight& weight = builder.info(rows);
    return {rows, weight.name, weight.dtype, weight.cols, weight.experts};
}

std::optional<WeightRows> rows_of(const std::optional<WeightHandle>& weight) {
    return weight ? std::optional(weight->rows) : std::nullopt;
}

RopeTable::Variant variant(const Frequencies& frequencies, float magnitude) {
    return {{frequencies.data(), frequencies.data() + frequencies.size()}, magnitude};
}

void bind_handles(nb::module_& m) {
    nb::class_<ValueHandle>(m, "Value", "An activation of the program: one row per token.");
    nb::class_<RopeHandle>(m, "RopeTable", "Rotary frequencies of the program.");
    nb::class_<GroupHandle>(m, "CacheGroup", "Layers that keep history alike.");
    nb::class_<Builder::Routing>(m, "Routing", "The experts chosen for each token, and their weights.");
    nb::class_<WeightHandle>(m, "Weight", "A weight of the program, or a view of some of its rows.")
        .def_ro("name", &WeightHandle::name)
        .def_prop_ro("dtype", [](const WeightHandle& w) { return std::string(dtype_info(w.dtype).name); })
        .def_prop_ro("rows", [](const WeightHandle& w) { return w.rows.count; })
        .def_ro("cols", &WeightHandle::cols)
        .def_ro("experts", &WeightHandle::experts)
        .def(
            "slice",
            [](const WeightHandle& w, uint32_t first_row, uint32_t count) {
                if (count == 0 || first_row > w.rows.count || count > w.rows.count - first_row) {
                    throw RequestError("rows " + std::to_string(first_row) + " to " +
                                       std::to_string(uint64_t{first_row} + count) + " of " + w.name + ", which has " +
                                       std::to_string(w.rows.count));
                }
                WeightHandle view = w;
                view.rows.first += first_row;
                view.rows.count = count;
                return view;
            },
            nb::arg("first_row"), nb::arg("count"), "A view of `count` rows.");
    nb::class_<Scope>(m, "Scope")
        .def("__enter__", [](Scope& scope) { scope.builder->enter_scope(scope.name, scope.block); })
        .def(
            "__exit__", [](Scope& scope, nb::args) { scope.builder->leave_scope(); },
            nb::sig("def __exit__(self, *args: object) -> None"));
}

}  // namespace

void bind_builder(nb::module_& m) {
    bind_handles(m);
    nb::class_<Program>(m, "Program", "A traced model.")
        .def("__len__", [](const Program& program) { return program.steps.size(); })
        .def(
            "scopes",
            [](const Program& program) {
                nb::list paths;
                for (const Step& step : program.steps) {
                    paths.append(nb::make_tuple(step_name(step.op), program.scopes.path(step.scope)));
                }
                return paths;
            },
            nb::sig("def scopes(self) -> list[tuple[str, str]]"), "(operation, scope) of each step.");

    using O = std::optional<uint64_t>;
    nb::class_<Builder>(m, "Builder", "Traces a model function into a program.")
        .def(
            "__init__",
            [](Builder* self, const ModelFile& file) {
                new (self) Builder(file.paths().front(), weight_sources(file));
            },
            nb::arg("file"))
        .def(
            "scope",
            [](Builder& b, std::string name, std::optional<uint32_t> block) {
                return Scope{&b, std::move(name), block.value_or(kNoBlock)};
            },
            nb::arg("name"), nb::arg("block") = nb::none(), nb::keep_alive<0, 1>(),
            "Names what is recorded within. `block` says that it is that block of the model.")
        .def(
            "weight",
            [](Builder& b, const std::string& name, O rows, O cols, O experts) {
                return handle(b, b.weight(name, rows.value_or(0), cols.value_or(0), experts.value_or(0)));
            },
            nb::arg("name"), nb::arg("rows") = nb::none(), nb::arg("cols") = nb::none(),
            nb::arg("experts") = nb::none(),
            "The tensor of this name. Raises ModelFormatError when it is absent or has another shape.")
        .def(
            "find",
            [](Builder& b, const std::string& name, O rows, O cols, O experts) -> std::optional<WeightHandle> {
                const auto found = b.find(name, rows.value_or(0), cols.value_or(0), experts.value_or(0));
                if (!found) return std::nullopt;
                return handle(b, *found);
            },
            nb::arg("name"), nb::arg("rows") = nb::none(), nb::arg("cols") = nb::none(),
            nb::arg("experts") = nb::none(), "As `weight`, or None when it is absent.")
        .def(
            "width", [](const Builder& b, ValueHandle x) { return b.width(x.id); }, nb::arg("x"))
        .def(
            "embedding",
            [](Builder& b, const WeightHandle& w, float scale) { return ValueHandle{b.embedding(w.rows, scale)}; },
            nb::arg("weight"), nb::arg("scale") = 1.0f)
        .def(
            "rms_norm",
            [](Builder& b, ValueHandle x, const std::optional<WeightHandle>& w, float epsilon, uint32_t group) {
                return ValueHandle{b.rms_norm(x.id, rows_of(w), epsilon, group)};
            },
            nb::arg("x"), nb::arg("weight").none(), nb::arg("epsilon"), nb::arg("group") = 0)
        .def(
            "linear",
            [](Builder& b, ValueHandle x, const WeightHandle& w, const std::optional<WeightHandle>& bias) {
                return ValueHandle{b.linear(x.id, w.rows, rows_of(bias))};
            },
            nb::arg("x"), nb::arg("weight"), nb::arg("bias") = nb::none())
        .def(
            "add", [](Builder& b, ValueHandle x, ValueHandle y) { return ValueHandle{b.add(x.id, y.id)}; },
            nb::arg("x"), nb::arg("y"))
        .def(
            "scale", [](Builder& b, ValueHandle x, float f) { return ValueHandle{b.unary(UnaryOp::scale, x.id, f)}; },
            nb::arg("x"), nb::arg("factor"))
        .def(
            "softcap",
            [](Builder& b, ValueHandle x, float cap) { return ValueHandle{b.unary(UnaryOp::softcap, x.id, cap)}; },
            nb::arg("x"), nb::arg("cap"))
        .def(
            "gated_activation",
            [](Builder& b, const std::string& name, ValueHandle gate, ValueHandle up) {
                return ValueHandle{b.gated_activation(activation_named(name), gate.id, up.id)};
            },
            nb::arg("activation"), nb::arg("gate"), nb::arg("up"))
        .def(
            "rope_table",
            [](Builder& b, const Frequencies& frequencies, float magnitude, const std::string& pairing,
               const std::optional<std::pair<Frequencies, float>>& extended) {
                static constexpr std::pair<const char*, RopePairing> kPairings[] = {{"normal", RopePairing::normal},
                                                                                    {"neox", RopePairing::neox}};
                RopeTable table;
                table.pairing = choose(pairing, kPairings, "RoPE pairing");
                table.dims = static_cast<uint32_t>(frequencies.size() * 2);
                table.base = variant(frequencies, magnitude);
                if (extended) table.extended = variant(extended->first, extended->second);
                return RopeHandle{b.rope_table(std::move(table))};
            },
            nb::arg("inverse_frequencies"), nb::arg("magnitude") = 1.0f, nb::arg("pairing") = "normal",
            nb::arg("extended") = nb::none(),
            nb::sig("def rope_table(self, inverse_frequencies: numpy.typing.NDArray[numpy.float32], magnitude: float = "
                    "1.0, pairing: str = 'normal', extended: tuple[numpy.typing.NDArray[numpy.float32], float] | None "
                    "= None) -> RopeTable"))
        .def(
            "rope",
            [](Builder& b, ValueHandle x, RopeHandle table, uint32_t head_size) {
                return ValueHandle{b.rope(x.id, table.id, head_size)};
            },
            nb::arg("x"), nb::arg("table"), nb::arg("head_size"))
        .def(
            "cache_group",
            [](Builder& b, uint32_t kv_heads, uint32_t head_size, uint32_t window) {
                return GroupHandle{b.cache_group(kv_heads, head_size, window)};
            },
            nb::arg("kv_heads"), nb::arg("head_size"), nb::arg("window") = 0)
        .def(
            "attention",
            [](Builder& b, ValueHandle q, ValueHandle k, ValueHandle v, GroupHandle group, uint32_t heads, float scale,
               float softcap, const std::optional<WeightHandle>& sinks) {
                return ValueHandle{b.attention(q.id, k.id, v.id, group.id, heads, scale, softcap, rows_of(sinks))};
            },
            nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("group"), nb::arg("heads"), nb::arg("scale"),
            nb::arg("softcap") = 0.0f, nb::arg("sinks") = nb::none(),
            "Appends keys and values to the cache and attends to it, causally.")
        .def(
            "route",
            [](Builder& b, ValueHandle logits, uint32_t top_k, const std::string& gate, bool normalise, float scale) {
                return b.route(logits.id, top_k, gate_named(gate), normalise, scale);
            },
            nb::arg("logits"), nb::arg("top_k"), nb::arg("gate") = "softmax", nb::arg("normalise") = true,
            nb::arg("scale") = 1.0f)
        .def(
            "expert_linear",
            [](Builder& b, ValueHandle x, const WeightHandle& w, const Builder::Routing& routing) {
                return ValueHandle{b.expert_linear(x.id, w.rows, routing)};
            },
            nb::arg("x"), nb::arg("weight"), nb::arg("routing"))
        .def(
            "combine",
            [](Builder& b, ValueHandle x, const Builder::Routing& routing) {
                return ValueHandle{b.combine(x.id, routing)};
            },
            nb::arg("x"), nb::arg("routing"))
        .def(
            "output", [](Builder& b, ValueHandle x) { b.output(x.id); }, nb::arg("x"))
        .def("finish", &Builder::finish, "The traced program; the builder is spent.");
}

}  // namespace metallic

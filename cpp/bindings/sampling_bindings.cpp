#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bindings/selection_handle.h"
#include "core/error.h"
#include "sampling/sampler.h"

namespace nb = nanobind;

namespace metallic {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
std::span<const T> span_of(const Vector<T>& array) {
    return {array.data(), array.size()};
}

template <class T>
std::span<const T> span_of(const std::optional<Vector<T>>& array) {
    if (!array) return {};
    // The sampler takes an empty span for "none", which is not what an empty array says.
    if (array->size() == 0) throw RequestError("a mask or logits array is empty");
    return span_of(*array);
}

template <class T>
nb::object to_numpy(std::vector<T> values) {
    auto held = std::make_unique<std::vector<T>>(std::move(values));
    T* const data = held->data();
    const size_t shape[1] = {held->size()};
    const nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    static_cast<void>(held.release());
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, 1, shape, owner));
}

// A sampler that may be called from several Python threads: calls run one after the other, without the GIL. The lock is
// only ever taken without the GIL, so the two cannot wait for each other.
class NativeSampler {
  public:
    explicit NativeSampler(Sampler sampler) : sampler_(std::move(sampler)) {}

    template <class Call>
    auto run(Call call) {
        const nb::gil_scoped_release released;
        const std::lock_guard<std::mutex> lock(mutex_);
        return call(sampler_);
    }

  private:
    std::mutex mutex_;
    Sampler sampler_;
};

std::vector<SamplingStage> parse_order(const std::vector<std::string>& names) {
    std::vector<SamplingStage> order;
    for (const std::string& name : names) {
        const std::optional<SamplingStage> stage = find_sampling_stage(name);
        if (!stage) throw RequestError("order names '" + name + "', which is no stage of the sampler");
        order.push_back(*stage);
    }
    return order;
}

nb::tuple sample(NativeSampler& self, const Vector<float>& logits, const std::optional<Vector<uint32_t>>& mask,
                 const std::optional<Vector<float>>& raw) {
    // A copy: the sampler's own result may change as soon as its lock is free.
    const Sampled sampled = self.run(
        [&](Sampler& sampler) { return Sampled(sampler.sample(span_of(logits), span_of(mask), span_of(raw))); });
    nb::list top;
    for (const TokenLogprob& entry : sampled.top_logprobs) top.append(nb::make_tuple(entry.token, entry.logprob));
    return nb::make_tuple(sampled.token, sampled.logprob, nb::tuple(top));
}

// Null where all logits are needed.
std::optional<SelectionHandle> select(NativeSampler& self, const std::optional<Vector<uint32_t>>& mask) {
    SelectionHandle selection;
    selection.k = self.run([&](Sampler& sampler) { return sampler.select(selection.edits); });
    if (selection.k == 0) return std::nullopt;
    const std::span<const uint32_t> words = span_of(mask);
    selection.mask.assign(words.begin(), words.end());
    return selection;
}

int32_t sample_selected(NativeSampler& self, const SelectionHandle& selection) {
    if (selection.candidates.empty()) throw RequestError("no candidates have been chosen for the selection yet");
    const std::vector<Candidate> candidates = selection.candidates;
    const bool masked = !selection.mask.empty();
    return self.run([&](Sampler& sampler) { return sampler.sample_candidates(candidates, masked).token; });
}

nb::tuple distribution(NativeSampler& self, const Vector<float>& logits, const std::optional<Vector<uint32_t>>& mask) {
    const std::vector<TokenProbability> entries =
        self.run([&](Sampler& sampler) { return sampler.distribution(span_of(logits), span_of(mask)); });
    std::vector<int32_t> tokens;
    std::vector<float> probabilities;
    for (const TokenProbability& entry : entries) {
        tokens.push_back(entry.token);
        probabilities.push_back(entry.probability);
    }
    return nb::make_tuple(to_numpy(std::move(tokens)), to_numpy(std::move(probabilities)));
}

void bind_params(nb::module_& m) {
    nb::class_<SamplingParams>(m, "NativeSamplingParams")
        .def(nb::init<>())
        .def_rw("temperature", &SamplingParams::temperature)
        .def_rw("top_k", &SamplingParams::top_k)
        .def_rw("top_p", &SamplingParams::top_p)
        .def_rw("min_p", &SamplingParams::min_p)
        .def_rw("typical_p", &SamplingParams::typical_p)
        .def_rw("top_n_sigma", &SamplingParams::top_n_sigma)
        .def_rw("xtc_probability", &SamplingParams::xtc_probability)
        .def_rw("xtc_threshold", &SamplingParams::xtc_threshold)
        .def_rw("repetition_penalty", &SamplingParams::repetition_penalty)
        .def_rw("repeat_last_n", &SamplingParams::repeat_last_n)
        .def_rw("presence_penalty", &SamplingParams::presence_penalty)
        .def_rw("frequency_penalty", &SamplingParams::frequency_penalty)
        .def_rw("dry_multiplier", &SamplingParams::dry_multiplier)
        .def_rw("dry_base", &SamplingParams::dry_base)
        .def_rw("dry_allowed_length", &SamplingParams::dry_allowed_length)
        .def_rw("dry_penalty_last_n", &SamplingParams::dry_penalty_last_n)
        .def_rw("logprobs", &SamplingParams::logprobs)
        .def_rw("logit_bias", &SamplingParams::logit_bias)
        .def(
            "set_order",
            [](SamplingParams& self, const std::vector<std::string>& names) { self.order = parse_order(names); },
            nb::arg("names"));
}

}  // namespace

void bind_sampling(nb::module_& m) {
    bind_params(m);
    nb::class_<DryBreakers>(m, "DryBreakers", "Token sequences across which DRY does not look for repeats.")
        .def(nb::init<int32_t, const std::vector<std::vector<int32_t>>&>(), nb::arg("n_vocab"), nb::arg("sequences"));

    nb::class_<SelectionHandle>(m, "Selection", "What is wanted of a row of logits, and what a forward pass chose.")
        .def_ro("k", &SelectionHandle::k, "How many candidates are wanted.")
        .def_prop_ro(
            "candidates",
            [](const SelectionHandle& self) {
                nb::list result;
                for (const Candidate& candidate : self.candidates) {
                    if (candidate.token >= 0) result.append(nb::make_tuple(candidate.token, candidate.logit));
                }
                return result;
            },
            nb::sig("def candidates(self) -> list[tuple[int, float]]"),
            "(token, logit as edited) of those chosen, best first; empty before the pass.");

    nb::class_<NativeSampler>(m, "NativeSampler", "The sampler of one sequence; see metallic_native.sampling.")
        .def(
            "__init__",
            [](NativeSampler* self, const SamplingParams& params, int32_t n_vocab, uint64_t seed,
               std::shared_ptr<DryBreakers> breakers) {
                new (self) NativeSampler(Sampler(params, n_vocab, seed, std::move(breakers)));
            },
            nb::arg("params"), nb::arg("n_vocab"), nb::arg("seed"), nb::arg("breakers").none() = nb::none())
        .def(
            "sample", &sample, nb::arg("logits").noconvert(), nb::arg("mask").noconvert() = nb::none(),
            nb::arg("raw").noconvert() = nb::none(),
            nb::sig("def sample(self, logits: numpy.typing.NDArray[numpy.float32], mask: "
                    "numpy.typing.NDArray[numpy.uint32] | None = None, raw: numpy.typing.NDArray[numpy.float32] | None "
                    "= None) -> tuple[int, float | None, tuple[tuple[int, float], ...]]"),
            "(token, logprob or None, ((token, logprob), ...))")
        .def("select", &select, nb::arg("mask").noconvert() = nb::none(),
             nb::sig("def select(self, mask: numpy.typing.NDArray[numpy.uint32] | None = None) -> Selection | None"),
             "The selection that sample_selected() needs; None when the next token takes all logits.")
        .def("sample_selected", &sample_selected, nb::arg("selection"),
             "The token that sample() would draw from the logits that the candidates were chosen from.")
        .def("distribution", &distribution, nb::arg("logits").noconvert(), nb::arg("mask").noconvert() = nb::none(),
             nb::sig("def distribution(self, logits: numpy.typing.NDArray[numpy.float32], mask: "
                     "numpy.typing.NDArray[numpy.uint32] | None = None) -> "
                     "tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.float32]]"),
             "(tokens, probabilities) that sample() would draw from")
        .def(
            "accept", [](NativeSampler& self, int32_t token) { self.run([=](Sampler& s) { s.accept(token); }); },
            nb::arg("token"))
        .def(
            "accept_prompt",
            [](NativeSampler& self, const Vector<int32_t>& tokens) {
                self.run([&](Sampler& s) { s.accept_prompt(span_of(tokens)); });
            },
            nb::arg("tokens").noconvert())
        .def("reset", [](NativeSampler& self) { self.run([](Sampler& s) { s.reset(); }); })
        .def(
            "reseed", [](NativeSampler& self, uint64_t seed) { self.run([=](Sampler& s) { s.reseed(seed); }); },
            nb::arg("seed"))
        .def("clone", [](NativeSampler& self) { return new NativeSampler(self.run([](Sampler& s) { return s; })); })
        .def(
            "history",
            [](NativeSampler& self) {
                return to_numpy(self.run([](Sampler& s) {
                    const std::span<const int32_t> tokens = s.history();
                    return std::vector<int32_t>(tokens.begin(), tokens.end());
                }));
            },
            nb::sig("def history(self) -> numpy.typing.NDArray[numpy.int32]"))
        .def_prop_ro("n_vocab", [](NativeSampler& self) { return self.run([](Sampler& s) { return s.n_vocab(); }); })
        .def_prop_ro("seed", [](NativeSampler& self) { return self.run([](Sampler& s) { return s.seed(); }); });
}

}  // namespace metallic

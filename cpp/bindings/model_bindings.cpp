#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "backend/backend.h"
#include "backend/kv_types.h"
#include "bindings/bindings.h"
#include "bindings/memory_bindings.h"
#include "bindings/model_options.h"
#include "bindings/placement_dict.h"
#include "bindings/selection_handle.h"
#include "core/error.h"
#include "program/planner.h"
#include "runtime/model.h"

namespace nb = nanobind;

namespace metallic {
namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// A sequence as Python holds it. A forward pass shares it, so closing it meanwhile is safe.
class SequenceHandle {
  public:
    SequenceHandle(std::shared_ptr<Model> model, std::shared_ptr<Sequence> sequence)
        : model_(std::move(model)), sequence_(std::move(sequence)) {}

    void close() { sequence_.reset(); }
    void leave() {
        if (sequence_) model_->leave(*sequence_);
    }
    const std::shared_ptr<Sequence>& get() const {
        if (!sequence_) throw RequestError("the sequence is closed");
        return sequence_;
    }
    const std::shared_ptr<Model>& model() const { return model_; }
    Model::SequenceUse use() const { return model_->use(*get()); }

  private:
    std::shared_ptr<Model> model_;
    std::shared_ptr<Sequence> sequence_;
};

// Threads that are still in a forward pass when the interpreter ends would meet a GIL that is gone: the exit hook stops
// them first. Guarded by the GIL, but for the flag that running passes poll.
int running_passes = 0;
std::atomic<bool> interpreter_exits{false};

struct RunningPass {
    RunningPass() {
        if (interpreter_exits) throw Error("the interpreter is shutting down");
        ++running_passes;
    }
    ~RunningPass() { --running_passes; }
    RunningPass(const RunningPass&) = delete;
    RunningPass& operator=(const RunningPass&) = delete;
};

void stop_running_passes() {
    interpreter_exits = true;
    for (int waited = 0; running_passes > 0 && waited < 10000; ++waited) {
        const nb::gil_scoped_release release;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// What a forward pass polls. Only the main thread can act on signals (Ctrl-C); the others need no GIL for it.
std::function<bool()> interruption() {
    const nb::object main = nb::module_::import_("threading").attr("main_thread")();
    if (nb::cast<unsigned long>(main.attr("ident")) != PyThread_get_thread_ident()) {
        return [] { return interpreter_exits.load(std::memory_order_relaxed); };
    }
    return [] {
        const nb::gil_scoped_acquire acquire;
        return PyErr_CheckSignals() != 0;
    };
}

nb::dict memory_dict(const Model& model) {
    const Model::KvUse kv_use = model.kv_use();
    nb::list groups;
    for (const Model::GroupUse& group : kv_use.groups) {
        nb::dict entry;
        entry["window"] = group.window;
        entry["layers"] = group.layers;
        entry["page_bytes"] = group.page_bytes;
        entry["pages_in_use"] = group.pages_in_use;
        entry["pages_held"] = group.pages_held;
        groups.append(entry);
    }
    nb::dict result = pool_dict(model.memory(), model.pools());
    result["groups"] = groups;
    result["capacity"] = kv_use.capacity;
    result["saved_bytes"] = kv_use.saved_bytes;
    result["pages_copied"] = kv_use.pages_copied;
    nb::dict actions;
    for (int i = 0; i < kMemoryActions; ++i) {
        const MemoryLog::Count count = model.memory_log().count(static_cast<MemoryAction>(i));
        if (count.events) {
            actions[memory_action_name(static_cast<MemoryAction>(i))] = nb::make_tuple(count.events, count.bytes);
        }
    }
    result["actions"] = actions;
    return result;
}

nb::list memory_events(const Model& model) {
    nb::list result;
    for (const MemoryEvent& event : model.memory_log().events()) {
        result.append(
            nb::make_tuple(event.time_ns, memory_action_name(event.action), event.bytes, event.scope, event.reason));
    }
    return result;
}

nb::dict device_dict(const DeviceInfo& device) {
    nb::dict result;
    result["backend"] = device.backend;
    result["name"] = device.name;
    result["detail"] = device.detail;
    result["unified_memory"] = device.unified_memory;
    result["half_arithmetic"] = device.half_arithmetic;
    result["bfloat16_arithmetic"] = device.bfloat16_arithmetic;
    result["matrix_units"] = device.matrix_units;
    result["selects_candidates"] = device.selects_candidates;
    result["threads"] = device.threads;
    result["memory_bytes"] = device.memory_bytes;
    return result;
}

nb::list event_list(Model& model) {
    nb::list result;
    for (const Event& event : model.events().snapshot()) {
        result.append(nb::make_tuple(event.start_ns, event.duration_ns, event.amount,
                                     model.program().scopes.path(event.scope), static_cast<int>(event.kind),
                                     static_cast<int>(event.thread)));
    }
    return result;
}

std::shared_ptr<Model> make_model(const std::shared_ptr<ModelFile>& file, const Program& program,
                                  uint32_t context_length, const std::string& device, uint32_t threads,
                                  const std::string& kv_type, uint32_t batch_tokens, uint64_t memory_budget,
                                  const std::string& weights, const std::string& precision,
                                  std::optional<uint32_t> gpu_layers, uint32_t placement_context,
                                  const std::string& eviction) {
    ModelOptions options = model_options(context_length, threads, kv_type, batch_tokens, memory_budget, weights,
                                         precision, gpu_layers, placement_context);
    if (eviction == "save") {
        options.eviction = Eviction::save;
    } else if (eviction == "compress" || eviction == "compress-q4_0") {
        options.eviction = Eviction::compress;
        options.packed = eviction == "compress" ? DType::Q8_0 : DType::Q4_0;
    } else if (eviction == "recompute") {
        options.eviction = Eviction::recompute;
    } else if (eviction != "auto") {
        throw RequestError(
            "evicted pages are saved (\"save\", \"compress\", \"compress-q4_0\") or computed again (\"recompute\"), "
            "not \"" +
            eviction + "\"");
    }
    const nb::gil_scoped_release release;
    return Model::load(file, create_backend({device, threads}), program, options);
}

void forward(Model& model, const std::vector<SequenceHandle*>& sequences, const std::vector<Tokens>& tokens,
             const std::vector<int>& logit_modes, const std::vector<bool>& extended, Logits& logits,
             const std::vector<SelectionHandle*>& selections) {
    if (tokens.size() != sequences.size() || logit_modes.size() != sequences.size() ||
        extended.size() != sequences.size() || (!selections.empty() && selections.size() != sequences.size())) {
        throw RequestError("sequences, tokens, logit modes, RoPE choices and selections differ in number");
    }
    // What is chosen is kept apart until the pass is over: a selection may be given to two passes at once.
    std::vector<SelectionHandle> chosen(sequences.size());
    std::vector<Selection> wanted(sequences.size());
    std::vector<std::shared_ptr<Sequence>> held;
    std::vector<RunRequest> runs;
    for (size_t i = 0; i < sequences.size(); ++i) {
        if (!sequences[i]) throw RequestError("None is no sequence");
        if (sequences[i]->model().get() != &model) throw RequestError("a sequence of another model");
        held.push_back(sequences[i]->get());
        runs.push_back({held.back().get(),
                        {tokens[i].data(), tokens[i].size()},
                        logit_modes[i] == 2,
                        logit_modes[i] == 0,
                        extended[i]});
        if (selections.empty() || !selections[i]) continue;
        chosen[i] = *selections[i];
        chosen[i].candidates.assign(chosen[i].k, Candidate{});
        wanted[i] = {chosen[i].k, chosen[i].edits, chosen[i].mask};
        runs[i].selection = &wanted[i];
        runs[i].candidates = chosen[i].candidates.data();
    }
    if (logits.shape(0) != logit_rows(runs) || (logits.shape(0) && logits.shape(1) != model.vocabulary())) {
        throw RequestError("the array for the logits has the wrong shape");
    }
    const std::function<bool()> interrupted = interruption();
    const RunningPass running;
    {
        const nb::gil_scoped_release release;
        model.forward(runs, logits.data(), interrupted);
        held.clear();
    }
    for (size_t i = 0; i < runs.size(); ++i) {
        if (runs[i].selection) selections[i]->candidates = std::move(chosen[i].candidates);
    }
}

void enter(SequenceHandle& handle, uint64_t tokens) {
    const std::shared_ptr<Sequence> sequence = handle.get();
    const std::shared_ptr<Model> model = handle.model();
    const std::function<bool()> interrupted = interruption();
    const RunningPass running;
    const nb::gil_scoped_release release;
    model->enter(*sequence, tokens, interrupted);
}

}  // namespace

void bind_model(nb::module_& m) {
    nb::class_<SequenceHandle>(m, "Sequence", "The cached tokens of one sequence.")
        .def_prop_ro("length", [](const SequenceHandle& s) { return s.use().length; })
        .def_prop_ro("pages", [](const SequenceHandle& s) { return s.use().pages; })
        .def(
            "truncate", [](SequenceHandle& s, uint32_t length) { return s.model()->truncate(*s.get(), length); },
            nb::arg("length"),
            "Forgets the tokens from `length` on. False, and nothing changed, when a window no longer holds what a "
            "query there would see.")
        .def(
            "forget",
            [](SequenceHandle& s, uint32_t first, uint32_t count) { s.model()->forget(*s.get(), first, count); },
            nb::arg("first"), nb::arg("count"),
            "Takes tokens out of the middle. Those behind them are computed again when the sequence is run.")
        .def(
            "fork", [](const SequenceHandle& s) { return SequenceHandle(s.model(), s.model()->fork(*s.get())); },
            "A second sequence that shares this one's pages.")
        .def_prop_ro(
            "cached", [](const SequenceHandle& s) { return s.use().cached; },
            "Tokens whose keys and values there are: fewer than `length` where they were dropped.")
        .def(
            "reserve", [](SequenceHandle& s, uint32_t length) { s.model()->reserve(*s.get(), length); },
            nb::arg("length"),
            "Takes the pages for `length` tokens now; idle sequences make room, running ones do not. Raises "
            "OutOfMemory.")
        .def(
            "evict", [](SequenceHandle& s) { return s.model()->evict(*s.get()); },
            "Gives the pages up, as under pressure; they are back when it is run. Returns the bytes.")
        .def("enter", &enter, nb::arg("tokens"),
             "Waits for the memory of a generation up to `tokens`, and claims it. Releases the GIL; Ctrl-C is obeyed. "
             "Raises OutOfMemory where it can never be had.")
        .def("leave", &SequenceHandle::leave, "Gives the claim back.")
        .def("close", &SequenceHandle::close, "Gives the pages back; the sequence is unusable then.");

    nb::class_<Model>(m, "Model", "A compiled model with its weights and pages.")
        .def(nb::new_(&make_model), nb::arg("file"), nb::arg("program"), nb::arg("context_length"),
             nb::arg("device") = "auto", nb::arg("threads") = 0, nb::arg("kv_type") = "f16",
             nb::arg("batch_tokens") = 512, nb::arg("memory_budget") = 0, nb::arg("weights") = "mapped",
             nb::arg("precision") = "auto", nb::arg("gpu_layers") = nb::none(), nb::arg("placement_context") = 0,
             nb::arg("eviction") = "auto")
        .def("create_sequence",
             [](const std::shared_ptr<Model>& model) { return SequenceHandle(model, model->create_sequence()); })
        .def("forward", &forward, nb::arg("sequences"), nb::arg("tokens"), nb::arg("logit_modes"), nb::arg("extended"),
             nb::arg("logits"), nb::arg("selections") = std::vector<SelectionHandle*>(),
             nb::sig("def forward(self, sequences: collections.abc.Sequence[Sequence], tokens: "
                     "collections.abc.Sequence[numpy.typing.NDArray[numpy.int32]], logit_modes: "
                     "collections.abc.Sequence[int], extended: "
                     "collections.abc.Sequence[bool], logits: numpy.typing.NDArray[numpy.float32], selections: "
                     "collections.abc.Sequence[Selection | None] = ()) -> None"),
             "Appends tokens to sequences and writes logits [rows, vocabulary]. Logit modes: 0 none, 1 of the last "
             "token, 2 of all. A selection, of logit mode 1, gets candidates instead of logits. Releases the GIL; "
             "Ctrl-C is obeyed between steps.")
        .def_prop_ro("vocabulary", &Model::vocabulary)
        .def_prop_ro(
            "has_extended_rope",
            [](const Model& model) {
                const auto& ropes = model.program().ropes;
                return std::any_of(ropes.begin(), ropes.end(),
                                   [](const RopeTable& table) { return !table.extended.inverse_frequencies.empty(); });
            },
            "Whether sequences that outgrow the trained context have RoPE tables of their own.")
        .def_prop_ro(
            "precision", [](const Model& model) { return std::string(precision_name(model.precision())); },
            "What matrix products round their operands to.")
        .def_prop_ro("kv_bytes_per_token", &Model::kv_bytes_per_token)
        .def_prop_ro("arena_bytes", &Model::arena_bytes)
        .def_prop_ro(
            "device", [](const Model& model) { return device_dict(model.device()); },
            nb::sig("def device(self) -> dict[str, object]"))
        .def_prop_ro(
            "plan",
            [](const Model& model) {
                nb::list steps;
                for (const Step& step : model.program().steps) {
                    steps.append(nb::make_tuple(step_name(step.op), model.program().scopes.path(step.scope)));
                }
                return steps;
            },
            nb::sig("def plan(self) -> list[tuple[str, str]]"), "(operation, scope) of each planned step.")
        .def_prop_ro(
            "placement",
            [](const Model& model) {
                return placement_dict(model.placement(),
                                      [&](const Placement::Stage& stage) { return model.device_of(stage).backend; });
            },
            nb::sig("def placement(self) -> dict[str, object]"))
        .def("evict_weights", &Model::evict_weights, nb::arg("at_least") = nb::none(),
             nb::call_guard<nb::gil_scoped_release>(),
             "Frees the copies of weights that are not mapped, and returns their bytes: all, or so many that at least "
             "`at_least` bytes of heaps come back. The next forward pass makes room for them, compiles the program and "
             "uploads them again.")
        .def("memory", &memory_dict, nb::sig("def memory(self) -> dict[str, object]"))
        .def("set_memory_budget", &Model::set_memory_budget, nb::arg("bytes"),
             "Bounds what the pool takes from the system from now on; 0: nothing does. What is used beyond it stays "
             "until "
             "it is given back.")
        .def("memory_events", &memory_events,
             nb::sig("def memory_events(self) -> list[tuple[int, str, int, str, str]]"),
             "The newest: (monotonic ns, action, bytes, scope, reason).")
        .def("compact", &Model::compact, nb::call_guard<nb::gil_scoped_release>(),
             "Moves pages together, so that heaps that become empty go back to the system. Returns the bytes moved.")
        .def(
            "set_tracing", [](Model& model, bool on) { model.events().set_enabled(on); }, nb::arg("on"))
        .def("events", &event_list, nb::sig("def events(self) -> list[tuple[int, int, int, str, int, int]]"),
             "The newest events: (start ns, duration ns, amount, scope, kind, thread).");

    m.def(
        "list_devices",
        [] {
            nb::list result;
            for (const DeviceInfo& device : list_devices()) result.append(device_dict(device));
            return result;
        },
        nb::sig("def list_devices() -> list[dict[str, object]]"));
    m.def("held_pages", &PageStore::held_pages, nb::arg("page_bytes"), nb::arg("pages"),
          "How many pages of so many bytes a cache group holds, in slabs, once so many have tokens in them.");
    m.def(
        "check_kv_types", [](const std::string& kv_type) { return KvTypes::parse(kv_type).text(); }, nb::arg("kv_type"),
        "The types of keys and values that a text asks for, in their shortest form; RequestError for other text.");
    m.attr("page_tokens") = kPageTokens;
    nb::module_::import_("atexit").attr("register")(nb::cpp_function(&stop_running_passes));
}

}  // namespace metallic

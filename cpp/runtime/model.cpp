#include "runtime/model.h"

#include <algorithm>

#include "core/error.h"

namespace metallic {
namespace {

// Logits of one submission stay within this many bytes of arena, but at least kMinOutputs rows.
constexpr uint64_t kLogitBytes = uint64_t{8} << 20;
constexpr uint64_t kMinOutputs = 16;

uint32_t max_outputs(const Program& program, uint32_t batch_tokens) {
    const uint64_t row = uint64_t{program.values[program.logits].width} * sizeof(float);
    return static_cast<uint32_t>(std::min<uint64_t>(std::max(kLogitBytes / row, kMinOutputs), batch_tokens));
}

constexpr std::chrono::milliseconds kBalancePeriod{100};

ModelOptions checked(ModelOptions options) {
    if (options.batch_tokens == 0 || options.batch_tokens > 65536) {
        throw RequestError("batch_tokens must lie between 1 and 65536");
    }
    if (options.context_length == 0) throw RequestError("the context length must be at least 1");
    for (const KvPair& types : {options.kv_types.full, options.kv_types.window}) {
        for (const DType dtype : {types.keys, types.values}) {
            if (is_kv_dtype(dtype)) continue;
            throw RequestError("keys and values cannot be kept in " + std::string(dtype_info(dtype).name) +
                               "; F32, F16, BF16, Q8_0 and Q4_0 are supported");
        }
    }
    return options;
}

std::vector<KvLayout> layouts_of(const Program& program, const KvTypes& types) {
    std::vector<KvLayout> layouts;
    layouts.reserve(program.groups.size());
    for (const CacheGroup& group : program.groups) layouts.push_back(KvLayout::of(group, types.of(group)));
    return layouts;
}

StagedPlan::Options plan_options(const Program& planned, const ModelOptions& options) {
    StagedPlan::Options result;
    result.max_tokens = options.batch_tokens;
    result.max_outputs = max_outputs(planned, options.batch_tokens);
    result.kv_types = options.kv_types;
    result.precision = options.precision;
    return result;
}

// What a placement turns out to take. A device that has no memory for the plans alone has none for the model.
PlacementTrial try_out(const std::shared_ptr<const ModelFile>& file,
                       const std::array<std::shared_ptr<Backend>, 2>& backends, const Program& planned,
                       const Placement& placement, const ModelOptions& options) {
    PlacementTrial trial;
    try {
        const LoadNeeds needs = find_needs(planned, placement, file, backends, plan_options(planned, options));
        trial.plans = {needs.plans(kDevice), needs.plans(kHost)};
        trial.loads = needs.fits(options.memory_budget);
    } catch (const OutOfMemory&) {
        trial.loads = false;
    }
    return trial;
}

}  // namespace

Model::Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, const Program& program,
             const ModelOptions& options)
    : file_(std::move(file)),
      options_(checked(options)),
      placed_(plan(file_, backend, program, options_)),
      backend_(placed_.placement.on(kDevice) ? std::move(backend) : placed_.host),
      program_(placed_.program),
      pool_(backend_, options.memory_budget) {
    std::vector<StagedPlan::Device> devices(2);
    const uint32_t first = placed_.placement.on(kDevice) ? kDevice : kHost;
    devices[first] = {backend_, &pool_};
    if (first == kDevice && placed_.host) {
        host_pool_ = std::make_unique<Pool>(placed_.host, pool_.budget());
        devices[kHost] = {placed_.host, host_pool_.get()};
    }
    StagedPlan::Options compiled = plan_options(program_, options_);
    compiled.events = &events_;
    plan_ = std::make_unique<StagedPlan>(program_, placed_.placement, file_, devices, compiled);
    std::vector<KvGroup> groups;
    for (const StagedPlan::Group& group : plan_->groups()) {
        const StagedPlan::Device& at = devices[group.device];
        groups.push_back(
            {at.pool, at.backend.get(), group.group, group.layout, "kv/group." + std::to_string(groups.size())});
    }
    const Eviction eviction = options_.eviction.value_or(device().deterministic ? Eviction::recompute : Eviction::save);
    cache_ = std::make_unique<KvCache>(std::move(groups), options_.batch_tokens, eviction, log_, options_.packed);
    for (const Pool* pool : pools()) cache_->count_also(*pool);
    admission_ = std::make_unique<Admission>(*cache_, log_);
    runner_ = std::make_unique<ForwardRunner>(
        *plan_, *cache_, *admission_, log_,
        ForwardRunner::Limits{options_.context_length, options_.batch_tokens, compiled.max_outputs, vocabulary()});
    if (!options_.policy) options_.policy = std::make_shared<WatermarkPolicy>();
    residency_ = std::make_unique<ResidencyManager>(
        [this] { balance(); }, [this](const char* why) { log_.record(MemoryAction::fail, 0, "residency", why); },
        kBalancePeriod);
}

Model::~Model() = default;

std::shared_ptr<Model> Model::load(const std::shared_ptr<const ModelFile>& file,
                                   const std::shared_ptr<Backend>& backend, const Program& program,
                                   const ModelOptions& options) {
    try {
        return {new Model(file, backend, program, options), [](Model* model) {
                    if (!model->forked()) delete model;
                }};
    } catch (const OutOfMemory&) {
        if (const auto refused = refusal(file, backend, program, options)) throw OutOfMemory(*refused);
        throw;
    }
}

// The same error, with a budget that would do.
std::optional<OutOfMemory> Model::refusal(const std::shared_ptr<const ModelFile>& file,
                                          const std::shared_ptr<Backend>& backend, const Program& traced,
                                          const ModelOptions& options) {
    if (options.memory_budget == 0) return std::nullopt;
    try {
        return predict(file, backend, traced, options).refused;
    } catch (const Error&) {
        return std::nullopt;
    }
}

Model::Placed Model::plan(const std::shared_ptr<const ModelFile>& file, const std::shared_ptr<Backend>& backend,
                          const Program& traced, const ModelOptions& options) {
    const DeviceInfo& device = backend->device();
    Placed placed;
    const auto host = [&] {
        if (!placed.host) placed.host = options.host();
        return placed.host;
    };
    Program program = traced;
    const std::vector<KvLayout> kv = layouts_of(program, options.kv_types);
    PlacementLimits limits;
    limits.device_is_host = device.is_host || !options.host;
    limits.unified_memory = device.unified_memory;
    limits.device_memory = device.memory_bytes;
    limits.memory_budget = options.memory_budget;
    limits.context = options.placement_context ? options.placement_context : options.context_length;
    limits.batch_tokens = options.batch_tokens;
    const Program planned = plan_program(program);
    limits.activations = layout_arena(planned, options.batch_tokens, max_outputs(planned, options.batch_tokens)).bytes;
    limits.kv = kv;
    limits.trial = [&](const Program& assigned, const Placement& placement) {
        return try_out(file, {backend, placement.on(kHost) ? host() : nullptr}, plan_program(assigned), placement,
                       options);
    };
    placed.placement = place_weights(program, options.placement, limits);
    placed.program = plan_program(program);
    if (placed.placement.on(kHost)) {
        host();
    } else {
        placed.host.reset();
    }
    return placed;
}

Model::Prediction Model::predict(const std::shared_ptr<const ModelFile>& file, const std::shared_ptr<Backend>& backend,
                                 const Program& traced, const ModelOptions& unchecked) {
    const ModelOptions options = checked(unchecked);
    Placed placed = plan(file, backend, traced, options);
    Prediction result{std::move(placed.placement), {}, std::nullopt, backend, placed.host};
    result.needs = find_needs(placed.program, result.placement, file, {backend, placed.host},
                              plan_options(placed.program, options));
    try {
        result.needs.check(options.memory_budget);
    } catch (const OutOfMemory& error) {
        result.refused.emplace(error);
    }
    return result;
}

// ---- sequences ------------------------------------------------------------------------------------------------------

void Model::check_process() const {
    if (forked()) {
        throw DeviceError("the process was forked after the model was loaded; load it in the child", "model", "forked");
    }
}

std::unique_lock<std::mutex> Model::locked() const {
    check_process();
    return std::unique_lock(cache_->mutex());
}

std::shared_ptr<Sequence> Model::own(std::unique_ptr<Sequence> sequence) {
    return {sequence.release(), [model = shared_from_this()](Sequence* last) {
                if (model->forked()) return;
                {
                    const std::lock_guard lock(model->cache_->mutex());
                    model->cache_->destroy(last);
                }
                model->admission_->notify();
            }};
}

std::shared_ptr<Sequence> Model::create_sequence() {
    std::unique_ptr<Sequence> sequence;
    {
        const auto lock = locked();
        sequence = cache_->create();
    }
    return own(std::move(sequence));
}

std::shared_ptr<Sequence> Model::fork(const Sequence& sequence) {
    std::unique_ptr<Sequence> copy;
    {
        const auto lock = locked();
        sequence.check_idle();
        copy = cache_->fork(sequence);
    }
    return own(std::move(copy));
}

bool Model::truncate(Sequence& sequence, uint32_t length) {
    const auto lock = locked();
    sequence.check_idle();
    return sequence.truncate(length);
}

void Model::forget(Sequence& sequence, uint32_t first, uint32_t count) {
    {
        const auto lock = locked();
        sequence.check_idle();
        if (first > sequence.length() || count > sequence.length() - first) {
            throw RequestError("the sequence of " + std::to_string(sequence.length()) + " tokens has none from " +
                               std::to_string(first) + " to " + std::to_string(uint64_t{first} + count));
        }
        sequence.forget(first, count);
    }
    admission_->notify();
}

void Model::reserve(Sequence& sequence, uint32_t length) {
    if (length > options_.context_length) throw RequestError("a reservation beyond the context length");
    const auto lock = locked();
    sequence.check_idle();
    cache_->reserve(sequence, length);
}

Model::SequenceUse Model::use(const Sequence& sequence) const {
    const auto lock = locked();
    return {sequence.length(), sequence.cached(), sequence.pages()};
}

uint64_t Model::evict(Sequence& sequence) {
    const auto lock = locked();
    sequence.check_idle();
    return cache_->evict(sequence, "asked for");
}

void Model::enter(Sequence& sequence, uint64_t tokens, const std::function<bool()>& interrupted) {
    check_process();
    admission_->enter(sequence, std::min<uint64_t>(tokens, options_.context_length), interrupted);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

PoolStatistics Model::memory() const {
    PoolStatistics use = pool_.statistics();
    if (host_pool_) use += host_pool_->statistics();
    return use;
}

std::vector<const Pool*> Model::pools() const {
    std::vector<const Pool*> result{&pool_};
    if (host_pool_) result.push_back(host_pool_.get());
    return result;
}

void Model::set_memory_budget(uint64_t bytes) noexcept {
    pool_.budget()->set_limit(bytes);
    admission_->notify();
}

uint64_t Model::drop_empty_heaps() noexcept {
    return pool_.drop_empty_heaps() + (host_pool_ ? host_pool_->drop_empty_heaps() : 0);
}

// While nothing runs.
uint64_t Model::free_weights(std::optional<uint64_t> bytes, std::string_view reason) {
    const auto lock = locked();
    const uint64_t others = cache_->other_bytes();
    const bool all = plan_->ready();  // not so while some are gone
    const uint64_t freed = bytes ? plan_->evict_weights(*bytes) : plan_->evict_weights();
    if (freed == 0) return 0;
    if (all) cache_->expect_others(others);
    drop_empty_heaps();
    log_.record(MemoryAction::evict_weights, freed, "weights", reason);  // who sees it finds them gone
    return freed;
}

uint64_t Model::evict_weights(std::optional<uint64_t> bytes) {
    check_process();
    const std::unique_lock submission = runner_->pause();
    return free_weights(bytes, "asked for");
}

Model::KvUse Model::kv_use() const {
    const auto lock = locked();
    KvUse use;
    const std::span<const KvGroup> groups = cache_->groups();
    use.groups.reserve(groups.size());
    for (size_t g = 0; g < groups.size(); ++g) {
        const PageStore& store = cache_->store(g);
        use.groups.push_back({groups[g].group.window, groups[g].group.layers, groups[g].layout.page_bytes,
                              store.pages_in_use(), store.pages_held()});
    }
    use.saved_bytes = cache_->saved_bytes();
    use.pages_copied = cache_->pages_copied();
    use.capacity = cache_->capacity();
    return use;
}

uint64_t Model::compact() {
    check_process();
    const std::unique_lock submission = runner_->pause();
    const auto lock = locked();
    return cache_->compact("asked for");
}

// Called by the residency manager's thread.
void Model::balance() {
    uint64_t trimmed = pool_.trim();
    if (host_pool_) trimmed += host_pool_->trim();
    if (trimmed) log_.record(MemoryAction::trim, trimmed, "pool", "empty for a while");
    const PoolStatistics use = memory();
    MemoryState state;
    state.limit = use.budget ? use.budget : device().memory_bytes;
    state.heap_bytes = use.heap_bytes;
    {
        const auto lock = locked();
        const std::span<const KvGroup> groups = cache_->groups();
        for (size_t g = 0; g < groups.size(); ++g) {
            state.kv_in_use += cache_->store(g).pages_in_use() * groups[g].layout.page_bytes;
            state.kv_held += cache_->store(g).pages_held() * groups[g].layout.page_bytes;
        }
    }
    const uint64_t now = now_ns();
    const uint64_t last_run_ns = runner_->last_run_ns();
    state.idle_ns = now - std::min(now, last_run_ns);
    state.weight_bytes = plan_->copied_bytes();
    carry_out(options_.policy->decide(state), use.heap_bytes, last_run_ns);
}

void Model::carry_out(const MemoryDecision& decision, uint64_t heap_bytes, uint64_t last_run_ns) {
    if (decision.evict_bytes) {
        const auto lock = locked();
        cache_->evict_idle(decision.evict_bytes, "above the high watermark");
    }
    if (decision.compact) {
        const std::unique_lock submission = runner_->pause();
        const auto lock = locked();
        cache_->compact("many held pages were free");
    }
    if (decision.evict_weight_bytes) free_idle_weights(decision.evict_weight_bytes, heap_bytes, last_run_ns);
    if (decision.evict_bytes || decision.compact || decision.evict_weight_bytes) admission_->notify();
}

// What heaps gave back since they had `heap_bytes` counts.
void Model::free_idle_weights(uint64_t bytes, uint64_t heap_bytes, uint64_t last_run_ns) {
    const std::unique_lock submission = runner_->pause();
    // A batch may have been running all the while, and the next one would have to bring them back.
    if (runner_->last_run_ns() != last_run_ns) return;
    drop_empty_heaps();
    const uint64_t now = memory().heap_bytes, given = heap_bytes - std::min(heap_bytes, now);
    if (bytes > given) free_weights(bytes - given, "the model was idle");
}

}  // namespace metallic

#include "runtime/commands.h"

#include <cstring>

#include "runtime/objects.h"

namespace metalsim {
namespace {

constexpr size_t kArenaBlock = 65536;

}  // namespace

CommandBufferState::~CommandBufferState() {
    let_go();
    if (has_slot) free_slot(*this);
}

void CommandBufferState::fail(Failure what) {
    const std::lock_guard lock(mutex);
    if (!failure) failure = std::move(what);
}

bool CommandBufferState::failed() {
    const std::lock_guard lock(mutex);
    return failure.has_value();
}

void CommandBufferState::misuse(Problem problem, std::string_view kernel, std::string_view scope, std::string detail,
                                std::optional<uint32_t> encoder) {
    Report report;
    report.problem = problem;
    report.kernel = kernel;
    report.scope = scope;
    report.detail = std::move(detail);
    fail({MTLCommandBufferErrorInvalidResource, report.text(), encoder});
    add_report(std::move(report));
}

void CommandBufferState::keep(id object, AllocationState& of) {
    if (of.seen_by.load(std::memory_order_relaxed) == serial) return;
    of.seen_by.store(serial, std::memory_order_relaxed);
    if (retains) {
        header(object).references.fetch_add(1, std::memory_order_relaxed);
        kept.push_back(object);
    } else {
        of.usage->in_flight.fetch_add(1);
        borrowed.push_back(of.usage);
        borrowed_names.push_back(of.name());
    }
}

std::byte* CommandBufferState::copy_arguments(const void* from, size_t bytes, Memory::Id* region) {
    if (arena.empty() || arena.back().size - arena.back().used < bytes) {
        arena.push_back({std::make_unique<std::byte[]>(kArenaBlock), kArenaBlock, 0});
    }
    Block& block = arena.back();
    std::byte* to = block.bytes.get() + block.used;
    block.used += round_up(bytes, 16);
    std::memcpy(to, from, bytes);
    *region = 0;
    if (mode() == Mode::checked) {
        *region = executor().memory().add({to, bytes, "setBytes", true, true});
        arena_regions.push_back(*region);
    }
    return to;
}

void CommandBufferState::let_go() {
    for (id object : kept) [object release];
    kept.clear();
    for (const auto& usage : borrowed) usage->in_flight.fetch_sub(1);
    borrowed.clear();
    pipelines.clear();
    resident.clear();
    for (Memory::Id region : arena_regions) {
        executor().memory().release(region);
        executor().memory().forget(region);
    }
    arena_regions.clear();
    arena.clear();
}

void CommandBufferState::see_completion() {
    if (!std::exchange(observed, true)) owner->observations.fetch_add(1);
}

std::string join_scope(const std::vector<std::string>& before, std::string_view label,
                       const std::vector<std::string>& after) {
    std::string all;
    const auto add = [&](std::string_view part) {
        if (part.empty()) return;
        if (!all.empty()) all += '/';
        all += part;
    };
    for (const std::string& part : before) add(part);
    add(label);
    for (const std::string& part : after) add(part);
    return all;
}

std::optional<uint32_t> open_encoder(CommandBufferState& commands, bool serial,
                                     const std::vector<SampleStep>& samples) {
    const auto refuse = [&](const char* why) {
        commands.misuse(Problem::api, "", join_scope(commands.groups, "", {}), why);
        return std::nullopt;
    };
    {
        const std::lock_guard lock(commands.mutex);
        if (commands.status >= MTLCommandBufferStatusCommitted) {
            report_misuse("an encoder of a command buffer that was committed");
            return std::nullopt;
        }
    }
    if (commands.encoding) return refuse("an encoder was made while another is open");
    for (const SampleStep& step : samples) {
        const auto fits = [&](NSUInteger index) {
            return index == MTLCounterDontSample || index < step.samples->size();
        };
        if (!fits(step.start) || !fits(step.end))
            return refuse("a sample index beyond the counter sample buffer's end");
    }
    commands.encoding = true;
    const auto index = static_cast<uint32_t>(commands.encoders.size());
    EncoderRecord& record = commands.encoders.emplace_back();
    record.serial = serial;
    record.samples = samples;
    commands.commands.push_back({Command::Kind::begin_encoder, index});
    count(counters().encoders);
    return index;
}

}  // namespace metalsim

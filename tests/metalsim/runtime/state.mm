#include "runtime/state.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace metalsim {
namespace {

// Everything that is set from outside, under one lock. Never destroyed: queues may end after main.
struct Settings {
    std::mutex mutex;
    std::atomic<Mode> mode{Mode::host};
    DeviceModel model;
    uint64_t generation = 1;
    struct Pending {
        Fault fault;
        uint64_t seen = 0;
    };
    std::vector<Pending> faults;
    std::vector<Report> reports;
    std::atomic<bool> has_faults{false};
};

std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts(1);
    for (char c : text) {
        if (c == at) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

// "a=1,b=2" to a map; complains about what is not of that form.
std::map<std::string, std::string> pairs(const char* variable, const std::string& text) {
    std::map<std::string, std::string> out;
    for (const std::string& part : split(text, ',')) {
        if (part.empty()) continue;
        const size_t equals = part.find('=');
        if (equals == std::string::npos) {
            std::fprintf(stderr, "metalsim: %s: \"%s\" is not NAME=VALUE\n", variable, part.c_str());
        } else {
            out[part.substr(0, equals)] = part.substr(equals + 1);
        }
    }
    return out;
}

template <class T>
void take(std::map<std::string, std::string>& from, const char* name, T* to) {
    const auto found = from.find(name);
    if (found == from.end()) return;
    if constexpr (std::is_same_v<T, std::string>) {
        *to = found->second;
    } else {
        *to = static_cast<T>(std::strtoll(found->second.c_str(), nullptr, 10));
    }
    from.erase(found);
}

void complain_about_rest(const char* variable, const std::map<std::string, std::string>& rest) {
    for (const auto& [name, value] : rest) {
        std::fprintf(stderr, "metalsim: %s: there is no \"%s\"\n", variable, name.c_str());
    }
}

DeviceModel parse_device(const std::string& text) {
    DeviceModel model;
    auto from = pairs("METALSIM_DEVICE", text);
    take(from, "name", &model.name);
    take(from, "apple", &model.apple_family);
    take(from, "metal3", &model.metal3);
    take(from, "residency_sets", &model.residency_sets);
    take(from, "counter_sampling", &model.counter_sampling);
    take(from, "placement_heaps", &model.placement_heaps);
    take(from, "unified_memory", &model.unified_memory);
    take(from, "memory", &model.memory_bytes);
    take(from, "max_buffer", &model.max_buffer_bytes);
    take(from, "max_threadgroup", &model.max_threadgroup_bytes);
    take(from, "macos_major", &model.macos_major);
    take(from, "macos_minor", &model.macos_minor);
    take(from, "stall_milliseconds", &model.stall_milliseconds);
    complain_about_rest("METALSIM_DEVICE", from);
    return model;
}

std::optional<FaultKind> fault_kind(const std::string& name) {
    static const std::map<std::string, FaultKind> kinds = {
        {"buffer_allocation", FaultKind::buffer_allocation},
        {"heap_allocation", FaultKind::heap_allocation},
        {"command_buffer", FaultKind::command_buffer},
        {"slow_completion", FaultKind::slow_completion},
        {"device_lost", FaultKind::device_lost},
        {"library", FaultKind::library},
        {"pipeline", FaultKind::pipeline},
    };
    const auto found = kinds.find(name);
    return found != kinds.end() ? std::optional(found->second) : std::nullopt;
}

std::vector<Fault> parse_faults(const std::string& text) {
    std::vector<Fault> faults;
    for (const std::string& part : split(text, ';')) {
        if (part.empty()) continue;
        const size_t colon = part.find(':');
        const auto kind = fault_kind(part.substr(0, colon));
        if (!kind) {
            std::fprintf(stderr, "metalsim: METALSIM_FAULTS: there is no \"%s\"\n", part.substr(0, colon).c_str());
            continue;
        }
        auto from = pairs("METALSIM_FAULTS", colon == std::string::npos ? "" : part.substr(colon + 1));
        Fault fault{.kind = *kind};
        take(from, "nth", &fault.nth);
        take(from, "times", &fault.times);
        take(from, "code", &fault.code);
        take(from, "milliseconds", &fault.milliseconds);
        complain_about_rest("METALSIM_FAULTS", from);
        faults.push_back(fault);
    }
    return faults;
}

Settings& settings() {
    static Settings* const shared = [] {
        auto* made = new Settings;
        if (const char* text = std::getenv("METALSIM_MODE")) {
            const std::string name = text;
            if (name == "checked") made->mode = Mode::checked;
            if (name == "none") made->mode = Mode::none;
            if (name != "checked" && name != "none" && name != "host") {
                std::fprintf(stderr, "metalsim: METALSIM_MODE: there is no \"%s\"\n", text);
            }
        }
        if (const char* text = std::getenv("METALSIM_DEVICE")) made->model = parse_device(text);
        if (const char* text = std::getenv("METALSIM_FAULTS")) {
            for (const Fault& fault : parse_faults(text)) made->faults.push_back({fault});
            made->has_faults = !made->faults.empty();
        }
        return made;
    }();
    return *shared;
}

}  // namespace

void set_mode(Mode mode) {
    settings().mode = mode;
}

Mode mode() noexcept {
    return settings().mode;
}

void inject(const Fault& fault) {
    const std::lock_guard lock(settings().mutex);
    settings().faults.push_back({fault});
    settings().has_faults = true;
}

void clear_faults() {
    const std::lock_guard lock(settings().mutex);
    settings().faults.clear();
    settings().has_faults = false;
}

std::optional<Fault> take_fault(FaultKind kind) {
    if (!settings().has_faults.load(std::memory_order_relaxed)) return std::nullopt;
    const std::lock_guard lock(settings().mutex);
    std::optional<Fault> found;
    for (Settings::Pending& pending : settings().faults) {
        if (pending.fault.kind != kind) continue;
        ++pending.seen;
        const bool due = pending.seen >= pending.fault.nth && pending.seen - pending.fault.nth < pending.fault.times;
        if (due && !found) found = pending.fault;
    }
    return found;
}

void set_device(const DeviceModel& model) {
    const std::lock_guard lock(settings().mutex);
    settings().model = model;
    ++settings().generation;
}

DeviceModel device_model() {
    const std::lock_guard lock(settings().mutex);
    return settings().model;
}

uint64_t device_generation() {
    const std::lock_guard lock(settings().mutex);
    return settings().generation;
}

uint64_t nanoseconds_now() {
    return static_cast<uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
}

double seconds_now() {
    return static_cast<double>(nanoseconds_now()) * 1e-9;
}

Executor& executor() {
    static Executor* const shared = create_executor().release();
    return *shared;
}

void add_report(Report report) {
    const std::lock_guard lock(settings().mutex);
    settings().reports.push_back(std::move(report));
}

void report_misuse(const std::string& detail) {
    Report report;
    report.problem = Problem::api;
    report.detail = detail;
    add_report(std::move(report));
}

std::vector<Report> take_reports() {
    std::vector<Report> reports;
    {
        const std::lock_guard lock(settings().mutex);
        reports.swap(settings().reports);
    }
    return reports;
}

Counters& counters() noexcept {
    static Counters shared;
    return shared;
}

Statistics statistics() {
    const Counters& from = counters();
    Statistics to;
    to.command_buffers = from.command_buffers;
    to.encoders = from.encoders;
    to.dispatches = from.dispatches;
    to.barriers = from.barriers;
    to.blits = from.blits;
    to.buffers_alive = from.buffers_alive;
    to.heaps_alive = from.heaps_alive;
    to.bytes_allocated = from.bytes_allocated;
    to.peak_bytes = from.peak_bytes;
    to.libraries_compiled = from.libraries_compiled;
    to.pipelines = from.pipelines;
    to.archive_hits = from.archive_hits;
    to.objects_alive = from.objects_alive;
    to.retains = from.retains;
    to.signposts = from.signposts;
    return to;
}

}  // namespace metalsim

// "macOS 15.0, iOS 18, *": what __builtin_available is asked.
extern "C" bool metalsim_available(const char* versions) {
    for (const std::string& part : metalsim::split(versions, ',')) {
        unsigned major = 0, minor = 0;
        if (std::sscanf(part.c_str(), " macOS %u.%u", &major, &minor) < 1) continue;
        const metalsim::DeviceModel model = metalsim::device_model();
        return model.macos_major > major || (model.macos_major == major && model.macos_minor >= minor);
    }
    return true;
}

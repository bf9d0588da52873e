#include <sstream>
#include <utility>

#include "executor/checker.h"
#include "executor/host_executor.h"

namespace metalsim {

const char* problem_name(Problem problem) noexcept {
    switch (problem) {
        case Problem::out_of_bounds:
            return "out_of_bounds";
        case Problem::use_after_release:
            return "use_after_release";
        case Problem::not_resident:
            return "not_resident";
        case Problem::uninitialised_read:
            return "uninitialised_read";
        case Problem::dispatch_hazard:
            return "dispatch_hazard";
        case Problem::thread_race:
            return "thread_race";
        case Problem::read_only:
            return "read_only";
        case Problem::misaligned:
            return "misaligned";
        case Problem::barrier_divergence:
            return "barrier_divergence";
        case Problem::limit:
            return "limit";
        case Problem::api:
            return "api";
    }
    return "unknown";
}

std::string text(const MetalsimUint3& at) {
    std::ostringstream out;
    out << '(' << at.x << ", " << at.y << ", " << at.z << ')';
    return out.str();
}

std::string Report::text() const {
    std::string out = problem_name(problem);
    if (!kernel.empty()) out += ": kernel " + kernel + ", thread " + metalsim::text(thread);
    if (!buffer.empty()) {
        out += ", " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " of " + buffer;
    }
    if (!scope.empty()) out += ", in " + scope;
    if (!detail.empty()) out += ": " + detail;
    return out;
}

void report(Group& group, Problem problem, std::string detail, const void* site) {
    Report report;
    report.problem = problem;
    if (group.threads != 0) report.thread = group.position(group.thread_index());
    report.detail = std::move(detail);
    group.launch->report(std::move(report), site);
}

void report_bad_address(Group& group, const void* address) {
    std::ostringstream where;
    where << "an access at " << address << ", where there is no memory";
    report(group, Problem::out_of_bounds, where.str());
}

void report_barrier_divergence(Group& group, const Simdgroup* simdgroups, const void* site) {
    uint32_t waits = 0;
    uint32_t other = 0;
    bool waiting = false;
    bool ended = false;
    bool elsewhere = false;
    for (uint32_t i = group.threads; i-- > 0;) {
        const Simdgroup& simdgroup = simdgroups[i / kLanes];
        const uint32_t lane = i % kLanes;
        if (!(simdgroup.live >> lane & 1)) {
            if (!elsewhere) other = i;
            ended = !elsewhere;
        } else if (simdgroup.stops[lane].site != site) {
            other = i;
            elsewhere = true;
            ended = false;
        } else {
            waits = i;
            waiting = true;
        }
    }
    Report report;
    report.problem = Problem::barrier_divergence;
    report.thread = group.position(waiting ? waits : other);
    report.detail = "at a threadgroup barrier; thread " + text(group.position(other)) +
                    (ended ? " has ended" : " waits at another");
    group.launch->report(std::move(report), site);
}

void LaunchRun::report(Report&& report, const void* site) {
    const std::lock_guard guard(mutex_);
    for (Kept& kept : kept_) {
        if (kept.report.problem == report.problem && kept.report.buffer == report.buffer && kept.site == site) {
            ++kept.more;
            return;
        }
    }
    if (kept_.size() == kMaxReports) {
        ++dropped_;
        return;
    }
    report.kernel = launch_.function != nullptr ? launch_.function->name : std::string();
    report.scope = launch_.scope;
    kept_.push_back({std::move(report), site, 0});
}

bool LaunchRun::finish() {
    const std::lock_guard guard(mutex_);
    if (history_ != nullptr) std::exchange(history_, nullptr)->leave();
    for (Kept& kept : kept_) {
        if (kept.more != 0) kept.report.detail += "; " + std::to_string(kept.more) + " more like this";
        if (dropped_ != 0 && &kept == &kept_.back()) {
            kept.report.detail += "; " + std::to_string(dropped_) + " other reports of this launch were dropped";
        }
        executor_.report(std::move(kept.report));
    }
    return kept_.empty();
}

}  // namespace metalsim

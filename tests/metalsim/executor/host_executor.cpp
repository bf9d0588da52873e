#include "executor/host_executor.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/signals.h"
#include "executor/fault.h"

namespace metalsim {
namespace {

uint32_t worker_count(uint32_t wanted) {
    if (wanted != 0) return wanted;
    if (const char* const text = std::getenv("METALSIM_WORKERS")) {
        const long count = std::strtol(text, nullptr, 10);
        if (count > 0) return static_cast<uint32_t>(std::min(count, 1024L));
    }
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

HostExecutor::HostExecutor(uint32_t workers) {
    install_fault_handler();
    const uint32_t count = worker_count(workers);
    helpers_.reserve(count - 1);
    const metallic::SignalsBlocked blocked;
    for (uint32_t i = 1; i < count; ++i) helpers_.emplace_back([this] { help(); });
}

HostExecutor::~HostExecutor() {
    {
        const std::lock_guard guard(mutex_);
        closing_ = true;
    }
    work_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

bool HostExecutor::run(const Launch& launch) {
    LaunchRun run(*this, launch);
    run.order = books_.history.now();
    if (!check_limits(run)) return run.finish();
    std::unique_ptr<Worker> worker = borrow();
    if (helpers_.empty() || run.total() == 1) {
        run_groups(run, *worker);
        give_back(std::move(worker));
        return run.finish();
    }
    size_t wake = 0;
    {
        const std::lock_guard guard(mutex_);
        active_.push_back(&run);
        wake = std::min<size_t>(sleeping_, run.total() - 1);
    }
    for (; wake != 0; --wake) work_.notify_one();
    run_groups(run, *worker);
    {
        std::unique_lock guard(mutex_);
        std::erase(active_, &run);
        done_.wait(guard, [&] { return run.helpers == 0; });
    }
    give_back(std::move(worker));
    return run.finish();
}

void HostExecutor::run_groups(LaunchRun& run, Worker& worker) {
    prepare_thread_for_faults();
    uint64_t index = run.take();
    if (index >= run.total()) return;
    if (worker.group.begin(run)) {
        for (; index < run.total(); index = run.take()) {
            if (!worker.group.run(index)) run.stop();
        }
    } else {
        run.stop();
    }
    worker.group.end();
}

// A worker besides the callers of run().
void HostExecutor::help() {
    Worker worker(books_);
    std::unique_lock guard(mutex_);
    for (;;) {
        ++sleeping_;
        work_.wait(guard, [&] { return closing_ || !active_.empty(); });
        --sleeping_;
        if (closing_) return;
        LaunchRun& run = *active_.front();
        ++run.helpers;
        guard.unlock();
        run_groups(run, worker);
        guard.lock();
        std::erase(active_, &run);  // nothing is left to take
        if (--run.helpers == 0) done_.notify_all();
    }
}

bool HostExecutor::check_limits(LaunchRun& run) {
    const Launch& launch = run.launch();
    const auto fail = [&](std::string detail) {
        Report report;
        report.problem = Problem::limit;
        report.detail = std::move(detail);
        run.report(std::move(report), nullptr);
        return false;
    };
    const uint64_t threads = launch.threads_per_threadgroup.count();
    const uint32_t most = std::min(launch.function->max_total_threads, kThreads);
    if (threads == 0 || run.total() == 0) return fail("an empty grid or threadgroup");
    if (threads > most || launch.threads_per_threadgroup.x > most || launch.threads_per_threadgroup.y > most ||
        launch.threads_per_threadgroup.z > most) {
        return fail(std::to_string(threads) + " threads in a threadgroup, the limit is " + std::to_string(most));
    }
    const Size3& size = launch.threads_per_threadgroup;
    const Size3& groups = run.groups();
    const auto overflows = [](uint32_t a, uint32_t b) { return uint64_t{a} * b > UINT32_MAX; };
    if (launch.threads.x == 0 &&
        (overflows(groups.x, size.x) || overflows(groups.y, size.y) || overflows(groups.z, size.z))) {
        return fail("a grid of more than 2^32 - 1 threads in one dimension");
    }
    for (const msl::Argument& argument : launch.function->arguments) {
        if (argument.kind != msl::ArgumentKind::buffer || argument.index >= kMetalsimBuffers) continue;
        const auto at = reinterpret_cast<uintptr_t>(launch.arguments->buffers[argument.index]);
        if (argument.alignment > 1 && at % argument.alignment != 0) {
            Report report;
            report.problem = Problem::misaligned;
            report.detail = "argument " + argument.name + " (buffer " + std::to_string(argument.index) +
                            ") is bound at an address that is no multiple of " + std::to_string(argument.alignment);
            run.report(std::move(report), &argument);
            return false;
        }
    }
    return true;
}

std::unique_ptr<Worker> HostExecutor::borrow() {
    {
        const std::lock_guard guard(mutex_);
        if (!idle_.empty()) {
            std::unique_ptr<Worker> worker = std::move(idle_.back());
            idle_.pop_back();
            return worker;
        }
    }
    return std::make_unique<Worker>(books_);
}

void HostExecutor::give_back(std::unique_ptr<Worker> worker) {
    const std::lock_guard guard(mutex_);
    idle_.push_back(std::move(worker));
}

void HostExecutor::order() {
    books_.history.order();
}

void HostExecutor::report(Report report) {
    const std::lock_guard guard(reports_mutex_);
    reports_.push_back(std::move(report));
}

std::vector<Report> HostExecutor::take_reports() {
    const std::lock_guard guard(reports_mutex_);
    return std::exchange(reports_, {});
}

std::unique_ptr<Executor> create_executor(uint32_t workers) {
    return std::make_unique<HostExecutor>(workers);
}

}  // namespace metalsim

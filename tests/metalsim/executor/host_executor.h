#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "executor/checker.h"
#include "executor/executor.h"
#include "executor/group.h"
#include "executor/launch.h"

namespace metalsim {

// What a thread needs to run threadgroups: stacks, threadgroup memory, the books of the checks.
struct Worker {
    explicit Worker(Books& books) : checker(group, books) { group.checker = &checker; }
    Group group;
    Checker checker;
};

class HostExecutor final : public Executor {
  public:
    explicit HostExecutor(uint32_t workers);
    ~HostExecutor() override;

    Memory& memory() noexcept override { return books_.regions; }
    bool run(const Launch& launch) override;
    void touch(const void* at, uint64_t bytes, bool write, std::string_view scope) override;
    void order() override;
    void report(Report report) override;
    std::vector<Report> take_reports() override;

  private:
    bool check_limits(LaunchRun& run);
    void run_groups(LaunchRun& run, Worker& worker);
    void help();
    std::unique_ptr<Worker> borrow();
    void give_back(std::unique_ptr<Worker> worker);

    Books books_;
    std::mutex reports_mutex_;
    std::vector<Report> reports_;

    std::mutex mutex_;
    std::condition_variable work_, done_;
    std::vector<LaunchRun*> active_;  // with threadgroups left to take
    uint32_t sleeping_ = 0;
    bool closing_ = false;
    std::vector<std::unique_ptr<Worker>> idle_;  // of callers
    std::vector<std::thread> helpers_;
};

}  // namespace metalsim

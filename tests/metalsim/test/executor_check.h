#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>

#include "executor_kernels.h"

// For tests of the checks: regions of device memory, and launches that are expected to be reported or not.
namespace metalsim::test {

inline constexpr uint32_t kCount = 4096;

struct Buffer {
    explicit Buffer(Executor& executor, std::string label, bool initialised = true, bool read_only = false,
                    uint64_t bytes = kCount)
        : memory(executor.memory()), storage(bytes + 256) {
        const uintptr_t aligned = (reinterpret_cast<uintptr_t>(storage.data()) + 127) & ~uintptr_t{127};
        region.base = reinterpret_cast<unsigned char*>(aligned);
        region.bytes = bytes;
        region.label = std::move(label);
        region.initialised = initialised;
        region.read_only = read_only;
        id = memory.add(region);
    }
    ~Buffer() { memory.forget(id); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    unsigned char* at(uint64_t offset = 0) { return const_cast<unsigned char*>(base()) + offset; }
    const unsigned char* base() const { return static_cast<const unsigned char*>(region.base); }

    Memory& memory;
    std::vector<unsigned char> storage;
    Memory::Region region;
    Memory::Id id = 0;
};

class ExecutorCheck : public testing::Test {
  protected:
    std::unique_ptr<Executor> executor = create_executor(2);
    Dispatch dispatch(MetalsimKernel kernel, const char* name) {
        Dispatch out(kernel, name);
        out.scope("forward/block.1/attention");
        return out;
    }
    bool ordered = true;  // all launches, as by a barrier before each
    void expect_clean(Dispatch& dispatch) {
        if (ordered) executor->order();
        EXPECT_TRUE(dispatch.run(*executor));
        const std::vector<Report> reports = executor->take_reports();
        EXPECT_TRUE(reports.empty()) << texts(reports);
    }
    Report expect_one(Dispatch& dispatch, Problem problem) {
        if (ordered) executor->order();
        EXPECT_FALSE(dispatch.run(*executor));
        const std::vector<Report> reports = executor->take_reports();
        EXPECT_EQ(reports.size(), 1U) << texts(reports);
        if (reports.empty()) return {};
        EXPECT_STREQ(problem_name(reports[0].problem), problem_name(problem)) << texts(reports);
        EXPECT_EQ(reports[0].scope, "forward/block.1/attention");
        return reports[0];
    }
};

inline void expect_mentions(const Report& report, std::initializer_list<const char*> parts) {
    const std::string text = report.text();
    for (const char* part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << ": " << text;
}

METALSIM_AS_WRITTEN
inline void copy_floats(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t i = thread->thread_position_in_grid.x;
    put(argument<float>(arguments, 1) + i, get(argument<float>(arguments, 0) + i));
}

}  // namespace metalsim::test

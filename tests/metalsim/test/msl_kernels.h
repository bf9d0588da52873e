#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "executor/executor.h"
#include "msl/library.h"

// Kernels written in MSL, compiled and run, for tests of the front end.
namespace metalsim::test {

class MslRun {
  public:
    explicit MslRun(std::string_view source, bool checked = false) : executor_(create_executor(1)) {
        msl::Options options;
        options.checked = checked;
        library_ = msl::compile("#include <metal_stdlib>\nusing namespace metal;\n" + std::string(source), options);
        constants_.resize(library_->constants_bytes());
    }

    template <typename T>
    MslRun& buffer(uint32_t index, std::vector<T>& values) {
        arguments_.buffers[index] = values.data();
        arguments_.buffer_bytes[index] = values.size() * sizeof(T);
        ids_.push_back(executor_->memory().add(
            {values.data(), values.size() * sizeof(T), "buffer " + std::to_string(index), true, false}));
        return *this;
    }
    MslRun& threadgroup_memory(uint32_t index, uint32_t bytes) {
        arguments_.threadgroup_bytes[index] = bytes;
        return *this;
    }
    template <typename T>
    MslRun& constant(uint32_t index, const T& value) {
        for (const msl::FunctionConstant& c : library_->constants()) {
            if (c.index != index) continue;
            std::memcpy(constants_.data() + c.offset, &value, sizeof value);
            constants_[c.defined] = 1;
        }
        return *this;
    }
    // False if the checks found something; see reports.
    bool run(std::string_view function, Size3 groups, Size3 threads) {
        arguments_.function_constants = constants_.data();
        Launch launch;
        launch.function = library_->find(function);
        launch.arguments = &arguments_;
        launch.threads_per_threadgroup = threads;
        launch.threadgroups = groups;
        executor_->order();
        const bool ok = launch.function != nullptr && executor_->run(launch);
        reports = executor_->take_reports();
        return ok;
    }
    const msl::Library& library() const { return *library_; }

    std::vector<Report> reports;

  private:
    std::unique_ptr<Executor> executor_;
    std::shared_ptr<const msl::Library> library_;
    MetalsimArguments arguments_{};
    std::vector<unsigned char> constants_;
    std::vector<Memory::Id> ids_;
};

}  // namespace metalsim::test

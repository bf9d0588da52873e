#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "gguf/model_file.h"
#include "memory/pool.h"
#include "program/program.h"

namespace metallic {

// Where a model's matrices live. Vectors, which a plan may read when it is compiled, are always mapped.
enum class WeightPlacement : uint8_t {
    mapped,     // in the file's pages, which the system may drop and read again
    exclusive,  // in memory of the device alone, counted by the pool, filled when a forward pass first needs them
};

// The weights of a program, bound to the tensors of its file.
class Weights {
  public:
    // Throws OutOfMemory, and RequestError for a tensor that the file does not have.
    Weights(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, Pool& pool, const Program& program,
            WeightPlacement placement);

    std::span<const BufferView> views() const noexcept { return views_; }
    // Copies to the device what is not there yet, in the order of the layers. `interrupted` is polled between weights;
    // what was copied before a stop, or an error, stays. Throws Interrupted, DeviceError, OutOfMemory.
    void upload(const std::function<bool()>& interrupted);

  private:
    struct Exclusive {
        Allocation memory;
        const TensorInfo* tensor;
    };
    void map(const TensorInfo& tensor);
    void place(const TensorInfo& tensor, Pool& pool);

    std::shared_ptr<const ModelFile> file_;
    std::shared_ptr<Backend> backend_;
    std::vector<std::shared_ptr<Heap>> file_heaps_;  // by part, then of tensors in no mapping
    std::vector<BufferView> views_;                  // by WeightId
    std::vector<Exclusive> exclusive_;
    size_t uploaded_ = 0;  // of them
};

}  // namespace metallic

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "gguf/model_file.h"
#include "memory/pool.h"
#include "program/program.h"

namespace metallic {

// The weights of a program on one device, bound to the tensors of its file: views of the mapped file, or copies in the
// device's memory, which are counted by the pool and filled when they are first needed.
class Weights {
  public:
    // `storage` by WeightId: where the weight is on this device; none: not at all. Copies of vectors, which a plan may
    // read when it is compiled, are shared and filled at once. Throws OutOfMemory, and RequestError for a tensor that
    // the file does not have.
    Weights(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, Pool& pool, const Program& program,
            std::span<const std::optional<Storage>> storage);

    // Where a copy of a weight is that is wanted in `storage`.
    static Storage storage_of_copy(const Weight& weight, Storage storage) noexcept {
        return is_vector(weight) ? Storage::shared : storage;
    }

    // By WeightId; empty for what is not on this device.
    std::span<const BufferView> views() const noexcept { return views_; }
    // Fills the copies among `ids` that are not filled yet. A part at a time, and what was copied is dropped from the
    // mapping, so that loading takes little host memory. `interrupted` is polled between parts; weights that were
    // filled before a stop, or an error, stay. Throws Interrupted, DeviceError, OutOfMemory.
    void upload(std::span<const WeightId> ids, const std::function<bool()>& interrupted);

    // Copies that can go so that memory comes back.
    struct Choice {
        std::vector<WeightId> ids;
        uint64_t heap_bytes = 0;  // that come back
    };
    // Enough for `bytes` of heaps, or all that there are, those first that come first in `order`. A heap is the least
    // that can come back: one large copy, or the small ones that share it. Those in a heap with something else stay.
    Choice choose(uint64_t bytes, std::span<const WeightId> order) const;
    // Frees the copies among `ids`, or all, and returns their bytes. Their views are empty until `restore`; no plan may
    // use them any more.
    uint64_t evict(std::span<const WeightId> ids) noexcept;
    uint64_t evict() noexcept;
    // Copies that were evicted.
    std::vector<WeightId> missing() const;
    // Makes room for these again, elsewhere, to be filled by the next upload; the others stay as they are. Throws
    // OutOfMemory; what was made stays then, for the next attempt.
    void restore();
    // Bytes that evicting all would free. May be called at any time.
    uint64_t copied_bytes() const noexcept { return copied_bytes_; }
    bool evicted() const noexcept { return evicted_ != 0; }

  private:
    static bool is_vector(const Weight& weight) noexcept { return weight.rows == 1 && weight.experts == 1; }
    struct Copy {
        const TensorInfo* tensor;
        Storage storage;
        bool vector;
        Allocation memory;
        bool filled = false;
    };
    void map(const Program& program, std::span<const std::optional<Storage>> storage);
    void allocate(WeightId id);
    void fill(WeightId id, const std::function<bool()>& interrupted);
    uint64_t give_up(WeightId id) noexcept;

    std::shared_ptr<const ModelFile> file_;
    std::shared_ptr<Backend> backend_;
    Pool& pool_;
    std::vector<std::shared_ptr<Heap>> file_heaps_;
    std::vector<BufferView> views_;
    std::vector<std::optional<Copy>> copies_;  // by WeightId
    size_t unfilled_ = 0;                      // copies that have room and are not filled
    size_t evicted_ = 0;                       // copies that have none
    std::atomic<uint64_t> copied_bytes_{0};
};

}  // namespace metallic

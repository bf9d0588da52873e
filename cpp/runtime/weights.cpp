#include "runtime/weights.h"

namespace metallic {

Weights::Weights(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, Pool& pool,
                 const Program& program, WeightPlacement placement)
    : file_(std::move(file)), backend_(std::move(backend)), file_heaps_(file_->paths().size()) {
    for (const Weight& weight : program.weights) {
        const TensorInfo& tensor = file_->tensor(weight.name);
        const bool matrix = weight.rows > 1 || weight.experts > 1;
        if (matrix && placement == WeightPlacement::exclusive) {
            place(tensor, pool);
        } else {
            map(tensor);
            pool.count_mapped(views_.back().bytes);
        }
    }
}

void Weights::map(const TensorInfo& tensor) {
    const std::span<const std::byte> bytes = file_->tensor_bytes(tensor);
    const auto& mapping = file_->mapping(tensor.file);
    if (!mapping) {
        file_heaps_.push_back(backend_->wrap_host(bytes, file_, tensor.name, HostMemory::any));
        views_.push_back({file_heaps_.back().get(), 0, bytes.size()});
        return;
    }
    auto& heap = file_heaps_[tensor.file];
    if (!heap) heap = backend_->wrap_host(mapping->bytes(), mapping, mapping->path(), HostMemory::mapping);
    views_.push_back({heap.get(), tensor.offset, bytes.size()});
}

void Weights::place(const TensorInfo& tensor, Pool& pool) {
    const uint64_t bytes = file_->tensor_bytes(tensor).size();
    exclusive_.push_back({pool.allocate_bytes(bytes, Tag::weights, tensor.name, Storage::exclusive), &tensor});
    views_.push_back(exclusive_.back().memory.view());
}

void Weights::upload(const std::function<bool()>& interrupted) {
    for (; uploaded_ < exclusive_.size(); ++uploaded_) {
        if (interrupted && interrupted()) throw Interrupted{};
        const Exclusive& weight = exclusive_[uploaded_];
        const std::span<const std::byte> bytes = file_->tensor_bytes(*weight.tensor);
        backend_->upload(bytes, weight.memory.view());
        // The device has its own copy now.
        if (const auto& mapping = file_->mapping(weight.tensor->file)) mapping->not_needed(bytes);
    }
}

}  // namespace metallic

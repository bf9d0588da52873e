#include "runtime/weights.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace metallic {
namespace {

// Of a weight, copied at a time: what is resident of the mapping while it is copied.
constexpr uint64_t kPart = uint64_t{16} << 20;

}  // namespace

Weights::Weights(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, Pool& pool,
                 const Program& program, std::span<const std::optional<Storage>> storage)
    : file_(std::move(file)),
      backend_(std::move(backend)),
      pool_(pool),
      views_(program.weights.size()),
      copies_(program.weights.size()) {
    map(program, storage);
    for (WeightId id = 0; id < program.weights.size(); ++id) {
        if (!storage[id] || *storage[id] == Storage::mapped) continue;
        const Weight& weight = program.weights[id];
        copies_[id] =
            Copy{&file_->tensor(weight.name), storage_of_copy(weight, *storage[id]), is_vector(weight), {}, false};
        ++evicted_;
        allocate(id);
    }
}

// One heap per part of the file, of the bytes from the first to the last weight that is here: a device may count all
// bytes that it sees as resident.
void Weights::map(const Program& program, std::span<const std::optional<Storage>> storage) {
    struct Range {
        uint64_t begin = ~uint64_t{0}, end = 0;
        std::shared_ptr<Heap> heap;
    };
    std::vector<Range> ranges(file_->paths().size());
    const auto each = [&](const auto& visit) {
        for (WeightId id = 0; id < program.weights.size(); ++id) {
            if (!storage[id] || *storage[id] != Storage::mapped) continue;
            const TensorInfo& tensor = file_->tensor(program.weights[id].name);
            visit(id, tensor, file_->tensor_bytes(tensor));
        }
    };
    each([&](WeightId, const TensorInfo& tensor, std::span<const std::byte> bytes) {
        Range& range = ranges[tensor.file];
        range.begin = std::min(range.begin, tensor.offset);
        range.end = std::max(range.end, tensor.offset + bytes.size());
    });
    each([&](WeightId id, const TensorInfo& tensor, std::span<const std::byte> bytes) {
        const auto& mapping = file_->mapping(tensor.file);
        Range& range = ranges[tensor.file];
        if (!mapping) {
            file_heaps_.push_back(backend_->wrap_host(bytes, file_, tensor.name, HostMemory::any));
            views_[id] = {file_heaps_.back().get(), 0, bytes.size()};
        } else {
            if (!range.heap) {
                const auto part = mapping->bytes().subspan(range.begin, range.end - range.begin);
                range.heap = backend_->wrap_host(part, mapping, mapping->path(), HostMemory::mapping);
                file_heaps_.push_back(range.heap);
            }
            views_[id] = {range.heap.get(), tensor.offset - range.begin, bytes.size()};
        }
    });
}

void Weights::allocate(WeightId id) {
    Copy& copy = *copies_[id];
    const uint64_t bytes = file_->tensor_bytes(*copy.tensor).size();
    copy.memory = pool_.allocate_bytes(bytes, Tag::weights, copy.tensor->name, copy.storage);
    copy.filled = false;
    views_[id] = copy.memory.view();
    copied_bytes_ += bytes;
    ++unfilled_;
    --evicted_;
    if (copy.vector) fill(id, {});
}

void Weights::upload(std::span<const WeightId> ids, const std::function<bool()>& interrupted) {
    if (unfilled_ == 0) return;
    for (const WeightId id : ids) {
        if (copies_[id] && !copies_[id]->filled) fill(id, interrupted);
    }
}

void Weights::fill(WeightId id, const std::function<bool()>& interrupted) {
    Copy& copy = *copies_[id];
    const std::span<const std::byte> bytes = file_->tensor_bytes(*copy.tensor);
    const auto& mapping = file_->mapping(copy.tensor->file);
    const auto part = [&](uint64_t at) { return bytes.subspan(at, std::min<uint64_t>(kPart, bytes.size() - at)); };
    for (uint64_t at = 0; at < bytes.size(); at += kPart) {
        if (interrupted && interrupted()) throw Interrupted{};
        // The system reads the next part while this one is copied.
        if (mapping && at + kPart < bytes.size()) mapping->will_need(part(at + kPart));
        BufferView to = copy.memory.view();
        to.offset += at;
        to.bytes = part(at).size();
        backend_->upload(part(at), to);
        if (mapping) mapping->not_needed(part(at));
    }
    copy.filled = true;
    --unfilled_;
}

Weights::Choice Weights::choose(uint64_t bytes, std::span<const WeightId> order) const {
    struct Own {
        uint64_t bytes = 0;  // of the heap, where nothing else is in it
        std::vector<WeightId> ids;
    };
    std::unordered_map<uint64_t, Own> heaps;
    for (WeightId id = 0; id < copies_.size(); ++id) {
        if (copies_[id] && copies_[id]->memory) heaps[copies_[id]->memory.heap_id()].ids.push_back(id);
    }
    for (const HeapUse& heap : pool_.heaps()) {
        const auto own = heaps.find(heap.id);
        if (own != heaps.end() && own->second.ids.size() == heap.allocations) own->second.bytes = heap.bytes;
    }
    Choice choice;
    for (const WeightId id : order) {
        if (choice.heap_bytes >= bytes) break;
        if (!copies_[id] || !copies_[id]->memory) continue;
        Own& own = heaps.at(copies_[id]->memory.heap_id());
        if (own.bytes == 0) continue;
        choice.ids.insert(choice.ids.end(), own.ids.begin(), own.ids.end());
        choice.heap_bytes += std::exchange(own.bytes, 0);
    }
    return choice;
}

uint64_t Weights::give_up(WeightId id) noexcept {
    std::optional<Copy>& copy = copies_[id];
    if (!copy || !copy->memory) return 0;
    const uint64_t bytes = copy->memory.view().bytes;
    if (!copy->filled) --unfilled_;
    ++evicted_;
    views_[id] = {};
    copy->filled = false;
    copy->memory.reset();
    copied_bytes_ -= bytes;
    return bytes;
}

uint64_t Weights::evict(std::span<const WeightId> ids) noexcept {
    uint64_t freed = 0;
    for (const WeightId id : ids) freed += give_up(id);
    return freed;
}

uint64_t Weights::evict() noexcept {
    uint64_t freed = 0;
    for (WeightId id = 0; id < copies_.size(); ++id) freed += give_up(id);
    return freed;
}

std::vector<WeightId> Weights::missing() const {
    std::vector<WeightId> ids;
    for (WeightId id = 0; evicted() && id < copies_.size(); ++id) {
        if (copies_[id] && !copies_[id]->memory) ids.push_back(id);
    }
    return ids;
}

void Weights::restore() {
    for (const WeightId id : missing()) allocate(id);
}

}  // namespace metallic

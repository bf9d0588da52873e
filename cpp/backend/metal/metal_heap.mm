#include "backend/metal/metal_heap.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backend/metal/errors.h"
#include "core/error.h"

namespace metallic::metal {
namespace {

constexpr uint64_t kGranule = 16;  // a heap's buffer is whole granules, so that blits of whole words stay inside

uint64_t round_up(uint64_t bytes, uint64_t to) {
    return (bytes + to - 1) / to * to;
}

void check_range(uint64_t offset, uint64_t bytes, uint64_t held) {
    if (offset > held || bytes > held - offset) throw Error("a range outside of its heap");
}

class PlacementHeap final : public MetalHeap {
  public:
    PlacementHeap(std::shared_ptr<Context> context, uint64_t bytes, Storage storage, std::string_view label)
        : MetalHeap(std::move(context)), bytes_(bytes), storage_(storage), label_(label) {}
    ~PlacementHeap() override {
        if (!buffer_) return;
        context_->ledger().accuse(address(), address() + bytes_, label_);
        Context::Retired retired;
        retired.buffers.push_back(std::move(buffer_));
        retired.heap = std::move(heap_);
        retired.bytes = reserved_;
        context_->retire(std::move(retired));
    }

    void allocate();
    void begin_zero_fill();

    std::byte* host() const noexcept override {
        return storage_ == Storage::exclusive ? nullptr : static_cast<std::byte*>([buffer_.get() contents]);
    }
    uint64_t address() const noexcept override { return address_; }
    uint64_t bytes() const noexcept override { return bytes_; }
    Storage storage() const noexcept override { return storage_; }
    bool made_zero() const noexcept override { return made_zero_; }
    Binding bind(uint64_t offset, uint64_t bytes) override {
        check_range(offset, bytes, bytes_);
        return {buffer_.get(), offset, bytes};
    }
    void settle() override;

  private:
    const uint64_t bytes_;
    const Storage storage_;
    const std::string label_;
    bool made_zero_ = false;
    uint64_t reserved_ = 0;
    uint64_t address_ = 0;
    Ref<id<MTLHeap>> heap_;
    Ref<id<MTLBuffer>> buffer_;

    std::mutex mutex_;
    enum class Fill : uint8_t { done, running, wanted } fill_state_ = Fill::done;
    std::unique_ptr<Completion> fill_;
    uint64_t fill_number_ = 0;
};

void PlacementHeap::allocate() {
    const AutoreleasePool pool;
    id<MTLDevice> device = context_->device();
    const bool exclusive = storage_ == Storage::exclusive;
    const MTLResourceOptions options = (exclusive ? MTLResourceStorageModePrivate : MTLResourceStorageModeShared) |
                                       MTLResourceHazardTrackingModeUntracked;
    if (bytes_ > context_->info.max_buffer_bytes) context_->reserve(bytes_, label_);  // throws
    const uint64_t length = std::max(round_up(bytes_, kGranule), kGranule);
    const MTLSizeAndAlign needed = [device heapBufferSizeAndAlignWithLength:length options:options];
    context_->reserve(length, label_);
    reserved_ = length;

    const auto descriptor = Ref<MTLHeapDescriptor*>::adopt([[MTLHeapDescriptor alloc] init]);
    [descriptor.get() setType:MTLHeapTypePlacement];
    [descriptor.get() setStorageMode:exclusive ? MTLStorageModePrivate : MTLStorageModeShared];
    [descriptor.get() setHazardTrackingMode:MTLHazardTrackingModeUntracked];
    [descriptor.get() setSize:round_up(needed.size, std::max<uint64_t>(needed.align, 1))];
    const uint64_t available = context_->available();
    uint64_t seen = 0;
    do {
        seen = context_->releases();
        heap_ = {};  // of an attempt whose buffer was refused
        heap_ = Ref<id<MTLHeap>>::adopt([device newHeapWithDescriptor:descriptor.get()]);
        if (!heap_) continue;
        buffer_ = Ref<id<MTLBuffer>>::adopt([heap_.get() newBufferWithLength:length options:options offset:0]);
    } while (!buffer_ && context_->release_all_retired(seen));
    if (!buffer_) {
        context_->unreserve(reserved_);
        context_->refuse("the device refused it with " + std::to_string(available) + " bytes available", bytes_,
                         available, label_);
    }
    const Ref<NSString*> name = to_ns_string(label_);
    [heap_.get() setLabel:name.get()];
    [buffer_.get() setLabel:name.get()];
    address_ = [buffer_.get() gpuAddress];
    context_->residency().add(heap_.get(), buffer_.get());
}

// Shared memory is filled by the host. The fill of private memory runs on the GPU ahead of all later work; the host
// waits for it only in settle.
void PlacementHeap::begin_zero_fill() {
    made_zero_ = true;
    if (storage_ != Storage::exclusive) {
        std::memset([buffer_.get() contents], 0, [buffer_.get() length]);
        return;
    }
    fill_state_ = Fill::wanted;
    if (!fill_) fill_ = std::make_unique<Completion>(context_->progress());
    Context::Commands commands(*context_, @"zero fill", Context::Commands::Lifetimes::kept_by_metal);
    [commands.blit() fillBuffer:buffer_.get() range:NSMakeRange(0, [buffer_.get() length]) value:0];
    fill_number_ = commands.commit(*fill_);
    fill_state_ = Fill::running;
}

void PlacementHeap::settle() {
    const std::lock_guard lock(mutex_);
    if (fill_state_ == Fill::done) return;
    if (fill_state_ == Fill::wanted) begin_zero_fill();
    fill_->wait(fill_number_);
    context_->release_retired();
    const std::exception_ptr failed = context_->judge(fill_->outcome(), "metal/zero fill of " + label_, bytes_);
    fill_state_ = failed ? Fill::wanted : Fill::done;
    if (failed) std::rethrow_exception(failed);
    fill_.reset();
}

class MappedHeap final : public MetalHeap {
  public:
    MappedHeap(std::shared_ptr<Context> context, std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
               std::string_view label)
        : MetalHeap(std::move(context)), bytes_(bytes), owner_(std::move(owner)), label_(label) {
        const uint64_t page = static_cast<uint64_t>(getpagesize());
        const uint64_t start = reinterpret_cast<uint64_t>(bytes_.data());
        pad_ = start % page;
        whole_ = round_up(pad_ + bytes_.size(), page);
        most_ = context_->info.max_buffer_bytes / page * page;
    }
    ~MappedHeap() override {
        if (segments_.empty()) return;
        Context::Retired retired;
        for (Segment& segment : segments_) {
            const uint64_t at = [segment.buffer.get() gpuAddress];
            context_->ledger().accuse(at, at + segment.end - segment.begin, label_);
            retired.buffers.push_back(std::move(segment.buffer));
        }
        retired.owner = owner_;
        retired.mapped = true;
        context_->retire(std::move(retired));
    }

    // The first buffer, so that what the device refuses is known when the heap is made.
    void open() {
        const std::lock_guard lock(mutex_);
        address_ = [add_segment(0, bytes_.size() > most_ - pad_ ? 1 : bytes_.size()).buffer.get() gpuAddress] + pad_;
    }

    std::byte* host() const noexcept override { return const_cast<std::byte*>(bytes_.data()); }
    uint64_t address() const noexcept override { return address_; }
    uint64_t bytes() const noexcept override { return bytes_.size(); }
    Storage storage() const noexcept override { return Storage::mapped; }
    bool made_zero() const noexcept override { return false; }
    Binding bind(uint64_t offset, uint64_t bytes) override {
        check_range(offset, bytes, bytes_.size());
        const std::lock_guard lock(mutex_);
        const uint64_t begin = pad_ + offset;
        const auto held = std::find_if(segments_.begin(), segments_.end(), [&](const Segment& segment) {
            return segment.begin <= begin && begin + bytes <= segment.end;
        });
        const Segment& segment = held != segments_.end() ? *held : add_segment(offset, bytes);
        return {segment.buffer.get(), begin - segment.begin, bytes};
    }

  private:
    struct Segment {
        uint64_t begin, end;  // from the page that holds the first byte
        Ref<id<MTLBuffer>> buffer;
    };
    // From the page of `offset` as far as a buffer may reach.
    const Segment& add_segment(uint64_t offset, uint64_t bytes);

    const std::span<const std::byte> bytes_;
    const std::shared_ptr<const void> owner_;
    const std::string label_;
    uint64_t pad_ = 0;    // from the start of the first page to the first byte
    uint64_t whole_ = 0;  // bytes of all pages
    uint64_t most_ = 0;   // of one buffer
    uint64_t address_ = 0;
    std::mutex mutex_;
    std::vector<Segment> segments_;
};

const MappedHeap::Segment& MappedHeap::add_segment(uint64_t offset, uint64_t bytes) {
    const AutoreleasePool pool;
    const uint64_t page = static_cast<uint64_t>(getpagesize());
    const uint64_t begin = (pad_ + offset) / page * page;
    const uint64_t end = begin + std::min(most_, whole_ - begin);
    if (pad_ + offset + bytes > end) {
        context_->refuse("a buffer of this device sees at most " + std::to_string(most_) + " bytes", bytes, most_,
                         label_);
    }
    auto* const memory = const_cast<std::byte*>(bytes_.data()) - pad_ + begin;
    auto buffer = Ref<id<MTLBuffer>>::adopt([context_->device()
        newBufferWithBytesNoCopy:memory
                          length:end - begin
                         options:MTLResourceStorageModeShared | MTLResourceHazardTrackingModeUntracked
                     deallocator:nil]);
    if (!buffer) {
        context_->refuse("the device refused a view of a mapped file", end - begin, context_->available(), label_);
    }
    [buffer.get() setLabel:to_ns_string(label_).get()];
    context_->residency().add(buffer.get());
    segments_.push_back({begin, end, std::move(buffer)});
    return segments_.back();
}

}  // namespace

std::shared_ptr<MetalHeap> allocate_heap(const std::shared_ptr<Context>& context, uint64_t bytes, Storage storage,
                                         std::string_view label, Contents contents) {
    auto heap = std::make_shared<PlacementHeap>(context, bytes, storage, label);
    heap->allocate();
    if (contents == Contents::zero) heap->begin_zero_fill();
    return heap;
}

std::shared_ptr<MetalHeap> wrap_mapping(const std::shared_ptr<Context>& context, std::span<const std::byte> bytes,
                                        std::shared_ptr<const void> owner, std::string_view label) {
    auto heap = std::make_shared<MappedHeap>(context, bytes, std::move(owner), label);
    heap->open();
    return heap;
}

std::shared_ptr<Allocator> heap_allocator(std::shared_ptr<Context> context) {
    return std::make_shared<HeapAllocator>(
        [context = std::move(context)](uint64_t bytes, Storage storage, std::string_view label, Contents contents) {
            return allocate_heap(context, bytes, storage, label, contents);
        });
}

MetalHeap* metal_heap(const BufferView& view, const Context& context) noexcept {
    auto* const heap = dynamic_cast<MetalHeap*>(view.heap);
    return heap && &heap->context() == &context ? heap : nullptr;
}

}  // namespace metallic::metal

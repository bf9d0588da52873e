#include "backend/metal/transfers.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace metallic::metal {
namespace {

// On macOS, blits copy whole words: MTLBlitCommandEncoder, copyFromBuffer:...size:.
constexpr uint64_t kWord = 4;
constexpr uint64_t kAround = 2 * kWord;  // the words around an odd range
constexpr uint64_t kChunk = Transfers::kStageBytes - kAround;

// The whole words around a range. A heap's buffer is whole words long.
struct Cover {
    Binding binding;
    uint64_t before;
    explicit Cover(const Binding& range) : before(range.offset % kWord) {
        const uint64_t bytes = (before + range.bytes + kWord - 1) / kWord * kWord;
        binding = {range.buffer, range.offset - before, bytes};
    }
    bool exact(const Binding& range) const { return before == 0 && binding.bytes == range.bytes; }
};

bool overlap(const Binding& a, const Binding& b) {
    return a.buffer == b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

// The heap of a range of this device, complete.
MetalHeap& heap_of(const BufferView& view, const Context& context, const char* role) {
    MetalHeap* const heap = metal_heap(view, context);
    if (!heap || view.offset > heap->bytes() || view.bytes > heap->bytes() - view.offset) {
        throw Error(std::string("copy: the ") + role + " lies outside of its heap");
    }
    heap->settle();
    return *heap;
}

}  // namespace

void Transfers::attach(std::shared_ptr<Allocator> allocator) {
    const std::lock_guard lock(mutex_);
    drop_stages();
    allocator_ = std::move(allocator);
}

void Transfers::detach(const Allocator& allocator) noexcept {
    const std::lock_guard lock(mutex_);
    if (allocator_.get() != &allocator) return;
    drop_stages();
    allocator_ = own_;
}

// Every call of this class leaves the stages idle, but for those that an exception cut short.
void Transfers::drop_stages() noexcept {
    for (Stage& stage : stages_) {
        if (stage.running && !context_->forked()) stage.completion->wait(stage.running);
        stage = Stage{};
    }
}

Binding Transfers::bind(const Stage& stage, uint64_t bytes) const {
    MetalHeap* const heap = metal_heap(*stage.memory, *context_);
    if (!heap) throw Error("an allocator of another device");
    heap->settle();
    return heap->bind(stage.memory->offset, bytes);
}

// Where there is no memory for all stages, fewer must do, or a smaller one.
void Transfers::make_room(Stage*& stage, uint64_t bytes) {
    const auto other =
        std::find_if(stages_.begin(), stages_.end(), [](const Stage& one) { return one.memory != nullptr; });
    for (uint64_t size = std::clamp(bytes + kAround, kLeastStageBytes, kStageBytes);;
         size = std::max(size / 2, kLeastStageBytes)) {
        try {
            stage->memory = allocator_->allocate(size, Storage::shared, Tag::staging, "staging", Contents::undefined);
            return;
        } catch (const OutOfMemory&) {
            if (other != stages_.end()) {
                stage = other;
                return;
            }
            if (size <= kLeastStageBytes) throw;
        }
    }
}

Transfers::Stage& Transfers::next_stage(uint64_t bytes) {
    Stage* stage = &stages_[turn_++ % kStages];
    if (!stage->memory) make_room(stage, bytes);
    if (!stage->completion) stage->completion = std::make_unique<Completion>(context_->progress());
    settle(*stage);
    return *stage;
}

Transfers::Stage& Transfers::direct() {
    if (!direct_.completion) direct_.completion = std::make_unique<Completion>(context_->progress());
    settle(direct_);
    return direct_;
}

void Transfers::settle(Stage& stage) {
    if (!stage.running) return;
    stage.completion->wait(std::exchange(stage.running, 0));
    const std::exception_ptr failed = context_->judge(stage.completion->outcome(), "metal/transfer", kStageBytes);
    if (failed && !failed_) failed_ = failed;
}

void Transfers::begin() {
    settle(direct_);
    for (Stage& stage : stages_) settle(stage);
    failed_ = nullptr;
}

void Transfers::finish() {
    settle(direct_);
    for (Stage& stage : stages_) {
        settle(stage);
        stage.memory.reset();
    }
    context_->release_retired();
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
}

// Both ranges are whole words.
void Transfers::blit(const Binding& from, const Binding& to, Stage& stage) {
    Context::Commands commands(*context_, @"transfer", Context::Commands::Lifetimes::kept_by_caller);
    [commands.blit() copyFromBuffer:from.buffer
                       sourceOffset:from.offset
                           toBuffer:to.buffer
                  destinationOffset:to.offset
                               size:to.bytes];
    stage.running = commands.commit(*stage.completion);
}

void Transfers::stage_in(std::span<const std::byte> from, const Binding& to) {
    for (uint64_t at = 0; at < from.size() && !failed_;) {
        Stage& stage = next_stage(from.size() - at);
        const Binding part = to.at(at, std::min(stage.memory->bytes - kAround, from.size() - at));
        const Cover cover(part);
        const Binding staged = bind(stage, cover.binding.bytes);
        if (!cover.exact(part)) {  // what lies around the range in its first and last words stays
            blit(cover.binding, staged, stage);
            settle(stage);
            if (failed_) return;
        }
        std::memcpy(stage.memory->host() + cover.before, from.data() + at, part.bytes);
        blit(staged, cover.binding, stage);
        at += part.bytes;
    }
}

void Transfers::stage_out(const Binding& from, std::span<std::byte> to) {
    for (uint64_t at = 0; at < to.size() && !failed_;) {
        Stage& stage = next_stage(to.size() - at);
        const Binding part = from.at(at, std::min(stage.memory->bytes - kAround, to.size() - at));
        const Cover cover(part);
        blit(cover.binding, bind(stage, cover.binding.bytes), stage);
        settle(stage);
        if (failed_) return;
        std::memcpy(to.data() + at, stage.memory->host() + cover.before, part.bytes);
        at += part.bytes;
    }
}

// Through host memory, chunk by chunk, in the order that an overlap asks for.
void Transfers::bounce(const Binding& from, const Binding& to) {
    std::vector<std::byte> chunk(std::min<uint64_t>(kChunk, from.bytes));
    const uint64_t chunks = (from.bytes + kChunk - 1) / kChunk;
    const bool backwards = overlap(from, to) && from.offset < to.offset;
    for (uint64_t i = 0; i < chunks && !failed_; ++i) {
        const uint64_t at = (backwards ? chunks - 1 - i : i) * kChunk;
        const uint64_t bytes = std::min<uint64_t>(kChunk, from.bytes - at);
        stage_out(from.at(at, bytes), std::span(chunk).first(bytes));
        if (!failed_) stage_in(std::span(chunk).first(bytes), to.at(at, bytes));
        for (Stage& stage : stages_) settle(stage);
    }
}

void Transfers::upload(std::span<const std::byte> from, const BufferView& to) {
    if (from.size() != to.bytes) throw Error("copy: source and target differ in size");
    MetalHeap& target = heap_of(to, *context_, "target");
    if (target.storage() == Storage::mapped) throw Error("copy: the target is read-only");
    if (from.empty()) return;
    if (target.host()) {
        context_->wait_idle();
        std::memmove(target.host() + to.offset, from.data(), from.size());
        return;
    }
    const std::lock_guard lock(mutex_);
    begin();
    stage_in(from, target.bind(to.offset, to.bytes));
    finish();
}

void Transfers::download(const BufferView& from, std::span<std::byte> to) {
    if (from.bytes != to.size()) throw Error("copy: source and target differ in size");
    MetalHeap& source = heap_of(from, *context_, "source");
    if (to.empty()) return;
    if (source.host()) {
        context_->wait_idle();
        std::memmove(to.data(), source.host() + from.offset, to.size());
        return;
    }
    const std::lock_guard lock(mutex_);
    begin();
    stage_out(source.bind(from.offset, from.bytes), to);
    finish();
}

void Transfers::copy(const BufferView& from, const BufferView& to) {
    MetalHeap& source = heap_of(from, *context_, "source");
    MetalHeap& target = heap_of(to, *context_, "target");
    if (from.bytes != to.bytes) throw Error("copy: source and target differ in size");
    if (target.storage() == Storage::mapped) throw Error("copy: the target is read-only");
    if (from.bytes == 0) return;
    if (source.host()) {
        if (source.storage() != Storage::mapped) context_->wait_idle();  // submissions may write it
        upload({source.host() + from.offset, from.bytes}, to);
        return;
    }
    const Binding in = source.bind(from.offset, from.bytes);
    const Binding out = target.bind(to.offset, to.bytes);
    const std::lock_guard lock(mutex_);
    begin();
    if ((in.offset | out.offset | in.bytes) % kWord != 0 || overlap(in, out)) {
        bounce(in, out);
    } else {
        blit(in, out, direct());
    }
    finish();
}

// Shared memory, and the bytes of a first or last word that the range does not fill, are written by the host.
void Transfers::clear(const BufferView& range) {
    MetalHeap& heap = heap_of(range, *context_, "range");
    if (heap.storage() == Storage::mapped) throw Error("clear: the range is read-only");
    if (range.bytes == 0) return;
    if (heap.host()) {
        context_->wait_idle();
        std::memset(heap.host() + range.offset, 0, range.bytes);
        return;
    }
    const Binding whole = heap.bind(range.offset, range.bytes);
    const std::lock_guard lock(mutex_);
    begin();
    const uint64_t before = std::min((kWord - whole.offset % kWord) % kWord, whole.bytes);
    const uint64_t words = (whole.bytes - before) / kWord * kWord;
    constexpr std::array<std::byte, kWord> kZeros{};
    if (before) stage_in(std::span(kZeros).first(before), whole.at(0, before));
    if (words && !failed_) fill(whole.at(before, words));
    const uint64_t after = whole.bytes - before - words;
    if (after && !failed_) stage_in(std::span(kZeros).first(after), whole.at(before + words, after));
    finish();
}

// Whole words.
void Transfers::fill(const Binding& range) {
    Stage& stage = direct();
    Context::Commands commands(*context_, @"clear", Context::Commands::Lifetimes::kept_by_caller);
    [commands.blit() fillBuffer:range.buffer range:NSMakeRange(range.offset, range.bytes) value:0];
    stage.running = commands.commit(*stage.completion);
}

}  // namespace metallic::metal

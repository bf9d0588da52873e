#include "memory/pool.h"

#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "core/error.h"
#include "memory/pool_state.h"

namespace metallic {
namespace {

constexpr size_t kMostReports = 16;

struct LeakReports {
    std::mutex mutex;
    std::deque<std::vector<OwnerUse>> reports;
};

// Never destroyed: pools may end after main.
LeakReports& leak_reports() {
    static auto* const reports = new LeakReports;
    return *reports;
}

class PoolAllocator final : public Allocator {
  public:
    explicit PoolAllocator(std::shared_ptr<PoolState> state) : state_(std::move(state)) {}

    std::shared_ptr<const BufferView> allocate(uint64_t bytes, Storage storage, Tag tag, std::string_view owner,
                                               Contents contents) override {
        struct Held {
            Allocation memory;
            BufferView view;
        };
        auto held = std::make_shared<Held>();
        held->memory = state_->allocate(bytes, tag, owner, storage, contents);
        held->view = held->memory.view();
        return {held, &held->view};
    }

  private:
    const std::shared_ptr<PoolState> state_;
};

}  // namespace

std::vector<std::vector<OwnerUse>> take_leak_reports() {
    LeakReports& kept = leak_reports();
    const std::lock_guard lock(kept.mutex);
    std::vector<std::vector<OwnerUse>> result(std::make_move_iterator(kept.reports.begin()),
                                              std::make_move_iterator(kept.reports.end()));
    kept.reports.clear();
    return result;
}

// Field by field: an allocation mostly moves right after it was made, and a copy in wide pieces would wait for the
// stores of the narrower fields.
void Allocation::take(Allocation& other) noexcept {
    pool_ = std::exchange(other.pool_, nullptr);
    place_.heap = other.place_.heap;
    place_.node = other.place_.node;
    place_.id = other.place_.id;
    place_.view.heap = other.place_.view.heap;
    place_.view.offset = other.place_.view.offset;
    place_.view.bytes = other.place_.view.bytes;
    place_.zero = other.place_.zero;
    other.place_ = {};
    reserved_ = other.reserved_;
    elements_ = other.elements_;
    owner_ = other.owner_;
    dtype_ = other.dtype_;
    tag_ = other.tag_;
}

void Allocation::release() noexcept {
    std::exchange(pool_, nullptr)->release(*this);
    place_ = {};
}

Pool::Pool(std::shared_ptr<Backend> backend, uint64_t budget_bytes, PoolOptions options)
    : Pool(std::move(backend), std::make_shared<Budget>(budget_bytes), std::move(options)) {}

Pool::Pool(std::shared_ptr<Backend> backend, std::shared_ptr<Budget> budget, PoolOptions options)
    : state_(std::make_shared<PoolState>(std::move(backend), std::move(budget), std::move(options))),
      allocator_(std::make_shared<PoolAllocator>(state_)) {
    state_->backend->attach(allocator_);
}

Pool::~Pool() {
    state_->backend->detach(*allocator_);  // or the two would keep each other
    try {
        std::vector<OwnerUse> left = state_->close();
        if (left.empty()) return;
        if (state_->options.on_leak) {
            state_->options.on_leak(left);
            return;
        }
        LeakReports& kept = leak_reports();
        const std::lock_guard lock(kept.mutex);
        kept.reports.push_back(std::move(left));
        if (kept.reports.size() > kMostReports) kept.reports.pop_front();
    } catch (...) {
        // There is nobody to tell, and no memory to remember it in.
        return;
    }
}

Allocation Pool::allocate(DType dtype, uint64_t elements, Tag tag, std::string_view owner, Storage storage,
                          Contents contents) {
    const DTypeInfo& info = dtype_info(dtype);
    if (elements % info.block_elements != 0) {
        throw Error("allocation of part of a " + std::string(info.name) + " block");
    }
    const uint64_t blocks = elements / info.block_elements;
    if (blocks > ~uint64_t{0} / info.block_bytes) {
        throw OutOfMemory("an allocation of impossible size", ~uint64_t{0}, budget()->available(), std::string(owner));
    }
    Allocation allocation = allocate_bytes(blocks * info.block_bytes, tag, owner, storage, contents);
    allocation.dtype_ = dtype;
    allocation.elements_ = elements;
    return allocation;
}

Allocation Pool::allocate_bytes(uint64_t bytes, Tag tag, std::string_view owner, Storage storage, Contents contents) {
    return state_->allocate(bytes, tag, owner, storage, contents);
}

void Pool::check_idle(const BufferView& range, std::string_view owner) const {
    state_->backend->check_idle(range, owner);
}

void Pool::count_mapped(uint64_t bytes) noexcept {
    state_->count_mapped(bytes);
}

void Pool::uncount_mapped(uint64_t bytes) noexcept {
    state_->uncount_mapped(bytes);
}

uint64_t Pool::trim(uint64_t now) noexcept {
    return state_->trim(now);
}

uint64_t Pool::trim() noexcept {
    return state_->trim(state_->now());
}

uint64_t Pool::drop_empty_heaps() noexcept {
    return state_->drop_empty_heaps();
}

bool Pool::set_draining(uint64_t heap_id, bool draining) noexcept {
    return state_->set_draining(heap_id, draining);
}

const std::shared_ptr<Budget>& Pool::budget() const noexcept {
    return state_->budget;
}

PoolStatistics Pool::statistics() const {
    return state_->statistics();
}

uint64_t Pool::withheld_bytes(Tag tag, Storage storage, uint64_t bytes) const noexcept {
    return state_->withheld(tag, storage, bytes);
}

std::vector<HeapUse> Pool::heaps() const {
    return state_->heaps();
}

std::vector<OwnerUse> Pool::leaks() const {
    return state_->owners();
}

}  // namespace metallic

#include "executor/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

#if defined(METALSIM_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace metalsim {
namespace {

// Stacks lie at multiples of a page, and without an offset of their own the frames of all lanes would compete for the
// same few sets of the first-level cache.
constexpr size_t kColour = 7 * 64;
constexpr size_t kColours = 4096;
constexpr size_t kSlotBytes = FiberStacks::kGuardBytes + FiberStacks::kStackBytes;

}  // namespace

FiberStacks::FiberStacks(void (*entry)()) : entry_(entry), fibers_(new Fiber[kFibers]), idle_(new Fiber*[kFibers]) {
    bytes_ = kFibers * kSlotBytes;
    void* const at = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(at);
}

FiberStacks::~FiberStacks() {
#if defined(METALSIM_TSAN)
    for (uint32_t i = 0; i < created_; ++i) __tsan_destroy_fiber(fibers_[i].tsan);
#endif
#if defined(METALSIM_ASAN)
    __asan_unpoison_memory_region(base_, bytes_);
#endif
    munmap(base_, bytes_);
}

bool FiberStacks::is_guard(const void* address) const noexcept {
    if (!contains(address)) return false;
    return (reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(base_)) % kSlotBytes < kGuardBytes;
}

bool FiberStacks::create() {
    const uint32_t index = created_;
    unsigned char* const stack = base_ + index * kSlotBytes + kGuardBytes;
    if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) return false;
    Fiber& fiber = fibers_[index];
    fiber.stack = stack;
    fiber.stack_bytes = kStackBytes;
#if defined(METALSIM_TSAN)
    fiber.tsan = __tsan_create_fiber(0);
#endif
    prepare(fiber, index);
    ++created_;
    give_back(&fiber);
    return true;
}

void FiberStacks::reset() {
    idle_count_ = 0;
    for (uint32_t i = created_; i-- > 0;) {
#if defined(METALSIM_ASAN)
        __asan_unpoison_memory_region(fibers_[i].stack, fibers_[i].stack_bytes);
        fibers_[i].fake_stack = nullptr;
#endif
#if defined(METALSIM_TSAN)
        __tsan_destroy_fiber(fibers_[i].tsan);
        fibers_[i].tsan = __tsan_create_fiber(0);
#endif
        prepare(fibers_[i], i);
        give_back(&fibers_[i]);
    }
}

void FiberStacks::prepare(Fiber& fiber, uint32_t index) {
    auto top = reinterpret_cast<uintptr_t>(fiber.stack + fiber.stack_bytes) - index * kColour % kColours;
    top = (top - sizeof(MetalsimThread)) & ~uintptr_t{63};
    fiber.thread = reinterpret_cast<MetalsimThread*>(top);
    fiber.shape = 0;
#if defined(METALSIM_SWITCH_UCONTEXT)
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<unsigned char*>(fiber.stack);
    fiber.context.uc_stack.ss_size = top - reinterpret_cast<uintptr_t>(fiber.stack);
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry_, 0);
#elif defined(__x86_64__)
    // As if `entry` had just been called: a null return address, below it the address for the switch to jump to.
    auto* frame = reinterpret_cast<uint64_t*>(top);
    frame[-1] = 0;
    frame[-2] = reinterpret_cast<uint64_t>(entry_);
    fiber.stack_pointer = frame - 2;
#else
    auto* frame = reinterpret_cast<uint64_t*>(top - 64);
    frame[0] = 0;  // no caller
    frame[1] = 0;
    frame[2] = reinterpret_cast<uint64_t>(entry_);
    fiber.stack_pointer = frame;
#endif
}

void adopt_thread([[maybe_unused]] Fiber& fiber) {
#if defined(METALSIM_ASAN)
    pthread_attr_t attributes;
    void* stack = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &bytes);
        pthread_attr_destroy(&attributes);
    }
    fiber.stack = static_cast<const unsigned char*>(stack);
    fiber.stack_bytes = bytes;
#endif
#if defined(METALSIM_TSAN)
    fiber.tsan = __tsan_get_current_fiber();
#endif
}

}  // namespace metalsim

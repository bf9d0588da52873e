#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "abi/kernel_abi.h"

#if defined(__SANITIZE_ADDRESS__)
#define METALSIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define METALSIM_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define METALSIM_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define METALSIM_TSAN 1
#endif
#endif
#if defined(METALSIM_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(METALSIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if (!defined(__x86_64__) && !defined(__aarch64__)) || defined(METALSIM_UCONTEXT)
#define METALSIM_SWITCH_UCONTEXT 1
#include <ucontext.h>
#endif

// Cooperative threads of execution with stacks of their own. A switch keeps the registers that a function call keeps,
// and neither the signal mask nor the floating-point control words.
namespace metalsim {

struct Fiber {
    void* stack_pointer = nullptr;  // while it does not run
    const unsigned char* stack = nullptr;
    size_t stack_bytes = 0;
    MetalsimThread* thread = nullptr;  // at the top of the stack; what the kernel sees as its identity
    uint64_t shape = 0;                // whose fields `thread` holds, see Group
#if defined(METALSIM_SWITCH_UCONTEXT)
    ucontext_t context{};
#endif
#if defined(METALSIM_ASAN)
    void* fake_stack = nullptr;
#endif
#if defined(METALSIM_TSAN)
    void* tsan = nullptr;
#endif
};

// Inline, so that a call that switches costs one call and one return: a `ret` that the processor predicts.
#if defined(METALSIM_SWITCH_UCONTEXT)
inline void switch_registers(Fiber& from, Fiber& to) {
    swapcontext(&from.context, &to.context);
}
#elif defined(__x86_64__)
[[gnu::always_inline]] inline void switch_registers(Fiber& from, Fiber& to) {
    void** save = &from.stack_pointer;
    void* load = to.stack_pointer;
    __asm__ volatile(
        "leaq -128(%%rsp), %%rsp\n\t"  // past the red zone
        "pushq %%rbp\n\t"
        "pushq %%rbx\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%0)\n\t"
        "movq %1, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmpq *%%rax\n"
        "1:\n\t"
        "popq %%rbx\n\t"
        "popq %%rbp\n\t"
        "leaq 128(%%rsp), %%rsp"
        : "+D"(save), "+S"(load)
        :
        : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3",
          "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
#if defined(__AVX512F__)
          "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",
          "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#endif
          "memory", "cc");
}
#else
[[gnu::always_inline]] inline void switch_registers(Fiber& from, Fiber& to) {
    register void** save __asm__("x0") = &from.stack_pointer;
    register void* load __asm__("x1") = to.stack_pointer;
    __asm__ volatile(
        "stp x29, x30, [sp, #-48]!\n\t"
        "adr x9, 1f\n\t"
        "stp x9, x19, [sp, #16]\n\t"
        "mov x10, sp\n\t"
        "str x10, [%0]\n\t"
        "mov sp, %1\n\t"
        "ldr x9, [sp, #16]\n\t"
        "br x9\n"
        "1:\n\t"
        "ldr x19, [sp, #24]\n\t"
        "ldp x29, x30, [sp], #48"
        : "+r"(save), "+r"(load)
        :
        : "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x20",
          "x21", "x22", "x23", "x24", "x25", "x26", "x27", "x28", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8",
          "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24",
          "v25", "v26", "v27", "v28", "v29", "v30", "v31", "memory", "cc");
}
#endif

// To be called first by what runs on a fiber that was switched to, for the sanitizers' sake.
inline void arrived([[maybe_unused]] Fiber& here) {
#if defined(METALSIM_ASAN)
    __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
#endif
}

[[gnu::always_inline]] inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(METALSIM_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(METALSIM_TSAN)
    __tsan_switch_to_fiber(to.tsan, 0);
#endif
    switch_registers(from, to);
    arrived(from);
}

// The stacks of one worker, in one reservation of address space with a guard below each. Memory is committed as
// stacks are first used.
class FiberStacks {
  public:
    static constexpr uint32_t kFibers = 1024;
#if defined(METALSIM_ASAN) || defined(METALSIM_TSAN)
    static constexpr size_t kStackBytes = size_t{256} << 10;
#else
    static constexpr size_t kStackBytes = size_t{64} << 10;
#endif
    static constexpr size_t kGuardBytes = size_t{64} << 10;  // wide: a frame with large arrays may step over a page

    // `entry` is what a fiber runs; it never returns. Throws std::bad_alloc.
    explicit FiberStacks(void (*entry)());
    ~FiberStacks();
    FiberStacks(const FiberStacks&) = delete;
    FiberStacks& operator=(const FiberStacks&) = delete;

    // A fiber that waits to be given work. Null when the system has no memory for its stack.
    Fiber* take() {
        if (idle_count_ == 0 && !create()) return nullptr;
        return idle_[--idle_count_];
    }
    void give_back(Fiber* fiber) { idle_[idle_count_++] = fiber; }
    // Forgets what all fibers were doing: each starts anew when it is next switched to.
    void reset();

    bool contains(const void* address) const noexcept {
        return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(base_) < bytes_;
    }
    bool is_guard(const void* address) const noexcept;

  private:
    bool create();
    void prepare(Fiber& fiber, uint32_t index);

    void (*entry_)();
    unsigned char* base_ = nullptr;
    size_t bytes_ = 0;
    uint32_t created_ = 0;
    uint32_t idle_count_ = 0;
    std::unique_ptr<Fiber[]> fibers_;
    std::unique_ptr<Fiber*[]> idle_;
};

// Describes the stack that a worker's own code runs on, so that fibers can switch back to it.
void adopt_thread(Fiber& fiber);

}  // namespace metalsim

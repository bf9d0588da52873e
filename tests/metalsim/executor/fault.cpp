#include "executor/fault.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

#include "executor/group.h"

namespace metalsim {
namespace {

constexpr size_t kSignalStack = size_t{64} << 10;
constexpr size_t kReturnStack = size_t{16} << 10;

struct sigaction previous_segv;
struct sigaction previous_bus;

// Where the faulting thread goes on: a stack that has room, to leave the fiber from. Not itself thread-local: a module
// that is loaded late has little room for such.
thread_local unsigned char* return_stack = nullptr;
thread_local Stopped reason = Stopped::no;

[[noreturn]] void leave_fiber() {
    current_group->abandon(reason);
}

bool redirect(ucontext_t& context) {
    if (return_stack == nullptr) return false;
    const auto top = reinterpret_cast<uintptr_t>(return_stack + kReturnStack);
#if defined(__x86_64__)
    context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&leave_fiber);
    context.uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(top - 8);
    return true;
#elif defined(__aarch64__)
    context.uc_mcontext.pc = reinterpret_cast<uintptr_t>(&leave_fiber);
    context.uc_mcontext.sp = top;
    return true;
#else
    (void)context;
    (void)top;
    return false;
#endif
}

void forward(int number, siginfo_t* info, void* context) {
    const struct sigaction& previous = number == SIGSEGV ? previous_segv : previous_bus;
    if (previous.sa_flags & SA_SIGINFO) return previous.sa_sigaction(number, info, context);
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(number);
    // The instruction runs again and faults again, this time without us.
    signal(number, SIG_DFL);
}

void handle(int number, siginfo_t* info, void* context) {
    Group* const group = current_group;
    if (group != nullptr && group->running) {
        group->bad_address = info->si_addr;
        reason = group->stacks.is_guard(info->si_addr) ? Stopped::stack_overflow : Stopped::bad_address;
#if defined(__x86_64__)
        // A general-protection fault, which has no address: a vector that must be aligned and is not.
        if (number == SIGSEGV && info->si_code == SI_KERNEL) reason = Stopped::misaligned;
#endif
        if (number == SIGBUS && info->si_code == BUS_ADRALN) reason = Stopped::misaligned;
        if (redirect(*static_cast<ucontext_t*>(context))) return;
    }
    forward(number, info, context);
}

// The stack to return on, and one for signals if the thread has none.
class Stacks {
  public:
    Stacks() {
        constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
        memory_ = mmap(nullptr, kReturnStack + kSignalStack, PROT_READ | PROT_WRITE, kFlags, -1, 0);
        if (memory_ == MAP_FAILED) return;
        return_stack = static_cast<unsigned char*>(memory_);
        stack_t stack{};
        if (sigaltstack(nullptr, &stack) == 0 && !(stack.ss_flags & SS_DISABLE)) return;
        stack.ss_sp = return_stack + kReturnStack;
        stack.ss_size = kSignalStack;
        stack.ss_flags = 0;
        for_signals_ = sigaltstack(&stack, nullptr) == 0;
    }
    ~Stacks() {
        if (memory_ == MAP_FAILED) return;
        stack_t stack{};
        stack.ss_flags = SS_DISABLE;
        if (for_signals_) sigaltstack(&stack, nullptr);
        return_stack = nullptr;
        munmap(memory_, kReturnStack + kSignalStack);
    }
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

  private:
    void* memory_ = MAP_FAILED;
    bool for_signals_ = false;
};

}  // namespace

void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action{};
        action.sa_sigaction = &handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    });
}

void prepare_thread_for_faults() {
    thread_local const Stacks stacks;
}

}  // namespace metalsim

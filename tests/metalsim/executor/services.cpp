#include "executor/checker.h"
#include "executor/group.h"
#include "executor/launch.h"

// The functions of abi/kernel_abi.h, for the thread that calls.
using metalsim::Access;
using metalsim::current_group;

#define CALL_SITE __builtin_return_address(0)

extern "C" {

const MetalsimThread* metalsim_thread(void) {
    return current_group->fiber->thread;
}

const unsigned char* metalsim_function_constants(void) {
    return current_group->launch->launch().arguments->function_constants;
}

void metalsim_threadgroup_barrier(uint32_t flags) {
    current_group->group_barrier(CALL_SITE, flags);
}

void metalsim_simdgroup_barrier(uint32_t flags) {
    current_group->simd_barrier(CALL_SITE, flags);
}

void metalsim_simdgroup_collective(MetalsimCombine combine, const void* input, void* output, const void* context) {
    current_group->collective({CALL_SITE, combine, context}, input, output);
}

void metalsim_quadgroup_collective(MetalsimCombine combine, const void* input, void* output, const void* context) {
    current_group->quad_collective({CALL_SITE, combine, context}, input, output);
}

void* metalsim_threadgroup_storage(const void* site, uint32_t bytes, uint32_t alignment) {
    return current_group->storage(site, bytes, alignment);
}

void metalsim_check_atomic(const void* address, uint32_t bytes) {
    metalsim::Group* const group = current_group;
    if (group == nullptr) return;
    group->checker->access<Access::atomic>(reinterpret_cast<uintptr_t>(address), bytes, CALL_SITE);
}

void metalsim_check_range(const void* address, uint64_t bytes, int write) {
    metalsim::Group* const group = current_group;
    if (group == nullptr) return;
    group->checker->range(reinterpret_cast<uintptr_t>(address), bytes, write != 0, CALL_SITE);
}

}  // extern "C"

namespace metalsim {
namespace {

// Libraries also run code outside of kernels: their initialisers.
template <Access kind, uint32_t bytes>
void check(const void* address) {
    Group* const group = current_group;
    if (group == nullptr) return;
    group->checker->access<kind>(reinterpret_cast<uintptr_t>(address), bytes, CALL_SITE);
}

constexpr MetalsimServices kServices = {
    &metalsim_thread,
    &metalsim_function_constants,
    &metalsim_threadgroup_barrier,
    &metalsim_simdgroup_barrier,
    &metalsim_simdgroup_collective,
    &metalsim_quadgroup_collective,
    &metalsim_threadgroup_storage,
    &metalsim_check_atomic,
    &metalsim_check_range,
    {&check<Access::load, 1>, &check<Access::load, 2>, &check<Access::load, 4>, &check<Access::load, 8>,
     &check<Access::load, 16>},
    {&check<Access::store, 1>, &check<Access::store, 2>, &check<Access::store, 4>, &check<Access::store, 8>,
     &check<Access::store, 16>},
};

}  // namespace

const MetalsimServices& services() noexcept {
    return kServices;
}

}  // namespace metalsim

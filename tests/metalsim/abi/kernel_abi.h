#pragma once

// What compiled kernels and the executor say to each other. Generated code includes it as C++14, the executor as C++20.
// Pointers are in the default address space on this side of the fence; a device address is a host address.
#include <stdint.h>

enum {
    kMetalsimSimdWidth = 32,
    kMetalsimBuffers = 31,
    kMetalsimThreadgroupArguments = 31,
    kMetalsimThreadgroupBytes = 32768,
};

struct MetalsimUint3 {
    uint32_t x, y, z;
};

// What one thread knows of its place. Every attribute of the Metal Shading Language Specification's table of compute
// kernel inputs that we support is a field here, under its own name.
struct MetalsimThread {
    MetalsimUint3 thread_position_in_grid, threads_per_grid;
    MetalsimUint3 thread_position_in_threadgroup;
    MetalsimUint3 threads_per_threadgroup;           // of this threadgroup: smaller at a non-uniform edge
    MetalsimUint3 dispatch_threads_per_threadgroup;  // as dispatched
    MetalsimUint3 threadgroup_position_in_grid, threadgroups_per_grid;
    MetalsimUint3 grid_origin, grid_size;
    uint32_t thread_index_in_threadgroup;
    uint32_t thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
    uint32_t simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
    uint32_t threads_per_simdgroup, thread_execution_width;
    uint32_t thread_index_in_quadgroup, quadgroup_index_in_threadgroup;
    uint32_t quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
};

// The argument tables of one dispatch. An unbound slot is null.
struct MetalsimArguments {
    void* buffers[kMetalsimBuffers];
    uint64_t buffer_bytes[kMetalsimBuffers];  // from the bound offset to the end of the buffer
    uint32_t threadgroup_bytes[kMetalsimThreadgroupArguments];
    const unsigned char* function_constants;  // laid out by the library; see library.h
};

#ifdef __cplusplus
extern "C" {
#endif

// One thread of a kernel. `threadgroup[i]` is the memory of [[threadgroup(i)]].
typedef void (*MetalsimKernel)(const MetalsimArguments* arguments, void* const* threadgroup,
                               const MetalsimThread* thread);

// ---- the executor's services, called by running kernels ----

const MetalsimThread* metalsim_thread(void);
const unsigned char* metalsim_function_constants(void);

// `flags` as in metal::mem_flags. All threads of the threadgroup (of the simdgroup) meet.
void metalsim_threadgroup_barrier(uint32_t flags);
void metalsim_simdgroup_barrier(uint32_t flags);

// The active lanes of a simdgroup (of a quadgroup) meet; then `combine` runs once for all of them. inputs[i] and
// outputs[i] are what lane i passed, null for lanes that are not in `active`. Everything that exchanges data between
// lanes is made of this. `context` and `combine` are the same on all lanes that meet.
typedef void (*MetalsimCombine)(const void* const* inputs, void* const* outputs, uint32_t active, const void* context);
void metalsim_simdgroup_collective(MetalsimCombine combine, const void* input, void* output, const void* context);
void metalsim_quadgroup_collective(MetalsimCombine combine, const void* input, void* output, const void* context);

// The threadgroup's memory for the `threadgroup` variable declared at `site` (any address that is unique to the
// declaration and its template instance). Equal for all threads of a threadgroup, not initialised.
void* metalsim_threadgroup_storage(const void* site, uint32_t bytes, uint32_t alignment);

// An atomic access, which the instrumentation of loads and stores does not see. Checked builds only.
void metalsim_check_atomic(const void* address, uint32_t bytes);
// Accesses that the instrumentation does not see (block copies). Checked builds only.
void metalsim_check_range(const void* address, uint64_t bytes, int write);

// What a loaded library is given: it resolves no symbol of the process that it is loaded into. `load` and `store` are
// the checks of accesses of 1, 2, 4, 8 and 16 bytes (the callbacks of clang's trace-loads and trace-stores; checked
// builds only).
struct MetalsimServices {
    const struct MetalsimThread* (*this_thread)(void);
    const unsigned char* (*function_constants)(void);
    void (*threadgroup_barrier)(uint32_t flags);
    void (*simdgroup_barrier)(uint32_t flags);
    void (*simdgroup_collective)(MetalsimCombine combine, const void* input, void* output, const void* context);
    void (*quadgroup_collective)(MetalsimCombine combine, const void* input, void* output, const void* context);
    void* (*threadgroup_storage)(const void* site, uint32_t bytes, uint32_t alignment);
    void (*check_atomic)(const void* address, uint32_t bytes);
    void (*check_range)(const void* address, uint64_t bytes, int write);
    void (*load[5])(const void* address);
    void (*store[5])(const void* address);
};

#ifdef __cplusplus
}
#endif

#pragma once

#include "abi/kernel_abi.h"

// What a compiled library says of itself: read by the loader, written by the translator's generated code.
struct MetalsimArgumentInfo {
    const char* name;
    const char* type;
    uint32_t is_threadgroup;  // 0: a buffer
    uint32_t index;
    uint32_t constant_space, writable;
    uint32_t alignment, minimum_bytes;
    int32_t function_constant;  // index of the constant that it depends on, or -1
};
struct MetalsimFunctionInfo {
    const char* name;
    MetalsimKernel entry;
    const struct MetalsimArgumentInfo* arguments;
    uint32_t argument_count;
    uint32_t max_total_threads;
    const void* tag;
};
// A threadgroup variable of the kernel with this tag.
struct MetalsimThreadgroupInfo {
    const void* tag;
    uint64_t bytes;
    uint64_t alignment;
};
struct MetalsimConstantInfo {
    const char* name;
    const char* type;
    uint32_t index, offset, defined, bytes;
    uint32_t required;
};
struct MetalsimLibraryInfo {
    uint32_t version;
    uint32_t function_count, constant_count, constants_bytes;
    const struct MetalsimFunctionInfo* functions;
    const struct MetalsimConstantInfo* constants;
    const struct MetalsimThreadgroupInfo* threadgroup_begin;
    const struct MetalsimThreadgroupInfo* threadgroup_end;
};
enum { kMetalsimLibraryVersion = 1 };

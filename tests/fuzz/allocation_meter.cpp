#include "allocation_meter.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__APPLE__)
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif

namespace {

std::atomic<size_t> g_current{0};
std::atomic<size_t> g_base{0};
std::atomic<size_t> g_peak{0};

size_t block_size(void* block) noexcept {
#if defined(__APPLE__)
    return malloc_size(block);
#else
    return malloc_usable_size(block);
#endif
}

void* allocate(size_t size) noexcept {
    void* block = std::malloc(size == 0 ? 1 : size);
    if (block == nullptr) return nullptr;
    const size_t current = g_current.fetch_add(block_size(block)) + block_size(block);
    size_t peak = g_peak.load();
    while (current > peak && !g_peak.compare_exchange_weak(peak, current)) {
    }
    return block;
}

void release(void* block) noexcept {
    if (block == nullptr) return;
    g_current.fetch_sub(block_size(block));
    std::free(block);
}

}  // namespace

void* operator new(size_t size) {
    if (void* block = allocate(size)) return block;
    throw std::bad_alloc();
}
void* operator new[](size_t size) {
    return operator new(size);
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
    return allocate(size);
}
void* operator new[](size_t size, const std::nothrow_t&) noexcept {
    return allocate(size);
}
void operator delete(void* block) noexcept {
    release(block);
}
void operator delete[](void* block) noexcept {
    release(block);
}
void operator delete(void* block, size_t) noexcept {
    release(block);
}
void operator delete[](void* block, size_t) noexcept {
    release(block);
}
void operator delete(void* block, const std::nothrow_t&) noexcept {
    release(block);
}
void operator delete[](void* block, const std::nothrow_t&) noexcept {
    release(block);
}

namespace metallic::testing {

void begin_allocation_peak() noexcept {
    g_base = g_current.load();
    g_peak = g_current.load();
}

size_t allocation_peak() noexcept {
    return g_peak.load() - g_base.load();
}

}  // namespace metallic::testing

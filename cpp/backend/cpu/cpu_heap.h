#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string_view>

#include "backend/backend.h"

namespace metallic::cpu {

// Bytes that one backend's heaps hold; outlives the backend when a heap does.
struct HeapLedger {
    explicit HeapLedger(uint64_t limit_) : limit(limit_) {}
    const uint64_t limit;
    std::atomic<uint64_t> used{0};
};

// Zeroed anonymous memory, aligned to a page, or to 2 MiB with huge pages asked for when it is large. Throws
// OutOfMemory when the ledger's limit or the system does not allow it.
std::shared_ptr<Heap> allocate_heap(const std::shared_ptr<HeapLedger>& ledger, uint64_t bytes, Storage storage,
                                    std::string_view label);

// A read-only view of memory that `owner` keeps alive.
std::shared_ptr<Heap> wrap_heap(std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

}  // namespace metallic::cpu

#include "memory/free_list.h"

#include <iterator>

namespace metallic {

FreeList::FreeList(uint64_t bytes) {
    if (bytes) insert(0, bytes);
}

void FreeList::insert(uint64_t offset, uint64_t bytes) {
    by_offset_.emplace(offset, bytes);
    by_size_.emplace(bytes, offset);
    free_ += bytes;
}

void FreeList::remove(std::map<uint64_t, uint64_t>::iterator range) {
    by_size_.erase({range->second, range->first});
    free_ -= range->second;
    by_offset_.erase(range);
}

std::optional<uint64_t> FreeList::take(uint64_t bytes) {
    const auto fit = by_size_.lower_bound({bytes, 0});
    if (fit == by_size_.end()) return std::nullopt;
    const auto [size, offset] = *fit;
    remove(by_offset_.find(offset));
    if (size > bytes) insert(offset + bytes, size - bytes);
    return offset;
}

void FreeList::give(uint64_t offset, uint64_t bytes) {
    auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.begin()) {
        const auto before = std::prev(next);
        if (before->first + before->second == offset) {
            offset = before->first;
            bytes += before->second;
            remove(before);
        }
    }
    next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && offset + bytes == next->first) {
        bytes += next->second;
        remove(next);
    }
    insert(offset, bytes);
}

}  // namespace metallic

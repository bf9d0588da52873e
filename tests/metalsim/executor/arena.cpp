#include <sys/mman.h>
#include <unistd.h>

#include <new>

#include "executor/group.h"

namespace metalsim {
namespace {

uint32_t align(uint32_t value, uint32_t alignment) {
    return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

// With an inaccessible page at both ends.
Arena::Arena() {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = align(kBytes, static_cast<uint32_t>(page)) + 2 * page;
    void* const at = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(at) + page;
    if (mprotect(base_, mapped_ - 2 * page, PROT_READ | PROT_WRITE) != 0) {
        munmap(at, mapped_);
        throw std::bad_alloc();
    }
}

Arena::~Arena() {
    munmap(base_ - sysconf(_SC_PAGESIZE), mapped_);
}

bool Arena::begin(const MetalsimArguments& arguments) {
    count_ = used_ = extent_ = 0;
    for (uint32_t i = 0; i < kMetalsimThreadgroupArguments; ++i) {
        arguments_[i] = nullptr;
        if (arguments.threadgroup_bytes[i] == 0) continue;
        arguments_[i] = add(&arguments.threadgroup_bytes[i], arguments.threadgroup_bytes[i], 16);
        if (arguments_[i] == nullptr) return false;
    }
    return true;
}

void* Arena::add(const void* site, uint32_t bytes, uint32_t alignment) {
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > 4096) return nullptr;
    const uint64_t used = uint64_t{align(used_, alignment)} + bytes;
    if (used > kMetalsimThreadgroupBytes || count_ == variables_.size()) return nullptr;
    const uint32_t offset = align(extent_ + kGap, alignment);
    if (uint64_t{offset} + bytes + kGap > kBytes) return nullptr;
    used_ = static_cast<uint32_t>(used);
    extent_ = offset + bytes;
    variables_[count_++] = {site, offset, bytes};
    return base_ + offset;
}

const Arena::Variable* Arena::near(uint32_t offset) const noexcept {
    const Variable* best = nullptr;
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; i < count_; ++i) {
        const Variable& variable = variables_[i];
        const uint32_t end = variable.offset + variable.bytes;
        const uint32_t distance = offset < variable.offset ? variable.offset - offset
                                  : offset >= end          ? offset - end + 1
                                                           : 0;
        if (distance < least) {
            best = &variable;
            least = distance;
        }
    }
    return best;
}

}  // namespace metalsim

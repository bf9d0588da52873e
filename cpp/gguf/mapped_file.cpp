#include "gguf/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>

#include "core/error.h"

namespace metallic {
namespace {

[[noreturn]] void fail_with_errno(const std::string& path, const char* action, int code) {
    throw Error(path + ": cannot " + action + " the file: " + std::generic_category().message(code));
}

size_t checked_size(const std::string& path, const struct stat& status) {
    if (S_ISDIR(status.st_mode)) throw ModelFormatError("this is a directory, not a GGUF file", path, "", 0);
    if (!S_ISREG(status.st_mode)) throw ModelFormatError("this is not a regular file", path, "", 0);
    if (status.st_size <= 0) throw ModelFormatError("the file is empty", path, "", 0);
    const auto size = static_cast<uint64_t>(status.st_size);
    if (size > std::numeric_limits<size_t>::max()) throw ModelFormatError("the file is too large to map", path, "", 0);
    return static_cast<size_t>(size);
}

uintptr_t page_size() noexcept {
    static const auto size = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    return size;
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
    if (path.find('\0') != std::string::npos) throw Error("a file path must not contain a NUL byte");
    // The destructor releases whatever has been acquired when a later step throws.
    std::shared_ptr<MappedFile> file(new MappedFile(path));
    // O_NONBLOCK keeps a named pipe from blocking here; it has no effect on regular files.
    file->descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->descriptor_ < 0) fail_with_errno(path, "open", errno);
    struct stat status{};
    if (::fstat(file->descriptor_, &status) != 0) fail_with_errno(path, "read the size of", errno);
    const size_t size = checked_size(path, status);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file->descriptor_, 0);
    if (address == MAP_FAILED) fail_with_errno(path, "map", errno);
    file->data_ = static_cast<const std::byte*>(address);
    file->size_ = size;
    return file;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
    if (descriptor_ >= 0) ::close(descriptor_);
}

void MappedFile::will_need(std::span<const std::byte> range) const noexcept {
    const auto mapping = reinterpret_cast<uintptr_t>(data_);
    const uintptr_t begin = std::max(reinterpret_cast<uintptr_t>(range.data()), mapping);
    const uintptr_t end = std::min(reinterpret_cast<uintptr_t>(range.data()) + range.size(), mapping + size_);
    if (begin >= end) return;
    const uintptr_t first_page = begin / page_size() * page_size();
    ::madvise(reinterpret_cast<void*>(first_page), end - first_page, MADV_WILLNEED);
}

void MappedFile::not_needed(std::span<const std::byte> range) const noexcept {
    const auto mapping = reinterpret_cast<uintptr_t>(data_);
    const uintptr_t begin = std::max(reinterpret_cast<uintptr_t>(range.data()), mapping);
    const uintptr_t end = std::min(reinterpret_cast<uintptr_t>(range.data()) + range.size(), mapping + size_);
    const uintptr_t first_page = (begin + page_size() - 1) / page_size() * page_size();
    const uintptr_t last_page = end / page_size() * page_size();
    if (first_page >= last_page) return;
    ::madvise(reinterpret_cast<void*>(first_page), last_page - first_page, MADV_DONTNEED);
}

void MappedFile::check_not_truncated() const {
    struct stat status{};
    if (::fstat(descriptor_, &status) != 0) fail_with_errno(path_, "read the size of", errno);
    const auto now = static_cast<uint64_t>(std::max<off_t>(status.st_size, 0));
    if (now >= size_) return;
    throw ModelFormatError("the file was truncated while in use: it had " + std::to_string(size_) +
                               " bytes when it was opened and has " + std::to_string(now) + " now",
                           path_, "", now);
}

}  // namespace metallic

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace metallic {

// A whole file, mapped read-only. The mapping lives as long as the object; hold the shared pointer for as long as any
// view into `bytes()` is in use.
//
// A file that another process truncates while it is mapped cannot be made safe with mmap: touching a page past the new
// end raises SIGBUS, and no check beforehand closes the race. What is done: the descriptor stays open, and
// `check_not_truncated` compares the file's size with the mapped one, so a reader that calls it before a large read
// gets a typed error in all but that race. Replacing a file by rename, as download tools do, is always safe.
class MappedFile {
  public:
    // Throws Error with the system's text when the file cannot be opened or mapped, and ModelFormatError when it is a
    // directory, not a regular file, or empty.
    static std::shared_ptr<const MappedFile> open(const std::string& path);

    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
    const std::string& path() const noexcept { return path_; }

    // Hints to the kernel about a range of `bytes()`; parts outside the mapping are ignored. `will_need` starts
    // read-ahead of every page that the range touches; `not_needed` lets go of the pages wholly inside it, which the
    // next access reads from the file again.
    void will_need(std::span<const std::byte> range) const noexcept;
    void not_needed(std::span<const std::byte> range) const noexcept;

    // Throws ModelFormatError when the file is now shorter than its mapping, and Error when its size cannot be read.
    void check_not_truncated() const;

  private:
    explicit MappedFile(std::string path) : path_(std::move(path)) {}

    std::string path_;
    int descriptor_ = -1;
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace metallic

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace metallic {

// The native half of the tree in python/metallic_native/errors.py; the bindings translate one into the other.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A file that is truncated, corrupt or hostile. `where` is the metadata key or tensor name, when one is known.
class ModelFormatError : public Error {
  public:
    static constexpr uint64_t kNowhere = ~uint64_t{0};  // an offset for what is not in the file

    ModelFormatError(std::string message_, std::string file_, std::string where_, uint64_t offset_)
        : Error(format(message_, file_, where_, offset_)),
          message(std::move(message_)),
          file(std::move(file_)),
          where(std::move(where_)),
          offset(offset_) {}

    const std::string message;  // without file, where and offset
    const std::string file;
    const std::string where;
    const uint64_t offset;

  private:
    static std::string format(const std::string& text, const std::string& in_file, const std::string& at,
                              uint64_t byte) {
        return in_file + (at.empty() ? "" : ": " + at) + ": " + text +
               (byte == kNowhere ? "" : " (at byte " + std::to_string(byte) + ")");
    }
};

// A well-formed file or request that asks for something this library does not have.
class UnsupportedModelError : public Error {
  public:
    using Error::Error;
};

class OutOfMemory : public Error {
  public:
    OutOfMemory(const std::string& message, uint64_t needed_, uint64_t available_, std::string owner_)
        : Error(message), needed(needed_), available(available_), owner(std::move(owner_)) {}

    const uint64_t needed;
    const uint64_t available;
    const std::string owner;
};

class DeviceError : public Error {
  public:
    DeviceError(const std::string& message, std::string scope_, std::string status_)
        : Error(message), scope(std::move(scope_)), status(std::move(status_)) {}

    const std::string scope;
    const std::string status;
};

// A call whose arguments cannot be served; the engine is as usable afterwards as before.
class RequestError : public Error {
  public:
    using Error::Error;
};

}  // namespace metallic

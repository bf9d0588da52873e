#pragma once

#include <cstdlib>
#include <string>

namespace metallic::testing {

// Backends made while it lives have the kernels of this instruction set.
class IsaVariable {
  public:
    explicit IsaVariable(const char* value) {
        if (const char* before = std::getenv(kName)) before_ = before, set_ = true;
        setenv(kName, value, 1);
    }
    IsaVariable(const IsaVariable&) = delete;
    IsaVariable& operator=(const IsaVariable&) = delete;
    ~IsaVariable() { set_ ? setenv(kName, before_.c_str(), 1) : unsetenv(kName); }

  private:
    static constexpr const char* kName = "METALLIC_CPU_ISA";
    std::string before_;
    bool set_ = false;
};

}  // namespace metallic::testing

#pragma once

#include <gtest/gtest.h>

#if __has_include("metalsim/control.h")
#include "metalsim/control.h"
#endif

namespace metallic::testing {

#if __has_include("metalsim/control.h")
// Whether every access of every kernel is checked, of backends made while it lives; for small shapes. What the checks
// find fails the test.
class Checks {
  public:
    explicit Checks(bool on) : before_(metalsim::mode()) {
        metalsim::set_mode(on ? metalsim::Mode::checked : metalsim::Mode::host);
    }
    Checks(const Checks&) = delete;
    Checks& operator=(const Checks&) = delete;
    ~Checks() {
        metalsim::set_mode(before_);
        for (const metalsim::Report& report : metalsim::take_reports()) ADD_FAILURE() << report.text();
    }

  private:
    metalsim::Mode before_;
};
#else
// A real device checks nothing.
class Checks {
  public:
    explicit Checks(bool) {}
    Checks(const Checks&) = delete;
    Checks& operator=(const Checks&) = delete;
    ~Checks() {}
};
#endif

}  // namespace metallic::testing

#pragma once

#include <string>

// What clang's messages and its intermediate code say about MSL's rules.
namespace metalsim::msl {

// Whether all errors are about members and copies of objects outside of the thread address space.
bool only_members(const std::string& messages);

// The message about an implicit conversion of float or half to bfloat, which MSL does not have; else empty.
std::string implicit_bfloat(const std::string& messages);

// Throws CompileError for recursion and for calls through pointers. `ir`: LLVM's text form, before optimisation.
void inspect(const std::string& ir);

// The same code with a call of metalsim_check_copy before each access that clang's instrumentation does not see: block
// copies, and vectors of more than 16 bytes. Accesses of local variables stay as they are.
std::string with_checked_copies(const std::string& ir);

}  // namespace metalsim::msl

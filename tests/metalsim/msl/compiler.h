#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "msl/library.h"

// Running clang, and the folder of what it made.
namespace metalsim::msl {

// The source after preprocessing, with line markers. Throws CompileError.
std::string preprocess(std::string_view source, const Options& options);

// Translates and compiles preprocessed source into a shared object in the cache, if it is not there yet. Safe when
// several processes do the same. Throws CompileError.
//
// Strict at first: thread memory is clang's default address space, in which member functions and implicit copies live,
// so that an object in device, constant or threadgroup memory has none but those that the translator adds. Where clang
// refuses a source for nothing but that, it is compiled again leniently, as SYCL device code, in which other address
// spaces convert to the default one. What MSL refuses is known by then.
std::filesystem::path build(std::string_view preprocessed, const Options& options);

}  // namespace metalsim::msl

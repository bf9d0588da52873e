#pragma once

#include <nanobind/nanobind.h>

// One function per room whose objects Python sees; module.cpp calls them all.
namespace metallic {

void bind_errors(nanobind::module_& m);
void bind_gguf(nanobind::module_& m);
void bind_kernels(nanobind::module_& m);
void bind_memory(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_builder(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_placement(nanobind::module_& m);

}  // namespace metallic

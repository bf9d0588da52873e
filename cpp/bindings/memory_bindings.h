#pragma once

#include <nanobind/nanobind.h>

#include <span>

#include "memory/pool.h"

namespace metallic {

// What a pool says about itself, as Python reads it; see engine/memory.py.
// `use` is of all `pools` together.
nanobind::dict pool_dict(const PoolStatistics& use, std::span<const Pool* const> pools);
nanobind::list owner_list(std::span<const OwnerUse> uses);

}  // namespace metallic

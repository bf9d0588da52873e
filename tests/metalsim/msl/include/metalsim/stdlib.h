#pragma once

// All of metal_stdlib.
#include "metalsim/atomic.h"
#include "metalsim/builtins.h"
#include "metalsim/compute.h"
#include "metalsim/entry.h"
#include "metalsim/math.h"
#include "metalsim/matrix.h"
#include "metalsim/simd.h"
#include "metalsim/simdgroup_matrix.h"
#include "metalsim/traits.h"
#include "metalsim/types.h"

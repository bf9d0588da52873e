#pragma once

#include "program/program.h"

namespace metallic {

// Every read of `from` becomes a read of `to`.
void replace_reads(StepOp& op, ValueId from, ValueId to);

// The fusions of plan_program, in place.
void fuse_steps(Program& program);

}  // namespace metallic

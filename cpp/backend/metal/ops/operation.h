#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "backend/metal/encoder.h"
#include "params.h"

namespace metallic::metal {

// What all operations of one submission share.
struct Submission {
    const Batch* batch = nullptr;
    uint32_t rows[2] = {0, 0};  // by program.h's Rows
    uint32_t groups = 0;
    BatchMemory* memory = nullptr;  // for what an operation wants to hand to its kernels beside the following
    Binding tokens;                 // int32 [rows]
    Binding row_params;             // RowParams [rows]
    Binding run_params;             // RunParams [runs]
    Binding table_params;           // TableParams [runs * groups]
    Binding pages;                  // Page []
    Binding output_rows;            // uint32 [outputs]
    Binding candidates;             // Candidate [outputs, candidate_stride], where the batch wants them

    uint32_t count(Rows which) const noexcept { return rows[static_cast<size_t>(which)]; }
};

// A step, compiled: pipelines are chosen, weights and values bound. Encoding allocates nothing and looks nothing up.
// A step without rows in a submission is not encoded.
class Operation {
  public:
    Operation() = default;
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;
    virtual ~Operation() = default;
    virtual void encode(Encoder& encoder, const Submission& submission) const = 0;
};

}  // namespace metallic::metal

#pragma once

#include "backend/backend.h"

namespace metallic {

// What a plan can serve.
struct BatchLimits {
    uint32_t max_tokens = 0;
    uint32_t max_outputs = 0;
    uint32_t vocabulary = 0;  // 0: tokens are not looked up
    uint32_t logits = 0;      // of one row; 0: there are none
    std::span<const CacheGroup> groups;
};

// Throws RequestError for a batch that lacks something or goes beyond the limits, so that kernels need no checks.
void check_batch(const Batch& batch, const BatchLimits& limits);
// The part of it that is about the candidates of rows of `vocabulary` logits.
void check_selections(std::span<const Selection> selections, uint32_t vocabulary);

}  // namespace metallic

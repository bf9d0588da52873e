#pragma once

#include "kv.h"

// What both attention kernels share: which tokens a query sees, scores, and the way from sums to the output. A partial
// is head_size sums of weighted values, the maximum of the scores, and the sum of e^(score - maximum).
// (Online softmax: Milakov and Gimelshein, 2018; tiles: Dao et al., FlashAttention, 2022.)
constant bool attention_has_softcap [[function_constant(2)]];
constant bool attention_has_sinks [[function_constant(3)]];

// The maximum of no scores. Finite, so that nothing rests on how fast arithmetic treats infinities.
constant constexpr float kNoScore = -3.402823466e+38f;

inline bool attention_sees(uint token, uint position, uint window) {
    return token <= position && (window == 0 || position - token < window);
}

// `dot` is of a query times params.factor.
inline float attention_score(float dot, constant AttentionParams& params) {
    return attention_has_softcap ? params.softcap * precise::tanh(dot) : dot;
}

inline float attention_factor(float maximum, float sum, float sink) {
    if (!attention_has_sinks) return 1.0f / sum;
    const float now = max(maximum, sink);
    const float kept = precise::exp(maximum - now);
    return kept / (sum * kept + precise::exp(sink - now));
}

inline device float* attention_partial(device float* partials, uint slot) {
    return partials + ulong(slot) * (kv_head_size + 2);
}

#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace metallic {

struct TokenLogprob {
    int32_t token;
    float logprob;
};

// Natural logarithms of the softmax over the whole vocabulary. Buffers are reused from call to call.
class Logprobs {
  public:
    // `logits` must outlive the calls below. Throws DeviceError when one is NaN or +inf, or all are -inf.
    void assign(std::span<const float> logits);
    float of(int32_t token) const noexcept;
    // The n most probable tokens, most probable first, lower ids first among equals.
    void top(size_t n, std::vector<TokenLogprob>& out);

  private:
    std::span<const float> logits_;
    std::vector<float> padding_;  // the last, partial run
    std::vector<float> run_maxima_;
    std::vector<float> sorted_maxima_;
    double normaliser_ = 0.0;  // log of the sum of e^logit
};

}  // namespace metallic

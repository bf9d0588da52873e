#pragma once

#include <cstdint>

namespace metallic {

// PCG-XSH-RR 64/32 (M. E. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
// Random Number Generation", 2014). Ours, since the distributions of <random> differ between standard libraries.
class Random {
  public:
    explicit Random(uint64_t seed, uint64_t stream = 0) noexcept : increment_(stream << 1 | 1) {
        next();
        state_ += seed;
        next();
    }

    uint32_t next() noexcept {
        const uint64_t old = state_;
        state_ = old * 6364136223846793005u + increment_;
        const uint32_t word = static_cast<uint32_t>((old >> 18 ^ old) >> 27);
        const uint32_t turn = static_cast<uint32_t>(old >> 59);
        return word >> turn | word << (-turn & 31);
    }

    // Uniform in [0, 1), with 53 random bits.
    double uniform() noexcept {
        const uint64_t high = next() >> 5;
        const uint64_t low = next() >> 6;
        return static_cast<double>(high << 26 | low) * 0x1p-53;
    }

  private:
    uint64_t state_ = 0;
    uint64_t increment_;
};

}  // namespace metallic

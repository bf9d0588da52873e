#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "reference_forward.h"

namespace metallic::testing {

struct BatchSpec {
    std::vector<RunSpec> runs;
    std::vector<uint32_t> outputs;
};

inline std::vector<int32_t> some_tokens(uint32_t count, uint32_t seed = 1) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % TestModel::kVocabulary);
    return tokens;
}

// One run of one sequence, all of its rows wanted.
inline BatchSpec one_run(uint32_t count, uint32_t sequence = 0, uint32_t seed = 1) {
    BatchSpec batch{{{sequence, some_tokens(count, seed)}}, {}};
    for (uint32_t i = 0; i < count; ++i) batch.outputs.push_back(i);
    return batch;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The greatest difference, as a part of the root mean square of `wanted`; infinite for a NaN or another size.
template <typename Wanted>
double relative_error(const std::vector<float>& got, const std::vector<Wanted>& wanted) {
    if (got.size() != wanted.size()) return INFINITY;
    double squares = 1e-30, worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        const double w = static_cast<double>(wanted[i]);
        const double error = std::abs(static_cast<double>(got[i]) - w);
        squares += w * w;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    return worst / std::sqrt(squares / static_cast<double>(std::max<size_t>(wanted.size(), 1)));
}

// Two computations of the same rows. The CPU backend's results depend on a row alone, so they agree bitwise; a GPU has
// other kernels for few rows than for many, whose sums differ in order.
inline void expect_same_rows(const std::vector<float>& got, const std::vector<float>& wanted, double tolerance) {
    if (test_device() == "cpu") {
        EXPECT_TRUE(same_bits(got, wanted));
    } else {
        EXPECT_LE(relative_error(got, wanted), tolerance);
    }
}

// Numbers of threads whose results must agree bitwise. Elsewhere than on the CPU, where threads mean nothing, two
// sessions must.
inline std::vector<uint32_t> session_threads() {
    return test_device() == "cpu" ? std::vector<uint32_t>{1, 2, 3, 7} : std::vector<uint32_t>{1, 1};
}

// Runs the batches in turn in several sessions: the bits must agree, and the values be those of the reference, up to
// `tolerance` times the root mean square of a batch's logits. Tolerances are those of the CPU backend, whose
// activations are quantised where weights are; a GPU's are not, and its exponentials, a few ulp worse, lie well within.
inline void expect_reference(const TestModel& model, const std::vector<BatchSpec>& batches, double tolerance,
                             Session::Options options = {}) {
    ReferenceForward reference(model, options.kv);
    std::vector<std::vector<float>> first;
    for (const uint32_t threads : session_threads()) {
        options.threads = threads;
        Session session(model, options);
        const bool again = first.size() == batches.size();
        for (size_t b = 0; b < batches.size(); ++b) {
            const std::vector<float> got = session.forward(batches[b].runs, batches[b].outputs);
            if (again) {
                EXPECT_TRUE(same_bits(got, first[b])) << "batch " << b << " on " << threads << " threads";
                continue;
            }
            first.push_back(got);
            const std::vector<double> wanted = reference.forward(batches[b].runs, batches[b].outputs);
            EXPECT_LE(relative_error(got, wanted), tolerance) << "batch " << b;
        }
    }
}

inline std::vector<BatchSpec> few_and_many() {
    return {one_run(1), one_run(3), one_run(6), one_run(37)};
}

}  // namespace metallic::testing

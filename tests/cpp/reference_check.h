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

// Runs the batches in turn on 1, 2, 3 and 7 threads: the bits must agree, and the values be those of the reference, up
// to `tolerance` times the root mean square of a batch's logits.
inline void expect_reference(const TestModel& model, const std::vector<BatchSpec>& batches, double tolerance,
                             Session::Options options = {}) {
    ReferenceForward reference(model, options.kv);
    std::vector<std::vector<float>> first;
    for (const uint32_t threads : {1u, 2u, 3u, 7u}) {
        options.threads = threads;
        Session session(model, options);
        for (size_t b = 0; b < batches.size(); ++b) {
            const std::vector<float> got = session.forward(batches[b].runs, batches[b].outputs);
            if (threads > 1) {
                EXPECT_TRUE(same_bits(got, first[b])) << "batch " << b << " on " << threads << " threads";
                continue;
            }
            first.push_back(got);
            const std::vector<double> wanted = reference.forward(batches[b].runs, batches[b].outputs);
            ASSERT_EQ(got.size(), wanted.size());
            double squares = 1e-30, worst = 0;
            for (const double w : wanted) squares += w * w;
            const double bound = tolerance * std::sqrt(squares / static_cast<double>(wanted.size()));
            for (size_t i = 0; i < got.size(); ++i) {
                const double error = std::abs(static_cast<double>(got[i]) - wanted[i]);
                worst = std::isnan(error) ? INFINITY : std::max(worst, error);
            }
            EXPECT_LE(worst, bound) << "batch " << b;
        }
    }
}

inline std::vector<BatchSpec> few_and_many() {
    return {one_run(1), one_run(3), one_run(6), one_run(37)};
}

}  // namespace metallic::testing

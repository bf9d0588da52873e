#include "backend/metal/ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "backend/batch_check.h"
#include "core/error.h"
#include "metal_kernels.h"
#include "sampling/sampler.h"

// The device's selection against the host's chain: the same tokens with the same bits.
namespace metallic::testing {
namespace {

constexpr float kInfinity = INFINITY;

// One row as the host would see it: logits, edits in order, a mask.
struct Row {
    std::vector<float> logits;
    std::vector<LogitEdit> edits;
    std::vector<uint32_t> mask;
    uint32_t k = 1;

    Selection selection() const { return {k, edits, mask}; }
};

double changed(const LogitEdit& edit, double logit) {
    if (edit.kind == LogitEdit::Kind::bias) return logit + static_cast<double>(edit.bias);
    if (edit.repeated) logit = logit <= 0 ? logit * edit.repetition : logit / edit.repetition;
    return logit - edit.less;
}

// Through Candidates' own stages; then sorted.
std::vector<Candidate> expected(const Row& row) {
    Candidates candidates;
    candidates.assign(row.logits);
    if (!row.mask.empty()) candidates.restrict_to(row.mask);
    std::vector<float> logits = row.logits;
    for (const LogitEdit& edit : row.edits) {
        candidates.edit(edit);
        const double most = std::numeric_limits<float>::max();
        float& logit = logits[static_cast<size_t>(edit.token)];
        if (edit.kind == LogitEdit::Kind::ban) {
            logit = -kInfinity;
        } else if (logit > -kInfinity) {
            logit = static_cast<float>(std::clamp(changed(edit, static_cast<double>(logit)), -most, most));
        }
    }
    std::vector<TokenProbability> kept;
    if (candidates.max() > -kInfinity) {
        candidates.keep_top_k(static_cast<int32_t>(row.k));
        candidates.distribution(kept);
    }
    std::vector<Candidate> result;
    for (const TokenProbability& token : kept)
        result.push_back({token.token, logits[static_cast<size_t>(token.token)]});
    std::sort(result.begin(), result.end(), [](const Candidate& a, const Candidate& b) {
        return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    });
    return result;
}

class MetalSampling : public MetalKernels {
  protected:
    std::vector<Candidate> select(const std::vector<Row>& rows, uint32_t max_rows = 0) {
        const uint32_t vocabulary = static_cast<uint32_t>(rows[0].logits.size());
        std::vector<float> all;
        std::vector<Selection> selections;
        for (const Row& row : rows) {
            all.insert(all.end(), row.logits.begin(), row.logits.end());
            selections.push_back(row.selection());
        }
        const Memory logits = memory(std::span<const float>(all));
        const uint64_t count = rows.size() * candidate_stride(selections);
        const Memory out = memory(count * sizeof(Candidate)), batch = memory(metal::TopK::batch_bytes(selections));
        Program program;
        CompileInputs inputs;
        inputs.program = &program;
        run<metal::TopK>(
            inputs,
            [&](metal::Preparation& p) {
                return metal::TopK(vocabulary, max_rows ? max_rows : static_cast<uint32_t>(rows.size()), p);
            },
            [&](const metal::TopK& top, metal::Encoder& encoder) {
                check_selections(selections, vocabulary);
                metal::BatchMemory batch_memory(batch.binding, batch.heap->host());
                top.encode(encoder, batch_memory, logits.binding, selections, out.binding);
            });
        return {out.as<Candidate>(), out.as<Candidate>() + count};
    }

    void expect_host_choice(const std::vector<Row>& rows) {
        const std::vector<Candidate> got = select(rows);
        const size_t stride = got.size() / rows.size();
        for (size_t r = 0; r < rows.size(); ++r) {
            const std::vector<Candidate> wanted = expected(rows[r]);
            for (size_t i = 0; i < stride; ++i) {
                const Candidate candidate = got[r * stride + i];
                if (i >= wanted.size()) {
                    EXPECT_EQ(candidate.token, -1) << "row " << r << ", " << i;
                    continue;
                }
                ASSERT_EQ(candidate.token, wanted[i].token) << "row " << r << ", " << i;
                EXPECT_EQ(std::memcmp(&candidate.logit, &wanted[i].logit, sizeof(float)), 0)
                    << "row " << r << ", " << i << ": " << candidate.logit << " instead of " << wanted[i].logit;
            }
        }
    }

    std::mt19937 random{7};

    Row row(uint32_t vocabulary, uint32_t k) {
        std::normal_distribution<float> normal(0.0f, 4.0f);
        Row result;
        result.k = k;
        for (uint32_t i = 0; i < vocabulary; ++i) result.logits.push_back(normal(random));
        return result;
    }

    // Some of everything, ascending tokens; a token may be edited several times.
    void edit(Row& row, uint32_t count) {
        const auto unit = [&] { return std::uniform_real_distribution<double>(0.0, 1.0)(random); };
        for (uint32_t i = 0; i < count; ++i) {
            LogitEdit edit;
            edit.token = static_cast<int32_t>(random() % row.logits.size());
            edit.kind = static_cast<LogitEdit::Kind>(random() % 16 == 0 ? 0 : 1 + random() % 2);
            edit.bias = static_cast<float>(20 * unit() - 10);
            edit.repeated = random() % 2;
            edit.repetition = 0.5 + unit();
            edit.less = random() % 3 ? 4 * unit() - 1 : 0.0;
            row.edits.push_back(edit);
        }
        std::sort(row.edits.begin(), row.edits.end(),
                  [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
    }
};

TEST_F(MetalSampling, ArgMaxOfAnyVocabulary) {
    for (const uint32_t vocabulary : {1u, 2u, 31u, 255u, 257u, 4096u, 4097u, 50257u}) {
        expect_host_choice({row(vocabulary, 1), row(vocabulary, 1), row(vocabulary, 1)});
    }
}

TEST_F(MetalSampling, TopKOfAnyVocabulary) {
    for (const uint32_t vocabulary : {1u, 5u, 256u, 4096u, 4097u, 20000u}) {
        for (const uint32_t k : {2u, 40u, 255u, 256u}) expect_host_choice({row(vocabulary, k), row(vocabulary, k)});
    }
}

// Three rounds, and a row with ties across all chunks.
TEST_F(MetalSampling, LargeVocabularies) {
    std::vector<Row> rows{row(300001, 256), row(300001, 40)};
    for (size_t i = 0; i < rows[1].logits.size(); ++i) rows[1].logits[i] = static_cast<float>(i % 5000 == 17);
    expect_host_choice(rows);
}

TEST_F(MetalSampling, EveryRowHasItsOwnK) {
    std::vector<Row> rows;
    for (const uint32_t k : {1u, 7u, 64u, 100u}) rows.push_back(row(9000, k));
    expect_host_choice(rows);
}

TEST_F(MetalSampling, TiesGoToTheLowestIds) {
    for (const uint32_t k : {1u, 3u, 50u, 256u}) {
        Row equal = row(10000, k);
        std::fill(equal.logits.begin(), equal.logits.end(), -3.5f);
        Row few = row(10000, k);
        for (float& logit : few.logits) logit = std::round(logit);
        Row zeros = row(10000, k);
        for (size_t i = 0; i < zeros.logits.size(); ++i) zeros.logits[i] = i % 2 ? 0.0f : -0.0f;
        expect_host_choice({equal, few, zeros});
    }
}

TEST_F(MetalSampling, SubnormalAndExtremeLogitsKeepTheirBits) {
    Row extremes = row(300, 16);
    const float values[] = {1e-45f, -1e-45f, 3e-39f, -3e-39f, 3.4e38f, -3.4e38f, 0.0f, -0.0f, -kInfinity};
    for (size_t i = 0; i < extremes.logits.size(); ++i) extremes.logits[i] = values[random() % std::size(values)];
    Row edited = extremes;
    edit(edited, 100);
    for (LogitEdit& e : edited.edits) e.bias *= 1e37f, e.less *= 1e38, e.repetition = 1e-9;
    expect_host_choice({extremes, edited});
}

TEST_F(MetalSampling, EditsAreThoseOfTheHost) {
    for (const uint32_t k : {1u, 64u}) {
        std::vector<Row> rows;
        for (const uint32_t edits : {0u, 1u, 700u, 5000u}) {
            rows.push_back(row(5000, k));
            edit(rows.back(), edits);
        }
        expect_host_choice(rows);
    }
}

TEST_F(MetalSampling, MasksAllowTokens) {
    for (const uint32_t vocabulary : {70u, 6000u}) {
        for (const uint32_t k : {1u, 30u}) {
            std::vector<Row> rows;
            for (const uint32_t allowed : {0u, 1u, 16u, 32u}) {  // of 32
                rows.push_back(row(vocabulary, k));
                rows.back().mask.resize((vocabulary + 31) / 32);
                for (uint32_t i = 0; i < vocabulary; ++i) {
                    rows.back().mask[i / 32] |= uint32_t{random() % 32 < allowed} << (i % 32);
                }
                edit(rows.back(), 100);
            }
            rows.push_back(row(vocabulary, k));
            expect_host_choice(rows);
        }
    }
}

TEST_F(MetalSampling, BannedTokensAreNoCandidates) {
    Row few = row(50, 20), none = row(50, 20);
    for (int32_t i = 0; i < 45; ++i) few.edits.push_back({i, LogitEdit::Kind::ban, 0, false, 1.0, 0.0});
    std::fill(none.logits.begin(), none.logits.end(), -kInfinity);
    expect_host_choice({few, none});
}

// Whatever is done to it: a token that is damaged comes first, with its logit.
TEST_F(MetalSampling, DamageComesFirst) {
    for (const float bad : {NAN, -NAN, kInfinity}) {
        for (const uint32_t k : {1u, 5u}) {
            std::vector<Row> rows{row(9000, k), row(9000, k), row(9000, k)};
            rows[0].logits[8000] = rows[0].logits[8123] = bad;
            rows[1].logits[77] = bad;
            rows[1].edits = {{77, LogitEdit::Kind::ban, 0, false, 1.0, 0.0}};
            rows[2].logits[5] = bad;
            rows[2].mask.resize((9000 + 31) / 32);
            const std::vector<Candidate> got = select(rows);
            const int32_t tokens[] = {8000, 77, 5};
            for (size_t r = 0; r < rows.size(); ++r) {
                EXPECT_EQ(got[r * k].token, tokens[r]);
                EXPECT_FALSE(got[r * k].logit < kInfinity);
            }
        }
    }
}

// More rows than go through the rounds at a time.
TEST_F(MetalSampling, ManyRows) {
    std::vector<Row> rows;
    for (uint32_t i = 0; i < 150; ++i) rows.push_back(row(300, 1 + i % 30));
    expect_host_choice(rows);
    const std::vector<Candidate> wanted = select(rows);
    const std::vector<Candidate> got = select(rows, 7);
    ASSERT_EQ(got.size(), wanted.size());
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(Candidate)), 0);
}

// The scratch takes 57 rows of 18 chunks where most candidates are wanted; with few of them it takes all.
TEST_F(MetalSampling, RowsThatGoInSeveralSlabs) {
    for (const uint32_t k : {kMostCandidates, 3u}) {
        std::vector<Row> rows;
        for (uint32_t i = 0; i < 60; ++i) rows.push_back(row(70000, i % 20 == 19 ? k : 1 + i % k));
        expect_host_choice(rows);
    }
}

TEST_F(MetalSampling, RefusesWhatItCannotServe) {
    Row good = row(100, 5);
    int refused = 0;
    const auto refuses = [&](const auto& spoil) {
        Row bad = good;
        spoil(bad);
        EXPECT_THROW(select({bad}), RequestError);
        ++refused;
    };
    refuses([](Row& r) { r.k = 0; });
    refuses([](Row& r) { r.k = 257; });
    refuses([](Row& r) { r.mask = {1, 2, 3}; });
    refuses([](Row& r) { r.edits = {{-1, LogitEdit::Kind::ban, 0, false, 1.0, 0.0}}; });
    refuses([](Row& r) { r.edits = {{100, LogitEdit::Kind::ban, 0, false, 1.0, 0.0}}; });
    refuses([](Row& r) { r.edits = {{5, {}, 0, false, 1.0, 0.0}, {4, {}, 0, false, 1.0, 0.0}}; });
    refuses([](Row& r) { r.edits = {{5, LogitEdit::Kind::bias, NAN, false, 1.0, 0.0}}; });
    refuses([](Row& r) { r.edits = {{5, LogitEdit::Kind::penalty, 0, true, 0.0, 0.0}}; });
    refuses([](Row& r) { r.edits = {{5, LogitEdit::Kind::penalty, 0, true, 1.0, INFINITY}}; });
    EXPECT_EQ(refused, 9);
    expect_host_choice({good});
}

}  // namespace
}  // namespace metallic::testing

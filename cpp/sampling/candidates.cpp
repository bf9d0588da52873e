#include "sampling/candidates.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Copies one run and returns its greatest; `bad` lanes become non-zero for a NaN or +inf.
float copy_run(const float* from, float* to, i32x4& bad) noexcept {
    const f32x4 infinity = splat4(kInfinity);
    f32x4 best = splat4(-kInfinity);
    i32x4 good = {-1, -1, -1, -1};
    for (size_t i = 0; i < kRun; i += 4) {
        const f32x4 v = load4(from + i);
        good &= v < infinity;
        best = max4(v, best);
        store4(to + i, v);
    }
    bad |= ~good;
    return max_lane(best);
}

[[noreturn]] void throw_bad_logit(int32_t token, float logit) {
    const char* what = std::isnan(logit) ? "NaN" : "+inf";
    throw DeviceError("the logit of token " + std::to_string(token) + " is " + what +
                          ": the model's output is damaged, nothing can be sampled from it",
                      "sampling", what);
}

[[noreturn]] void throw_bad_logit(std::span<const float> logits) {
    size_t at = 0;
    while (at + 1 < logits.size() && logits[at] < kInfinity) ++at;
    throw_bad_logit(static_cast<int32_t>(at), logits[at]);
}

size_t count_allowed(std::span<const uint32_t> mask, size_t n) noexcept {
    size_t count = 0;
    for (size_t word = 0; word < n / 32; ++word) count += static_cast<size_t>(std::popcount(mask[word]));
    if (n % 32) count += static_cast<size_t>(std::popcount(mask[n / 32] & ((1u << n % 32) - 1)));
    return count;
}

}  // namespace

void Candidates::make_room(size_t padded) {
    if (logits_.size() >= padded) return;
    logits_.resize(padded);
    ids_.resize(padded);
    masses_.resize(padded);
    keys_.resize(padded);
    open_.resize(padded);
    run_maxima_.resize(padded / kRun);
    sorted_maxima_.resize(padded / kRun);
    run_masses_.resize(padded / kRun);
    stale_.resize(padded / kRun);
}

void Candidates::assign_chosen(std::span<const Candidate> chosen) {
    if (!chosen.empty() && !(chosen[0].logit < kInfinity)) throw_bad_logit(chosen[0].token, chosen[0].logit);
    make_room(round_up_to_run(chosen.size()));
    chosen_.assign(chosen.begin(), chosen.end());
    std::sort(chosen_.begin(), chosen_.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
    for (size_t i = 0; i < chosen_.size(); ++i) {
        ids_[i] = chosen_[i].token;
        logits_[i] = chosen_[i].logit;
    }
    scale_ = 1.0f;
    become_list(chosen_.size());
}

void Candidates::assign(std::span<const float> logits) {
    const size_t padded = round_up_to_run(logits.size());
    make_room(padded);
    size_ = logits.size();
    dense_ = true;
    scale_ = 1.0f;
    i32x4 bad = {0, 0, 0, 0};
    const size_t whole = size_ / kRun;
    for (size_t run = 0; run < whole; ++run) {
        run_maxima_[run] = copy_run(logits.data() + run * kRun, logits_.data() + run * kRun, bad);
    }
    if (size_ % kRun) {
        float rest[kRun];
        std::fill(rest, rest + kRun, -kInfinity);
        std::copy(logits.begin() + static_cast<ptrdiff_t>(whole * kRun), logits.end(), rest);
        run_maxima_[whole] = copy_run(rest, logits_.data() + whole * kRun, bad);
    }
    if (bad[0] | bad[1] | bad[2] | bad[3]) throw_bad_logit(logits);
    std::fill_n(stale_.begin(), padded / kRun, uint8_t{0});
    any_stale_ = false;
}

void Candidates::restrict_to(std::span<const uint32_t> mask) {
    constexpr size_t kFewFraction = 8;  // a list pays off below an eighth of the vocabulary
    const auto allowed = [mask](size_t i) { return (mask[i / 32] >> (i % 32) & 1) != 0; };
    if (count_allowed(mask, size_) > size_ / kFewFraction) {
        for (size_t first = 0; first < size_; first += 32) {
            if (mask[first / 32] == ~uint32_t{0}) continue;
            for (size_t i = first; i < std::min(first + 32, size_); ++i) {
                if (!allowed(i)) logits_[i] = -kInfinity;
            }
            stale_[first / kRun] = 1;
            any_stale_ = true;
        }
        return;
    }
    size_t kept = 0;
    for (size_t word = 0; word * 32 < size_; ++word) {
        for (uint32_t bits = mask[word]; bits; bits &= bits - 1) {
            const size_t i = word * 32 + static_cast<size_t>(std::countr_zero(bits));
            if (i >= size_) break;
            ids_[kept] = static_cast<int32_t>(i);
            logits_[kept++] = logits_[i];
        }
    }
    become_list(kept);
}

void Candidates::become_list(size_t kept) {
    size_ = kept;
    dense_ = false;
    std::fill(logits_.begin() + static_cast<ptrdiff_t>(kept),
              logits_.begin() + static_cast<ptrdiff_t>(round_up_to_run(kept)), -kInfinity);
}

size_t Candidates::slot_of(int32_t token) const noexcept {
    if (dense_) return token >= 0 && static_cast<size_t>(token) < size_ ? static_cast<size_t>(token) : kNowhere;
    const auto end = ids_.begin() + static_cast<ptrdiff_t>(size_);
    const auto at = std::lower_bound(ids_.begin(), end, token);
    return at != end && *at == token ? static_cast<size_t>(at - ids_.begin()) : kNowhere;
}

void Candidates::edit(const LogitEdit& edit) {
    const size_t slot = slot_of(edit.token);
    if (slot == kNowhere || logits_[slot] == -kInfinity) return;
    if (edit.kind != LogitEdit::Kind::ban) apply_scale();
    logits_[slot] = edited(logits_[slot], edit);
    if (!dense_) return;
    stale_[slot / kRun] = 1;
    any_stale_ = true;
}

void Candidates::apply_scale() {
    constexpr float kGreatest = std::numeric_limits<float>::max();
    if (scale_ == 1.0f) return;
    for (size_t i = 0; i < size_; ++i) {
        if (logits_[i] != -kInfinity) logits_[i] = std::clamp(logits_[i] * scale_, -kGreatest, kGreatest);
    }
    scale_ = 1.0f;
    if (!dense_) return;
    std::fill_n(stale_.begin(), round_up_to_run(size_) / kRun, uint8_t{1});
    any_stale_ = true;
}

void Candidates::refresh_run_maxima() {
    if (!any_stale_) return;
    for (size_t run = 0; run * kRun < size_; ++run) {
        if (stale_[run]) run_maxima_[run] = run_max(logits_.data() + run * kRun);
        stale_[run] = 0;
    }
    any_stale_ = false;
}

float Candidates::max() {
    float best = -kInfinity;
    const size_t runs = round_up_to_run(size_) / kRun;
    if (dense_) {
        refresh_run_maxima();
        for (size_t run = 0; run < runs; ++run) best = std::max(best, run_maxima_[run]);
    } else {
        for (size_t run = 0; run < runs; ++run) best = std::max(best, run_max(logits_.data() + run * kRun));
    }
    return best;
}

void Candidates::divide_by(double temperature) {
    // A temperature so small that its inverse overflows still leaves (max - max) * scale at zero.
    constexpr double kGreatest = std::numeric_limits<float>::max();
    scale_ = static_cast<float>(std::min(static_cast<double>(scale_) / temperature, kGreatest));
}

double Candidates::total_mass(float max) {
    // Runs so far below the maximum add less than the last bit of a double, whatever the vocabulary.
    constexpr float kNegligible = -60.0f;
    double total = 0.0;
    for (size_t run = 0; run * kRun < size_; ++run) {
        double mass = 0.0;
        if (!dense_ || (run_maxima_[run] - max) * scale_ > kNegligible) {
            mass = run_mass(logits_.data() + run * kRun, max, scale_);
        }
        run_masses_[run] = mass;
        total += mass;
    }
    return total;
}

double Candidates::fill_masses(float max) {
    double total = 0.0;
    for (size_t run = 0; run * kRun < size_; ++run) {
        f32x4 low = splat4(0.0f);
        f32x4 high = splat4(0.0f);
        for (size_t i = run * kRun; i < (run + 1) * kRun; i += 8) {
            const f32x4 a = exp4((load4(logits_.data() + i) - max) * scale_);
            const f32x4 b = exp4((load4(logits_.data() + i + 4) - max) * scale_);
            store4(masses_.data() + i, a);
            store4(masses_.data() + i + 4, b);
            low += a;
            high += b;
        }
        total += static_cast<double>(sum_lanes(low)) + static_cast<double>(sum_lanes(high));
    }
    return total;
}

int32_t Candidates::arg_max() {
    const float best = max();
    for (size_t run = 0; run * kRun < size_; ++run) {
        if (dense_ && run_maxima_[run] < best) continue;
        for (size_t i = run * kRun; i < std::min(size_, (run + 1) * kRun); ++i) {
            if (logits_[i] == best) return id_at(i);
        }
    }
    return -1;
}

int32_t Candidates::draw(double u) {
    const float best = max();
    const double target = u * total_mass(best);
    double before = 0.0;
    size_t chosen = kNowhere;
    for (size_t run = 0; run * kRun < size_; ++run) {
        if (run_masses_[run] <= 0.0) continue;
        chosen = run;  // also the last one with any mass, should rounding carry the target past the end
        if (before + run_masses_[run] > target) break;
        before += run_masses_[run];
    }
    if (chosen == kNowhere) return arg_max();
    float masses[kRun];
    for (size_t i = 0; i < kRun; i += 4) {
        store4(masses + i, exp4((load4(logits_.data() + chosen * kRun + i) - best) * scale_));
    }
    size_t slot = kNowhere;
    for (size_t i = 0; i < kRun; ++i) {
        if (masses[i] <= 0.0f) continue;
        slot = chosen * kRun + i;
        before += static_cast<double>(masses[i]);
        if (before > target) break;
    }
    return slot == kNowhere ? arg_max() : id_at(slot);
}

void Candidates::distribution(std::vector<TokenProbability>& out) {
    const double total = fill_masses(max());
    out.clear();
    for (size_t i = 0; i < size_; ++i) {
        if (logits_[i] == -kInfinity) continue;
        out.push_back({id_at(i), static_cast<float>(static_cast<double>(masses_[i]) / total)});
    }
}

}  // namespace metallic

#include <cmath>
#include <functional>

#include "sampling/candidates.h"

// The stages that remove candidates. All but XTC reduce to one question: how far down the order of some key must we go
// until the masses met so far reach a target? A radix histogram of the keys answers it in linear time, without a sort.
namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kDigitShifts[] = {21, 10, 0};  // digits of 11, 11 and 10 bits, from the top
constexpr size_t kBins = 2048;
constexpr size_t kWays = 4;  // histograms that take turns

struct Bin {
    uint32_t digit;
    double before;  // the mass of all lower bins
};

// The first bin at which the cumulative mass reaches the target, or the last with any mass when rounding keeps it from
// that.
Bin reach(const std::vector<double>& histogram, double before, double target) noexcept {
    Bin found{0, before};
    for (size_t i = 0; i < kBins; ++i) {
        const double mass =
            (histogram[i] + histogram[kBins + i]) + (histogram[2 * kBins + i] + histogram[3 * kBins + i]);
        if (mass <= 0.0) continue;
        found = {static_cast<uint32_t>(i), before};
        before += mass;
        if (before >= target) break;
    }
    return found;
}

// The least float that is not below the limit, so that comparing floats with it is comparing them with the limit.
float least_float_from(double limit) noexcept {
    const float nearest = static_cast<float>(limit);
    return static_cast<double>(nearest) < limit ? std::nextafter(nearest, kInfinity) : nearest;
}

}  // namespace

// Branch-free within a run, and in place: the write position never passes the read position.
template <class Keep>
void Candidates::compact(Keep keep, float least_run_max) {
    if (dense_) refresh_run_maxima();
    size_t kept = 0;
    for (size_t run = 0; run * kRun < size_; ++run) {
        if (dense_ && run_maxima_[run] < least_run_max) continue;
        const size_t end = std::min(size_, (run + 1) * kRun);
        for (size_t i = run * kRun; i < end; ++i) {
            const float logit = logits_[i];
            const bool stays = static_cast<bool>(keep(i, logit)) & (logit > -kInfinity);
            ids_[kept] = id_at(i);
            logits_[kept] = logit;
            masses_[kept] = masses_[i];
            kept += stays;
        }
    }
    become_list(kept);
}

void Candidates::keep_at_least(double limit) {
    const float least = least_float_from(limit);
    compact([least](size_t, float logit) { return logit >= least; }, least);
}

size_t Candidates::count_at_least(double limit) const {
    const float least = least_float_from(limit);
    size_t count = 0;
    for (size_t run = 0; run * kRun < size_; ++run) {
        i32x4 hits = {0, 0, 0, 0};
        for (size_t i = run * kRun; i < (run + 1) * kRun; i += 4) hits -= load4(logits_.data() + i) >= splat4(least);
        count += static_cast<size_t>(hits[0] + hits[1] + hits[2] + hits[3]);
    }
    return count;
}

template <class Key>
void Candidates::keep_cut(Cut cut, Key key) {
    compact([&](size_t i, float) {
        const uint32_t k = key(i);
        const bool tie = (k == cut.key) & (cut.ties > 0);
        cut.ties -= tie;
        return (k < cut.key) | tie;
    });
}

// Several histograms take turns, since adding to one bin twice in a row would wait for the first sum.
template <class Key, class Mass>
void Candidates::add_up_digits(Key key, Mass mass, size_t count, int low) {
    histogram_.assign(kWays * kBins, 0.0);
    double* const histogram = histogram_.data();
    const uint32_t* const open = open_.data();
    const bool first = low == kDigitShifts[0];
    const auto add = [=](size_t i, size_t way) {
        const size_t slot = first ? i : open[i];
        histogram[way * kBins + (key(slot) >> low & (kBins - 1))] += mass(slot);
    };
    size_t i = 0;
    for (; i + kWays <= count; i += kWays) {
        for (size_t way = 0; way < kWays; ++way) add(i + way, way);
    }
    for (; i < count; ++i) add(i, i % kWays);
}

template <class Key, class Mass>
Candidates::Cut Candidates::find_cut(Key key, Mass mass, double target) {
    uint32_t prefix = 0;
    double before = 0.0;
    size_t count = size_;
    for (const int low : kDigitShifts) {
        add_up_digits(key, mass, count, low);
        const Bin bin = reach(histogram_, before, target);
        before = bin.before;
        prefix |= bin.digit << low;
        const bool first = low == kDigitShifts[0];
        size_t left = 0;
        for (size_t i = 0; i < count; ++i) {
            const uint32_t slot = first ? static_cast<uint32_t>(i) : open_[i];
            open_[left] = slot;
            left += (key(slot) >> low) == (prefix >> low);
        }
        count = left;
    }
    size_t ties = 0;
    for (size_t i = 0; i < count && (ties == 0 || before < target); ++i, ++ties) before += mass(open_[i]);
    return {prefix, ties};
}

void Candidates::keep_top_k(int32_t k) {
    const size_t wanted = static_cast<size_t>(k);
    if (wanted >= size_) return compact([](size_t, float) { return true; });
    const auto key = [this](size_t i) { return descending_key(logits_[i]); };
    const size_t runs = round_up_to_run(size_) / kRun;
    if (dense_ && wanted <= runs / 2) {
        // Each of the k runs with the greatest maxima holds a logit of at least the least of these maxima.
        refresh_run_maxima();
        const auto kth = sorted_maxima_.begin() + (k - 1);
        const auto end = sorted_maxima_.begin() + static_cast<ptrdiff_t>(runs);
        std::copy_n(run_maxima_.begin(), runs, sorted_maxima_.begin());
        std::nth_element(sorted_maxima_.begin(), kth, end, std::greater<float>());
        const float least = *kth;
        keep_at_least(static_cast<double>(least));
        if (wanted >= size_) return;
        // When few are greater, ties at that maximum fill up the rest, however many there are.
        const size_t greater = count_at_least(static_cast<double>(std::nextafter(least, kInfinity)));
        if (greater <= wanted) return keep_cut({descending_key(least), wanted - greater}, key);
    }
    keep_cut(find_cut(key, [](size_t) { return 1.0; }, static_cast<double>(k)), key);
}

void Candidates::keep_top_p(double p) {
    if (p >= 1.0) return;
    const float best = max();
    const double total = fill_masses(best);
    // Tokens less probable than (1 - p) / n make up less than 1 - p together, so the cut lies above them; the margin
    // is for rounding.
    const double least = std::log((1.0 - p) * total / static_cast<double>(size_)) - 1e-3;
    const double limit = static_cast<double>(best) + std::min(least, 0.0) / static_cast<double>(scale_);
    if (count_at_least(limit) < size_ / 2) keep_at_least(limit);  // else the search alone is quicker
    const auto key = [this](size_t i) { return descending_key(logits_[i]); };
    const auto mass = [this](size_t i) { return static_cast<double>(masses_[i]); };
    keep_cut(find_cut(key, mass, p * total), key);
}

void Candidates::keep_min_p(double p) {
    if (p <= 0.0) return;
    const double best = static_cast<double>(max());
    keep_at_least(best + std::log(p) / static_cast<double>(scale_));
}

void Candidates::keep_typical(double p) {
    if (p >= 1.0) return;
    const float best = max();
    const double total = fill_masses(best);
    // With x = (logit - max) / temperature, -log(probability) - entropy = mean(x) - x.
    const auto x = [&](size_t i) { return max4((load4(logits_.data() + i) - best) * scale_, splat4(kExpFloor)); };
    double weighted = 0.0;
    for (size_t run = 0; run * kRun < size_; ++run) {
        f32x4 sum = splat4(0.0f);
        for (size_t i = run * kRun; i < (run + 1) * kRun; i += 4) sum += load4(masses_.data() + i) * x(i);
        weighted += static_cast<double>(sum_lanes(sum));
    }
    const float mean = static_cast<float>(weighted / total);
    for (size_t i = 0; i < round_up_to_run(size_); i += 4) {
        // Without their signs, the distances' bits are in the distances' order.
        const u32x4 distance = std::bit_cast<u32x4>(x(i) - mean) & 0x7fffffffu;
        std::memcpy(keys_.data() + i, &distance, sizeof distance);
    }
    const auto key = [this](size_t i) { return keys_[i]; };
    const auto mass = [this](size_t i) { return static_cast<double>(masses_[i]); };
    keep_cut(find_cut(key, mass, p * total), key);
}

void Candidates::keep_top_n_sigma(double n) {
    if (n <= 0.0) return;
    double count = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < size_; ++i) {
        if (logits_[i] == -kInfinity) continue;
        sum += static_cast<double>(logits_[i]);
        count += 1.0;
    }
    const double mean = sum / count;
    double squares = 0.0;
    for (size_t i = 0; i < size_; ++i) {
        if (logits_[i] == -kInfinity) continue;
        const double distance = static_cast<double>(logits_[i]) - mean;
        squares += distance * distance;
    }
    keep_at_least(static_cast<double>(max()) - n * std::sqrt(squares / count));
}

void Candidates::drop_top_choices(double threshold) {
    const double limit = threshold * fill_masses(max());
    size_t above = 0;
    size_t least = kNowhere;
    for (size_t i = 0; i < size_; ++i) {
        if (logits_[i] == -kInfinity || static_cast<double>(masses_[i]) < limit) continue;
        ++above;
        if (least == kNowhere || logits_[i] <= logits_[least]) least = i;
    }
    if (above < 2) return;
    compact([&](size_t i, float) { return i == least || static_cast<double>(masses_[i]) < limit; });
}

}  // namespace metallic

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "core/selection.h"
#include "sampling/vector_math.h"

namespace metallic {

struct TokenProbability {
    int32_t token;
    float probability;
};

// The tokens that may still be drawn, in ascending order of id, with their logits as changed so far. Starts as the
// whole vocabulary (ids are positions then); the first stage that removes tokens makes it a list. Every stage keeps at
// least one token; of equal logits those with lower ids are kept. The buffers are reused from token to token.
class Candidates {
  public:
    // Copies the logits. Throws DeviceError when one of them is NaN or +inf.
    void assign(std::span<const float> logits);
    // Keeps the tokens whose bit (bit i % 32 of word i / 32) is set. Only right after `assign`.
    void restrict_to(std::span<const uint32_t> mask);

    // Candidates as a device gives them: descending logits, ascending tokens among equals, none of them -inf. From here
    // on all is as if assign, edits and keep_top_k had found them here.
    void assign_chosen(std::span<const Candidate> chosen);

    void edit(const LogitEdit& edit);

    // The greatest logit; -inf when no token is left.
    float max();
    void divide_by(double temperature);

    // Each keeps the tokens that its definition names; probabilities are the softmax over the tokens still here.
    void keep_top_k(int32_t k);       // the k greatest logits, whose tokens are a list from now on
    void keep_top_p(double p);        // fewest most probable tokens that together reach p (Holtzman et al. 2019)
    void keep_min_p(double p);        // at least p times as probable as the most probable (Nguyen et al. 2024)
    void keep_typical(double p);      // fewest tokens nearest to the entropy that reach p (Meister et al. 2022)
    void keep_top_n_sigma(double n);  // logit >= max - n standard deviations of the logits (Tang et al. 2024)
    void drop_top_choices(double threshold);  // XTC (P. E. Weidmann 2024): of several above it, only the least stays

    int32_t arg_max();
    // The token at which the cumulative probability, in order of ids, passes u of [0, 1).
    int32_t draw(double u);
    void distribution(std::vector<TokenProbability>& out);
    size_t size() const noexcept { return size_; }

  private:
    static constexpr size_t kNowhere = std::numeric_limits<size_t>::max();
    // Those whose key is less than `key`, and the first `ties` of those whose key equals it.
    struct Cut {
        uint32_t key;
        size_t ties;
    };

    void make_room(size_t padded);
    size_t slot_of(int32_t token) const noexcept;
    int32_t id_at(size_t slot) const noexcept { return dense_ ? static_cast<int32_t>(slot) : ids_[slot]; }
    void apply_scale();
    void refresh_run_maxima();
    // The sum of e^((logit - max) scale), by runs in run_masses_.
    double total_mass(float max);
    // The same, and each token's mass in masses_.
    double fill_masses(float max);
    template <class Keep>
    void compact(Keep keep, float least_run_max = -std::numeric_limits<float>::infinity());
    // From now on the first `kept` of ids_, logits_ and masses_ are the candidates.
    void become_list(size_t kept);
    void keep_at_least(double limit);
    size_t count_at_least(double limit) const;
    template <class Key>
    void keep_cut(Cut cut, Key key);
    template <class Key, class Mass>
    Cut find_cut(Key key, Mass mass, double target);
    template <class Key, class Mass>
    void add_up_digits(Key key, Mass mass, size_t count, int low);

    size_t size_ = 0;
    bool dense_ = true;
    float scale_ = 1.0f;         // 1 / temperature, once that stage has run: logits_ stay as they were
    std::vector<float> logits_;  // padded with -inf to whole runs
    std::vector<int32_t> ids_;   // of a list
    std::vector<float> masses_;
    std::vector<uint32_t> keys_;
    std::vector<uint32_t> open_;  // slots that the search for a cut has not decided yet
    std::vector<double> histogram_;
    std::vector<double> run_masses_;
    std::vector<float> run_maxima_;  // of the whole vocabulary only
    std::vector<float> sorted_maxima_;
    std::vector<Candidate> chosen_;
    std::vector<uint8_t> stale_;  // runs edited since run_maxima_ was computed
    bool any_stale_ = false;
};

}  // namespace metallic

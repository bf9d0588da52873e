#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/kv_layout.h"
#include "program/program.h"

// Where a model's weights live, and with them which device computes what.
namespace metallic {

enum class WeightPlace : uint8_t {
    mapped,     // in the file's pages, which the system may drop and read again
    exclusive,  // "private": in memory of the device alone, counted by the pool, filled at first use
    shared,     // in memory that host and device see, counted by the pool, filled at first use
    host,       // "cpu": mapped, and read by the host's processor, which computes the steps that need it
};
inline constexpr size_t kWeightPlaces = 4;
// As users write it: "mapped", "private", "shared" or "cpu".
std::string_view place_name(WeightPlace place) noexcept;

// The devices of a placed program, as assign_stages counts them.
inline constexpr uint32_t kDevice = 0, kHost = 1;

// What a user wrote: rules such as "private,blk.0-3=cpu,blk.*.ffn_*=mapped,output=shared", the last that matches a
// weight wins, and a weight that none matches is mapped. A rule is PATTERN=PLACE, or a PLACE alone for all weights. A
// pattern is blk.RANGE for blocks (RANGE: 3, 0-15, 20-, -7 or *), blk.RANGE.GLOB for some tensors of theirs, or a GLOB
// (* and ?) over tensor names, where the ending .weight or .bias may be left out. "auto" alone, or as the first rule,
// places what no other rule does by the device's memory.
class PlacementRules {
  public:
    PlacementRules() = default;
    // Throws RequestError that says what may be written.
    static PlacementRules parse(std::string_view text);
    // The last `count` layers on the device, the others on the host: blocks in their order, then the output as the last
    // layer. The meaning is that of llama.cpp's --n-gpu-layers. Wins over the other rules.
    void set_device_layers(uint32_t count) { device_layers_ = count; }

    bool automatic() const noexcept { return automatic_; }
    std::optional<uint32_t> device_layers() const noexcept { return device_layers_; }

    // Overwrites the places, by WeightId, of the weights that a rule matches.
    void apply(const Program& program, std::vector<WeightPlace>& places) const;
    // The rules that match no weight of the program.
    std::vector<std::string> unmatched(const Program& program) const;

  private:
    struct Rule {
        std::string text;
        bool of_blocks = false;
        uint32_t first = 0, last = 0;  // blocks
        std::string glob;              // empty: all of them
        WeightPlace place = WeightPlace::mapped;
        bool matches(const Weight& weight) const;
    };
    static Rule parse_rule(std::string_view text);
    static void parse_blocks(std::string_view pattern, Rule& rule);

    std::vector<Rule> rules_;
    bool automatic_ = false;
    std::optional<uint32_t> device_layers_;
};

struct Placement;

// What is known of a placement once its plans were compiled.
struct PlacementTrial {
    std::array<uint64_t, 2> plans{};  // bytes that they take on each device: arena, scratch, logits, constants
    bool loads = true;                // all that a load takes at once is to be had
};

// What there is to place weights by.
struct PlacementLimits {
    bool device_is_host = true;    // there is no other processor to give layers to
    bool unified_memory = true;    // the device reads mapped files in place
    uint64_t device_memory = 0;    // bytes that the device works well with
    uint64_t memory_budget = 0;    // bytes that the user allows; 0: none
    uint32_t context = 0;          // tokens to have room for
    uint32_t batch_tokens = 0;     // most tokens of one submission
    uint64_t activations = 0;      // bytes of the arena, where no plan is compiled
    std::span<const KvLayout> kv;  // by cache group
    // Compiles the plans of a placement that `auto` thinks of, for the program with its stages. None: they take
    // `activations` on the device.
    std::function<PlacementTrial(const Program& assigned, const Placement&)> trial;
};

// What was decided, and its numbers in bytes.
struct Placement {
    struct Block {
        uint32_t block = kNoBlock;  // kNoBlock: embeddings, output and whatever belongs to no block
        uint64_t kv = 0;            // of `context` tokens
        std::array<uint64_t, kWeightPlaces> weights{};
        uint64_t total() const noexcept;
        WeightPlace place() const noexcept;  // of most of the weights
    };
    struct Stage {
        uint32_t device = 0;                                     // kDevice or kHost
        uint32_t first_block = kNoBlock, last_block = kNoBlock;  // kNoBlock: it has steps of no block alone
    };
    std::vector<WeightPlace> weights;  // by WeightId
    std::vector<Block> blocks;         // in order, the one of no block last
    std::vector<Stage> stages;         // as assign_stages numbers them
    bool automatic = false;
    uint64_t budget = 0;    // for everything on the device; of auto alone
    uint64_t reserved = 0;  // of it, for the device's plan and for what is taken while it runs
    uint32_t context = 0;
    uint64_t activations = 0;            // of auto: all that plans take, on both devices; else the arena of one plan
    std::vector<std::string> unmatched;  // rules that concern nothing in this model

    uint64_t weight_bytes(WeightPlace place) const noexcept;
    // Whether any step runs there.
    bool on(uint32_t device) const noexcept;
    uint64_t kv_bytes() const noexcept;
};

// Places the weights of a program as models trace it, and assigns its steps to stages. A weight that only the host's
// stages read is placed there, whatever the rules say.
Placement place_weights(Program& traced, const PlacementRules& rules, const PlacementLimits& limits);

}  // namespace metallic

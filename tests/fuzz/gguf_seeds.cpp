#include "gguf_seeds.h"

#include <cstring>

#include "core/dtype.h"
#include "gguf_fuzz.h"

namespace metallic::testing {
namespace {

constexpr uint32_t kF32 = 0;

GgufBuilder with_all_values(uint32_t version) {
    GgufBuilder builder;
    builder.version = version;
    builder.add_string("general.architecture", "llama").add<uint8_t>("u8", 1).add<int8_t>("i8", -1);
    builder.add<uint16_t>("u16", 2).add<int16_t>("i16", -2).add<uint32_t>("u32", 3).add<int32_t>("i32", -3);
    builder.add<uint64_t>("u64", 4).add<int64_t>("i64", -4).add<float>("f32", 0.5f).add<double>("f64", 0.25);
    builder.add<bool>("bool", true).add_string("empty", "");
    builder.add_array<uint8_t>("au8", {1, 2}).add_array<int8_t>("ai8", {1, 2}).add_array<uint16_t>("au16", {1, 2});
    builder.add_array<int16_t>("ai16", {1}).add_array<uint32_t>("au32", {1, 2}).add_array<int32_t>("ai32", {1, 2});
    builder.add_array<uint64_t>("au64", {1}).add_array<int64_t>("ai64", {1, 2}).add_array<float>("af32", {1, 2, 3});
    builder.add_array<double>("af64", {1}).add_array<bool>("abool", {true, false}).add_array<float>("none", {});
    builder.add_strings("astr", {"<s>", "", "token"});
    return builder;
}

void add_all_types(GgufBuilder& builder) {
    for (uint32_t type = 0; type < 256; ++type) {
        const DTypeInfo* info = find_dtype(type);
        if (info == nullptr) continue;
        const std::string name = "blk." + std::to_string(type) + ".weight";
        builder.add_tensor(name, {info->block_elements, 2}, type, 2 * info->block_bytes);
    }
}

GgufBuilder vocabulary() {
    std::vector<std::string> tokens;
    for (int i = 0; i < 300; ++i) tokens.push_back("token" + std::to_string(i * 977 % 300));
    GgufBuilder builder;
    builder.add_string("tokenizer.ggml.model", "gpt2").add_strings("tokenizer.ggml.tokens", tokens);
    builder.add_array("tokenizer.ggml.scores", std::vector<float>(300, -1.0f));
    return builder;
}

Seed split_model() {
    Seed seed{"split", {}};
    for (uint16_t i = 0; i < 3; ++i) {
        GgufBuilder builder;
        builder.add<uint16_t>("split.no", i).add<uint16_t>("split.count", 3).add<int32_t>("split.tensors.count", 4);
        if (i == 0) builder.add_tensor("a", {4}, kF32, 16).add_tensor("b", {2, 2, 2, 2}, kF32, 64);
        if (i == 2) builder.add_tensor("c", {4}, kF32, 16).add_tensor("d", {4}, kF32, 16);
        seed.parts.push_back(builder.build());
    }
    return seed;
}

}  // namespace

std::vector<Seed> make_seeds() {
    std::vector<Seed> seeds;
    seeds.push_back({"empty", {GgufBuilder().build()}});
    seeds.push_back({"values, version 2", {with_all_values(2).build()}});
    seeds.push_back({"values, version 3", {with_all_values(3).build()}});
    GgufBuilder types = with_all_values(3);
    add_all_types(types);
    seeds.push_back({"types", {types.build()}});
    GgufBuilder aligned;
    aligned.alignment = 64;
    aligned.add<uint32_t>("general.alignment", 64);
    add_all_types(aligned);
    seeds.push_back({"alignment", {aligned.build()}});
    GgufBuilder small;
    small.version = 2;
    small.add_tensor("a", {4}, kF32, 16).add_tensor("b", {16, 1, 2, 1}, kF32, 128);
    seeds.push_back({"small", {small.build()}});
    seeds.push_back({"vocabulary", {vocabulary().build()}});
    seeds.push_back(split_model());
    return seeds;
}

std::vector<std::byte> join_parts(const std::vector<BuiltFile>& parts) {
    if (parts.size() == 1) return parts[0].bytes;
    std::vector<std::byte> joined;
    const auto append = [&joined](const void* data, size_t size) {
        const auto* raw = static_cast<const std::byte*>(data);
        joined.insert(joined.end(), raw, raw + size);
    };
    append(kPartsMagic.data(), kPartsMagic.size());
    const auto count = static_cast<uint32_t>(parts.size());
    append(&count, sizeof(count));
    for (const BuiltFile& part : parts) {
        const uint64_t length = part.bytes.size();
        append(&length, sizeof(length));
    }
    for (const BuiltFile& part : parts) append(part.bytes.data(), part.bytes.size());
    return joined;
}

}  // namespace metallic::testing

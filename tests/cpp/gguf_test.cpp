#include "gguf/gguf.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/error.h"
#include "gguf_builder.h"
#include "gguf_test_support.h"

namespace metallic {
namespace {

using testing::BuiltFile;
using testing::expect_corrupt;
using testing::GgufBuilder;
using testing::kF32;
using testing::kQ8_0;
using testing::two_tensors;

constexpr std::string_view kText("gr\xc3\xbc\0n", 6);  // not ASCII, and with a NUL inside

GgufFile parse(const BuiltFile& file) {
    return GgufFile::parse(file.bytes, "test.gguf");
}

template <typename T>
T value_of(const GgufFile& file, std::string_view key) {
    const MetadataEntry* entry = file.metadata.find(key);
    if (entry == nullptr) throw std::out_of_range(std::string(key));
    return std::get<T>(entry->value);
}

void expect_corrupt(const BuiltFile& file, std::string_view where, uint64_t offset, std::string_view text) {
    expect_corrupt([&] { parse(file); }, where, offset, text);
}

void expect_corrupt(const BuiltFile& file, std::string_view where, std::string_view field, std::string_view text) {
    expect_corrupt(file, where, file.offset_of(field), text);
}

void expect_unsupported(const BuiltFile& file, std::string_view text) {
    try {
        parse(file);
        FAIL() << "nothing was thrown; expected: " << text;
    } catch (const UnsupportedModelError& error) {
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
}

GgufBuilder all_values() {
    GgufBuilder builder;
    builder.add<uint8_t>("u8", 200).add<int8_t>("i8", -100).add<uint16_t>("u16", 60000).add<int16_t>("i16", -30000);
    builder.add<uint32_t>("u32", 4000000000u).add<int32_t>("i32", -2000000000).add<float>("f32", 1.5f);
    builder.add<bool>("yes", true).add<bool>("no", false).add_string("text", kText).add_string("none", "");
    builder.add<uint64_t>("u64", std::numeric_limits<uint64_t>::max());
    builder.add<int64_t>("i64", std::numeric_limits<int64_t>::min()).add<double>("f64", -0.1);
    builder.add_array<uint8_t>("a.u8", {1, 255}).add_array<int8_t>("a.i8", {-1, 2}).add_array<uint16_t>("a.u16", {7});
    builder.add_array<int16_t>("a.i16", {-7}).add_array<uint32_t>("a.u32", {1, 2, 3}).add_array<int32_t>("a.i32", {-5});
    builder.add_array<uint64_t>("a.u64", {1ull << 63}).add_array<int64_t>("a.i64", {-1}).add_array<float>("a.f32", {});
    builder.add_array<double>("a.f64", {0.25, -4}).add_array<bool>("a.bool", {true, false, true});
    builder.add_strings("a.text", {"a", "", "long enough to leave the small string"}).add_strings("a.none", {});
    return builder;
}

TEST(GgufMetadata, ReadsEveryType) {
    for (const uint32_t version : {2u, 3u}) {
        GgufBuilder builder = all_values();
        builder.version = version;
        const BuiltFile built = builder.build();
        const GgufFile file = parse(built);
        EXPECT_EQ(file.version, version);
        EXPECT_EQ(file.metadata.entries().size(), 27u);
        EXPECT_EQ(value_of<uint8_t>(file, "u8"), 200);
        EXPECT_EQ(value_of<int8_t>(file, "i8"), -100);
        EXPECT_EQ(value_of<uint16_t>(file, "u16"), 60000);
        EXPECT_EQ(value_of<int16_t>(file, "i16"), -30000);
        EXPECT_EQ(value_of<uint32_t>(file, "u32"), 4000000000u);
        EXPECT_EQ(value_of<int32_t>(file, "i32"), -2000000000);
        EXPECT_EQ(value_of<float>(file, "f32"), 1.5f);
        EXPECT_TRUE(value_of<bool>(file, "yes"));
        EXPECT_FALSE(value_of<bool>(file, "no"));
        EXPECT_EQ(value_of<std::string_view>(file, "text"), kText);
        EXPECT_EQ(value_of<std::string_view>(file, "none"), "");
        EXPECT_EQ(value_of<uint64_t>(file, "u64"), std::numeric_limits<uint64_t>::max());
        EXPECT_EQ(value_of<int64_t>(file, "i64"), std::numeric_limits<int64_t>::min());
        EXPECT_EQ(value_of<double>(file, "f64"), -0.1);
        EXPECT_EQ(file.metadata.find("absent"), nullptr);
    }
}

template <typename T>
std::vector<T> array_of(const GgufFile& file, std::string_view key) {
    const auto view = value_of<ArrayView<T>>(file, key);
    std::vector<T> values;
    for (size_t i = 0; i < view.size(); ++i) values.push_back(view[i]);
    return values;
}

TEST(GgufMetadata, ReadsEveryArray) {
    const BuiltFile built = all_values().build();
    const GgufFile file = parse(built);
    EXPECT_EQ(array_of<uint8_t>(file, "a.u8"), (std::vector<uint8_t>{1, 255}));
    EXPECT_EQ(array_of<int8_t>(file, "a.i8"), (std::vector<int8_t>{-1, 2}));
    EXPECT_EQ(array_of<uint16_t>(file, "a.u16"), (std::vector<uint16_t>{7}));
    EXPECT_EQ(array_of<int16_t>(file, "a.i16"), (std::vector<int16_t>{-7}));
    EXPECT_EQ(array_of<uint32_t>(file, "a.u32"), (std::vector<uint32_t>{1, 2, 3}));
    EXPECT_EQ(array_of<int32_t>(file, "a.i32"), (std::vector<int32_t>{-5}));
    EXPECT_EQ(array_of<uint64_t>(file, "a.u64"), (std::vector<uint64_t>{1ull << 63}));
    EXPECT_EQ(array_of<int64_t>(file, "a.i64"), (std::vector<int64_t>{-1}));
    EXPECT_EQ(array_of<double>(file, "a.f64"), (std::vector<double>{0.25, -4}));
    EXPECT_EQ(array_of<bool>(file, "a.bool"), (std::vector<bool>{true, false, true}));
    EXPECT_TRUE(value_of<ArrayView<float>>(file, "a.f32").empty());
    const auto text = value_of<StringArray>(file, "a.text");
    ASSERT_EQ(text.size(), 3u);
    EXPECT_EQ(text[0], "a");
    EXPECT_EQ(text[1], "");
    EXPECT_EQ(text[2], "long enough to leave the small string");
    EXPECT_TRUE(value_of<StringArray>(file, "a.none").empty());
    EXPECT_TRUE(StringArray().empty());
    float copied[3] = {7, 7, 7};
    value_of<ArrayView<float>>(file, "a.f32").copy_to(copied);
    EXPECT_EQ(copied[0], 7);
}

TEST(GgufMetadata, TakesOnlyIntegersAsUnsigned) {
    EXPECT_EQ(as_unsigned(GgufValue(uint8_t{9})), 9u);
    EXPECT_EQ(as_unsigned(GgufValue(int64_t{9})), 9u);
    EXPECT_EQ(as_unsigned(GgufValue(int32_t{-1})), std::nullopt);
    EXPECT_EQ(as_unsigned(GgufValue(true)), std::nullopt);
    EXPECT_EQ(as_unsigned(GgufValue(1.0f)), std::nullopt);
    EXPECT_EQ(as_unsigned(GgufValue(std::string_view("1"))), std::nullopt);
}

TEST(GgufMetadata, RefusesBadEntries) {
    const BuiltFile good = all_values().build();
    BuiltFile bad = good;
    bad.set<uint8_t>("yes.value", 2);
    expect_corrupt(bad, "yes", "yes.value", "must be 0 or 1, but is 2");
    bad = good;
    bad.set<uint8_t>("a.bool[2]", 255);
    expect_corrupt(bad, "a.bool", "a.bool[2]", "must be 0 or 1, but is 255");
    bad = good;
    bad.set<uint32_t>("u8.type", 13);
    expect_corrupt(bad, "u8", "u8.type", "no metadata value type has the id 13");
    bad = good;
    bad.set<uint32_t>("a.u8.element_type", 99);
    expect_corrupt(bad, "a.u8", "a.u8.element_type", "no array element type has the id 99");
    bad = good;
    bad.set<uint32_t>("a.u8.element_type", 9);
    expect_unsupported(bad, "test.gguf: a.u8: arrays of arrays are not supported");
    bad = good;
    bad.set<uint64_t>("text.value.length", std::numeric_limits<uint64_t>::max());
    expect_corrupt(bad, "text", "text.value.length", "18446744073709551615 bytes");
    bad = good;
    bad.set<uint64_t>("a.text[1].length", bad.bytes.size());
    expect_corrupt(bad, "a.text", "a.text[1].length", "has a length of");
    bad = good;
    bad.set<uint64_t>("a.u32.count", 1u << 29);
    expect_corrupt(bad, "a.u32", "a.u32.count", "536870912 array elements follow");
    bad = good;
    bad.set<uint64_t>("a.u64.count", 1ull << 61);
    expect_corrupt(bad, "a.u64", "a.u64.count", "at most 2^30");
    bad = good;
    bad.set<uint64_t>("a.text.count", 1u << 29);
    expect_corrupt(bad, "a.text", "a.text.count", "536870912 strings follow");
}

TEST(GgufMetadata, RefusesBadKeys) {
    BuiltFile empty = GgufBuilder().add<uint8_t>("", 1).add_string("padding", "enough bytes").build();
    expect_corrupt(empty, "", ".key.length", "key is empty");
    const BuiltFile twice = GgufBuilder().add<uint8_t>("same", 1).add<uint8_t>("same", 2).build();
    expect_corrupt(twice, "same", 24 + 8 + 4 + 4 + 1, "occurs twice");
    EXPECT_NO_THROW(parse(GgufBuilder().add<uint8_t>(std::string(65535, 'k'), 1).build()));
    const BuiltFile large = GgufBuilder().add<uint8_t>(std::string(65536, 'k'), 1).build();
    expect_corrupt(large, std::string(96, 'k') + "...", 24, "65536 bytes");
    const BuiltFile binary = GgufBuilder().add<uint8_t>("\x01\xff", 1).add<uint8_t>("\x01\xff", 1).build();
    expect_corrupt(binary, "\\x01\\xff", 24 + 8 + 2 + 4 + 1, "occurs twice");
}

TEST(GgufHeader, NamesWhatIsNoGguf) {
    const auto refuse = [](std::string_view bytes, std::string_view text) {
        expect_corrupt([&] { GgufFile::parse(std::as_bytes(std::span(bytes)), "x"); }, "", 0, text);
    };
    refuse("", "not a GGUF file");
    refuse("GGU", "not a GGUF file");
    refuse("version https://git-lfs.github.com/spec/v1", "git lfs pull");
    refuse("<!DOCTYPE html>", "web page");
    refuse(std::string_view("PK\x03\x04 and so on"), "PyTorch");
    refuse(std::string_view("\x10\0\0\0\0\0\0\0{\"a\":1}", 15), "safetensors");
    refuse("tjgg....", "GGJT");
}

TEST(GgufHeader, NamesVersionsAndCounts) {
    BuiltFile file = two_tensors().build();
    file.set<uint32_t>("version", 1);
    expect_unsupported(file, "GGUF version 1 is not supported");
    file.set<uint32_t>("version", 4);
    expect_unsupported(file, "GGUF version 4 is not supported");
    file.set<uint32_t>("version", 3u << 24);
    expect_unsupported(file, "big-endian GGUF file of version 3");
    file.set<uint32_t>("version", 0);
    expect_corrupt(file, "", 4, "version 0");
    file.set<uint32_t>("version", 3);
    file.set<uint64_t>("tensor_count", std::numeric_limits<uint64_t>::max());
    expect_corrupt(file, "", 8, "18446744073709551615 tensors follow");
    file.set<uint64_t>("tensor_count", 2);
    file.set<uint64_t>("entry_count", 1ull << 60);
    expect_corrupt(file, "", 16, "metadata entries follow");
    EXPECT_NO_THROW(parse(GgufBuilder().build()));
}

TEST(GgufHeader, RefusesEveryTruncation) {
    GgufBuilder builder = all_values();
    builder.add_tensor("first", {8, 2}, kF32, 64).add_tensor("second", {64, 3}, kQ8_0, 204);
    const BuiltFile file = builder.build();
    EXPECT_NO_THROW(parse(file));
    for (size_t size = 0; size < file.bytes.size(); ++size) {
        // A copy of its own, so that a sanitizer sees any access past the end.
        const std::vector<std::byte> part(file.bytes.begin(), file.bytes.begin() + static_cast<ptrdiff_t>(size));
        EXPECT_THROW(GgufFile::parse(part, "part"), ModelFormatError) << size;
    }
}

TEST(GgufAlignment, IsReadFromTheMetadata) {
    for (const uint32_t alignment : {8u, 32u, 64u, 4096u}) {
        GgufBuilder builder;
        builder.alignment = alignment;
        builder.add("general.alignment", alignment).add_tensor("t", {3}, kF32, 12).add_tensor("u", {3}, kF32, 12);
        const BuiltFile built = builder.build();
        const GgufFile file = parse(built);
        EXPECT_EQ(file.alignment, alignment);
        EXPECT_EQ(file.data_offset % alignment, 0u);
        EXPECT_EQ(file.tensors[1].offset - file.tensors[0].offset, std::max<uint64_t>(16, alignment));
        EXPECT_EQ(built.bytes[file.tensors[1].offset], std::byte{8});
    }
    for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 1u << 31}) {
        const BuiltFile bad = GgufBuilder().add("general.alignment", alignment).build();
        expect_corrupt(bad, "general.alignment", "general.alignment.value", "power of two from 8 to 2^30");
    }
    const BuiltFile text = GgufBuilder().add_string("general.alignment", "32").build();
    expect_corrupt(text, "general.alignment", "general.alignment.value.length", "must be a positive integer");
}

TEST(GgufTensors, AreDescribed) {
    const BuiltFile built = two_tensors().build();
    const GgufFile file = parse(built);
    ASSERT_EQ(file.tensors.size(), 2u);
    const TensorInfo& second = file.tensors[1];
    EXPECT_EQ(second.name, "second");
    EXPECT_EQ(second.dtype, DType::Q8_0);
    EXPECT_EQ(second.n_dims, 2u);
    EXPECT_EQ(second.shape, (std::array<uint64_t, 4>{64, 3, 1, 1}));
    EXPECT_EQ(second.bytes, 204u);
    EXPECT_EQ(second.offset, file.data_offset + 64);
    EXPECT_EQ(second.offset + second.bytes, built.bytes.size());
}

TEST(GgufTensors, OfEverySupportedTypeHaveTheirSize) {
    size_t supported = 0;
    for (uint32_t type = 0; type < 256; ++type) {
        const DTypeInfo* info = find_dtype(type);
        if (info == nullptr) continue;
        ++supported;
        const uint64_t row = uint64_t{2} * info->block_elements;
        const BuiltFile built = GgufBuilder().add_tensor("t", {row, 3, 2}, type, 12 * info->block_bytes).build();
        EXPECT_EQ(parse(built).tensors[0].bytes, 12u * info->block_bytes) << info->name;
        if (info->block_elements == 1) continue;
        BuiltFile bad = built;
        bad.set<uint64_t>("t.dim0", row + 1);
        expect_corrupt(bad, "t", "t.dim0", "no multiple of");
    }
    EXPECT_GE(supported, 17u);
}

TEST(GgufTensors, OfOtherTypesAreNamed) {
    BuiltFile file = two_tensors().build();
    file.set<uint32_t>("second.type", 16);
    expect_unsupported(file, "test.gguf: second: the tensor has type IQ2_XXS");
    expect_unsupported(file, "supported types: F32, F16, Q4_0");
    file.set<uint32_t>("second.type", 0xdeadbeef);
    expect_unsupported(file, "unknown type id 3735928559");
}

TEST(GgufTensors, WithBadNamesAreRefused) {
    const BuiltFile empty = GgufBuilder().add_tensor("", {4}, kF32, 16).build();
    expect_corrupt(empty, "", 24, "name is empty");
    const BuiltFile twice = GgufBuilder().add_tensor("t", {4}, kF32, 16).add_tensor("t", {4}, kF32, 16).build();
    expect_corrupt(twice, "t", 24 + 8 + 1 + 4 + 8 + 4 + 8, "occurs twice");
    EXPECT_NO_THROW(parse(GgufBuilder().add_tensor(std::string(64, 'n'), {4}, kF32, 16).build()));
    const BuiltFile large = GgufBuilder().add_tensor(std::string(65, 'n'), {4}, kF32, 16).build();
    expect_corrupt(large, std::string(65, 'n'), 24, "65 bytes");
}

TEST(GgufTensors, WithBadShapesAreRefused) {
    const BuiltFile good = GgufBuilder().add_tensor("t", {4, 1, 1, 1}, kF32, 16).build();
    EXPECT_NO_THROW(parse(good));
    for (const uint32_t n_dims : {0u, 5u, 0xffffffffu}) {
        BuiltFile bad = good;
        bad.set("t.n_dims", n_dims);
        expect_corrupt(bad, "t", "t.n_dims", "1 to 4 are allowed");
    }
    BuiltFile bad = good;
    bad.set<uint64_t>("t.dim2", 0);
    expect_corrupt(bad, "t", "t.dim2", "dimension 2 of the tensor is 0");
    bad = good;
    bad.set<uint64_t>("t.dim1", 1ull << 62);
    expect_corrupt(bad, "t", "t.dim1", "overflows");
    bad = good;
    bad.set<uint64_t>("t.dim0", 1ull << 63);
    expect_corrupt(bad, "t", "t.dim0", "overflows");
    bad = good;
    bad.set<uint64_t>("t.dim0", 1ull << 62);  // times 4 bytes wraps to 0
    expect_corrupt(bad, "t", "t.dim0", "more than the whole file");
    bad = good;
    bad.set<uint64_t>("t.dim0", 5);
    expect_corrupt(bad, "t", "t.offset", "end beyond the file");
}

TEST(GgufTensors, WithBadPlacesAreRefused) {
    const BuiltFile good = two_tensors().build();
    BuiltFile bad = good;
    bad.set<uint64_t>("second.offset", 72);
    expect_corrupt(bad, "second", "second.offset", "no multiple of the file's alignment of 32");
    bad = good;
    bad.set<uint64_t>("second.offset", 96);
    expect_corrupt(bad, "second", "second.offset", "end beyond the file");
    bad = good;
    bad.set<uint64_t>("second.offset", ~uint64_t{31});
    expect_corrupt(bad, "second", "second.offset", "end beyond the file");
    bad = good;
    bad.set<uint64_t>("second.offset", 32);
    expect_corrupt(bad, "second", "second.offset", "overlaps that of first");
    bad = good;
    bad.set<uint64_t>("first.offset", 64);
    expect_corrupt(bad, "second", "second.offset", "overlaps that of first");
}

TEST(GgufTensors, MayStandInAnyOrder) {
    GgufBuilder builder;
    builder.add_tensor("first", {16}, kF32, 64).add_tensor("second", {16}, kF32, 64);
    BuiltFile file = builder.build();
    file.set<uint64_t>("first.offset", 64);
    file.set<uint64_t>("second.offset", 0);
    const GgufFile parsed = parse(file);
    EXPECT_EQ(parsed.tensors[0].name, "first");
    EXPECT_EQ(parsed.tensors[0].offset, parsed.data_offset + 64);
}

}  // namespace
}  // namespace metallic

#include "gguf/model_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/error.h"
#include "gguf/mapped_file.h"
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

// A folder of its own that is removed with everything in it.
class TemporaryFolder {
  public:
    TemporaryFolder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "gguf-test-XXXXXX").string();
        if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
        path_ = pattern;
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;

    std::string operator/(const std::string& name) const { return (path_ / name).string(); }

    std::string write(const std::string& name, const std::vector<std::byte>& bytes) const {
        const std::string path = *this / name;
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        return path;
    }

  private:
    std::filesystem::path path_;
};

GgufBuilder split_part(uint16_t number, uint16_t count, int32_t tensors) {
    GgufBuilder builder;
    if (number == 0) builder.add_string("general.name", "split");
    builder.add("split.no", number).add("split.count", count).add("split.tensors.count", tensors);
    return builder;
}

// Three parts with two, zero and one tensors.
std::vector<std::string> write_split(const TemporaryFolder& folder) {
    GgufBuilder parts[] = {split_part(0, 3, 3), split_part(1, 3, 3), split_part(2, 3, 3)};
    parts[0].add_tensor("a", {4}, kF32, 16).add_tensor("b", {4}, kF32, 16);
    parts[2].add_tensor("c", {32}, kQ8_0, 34);
    std::vector<std::string> paths;
    for (size_t i = 0; i < 3; ++i) {
        paths.push_back(folder.write("m-0000" + std::to_string(i + 1) + "-of-00003.gguf", parts[i].build().bytes));
    }
    return paths;
}

TEST(MappedFileTest, NamesWhatCannotBeOpened) {
    const TemporaryFolder folder;
    const std::string missing = folder / "missing.gguf";
    try {
        MappedFile::open(missing);
        FAIL();
    } catch (const ModelFormatError&) {
        FAIL() << "a missing file is no fault of its format";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(missing), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("No such file"), std::string::npos) << error.what();
    }
    EXPECT_THROW(MappedFile::open(std::string("a\0b", 3)), Error);
    EXPECT_THROW(MappedFile::open(""), Error);
    expect_corrupt([&] { MappedFile::open(folder / ""); }, "", 0, "directory");
    const std::string empty = folder.write("empty", {});
    expect_corrupt([&] { MappedFile::open(empty); }, "", 0, "empty");
    const std::string pipe = folder / "pipe";
    ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
    expect_corrupt([&] { MappedFile::open(pipe); }, "", 0, "not a regular file");
}

TEST(MappedFileTest, NoticesTruncation) {
    const TemporaryFolder folder;
    const std::string path = folder.write("file", std::vector<std::byte>(100, std::byte{7}));
    const auto file = MappedFile::open(path);
    EXPECT_EQ(file->bytes().size(), 100u);
    EXPECT_EQ(file->bytes()[99], std::byte{7});
    EXPECT_EQ(file->path(), path);
    EXPECT_NO_THROW(file->check_not_truncated());
    std::filesystem::resize_file(path, 60);
    expect_corrupt([&] { file->check_not_truncated(); }, "", 60, "truncated while in use: it had 100 bytes");
    std::filesystem::resize_file(path, 200);
    EXPECT_NO_THROW(file->check_not_truncated());
    std::filesystem::remove(path);
    EXPECT_NO_THROW(file->check_not_truncated());
}

TEST(MappedFileTest, TakesHintsAboutAnyRange) {
    const TemporaryFolder folder;
    std::vector<std::byte> bytes(100000);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7);
    const auto file = MappedFile::open(folder.write("file", bytes));
    const auto all = file->bytes();
    for (const auto range : {all, all.subspan(1), all.subspan(5000, 1), all.subspan(99999), all.first(0)}) {
        file->will_need(range);
        file->not_needed(range);
    }
    file->will_need({});
    file->not_needed(std::span(bytes));  // outside: must not touch this vector's pages
    EXPECT_TRUE(std::equal(all.begin(), all.end(), bytes.begin(), bytes.end()));
}

TEST(ModelFileTest, OpensOneFile) {
    const TemporaryFolder folder;
    const BuiltFile built = two_tensors().build();
    const std::string path = folder.write("model.gguf", built.bytes);
    const ModelFile model = ModelFile::open(path);
    EXPECT_EQ(model.paths(), std::vector<std::string>{path});
    EXPECT_EQ(model.version(), 3u);
    ASSERT_EQ(model.tensors().size(), 2u);
    EXPECT_EQ(model.find_tensor("third"), nullptr);
    EXPECT_THROW(model.tensor("third"), RequestError);
    const TensorInfo& second = model.tensor("second");
    EXPECT_EQ(second.file, 0u);
    const auto bytes = model.tensor_bytes(second);
    ASSERT_EQ(bytes.size(), 204u);
    EXPECT_EQ(bytes[0], std::byte{8});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 32, 0u);
    EXPECT_EQ(model.mapping(0)->path(), path);
    TensorInfo foreign = second;
    foreign.file = 1;
    EXPECT_THROW(model.tensor_bytes(foreign), RequestError);
    foreign = second;
    foreign.offset = std::numeric_limits<uint64_t>::max();
    EXPECT_THROW(model.tensor_bytes(foreign), RequestError);
    std::filesystem::resize_file(path, 100);
    EXPECT_THROW(model.tensor_bytes(second), ModelFormatError);
}

TEST(ModelFileTest, OpensVocabularyOnlyFiles) {
    const TemporaryFolder folder;
    GgufBuilder builder;
    builder.add_strings("tokens", {"a", "b"});
    const ModelFile model = ModelFile::open(folder.write("vocab.gguf", builder.build().bytes));
    EXPECT_TRUE(model.tensors().empty());
    EXPECT_NE(model.metadata().find("tokens"), nullptr);
}

TEST(ModelFileTest, OpensSplitModelsFromAnyPart) {
    const TemporaryFolder folder;
    const std::vector<std::string> paths = write_split(folder);
    for (const std::string& path : paths) {
        ModelFile opened = ModelFile::open(path);
        const ModelFile model = std::move(opened);
        EXPECT_EQ(model.paths(), paths);
        ASSERT_EQ(model.tensors().size(), 3u);
        EXPECT_EQ(model.tensors()[1].name, "b");
        EXPECT_EQ(model.tensors()[1].file, 0u);
        EXPECT_EQ(model.tensor("c").file, 2u);
        EXPECT_EQ(model.tensor_bytes(model.tensor("c")).size(), 34u);
        EXPECT_EQ(model.tensor_bytes(model.tensor("c"))[0], std::byte{1});
        EXPECT_NE(model.metadata().find("general.name"), nullptr);
    }
}

TEST(ModelFileTest, FollowsLinksByTheirOwnNames) {
    const TemporaryFolder folder;
    const std::vector<std::string> paths = write_split(folder);
    std::filesystem::create_directory(folder / "links");
    for (size_t i = 0; i < paths.size(); ++i) {
        const std::string blob = folder / ("blob" + std::to_string(i));
        std::filesystem::rename(paths[i], blob);
        std::filesystem::create_symlink(blob, folder / ("links/x-0000" + std::to_string(i + 1) + "-of-00003.gguf"));
    }
    EXPECT_EQ(ModelFile::open(folder / "links/x-00001-of-00003.gguf").tensors().size(), 3u);
    EXPECT_THROW(ModelFile::open(folder / "blob0"), ModelFormatError);
}

TEST(ModelFileTest, NamesTheMissingPart) {
    const TemporaryFolder folder;
    const std::vector<std::string> paths = write_split(folder);
    std::filesystem::remove(paths[1]);
    for (const std::string& path : {paths[0], paths[2]}) {
        try {
            ModelFile::open(path);
            FAIL();
        } catch (const ModelFormatError& error) {
            EXPECT_EQ(error.where, "split.count");
            EXPECT_NE(std::string(error.what()).find("part 2 of 3"), std::string::npos) << error.what();
            EXPECT_NE(std::string(error.what()).find(paths[1]), std::string::npos) << error.what();
        }
    }
}

TEST(ModelFileTest, RefusesPartsThatDoNotBelongTogether) {
    const auto open_with_second = [](const GgufBuilder& second, const std::string& name = "m-00002-of-00002.gguf") {
        const TemporaryFolder folder;
        GgufBuilder first = split_part(0, 2, 2);
        folder.write("m-00001-of-00002.gguf", first.add_tensor("a", {4}, kF32, 16).build().bytes);
        folder.write("m-00002-of-00002.gguf", second.build().bytes);
        if (name != "m-00002-of-00002.gguf") folder.write(name, second.build().bytes);
        return ModelFile::open(folder / (name == "m-00002-of-00002.gguf" ? "m-00001-of-00002.gguf" : name));
    };
    const auto refuse = [&](const GgufBuilder& second, std::string_view where, std::string_view text,
                            const std::string& name = "m-00002-of-00002.gguf") {
        try {
            open_with_second(second, name);
            FAIL() << text;
        } catch (const ModelFormatError& error) {
            EXPECT_EQ(error.where, where);
            EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
        }
    };
    const auto with_tensor = [](GgufBuilder builder, const std::string& name) {
        return builder.add_tensor(name, {4}, kF32, 16);
    };
    EXPECT_EQ(open_with_second(with_tensor(split_part(1, 2, 2), "b")).tensors().size(), 2u);
    refuse(with_tensor(split_part(1, 2, 2), "a"), "a", "is also in");
    refuse(with_tensor(split_part(0, 2, 2), "b"), "split.no", "says that it is part 0");
    refuse(with_tensor(split_part(1, 3, 2), "b"), "split.count", "one of 3 parts");
    refuse(with_tensor(split_part(1, 2, 5), "b"), "split.tensors.count", "5 tensors, but they have 2");
    refuse(split_part(1, 2, 2), "split.tensors.count", "2 tensors, but they have 1");
    refuse(GgufBuilder().add<uint16_t>("split.count", 2), "split.no", "missing");
    refuse(GgufBuilder().add<uint16_t>("split.no", 1).add<float>("split.count", 2), "split.count", "integer");
    refuse(GgufBuilder(), "split.count", "one of 1 parts");
    refuse(with_tensor(split_part(1, 2, 2), "b"), "split.no", "must end in \"-00002-of-00002.gguf\"", "renamed.gguf");
    refuse(with_tensor(split_part(7, 2, 2), "b"), "split.no", "does not exist", "renamed.gguf");
}

TEST(ModelFileTest, OpensMergedModels) {
    const TemporaryFolder folder;
    GgufBuilder merged = split_part(0, 0, 1);
    merged.add_tensor("t", {4}, kF32, 16);
    EXPECT_EQ(ModelFile::open(folder.write("merged.gguf", merged.build().bytes)).tensors().size(), 1u);
}

TEST(ModelFileTest, ReadsFromMemory) {
    const auto bytes = std::make_shared<const std::vector<std::byte>>(two_tensors().build().bytes);
    const ModelFile model = ModelFile::from_sources({{"memory", *bytes, bytes, nullptr}});
    EXPECT_EQ(model.tensor_bytes(model.tensor("first")).size(), 64u);
    EXPECT_EQ(model.mapping(0), nullptr);
    EXPECT_THROW(ModelFile::from_sources({}), RequestError);
    EXPECT_THROW(ModelFile::from_sources({{"a", *bytes, bytes, nullptr}, {"b", *bytes, bytes, nullptr}}),
                 ModelFormatError);
}

}  // namespace
}  // namespace metallic

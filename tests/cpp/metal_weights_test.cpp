#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "backend/backend.h"
#include "gguf_builder.h"
#include "runtime/weights.h"

// Private weights of a file larger than any buffer of host memory that loading may take.
namespace metallic::testing {
namespace {

constexpr uint64_t kRows = 16384, kCols = 1024, kBytes = kRows * kCols * sizeof(float);  // 67 MB
constexpr uint32_t kMatrices = 8;
constexpr uint64_t kMost = 128'000'000;

// A line of /proc/self/status in bytes; 0 where there is none.
uint64_t memory_status(const std::string& key) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1)) * 1024;
    }
    return 0;
}

// A sparse file: all zeros but for a mark in each tensor.
class LargeFile {
  public:
    LargeFile() {
        GgufBuilder builder;
        builder.add_string("general.architecture", "none");
        // The data section of a built file ends with the data that its tensors were given: none here.
        for (uint32_t i = 0; i < kMatrices; ++i) {
            builder.add_tensor("matrix." + std::to_string(i), {kCols, kRows}, 0, 0);
        }
        BuiltFile built = builder.build();
        for (uint32_t i = 0; i < kMatrices; ++i) {
            built.set("matrix." + std::to_string(i) + ".offset", uint64_t{i} * kBytes);
        }
        const int file = mkstemp(path_.data());
        EXPECT_GE(file, 0);
        EXPECT_EQ(write(file, built.bytes.data(), built.bytes.size()), static_cast<ssize_t>(built.bytes.size()));
        EXPECT_EQ(ftruncate(file, static_cast<off_t>(built.bytes.size() + kMatrices * kBytes)), 0);
        for (uint32_t i = 0; i < kMatrices; ++i) {
            const float mark = static_cast<float>(i + 1);
            const uint64_t at = built.bytes.size() + i * kBytes + kBytes - sizeof(mark);
            EXPECT_EQ(pwrite(file, &mark, sizeof(mark), static_cast<off_t>(at)), 4);
        }
        close(file);
        model = std::make_shared<ModelFile>(ModelFile::open(path_));
    }
    ~LargeFile() { std::remove(path_.c_str()); }

    std::shared_ptr<const ModelFile> model;

  private:
    std::string path_ = (std::getenv("TMPDIR") ? std::getenv("TMPDIR") : std::string("/tmp")) + "/weights.XXXXXX";
};

TEST(MetalWeights, LoadingTakesLittleHostMemory) {
    const LargeFile file;
    Program program;
    std::vector<WeightId> ids;
    for (uint32_t i = 0; i < kMatrices; ++i) {
        program.weights.push_back({"matrix." + std::to_string(i), DType::F32, kCols, kRows, 1});
        ids.push_back(i);
    }
    const std::vector<std::optional<Storage>> storage(kMatrices, Storage::exclusive);
    const std::shared_ptr<Backend> backend = create_backend({"metal", 0});
    Pool pool(backend, 0);
    Weights weights(file.model, backend, pool, program, storage);
    ASSERT_GT(weights.copied_bytes(), 500'000'000u);

    const auto seen = backend->create_heap(sizeof(float), Storage::shared, "seen");
    const auto last_of = [&](uint32_t i) {
        BufferView last = weights.views()[i];
        last.offset += last.bytes - sizeof(float);
        last.bytes = sizeof(float);
        backend->copy(last, {seen.get(), 0, sizeof(float)});
        return *reinterpret_cast<const float*>(seen->host());
    };
    // The simulated device's memory is the host's too: all of it is touched before anything is measured.
    for (uint32_t i = 0; i < kMatrices; ++i) {
        backend->clear(weights.views()[i]);
        EXPECT_EQ(last_of(i), 0.0f);
    }
    // What is looked at between two parts is what the part before left.
    const uint64_t device_before = memory_status("RssAnon"), mapped_before = memory_status("RssFile");
    uint64_t most_mapped = 0;
    weights.upload(ids, [&] {
        most_mapped = std::max(most_mapped, memory_status("RssFile"));
        return false;
    });
    if (device_before == 0) GTEST_SKIP() << "there is no /proc to read the process's memory from";
    const uint64_t grown = memory_status("RssAnon") - device_before;
    RecordProperty("grown", std::to_string(grown));
    EXPECT_LT(most_mapped - std::min(most_mapped, mapped_before), kMost / 2);
    EXPECT_LT(grown, kMost / 2) << "more than the ring of staging buffers";

    for (uint32_t i = 0; i < kMatrices; ++i) EXPECT_EQ(last_of(i), static_cast<float>(i + 1));
    // What is dropped and made again takes no more.
    EXPECT_EQ(weights.evict(), kMatrices * kBytes);
    weights.restore();
    weights.upload(ids, {});
    EXPECT_LT(memory_status("RssAnon") - device_before, kMost);
}

}  // namespace
}  // namespace metallic::testing

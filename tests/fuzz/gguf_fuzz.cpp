#include "gguf_fuzz.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "allocation_meter.h"
#include "core/error.h"
#include "gguf/model_file.h"

// Feeds arbitrary bytes to the GGUF reader. What must hold for every input: a typed error or a model all of whose
// parts can be read; memory in proportion to the input; messages that are plain text. Meant for AddressSanitizer and
// UndefinedBehaviorSanitizer, which see any access outside the input's own blocks.
namespace metallic::testing {

FuzzCounts g_fuzz_counts;

namespace {

constexpr size_t kMaxParts = 16;

// What walking a model reads ends here, so that no read is optimised away.
volatile uint64_t g_sink;

[[noreturn]] void report(const char* finding, const std::string& detail) {
    std::fprintf(stderr, "finding: %s: %s\n", finding, detail.c_str());
    std::abort();
}

void require(bool holds, const char* finding, const std::string& detail = "") {
    if (!holds) report(finding, detail);
}

// A copy that ends where its block ends.
ModelFile::Source make_source(size_t index, std::span<const uint8_t> bytes) {
    std::shared_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
    if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
    const std::span<const std::byte> view(copy.get(), bytes.size());
    return {"part" + std::to_string(index), view, std::move(copy), nullptr};
}

std::vector<ModelFile::Source> split_input(std::span<const uint8_t> input) {
    std::vector<ModelFile::Source> sources;
    uint32_t count = 0;
    const size_t header = kPartsMagic.size() + sizeof(count);
    if (input.size() >= header && std::memcmp(input.data(), kPartsMagic.data(), kPartsMagic.size()) == 0) {
        std::memcpy(&count, input.data() + kPartsMagic.size(), sizeof(count));
    }
    if (count == 0 || count > kMaxParts || input.size() < header + count * sizeof(uint64_t)) {
        sources.push_back(make_source(0, input));
        return sources;
    }
    auto rest = input.subspan(header + count * sizeof(uint64_t));
    for (size_t i = 0; i < count; ++i) {
        uint64_t length = 0;
        std::memcpy(&length, input.data() + header + i * sizeof(length), sizeof(length));
        length = std::min<uint64_t>(length, rest.size());
        sources.push_back(make_source(i, rest.first(length)));
        rest = rest.subspan(length);
    }
    return sources;
}

uint64_t sum(std::string_view text) {
    uint64_t total = text.size();
    for (const char c : text) total += static_cast<unsigned char>(c);
    return total;
}

uint64_t sum(const StringArray& array) {
    uint64_t total = 0;
    for (size_t i = 0; i < array.size(); ++i) total += sum(array[i]);
    return total;
}

template <typename T>
uint64_t sum(const ArrayView<T>& array) {
    uint64_t total = 0;
    for (size_t i = 0; i < array.size(); ++i) total += array[i] != T{};
    return total;
}

template <typename T>
    requires std::is_arithmetic_v<T>
uint64_t sum(T value) {
    return value != T{};
}

void walk_metadata(const ModelFile& model) {
    uint64_t total = 0;
    for (const MetadataEntry& entry : model.metadata().entries()) {
        require(!entry.key.empty() && entry.key.size() <= 65535, "a key of a forbidden length was accepted");
        require(model.metadata().find(entry.key) == &entry, "a key is not found under its name");
        total += sum(entry.key) + std::visit([](const auto& value) { return sum(value); }, entry.value);
        total += as_unsigned(entry.value).value_or(0);
    }
    g_sink = total;
}

void walk_tensors(const ModelFile& model) {
    uint64_t total = 0;
    std::vector<std::pair<const std::byte*, const std::byte*>> ranges;
    for (const TensorInfo& tensor : model.tensors()) {
        require(&model.tensor(tensor.name) == &tensor, "a tensor is not found under its name");
        const auto bytes = model.tensor_bytes(tensor);
        require(!bytes.empty() && bytes.size() == tensor.bytes, "a tensor has another size than it says");
        require(tensor.offset % 8 == 0, "a tensor is not aligned");
        uint64_t rows = 1;
        for (size_t i = 1; i < tensor.shape.size(); ++i) rows *= tensor.shape[i];
        require(rows * row_bytes(tensor.dtype, tensor.shape[0]) == bytes.size(), "a tensor's shape belies its size");
        total += std::to_integer<uint64_t>(bytes.front()) + std::to_integer<uint64_t>(bytes.back());
        ranges.emplace_back(bytes.data(), bytes.data() + bytes.size());
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) {
        require(ranges[i - 1].second <= ranges[i].first, "two tensors overlap");
    }
    g_sink = total;
}

// What a model does not show: that tensors stand in the data section, and not in the header.
void check_parts(const std::vector<ModelFile::Source>& sources) {
    for (const ModelFile::Source& source : sources) {
        const GgufFile file = GgufFile::parse(source.bytes, source.name);
        for (const TensorInfo& tensor : file.tensors) {
            require(tensor.offset >= file.data_offset, "a tensor lies in the header", tensor.name);
        }
    }
}

void check_text(const std::string& text) {
    require(text.size() < 4096, "a message is too long", text);
    const bool plain = std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    require(plain, "a message holds bytes of the file", text);
}

void read_model(std::vector<ModelFile::Source> sources, size_t input_size) {
    try {
        check_parts(sources);
        const ModelFile model = ModelFile::from_sources(std::move(sources));
        walk_metadata(model);
        walk_tensors(model);
        ++g_fuzz_counts.accepted;
    } catch (const ModelFormatError& error) {
        check_text(error.what());
        require(error.file.starts_with("part"), "an error names no file", error.what());
        require(error.offset <= input_size, "an error's offset is outside the file", error.what());
        ++g_fuzz_counts.format_errors;
    } catch (const UnsupportedModelError& error) {
        check_text(error.what());
        ++g_fuzz_counts.unsupported;
    } catch (const std::exception& error) {
        report("an exception of the wrong type", error.what());
    }
}

}  // namespace
}  // namespace metallic::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace metallic::testing;
    auto sources = split_input({data, size});
    begin_allocation_peak();
    read_model(std::move(sources), size);
    const size_t allowed = 64 * size + (size_t{1} << 20);
    const size_t peak = allocation_peak();
    require(peak <= allowed, "too much memory",
            std::to_string(peak) + " bytes for an input of " + std::to_string(size));
    g_fuzz_counts.worst_allocation =
        std::max(g_fuzz_counts.worst_allocation, static_cast<double>(peak) / static_cast<double>(allowed));
    return 0;
}

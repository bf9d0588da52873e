#include "gguf/model_file.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <new>
#include <optional>
#include <utility>

#include "core/error.h"

namespace metallic {
namespace {

constexpr std::string_view kSplitNumber = "split.no";
constexpr std::string_view kSplitCount = "split.count";
constexpr std::string_view kSplitTensors = "split.tensors.count";

// The value of an integer key; nothing when the key is absent.
std::optional<uint64_t> find_unsigned(const GgufFile& file, std::string_view key) {
    const MetadataEntry* entry = file.metadata.find(key);
    if (entry == nullptr) return std::nullopt;
    const auto value = as_unsigned(entry->value);
    if (!value) {
        throw ModelFormatError("the value must be an integer that is not negative", file.name, std::string(key),
                               entry->offset);
    }
    return value;
}

[[noreturn]] void fail_at_key(const GgufFile& file, std::string_view key, const std::string& message) {
    const MetadataEntry* entry = file.metadata.find(key);
    throw ModelFormatError(message, file.name, std::string(key), entry != nullptr ? entry->offset : 0);
}

// "-00002-of-00005.gguf" for number 1 of 5.
std::string split_suffix(uint64_t number, uint64_t count) {
    std::array<char, 64> text{};
    std::snprintf(text.data(), text.size(), "-%05llu-of-%05llu.gguf", static_cast<unsigned long long>(number) + 1,
                  static_cast<unsigned long long>(count));
    return text.data();
}

void check_split_keys(const GgufFile& file, uint64_t number, uint64_t count) {
    const auto own_count = find_unsigned(file, kSplitCount);
    const auto own_number = find_unsigned(file, kSplitNumber);
    // An unsplit file may say so with a count of 0 (as gguf-split --merge does) or 1.
    const uint64_t parts = std::max<uint64_t>(own_count.value_or(1), 1);
    if (parts != count) {
        fail_at_key(file, kSplitCount,
                    "the file says that it is one of " + std::to_string(parts) + " parts, but the model has " +
                        std::to_string(count));
    }
    if (count > 1 && !own_number) fail_at_key(file, kSplitNumber, "this key is missing in a part of a split model");
    if (own_number.value_or(0) != number) {
        fail_at_key(file, kSplitNumber,
                    "the file says that it is part " + std::to_string(*own_number) +
                        " (counted from 0), but stands as " + "part " + std::to_string(number) + " of " +
                        std::to_string(count));
    }
}

void check_tensor_count(const GgufFile& file, uint64_t tensors) {
    const auto expected = find_unsigned(file, kSplitTensors);
    if (!expected || *expected == tensors) return;
    fail_at_key(file, kSplitTensors,
                "the file says that all parts together have " + std::to_string(*expected) + " tensors, but they have " +
                    std::to_string(tensors));
}

}  // namespace

struct ModelFile::Part {
    Source source;
    GgufFile gguf;
};

ModelFile::Part ModelFile::load(const std::string& path) {
    auto mapping = MappedFile::open(path);
    GgufFile gguf = GgufFile::parse(mapping->bytes(), path);
    mapping->check_not_truncated();
    const auto bytes = mapping->bytes();
    return {{path, bytes, mapping, mapping}, std::move(gguf)};
}

std::vector<ModelFile::Part> ModelFile::load_all_parts(Part given, uint64_t count) {
    const std::string path = given.gguf.name;
    const uint64_t count_at = given.gguf.metadata.find(kSplitCount)->offset;
    const auto number = find_unsigned(given.gguf, kSplitNumber);
    if (!number) fail_at_key(given.gguf, kSplitNumber, "this key is missing in a part of a split model");
    if (*number >= count) {
        fail_at_key(
            given.gguf, kSplitNumber,
            "part " + std::to_string(*number) + " (counted from 0) of " + std::to_string(count) + " does not exist");
    }
    const std::string suffix = split_suffix(*number, count);
    if (!path.ends_with(suffix)) {
        fail_at_key(given.gguf, kSplitNumber,
                    "this is part " + std::to_string(*number + 1) + " of " + std::to_string(count) +
                        " of a split model, and its name must end in \"" + suffix + "\" for the others to be found");
    }
    const std::string prefix = path.substr(0, path.size() - suffix.size());
    std::vector<Part> parts;
    for (uint64_t i = 0; i < count; ++i) {
        if (i == *number) {
            parts.push_back(std::move(given));  // NOLINT(bugprone-use-after-move): i meets the number once
            continue;
        }
        const std::string part_path = prefix + split_suffix(i, count);
        std::error_code ignored;
        if (!std::filesystem::exists(part_path, ignored)) {
            throw ModelFormatError("part " + std::to_string(i + 1) + " of " + std::to_string(count) +
                                       " of this split model is missing: there is no file " + part_path,
                                   path, std::string(kSplitCount), count_at);
        }
        parts.push_back(load(part_path));
    }
    return parts;
}

void ModelFile::add_tensors(std::vector<TensorInfo>&& tensors, uint32_t file) {
    for (TensorInfo& tensor : tensors) {
        tensor.file = file;
        tensors_.push_back(std::move(tensor));
    }
}

ModelFile ModelFile::assemble(std::vector<Part> parts) {
    size_t total = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
        check_split_keys(parts[i].gguf, i, parts.size());
        total += parts[i].gguf.tensors.size();
    }
    ModelFile model;
    model.tensors_.reserve(total);
    for (size_t i = 0; i < parts.size(); ++i) {
        check_tensor_count(parts[i].gguf, total);
        model.add_tensors(std::move(parts[i].gguf.tensors), static_cast<uint32_t>(i));
        model.paths_.push_back(parts[i].source.name);
        model.sources_.push_back(std::move(parts[i].source));
    }
    model.version_ = parts.front().gguf.version;
    model.metadata_ = std::move(parts.front().gguf.metadata);
    model.index_.reserve(total);
    for (size_t i = 0; i < total; ++i) {
        const TensorInfo& tensor = model.tensors_[i];
        const auto [found, inserted] = model.index_.emplace(tensor.name, i);
        if (inserted) continue;
        throw ModelFormatError("the tensor is also in " + model.paths_[model.tensors_[found->second].file],
                               model.paths_[tensor.file], printable(tensor.name), tensor.offset);
    }
    return model;
}

ModelFile ModelFile::open(const std::string& path) {
    try {
        Part part = load(path);
        const uint64_t count = std::max<uint64_t>(find_unsigned(part.gguf, kSplitCount).value_or(1), 1);
        std::vector<Part> parts;
        if (count > 1) {
            parts = load_all_parts(std::move(part), count);
        } else {
            parts.push_back(std::move(part));
        }
        return assemble(std::move(parts));
    } catch (const std::bad_alloc&) {
        throw OutOfMemory(path + ": there is not enough host memory for the tables of this file's header", 0, 0,
                          "model file header");
    }
}

ModelFile ModelFile::from_sources(std::vector<Source> sources) {
    if (sources.empty()) throw RequestError("a model needs at least one file");
    std::vector<Part> parts;
    for (Source& source : sources) {
        GgufFile gguf = GgufFile::parse(source.bytes, source.name);
        parts.push_back({std::move(source), std::move(gguf)});
    }
    return assemble(std::move(parts));
}

const TensorInfo* ModelFile::find_tensor(std::string_view name) const noexcept {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& ModelFile::tensor(std::string_view name) const {
    if (const TensorInfo* found = find_tensor(name)) return *found;
    throw RequestError(paths_.front() + ": the model has no tensor named \"" + printable(name) + "\"");
}

std::span<const std::byte> ModelFile::tensor_bytes(const TensorInfo& tensor) const {
    if (tensor.file < sources_.size()) {
        const Source& source = sources_[tensor.file];
        if (tensor.offset <= source.bytes.size() && tensor.bytes <= source.bytes.size() - tensor.offset) {
            if (source.mapping) source.mapping->check_not_truncated();
            return source.bytes.subspan(tensor.offset, tensor.bytes);
        }
    }
    throw RequestError(paths_.front() + ": tensor \"" + printable(tensor.name) + "\" is not of this model");
}

}  // namespace metallic

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf/gguf.h"
#include "gguf/mapped_file.h"

namespace metallic {

// A model as it lies on disk: one GGUF file, or the parts of a split one, mapped and checked together.
//
// Split models follow ggml's gguf-split: part i of N is named PREFIX-%05d-of-%05d.gguf (i + 1, N) and carries the keys
// split.no (i), split.count (N) and split.tensors.count (tensors of all parts). The metadata is that of the first part.
class ModelFile {
  public:
    // Bytes to parse under a name, kept alive by `owner`; `mapping` is null when they are no mapped file.
    struct Source {
        std::string name;
        std::span<const std::byte> bytes;
        std::shared_ptr<const void> owner;
        std::shared_ptr<const MappedFile> mapping;
    };

    // Opens a model by the path of its file, or of any of its parts. Throws Error when a file cannot be opened,
    // ModelFormatError and UnsupportedModelError as GgufFile::parse does, and ModelFormatError when a part is missing
    // or the parts do not belong together.
    static ModelFile open(const std::string& path);

    // The same from memory: all parts, in order.
    static ModelFile from_sources(std::vector<Source> sources);

    ModelFile(ModelFile&&) = default;
    ModelFile& operator=(ModelFile&&) = default;
    ModelFile(const ModelFile&) = delete;
    ModelFile& operator=(const ModelFile&) = delete;
    ~ModelFile() = default;

    // Views into the mapping: they are valid while this object lives.
    const Metadata& metadata() const noexcept { return metadata_; }
    // The tensors of all parts, in the order of the parts and of their files. May be empty (vocabulary-only files).
    const std::vector<TensorInfo>& tensors() const noexcept { return tensors_; }
    // One path per part; TensorInfo::file is an index into it.
    const std::vector<std::string>& paths() const noexcept { return paths_; }
    // The GGUF version of the first part.
    uint32_t version() const noexcept { return version_; }

    // Null when no tensor has this name.
    const TensorInfo* find_tensor(std::string_view name) const noexcept;
    // Throws RequestError when no tensor has this name.
    const TensorInfo& tensor(std::string_view name) const;

    // The tensor's data in its file's mapping, aligned as the file promises. Throws RequestError when `tensor` is not
    // of this model, and ModelFormatError when its file has been truncated since it was opened.
    std::span<const std::byte> tensor_bytes(const TensorInfo& tensor) const;

    // The mapping of a part, for hints to the kernel and for buffers without a copy; null for parts held in memory.
    const std::shared_ptr<const MappedFile>& mapping(size_t part) const { return sources_.at(part).mapping; }

  private:
    struct Part;
    ModelFile() = default;
    static Part load(const std::string& path);
    static std::vector<Part> load_all_parts(Part given, uint64_t count);
    static ModelFile assemble(std::vector<Part> parts);
    void add_tensors(std::vector<TensorInfo>&& tensors, uint32_t file);

    std::vector<Source> sources_;
    std::vector<std::string> paths_;
    Metadata metadata_;
    std::vector<TensorInfo> tensors_;
    // Keys are views of the names in `tensors_`, which no longer changes once the model is assembled.
    std::unordered_map<std::string_view, size_t> index_;
    uint32_t version_ = 0;
};

}  // namespace metallic

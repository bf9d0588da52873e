#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"
#include "gguf/model_file.h"
#include "gguf_builder.h"
#include "program/builder.h"

// A small model of several blocks in a file in memory, and devices that count what is brought to them.
namespace metallic::testing {

// The host's backend behind a name of its own. What it takes for a device is what tests say.
class CountingBackend : public Backend {
  public:
    explicit CountingBackend(bool is_host, uint64_t memory = uint64_t{1} << 30) : inner_(create_host_backend(2)) {
        info_ = inner_->device();
        info_.backend = is_host ? "cpu" : "other";
        info_.is_host = is_host;
        info_.memory_bytes = memory;
    }

    const DeviceInfo& device() const noexcept override { return info_; }
    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label,
                                      Contents contents) override {
        if (let_heaps > 0) {
            --let_heaps;
        } else if (refuse_heaps > 0) {
            --refuse_heaps;
            throw OutOfMemory("no heap", bytes, 0, std::string(label));
        }
        return inner_->create_heap(bytes, storage, label, contents);
    }
    std::shared_ptr<Heap> wrap_host(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                    std::string_view label, HostMemory memory) override {
        return inner_->wrap_host(bytes, std::move(owner), label, memory);
    }
    void copy(BufferView from, BufferView to) override {
        ++copies;
        inner_->copy(from, to);
    }
    void upload(std::span<const std::byte> from, BufferView to) override {
        if (fail_upload > 0 && --fail_upload == 0) throw DeviceError("no upload", "upload", "test");
        uploads.push_back(from.size());
        inner_->upload(from, to);
    }
    void download(BufferView from, std::span<std::byte> to) override { inner_->download(from, to); }
    void clear(BufferView range) override { inner_->clear(range); }
    void attach(std::shared_ptr<Allocator> allocator) override { inner_->attach(std::move(allocator)); }
    void detach(const Allocator& allocator) noexcept override { inner_->detach(allocator); }
    void check_idle(const BufferView& range, std::string_view owner) const override {
        inner_->check_idle(range, owner);
    }
    std::unique_ptr<Plan> compile(const CompileInputs& inputs) override {
        if (refuse_compile) throw OutOfMemory("no memory for scratch", 1, 0, "scratch");
        ++compiled;
        return inner_->compile(inputs);
    }
    Ticket submit(Plan& plan, const Batch& batch) override {
        ++submissions;
        return inner_->submit(plan, batch);
    }
    void wait(Ticket ticket) override { inner_->wait(ticket); }

    std::vector<uint64_t> uploads;  // bytes of each
    bool refuse_compile = false;
    int let_heaps = 0, refuse_heaps = 0;  // so many are made, then so many refused
    int fail_upload = 0;                  // the so-many-th from now on; 0: none
    int copies = 0, compiled = 0, submissions = 0;

  private:
    std::unique_ptr<Backend> inner_;
    DeviceInfo info_;
};

struct PlacedModel {
    static constexpr uint32_t kBlocks = 4, kWidth = 64, kHeads = 4, kKvHeads = 2, kHeadSize = 16, kInner = 96;
    static constexpr uint32_t kVocabulary = 50, kWindow = 40;

    std::shared_ptr<const ModelFile> file;
    Program program;  // traced

    // Blocks see the whole history and a window of it in turn. A tied output reads the embeddings.
    explicit PlacedModel(bool tied = true) {
        make_file(tied);
        Builder b("test", sources_);
        b.enter_scope("forward");
        b.enter_scope("embedding");
        ValueId x = b.embedding(b.weight("token_embd.weight"), 1.0f);
        b.leave_scope();
        for (uint32_t block = 0; block < kBlocks; ++block) x = add_block(b, x, block);
        b.enter_scope("output");
        x = b.rms_norm(x, b.weight("output_norm.weight"), 1e-5f, 0);
        b.output(b.linear(x, b.weight(tied ? "token_embd.weight" : "output.weight"), {}));
        b.leave_scope();
        b.leave_scope();
        program = b.finish();
    }

    uint64_t bytes_of(std::string_view name) const { return file->tensor_bytes(file->tensor(name)).size(); }
    // Of all tensors.
    uint64_t file_bytes() const {
        uint64_t bytes = 0;
        for (const TensorInfo& tensor : file->tensors()) bytes += file->tensor_bytes(tensor).size();
        return bytes;
    }

  private:
    void add(GgufBuilder& builder, const std::string& name, uint64_t rows, uint64_t cols) {
        std::vector<uint64_t> shape{cols};
        if (rows > 1) shape.push_back(rows);
        builder.add_tensor(name, shape, 0, rows * cols * sizeof(float));
        sources_.push_back({name, DType::F32, cols, rows, 1, 0});
    }

    void make_file(bool tied) {
        GgufBuilder builder;
        builder.add_string("general.architecture", "test");
        add(builder, "token_embd.weight", kVocabulary, kWidth);
        add(builder, "output_norm.weight", 1, kWidth);
        if (!tied) add(builder, "output.weight", kVocabulary, kWidth);
        for (uint32_t block = 0; block < kBlocks; ++block) {
            const std::string prefix = "blk." + std::to_string(block) + ".";
            add(builder, prefix + "attn_norm.weight", 1, kWidth);
            add(builder, prefix + "attn_q.weight", kHeads * kHeadSize, kWidth);
            add(builder, prefix + "attn_k.weight", kKvHeads * kHeadSize, kWidth);
            add(builder, prefix + "attn_v.weight", kKvHeads * kHeadSize, kWidth);
            add(builder, prefix + "attn_output.weight", kWidth, kHeads * kHeadSize);
            add(builder, prefix + "ffn_norm.weight", 1, kWidth);
            add(builder, prefix + "ffn_gate.weight", kInner, kWidth);
            add(builder, prefix + "ffn_up.weight", kInner, kWidth);
            add(builder, prefix + "ffn_down.weight", kWidth, kInner);
        }
        auto bytes = std::make_shared<std::vector<std::byte>>(builder.build().bytes);
        std::mt19937 random(7);
        ModelFile::Source source{"test", *bytes, bytes, nullptr};
        const ModelFile layout = ModelFile::from_sources({source});
        for (const TensorInfo& tensor : layout.tensors()) {
            const auto data = layout.tensor_bytes(tensor);
            std::uniform_real_distribution<float> elements(-0.2f, 0.2f);
            for (size_t at = 0; at < data.size(); at += sizeof(float)) {
                const float value = elements(random) + (tensor.n_dims == 1 ? 1.0f : 0.0f);
                std::memcpy(const_cast<std::byte*>(data.data()) + at, &value, sizeof(value));
            }
        }
        file = std::make_shared<ModelFile>(ModelFile::from_sources({source}));
    }

    static ValueId add_block(Builder& b, ValueId x, uint32_t block) {
        const std::string prefix = "blk." + std::to_string(block) + ".";
        const auto weight = [&](const char* name) { return b.weight(prefix + name + ".weight"); };
        b.enter_scope("block." + std::to_string(block), block);
        RopeTable table;
        table.dims = kHeadSize;
        table.base.inverse_frequencies.assign(kHeadSize / 2, 0.1f);
        const RopeId rope = b.rope_table(table);
        const uint32_t group = b.cache_group(kKvHeads, kHeadSize, block % 2 ? kWindow : 0);
        ValueId h = b.rms_norm(x, weight("attn_norm"), 1e-5f, 0);
        const ValueId q = b.rope(b.linear(h, weight("attn_q"), {}), rope, kHeadSize);
        const ValueId k = b.rope(b.linear(h, weight("attn_k"), {}), rope, kHeadSize);
        const ValueId v = b.linear(h, weight("attn_v"), {});
        x = b.add(x, b.linear(b.attention(q, k, v, group, kHeads, 0.25f, 0, {}), weight("attn_output"), {}));
        h = b.rms_norm(x, weight("ffn_norm"), 1e-5f, 0);
        const ValueId gate = b.linear(h, weight("ffn_gate"), {}), up = b.linear(h, weight("ffn_up"), {});
        x = b.add(x, b.linear(b.gated_activation(Activation::silu, gate, up), weight("ffn_down"), {}));
        b.leave_scope();
        return x;
    }

    std::vector<Builder::WeightSource> sources_;
};

}  // namespace metallic::testing

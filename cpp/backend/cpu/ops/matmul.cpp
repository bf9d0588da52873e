#include "backend/cpu/ops/matmul.h"

#include <cstring>

namespace metallic::cpu {

uint32_t chunk_rows(uint64_t total, uint32_t threads, uint32_t tile_rows) noexcept {
    // With many activation rows, 64 weight rows share the activations in the near caches.
    const uint64_t balanced = total / (uint64_t{threads} * 4);
    const uint64_t most = kTileFloats / 2 / tile_rows;
    const uint64_t rows = std::min(balanced, most) / kRowMultiple * kRowMultiple;
    return static_cast<uint32_t>(std::max<uint64_t>(rows, kRowMultiple));
}

namespace {

// Weight rows that a thread expands at a time. For one activation row as few as the F32 kernels go through at once, so
// that they stay in the first-level cache; for more, as many as share the activations best, in the second-level one.
constexpr uint32_t kLeastExpanded = 8, kMostExpanded = 48;
constexpr uint32_t kExpandedFloats = 32768;

uint32_t expanded_rows(uint32_t cols) noexcept {
    const uint32_t rows = kExpandedFloats / std::max(cols, 1u) / kLeastExpanded * kLeastExpanded;
    return std::clamp(rows, kLeastExpanded, kMostExpanded);
}

}  // namespace

Products::Products(const Preparation& preparation, uint32_t cols)
    : kernels_(preparation.matmul),
      exact_(preparation.precision == Precision::float32),
      cols_(cols),
      // Not the bare width: rows a power of two apart would fall on the same sets of the caches.
      expanded_row_bytes_(activation_row_bytes(ActivationFormat::F32, cols)),
      expanded_rows_(expanded_rows(cols)) {}

ActivationFormat Products::add(DType dtype) noexcept {
    any_expands_ = any_expands_ || expands(dtype);
    return expands(dtype) ? ActivationFormat::F32 : activation_format(dtype);
}

size_t Products::scratch_bytes() const noexcept {
    return aligned_size(matmul_scratch_bytes(cols_)) + (any_expands_ ? expanded_rows_ * expanded_row_bytes_ : 0);
}

void Products::multiply(const Matrix& matrix, const std::byte* weights, uint32_t count, const std::byte* activations,
                        size_t activation_bytes, uint32_t rows, float* out, size_t out_stride,
                        std::byte* scratch) const noexcept {
    if (!expands(matrix.dtype)) {
        kernels_.multiply(matrix.dtype, weights, matrix.row_bytes, count, cols_, activations, activation_bytes, rows,
                          out, out_stride, scratch);
        return;
    }
    std::byte* const expanded = scratch + aligned_size(matmul_scratch_bytes(cols_));
    const uint32_t most = rows == 1 ? kLeastExpanded : expanded_rows_;
    for (uint32_t first = 0; first < count; first += most) {
        const uint32_t some = std::min(most, count - first);
        for (uint32_t r = 0; r < some; ++r) {
            kernels_.dequantise_row(matrix.dtype, weights + (first + r) * matrix.row_bytes, cols_,
                                    reinterpret_cast<float*>(expanded + r * expanded_row_bytes_));
        }
        kernels_.multiply(DType::F32, expanded, expanded_row_bytes_, some, cols_, activations, activation_bytes, rows,
                          out + first, out_stride, scratch);
    }
}

uint32_t ActivationRows::add(ActivationFormat format) {
    for (uint32_t i = 0; i < count_; ++i) {
        if (formats_[i] == format) return i;
    }
    formats_[count_] = format;
    row_bytes_[count_] = aligned_size(activation_row_bytes(format, cols_));
    before_[count_] = all_bytes_;
    all_bytes_ += row_bytes_[count_];
    return count_++;
}

void ActivationRows::convert(const MatmulKernels& kernels, const float* x, std::byte* buffer, size_t rows,
                             size_t row_index) const noexcept {
    for (uint32_t i = 0; i < count_; ++i) kernels.quantise(formats_[i], x, cols_, row(buffer, rows, i, row_index));
}

void ActivationRows::duplicate(std::byte* buffer, size_t rows, size_t from, size_t to) const noexcept {
    for (uint32_t i = 0; i < count_; ++i) {
        std::memcpy(row(buffer, rows, i, to), row(buffer, rows, i, from), row_bytes_[i]);
    }
}

namespace {

constexpr uint32_t kPrivateRows = 4;  // up to here every thread converts all rows itself, which saves a barrier

struct Part {
    Matrix matrix;
    const float* bias = nullptr;
    uint32_t format = 0;
    ValueId out = kNone;
};

// How a submission's products are cut: chunks of weight rows (of all parts, in turn) times tiles of activation rows.
struct Cut {
    uint32_t chunk = 0;
    uint32_t tile_rows = 0;
    uint32_t tiles = 0;
    uint32_t items = 0;
};

class Linear final : public Operation {
  public:
    Linear(const LinearStep& step, Preparation& p)
        : matmul_(p.matmul),
          vector_(p.vector),
          step_(step),
          cols_(p.value(step.in).width),
          rows_(p.value(step.in).rows),
          products_(p, cols_),
          formats_(cols_) {
        p.check(step.part_count >= 1 && step.part_count <= kMaxLinearParts, "a wrong number of parts");
        for (uint32_t i = 0; i < step.part_count; ++i) add_part(step.parts[i], p);
        if (step.norm.enabled && step.norm.weight != kNone) norm_ = p.floats(step.norm.weight, cols_, "norm weight");
        if (step.gated) {
            p.check(step.part_count == 2 && parts_[0].matrix.count == parts_[1].matrix.count,
                    "gate and up that differ");
            p.check(step.residual == kNone, "a gated product with a residual");
            p.expect(step.gated_out, parts_[0].matrix.count, rows_, "the gated output");
        }
        if (step.residual != kNone) {
            p.check(step.part_count == 1, "a residual of several parts");
            p.expect(step.residual, parts_[0].matrix.count, rows_, "the residual");
        }
        lay_out_scratch(p);
    }

    void run(Worker& worker) const noexcept override {
        const uint32_t rows = worker.submission.count(rows_);
        const bool keep_private = rows <= kPrivateRows;
        std::byte* const activations = keep_private ? worker.scratch : worker.submission.shared;
        const Worker::Range mine = keep_private ? Worker::Range{0, rows} : worker.share(rows);
        for (uint64_t row = mine.first; row < mine.last; ++row) convert(worker, row, activations, rows);
        if (!keep_private && !worker.sync()) return;

        const Cut cut = choose_cut(rows, worker.threads);
        worker.for_each_item(cut.items, [&](uint32_t item) {
            const uint32_t first_row = item % cut.tiles * cut.tile_rows;
            const Tile tile{activations, rows, first_row, std::min(cut.tile_rows, rows - first_row)};
            uint32_t chunk = item / cut.tiles;
            if (step_.gated) {
                multiply_gated(worker, tile, chunk * cut.chunk, cut.chunk);
                return;
            }
            uint32_t part = 0;
            for (uint32_t n; chunk >= (n = chunks(parts_[part].matrix.count, cut.chunk)); ++part) chunk -= n;
            multiply_plain(worker, tile, parts_[part], chunk * cut.chunk, cut.chunk);
        });
    }

  private:
    // Rows [first, first + count) of `rows` converted ones.
    struct Tile {
        std::byte* activations;
        uint32_t rows, first, count;
    };

    static uint32_t chunks(uint32_t rows, uint32_t chunk) noexcept { return (rows + chunk - 1) / chunk; }

    void add_part(const LinearPart& source, Preparation& p) {
        Part& part = parts_[part_count_++];
        part.matrix = p.matrix(source.weight);
        p.check(part.matrix.cols == cols_, "a weight that does not fit the input's width");
        p.check(part.matrix.experts == 1, "a weight that holds experts");
        part.format = formats_.add(products_.add(part.matrix.dtype));
        part.out = source.out;
        if (source.bias != kNone) {
            const uint64_t end = uint64_t{source.weight.first} + source.weight.count;
            part.bias = p.floats(source.bias, end, "bias") + source.weight.first;
        }
        p.check(step_.gated == (source.out == kNone), "a part's output is missing, or one too many");
        if (!step_.gated) p.expect(source.out, part.matrix.count, rows_, "the output");
    }

    // A thread's scratch: converted rows, then one normed row, then the kernel's own, then tiles of products.
    void lay_out_scratch(Preparation& p) {
        normed_at_ = aligned_size(formats_.bytes(kPrivateRows));
        kernel_at_ = normed_at_ + aligned_size(step_.norm.enabled ? cols_ * sizeof(float) : 0);
        tiles_at_ = kernel_at_ + products_.scratch_bytes();
        p.reserve_scratch(tiles_at_ + (step_.gated ? kTileFloats * sizeof(float) : 0));
        if (p.max_rows(rows_) > kPrivateRows) p.reserve_shared(formats_.bytes(p.max_rows(rows_)));
    }

    void convert(const Worker& worker, uint64_t row, std::byte* activations, uint32_t rows) const noexcept {
        const float* x = worker.value(step_.in) + row * cols_;
        if (step_.norm.enabled) {
            float* const normed = reinterpret_cast<float*>(worker.scratch + normed_at_);
            vector_.rms_norm(x, norm_, nullptr, step_.norm.epsilon, cols_, normed);
            x = normed;
        }
        formats_.convert(matmul_, x, activations, rows, row);
    }

    Cut choose_cut(uint32_t rows, uint32_t threads) const noexcept {
        uint64_t total = 0;
        for (uint32_t i = 0; i < part_count_; ++i) total += parts_[i].matrix.count;
        Cut cut;
        cut.tile_rows = std::min(rows, kMostTileRows);
        cut.chunk = chunk_rows(step_.gated ? total / 2 : total, threads, cut.tile_rows);
        uint32_t all_chunks = 0;
        for (uint32_t i = 0; i < (step_.gated ? 1 : part_count_); ++i) {
            all_chunks += chunks(parts_[i].matrix.count, cut.chunk);
        }
        cut.tiles = chunks(rows, cut.tile_rows);
        // Few weight rows: the activation rows have to keep the threads busy.
        while (uint64_t{all_chunks} * cut.tiles < uint64_t{threads} * 2 && cut.tile_rows > 16) {
            cut.tile_rows = (cut.tile_rows / 2 + 7) / 8 * 8;
            cut.tiles = chunks(rows, cut.tile_rows);
        }
        cut.items = all_chunks * cut.tiles;
        return cut;
    }

    void multiply(const Worker& worker, const Tile& tile, const Part& part, uint32_t first, uint32_t count, float* out,
                  size_t stride) const noexcept {
        products_.multiply(part.matrix, part.matrix.data + first * part.matrix.row_bytes, count,
                           formats_.row(tile.activations, tile.rows, part.format, tile.first),
                           formats_.row_bytes(part.format), tile.count, out, stride, worker.scratch + kernel_at_);
        if (!part.bias) return;
        for (uint32_t m = 0; m < tile.count; ++m)
            vector_.add(out + m * stride, part.bias + first, count, out + m * stride);
    }

    void multiply_plain(const Worker& worker, const Tile& tile, const Part& part, uint32_t first,
                        uint32_t most) const noexcept {
        const uint32_t count = std::min(most, part.matrix.count - first);
        const size_t stride = part.matrix.count;
        const size_t at = tile.first * stride + first;
        float* const out = worker.value(part.out) + at;
        multiply(worker, tile, part, first, count, out, stride);
        if (step_.residual == kNone) return;
        const float* const residual = worker.value(step_.residual) + at;
        for (uint32_t m = 0; m < tile.count; ++m) {
            vector_.add(out + m * stride, residual + m * stride, count, out + m * stride);
        }
    }

    void multiply_gated(const Worker& worker, const Tile& tile, uint32_t first, uint32_t most) const noexcept {
        const size_t stride = parts_[0].matrix.count;
        const uint32_t count = std::min<uint32_t>(most, parts_[0].matrix.count - first);
        float* const gate = reinterpret_cast<float*>(worker.scratch + tiles_at_);
        float* const up = gate + size_t{tile.count} * count;
        multiply(worker, tile, parts_[0], first, count, gate, count);
        multiply(worker, tile, parts_[1], first, count, up, count);
        float* const out = worker.value(step_.gated_out) + tile.first * stride + first;
        for (uint32_t m = 0; m < tile.count; ++m) {
            vector_.gated_activation(static_cast<uint8_t>(step_.activation), gate + size_t{m} * count,
                                     up + size_t{m} * count, count, out + m * stride);
        }
    }

    const MatmulKernels& matmul_;
    const VectorKernels& vector_;
    const LinearStep step_;
    const uint32_t cols_;
    const Rows rows_;
    Products products_;
    ActivationRows formats_;
    std::array<Part, kMaxLinearParts> parts_{};
    uint32_t part_count_ = 0;
    const float* norm_ = nullptr;
    size_t normed_at_ = 0, kernel_at_ = 0, tiles_at_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const LinearStep& step, Preparation& preparation) {
    return std::make_unique<Linear>(step, preparation);
}

}  // namespace metallic::cpu

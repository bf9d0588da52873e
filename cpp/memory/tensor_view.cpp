#include "memory/tensor_view.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"

namespace metallic {
namespace {

std::string text(std::span<const uint64_t> shape) {
    std::string result = "[";
    for (const uint64_t length : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(length);
    return result + "]";
}

// Throws where the number of elements cannot be counted.
uint64_t count(std::span<const uint64_t> shape) {
    uint64_t elements = 1;
    for (const uint64_t length : shape) {
        if (__builtin_mul_overflow(elements, length, &elements)) {
            throw RequestError("a tensor of shape " + text(shape) + " has too many elements");
        }
    }
    return elements;
}

uint64_t byte_count(DType dtype, uint64_t elements) {
    const DTypeInfo& info = dtype_info(dtype);
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(elements / info.block_elements, uint64_t{info.block_bytes}, &bytes)) {
        throw RequestError("a tensor of " + std::to_string(elements) + " elements is too large");
    }
    return bytes;
}

}  // namespace

TensorView::TensorView(DType dtype, std::span<const uint64_t> shape, BufferView memory)
    : dtype_(dtype), memory_(memory) {
    lay_out(shape);
    const uint64_t needed = byte_count(dtype, elements());
    if (needed > memory.bytes) {
        throw RequestError("a tensor of shape " + text(shape) + " takes " + std::to_string(needed) +
                           " bytes, there are " + std::to_string(memory.bytes));
    }
}

TensorView::TensorView(const Allocation& allocation, std::span<const uint64_t> shape)
    : TensorView(allocation.dtype(), shape, allocation.view()) {
    if (elements() > allocation.elements()) {
        throw RequestError("an allocation of " + std::to_string(allocation.elements()) +
                           " elements is no tensor of shape " + text(shape));
    }
}

void TensorView::lay_out(std::span<const uint64_t> shape) {
    if (shape.empty() || shape.size() > kMostDimensions) {
        throw RequestError("a tensor has 1 to " + std::to_string(kMostDimensions) + " dimensions, not " +
                           std::to_string(shape.size()));
    }
    const DTypeInfo& info = dtype_info(dtype_);
    if (shape.back() % info.block_elements != 0) {
        throw RequestError("rows of " + std::to_string(shape.back()) + " elements are not whole blocks of " +
                           std::string(info.name));
    }
    uint64_t step = 1;
    count(shape);
    dimensions_ = static_cast<uint8_t>(shape.size());
    for (size_t i = shape.size(); i-- > 0;) {
        shape_[i] = shape[i];
        strides_[i] = step;
        step *= std::max<uint64_t>(shape[i], 1);
    }
}

uint64_t TensorView::elements() const noexcept {
    uint64_t elements = dimensions_ ? 1 : 0;
    for (const uint64_t length : shape()) elements *= length;
    return elements;
}

bool TensorView::contiguous() const noexcept {
    if (elements() == 0) return true;
    uint64_t step = 1;
    for (size_t i = dimensions_; i-- > 0;) {
        if (shape_[i] == 1) continue;  // its stride is never taken
        if (strides_[i] != step) return false;
        step *= shape_[i];
    }
    return true;
}

BufferView TensorView::bytes() const {
    BufferView view = memory_;
    view.offset += byte_count(dtype_, offset_);
    view.bytes = 0;
    if (elements() == 0) return view;
    uint64_t last = 0;
    for (size_t i = 0; i < dimensions_; ++i) last += (shape_[i] - 1) * strides_[i];
    const uint64_t block = dtype_info(dtype_).block_elements;
    view.bytes = byte_count(dtype_, (last + block) / block * block);
    return view;
}

void TensorView::check_dimension(size_t dimension) const {
    if (dimension >= dimensions_) {
        throw RequestError("a tensor of shape " + text(shape()) + " has no dimension " + std::to_string(dimension));
    }
}

TensorView TensorView::slice(size_t dimension, uint64_t begin, uint64_t end) const {
    check_dimension(dimension);
    if (begin > end || end > shape_[dimension]) {
        throw RequestError("elements " + std::to_string(begin) + " to " + std::to_string(end) + " of dimension " +
                           std::to_string(dimension) + " lie outside of " + text(shape()));
    }
    const DTypeInfo& info = dtype_info(dtype_);
    const bool innermost = dimension + 1 == dimensions_;
    if (innermost && (begin % info.block_elements != 0 || end % info.block_elements != 0)) {
        throw RequestError("elements " + std::to_string(begin) + " to " + std::to_string(end) +
                           " are not whole blocks of " + std::string(info.name));
    }
    TensorView result = *this;
    result.shape_[dimension] = end - begin;
    if (begin < end) result.offset_ += begin * strides_[dimension];  // nothing lies nowhere else
    return result;
}

TensorView TensorView::select(size_t dimension, uint64_t index) const {
    check_dimension(dimension);
    if (dimensions_ == 1) throw RequestError("one element of a tensor of one dimension is no tensor");
    if (blocked() && dimension + 1 == dimensions_) throw RequestError("one element of a block is no tensor");
    if (index >= shape_[dimension]) {
        throw RequestError("element " + std::to_string(index) + " of dimension " + std::to_string(dimension) +
                           " lies outside of " + text(shape()));
    }
    TensorView result = *this;
    result.offset_ += index * strides_[dimension];
    std::copy(shape_.begin() + dimension + 1, shape_.begin() + dimensions_, result.shape_.begin() + dimension);
    std::copy(strides_.begin() + dimension + 1, strides_.begin() + dimensions_, result.strides_.begin() + dimension);
    --result.dimensions_;
    return result;
}

TensorView TensorView::reshape(std::span<const uint64_t> shape) const {
    if (count(shape) != elements()) {
        throw RequestError("a tensor of shape " + text(this->shape()) + " cannot have the shape " + text(shape));
    }
    if (!contiguous()) throw RequestError("a tensor that is not contiguous cannot be reshaped");
    TensorView result = *this;
    result.lay_out(shape);
    return result;
}

TensorView TensorView::transpose(size_t a, size_t b) const {
    check_dimension(a);
    check_dimension(b);
    const size_t last = dimensions_ - size_t{1};
    if (blocked() && a != b && (a == last || b == last)) {
        throw RequestError("the blocks of " + std::string(dtype_info(dtype_).name) +
                           " lie along the last dimension, which cannot be transposed");
    }
    TensorView result = *this;
    std::swap(result.shape_[a], result.shape_[b]);
    std::swap(result.strides_[a], result.strides_[b]);
    return result;
}

}  // namespace metallic

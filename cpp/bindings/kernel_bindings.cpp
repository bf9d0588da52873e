#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "backend/cpu/isa/matmul_kernels.h"
#include "backend/cpu/isa/select.h"
#include "bindings/bindings.h"
#include "core/dequantise.h"
#include "core/dtype.h"

// Python's view of single CPU kernels, for tests and tools. Sizes are checked here; the kernels trust them.
namespace nb = nanobind;

namespace metallic {
namespace {

using ByteRow = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct FreeAligned {
    void operator()(uint8_t* p) const noexcept { ::operator delete(p, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<uint8_t, FreeAligned>;

// Zeroed memory aligned to 64 bytes.
AlignedBytes make_aligned(size_t size) {
    AlignedBytes bytes(static_cast<uint8_t*>(::operator new(size + 64, std::align_val_t{64})));
    std::memset(bytes.get(), 0, size + 64);
    return bytes;
}

// Null where this processor cannot run them.
const cpu::MatmulKernels* find_kernels(const std::string& name) {
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        if (name == isa.name) return isa.matmul;
    }
    return nullptr;
}

const DTypeInfo& weight_type(const std::string& name) {
    const DTypeInfo* info = find_dtype(name);
    if (info == nullptr) throw nb::value_error(("unknown element type: " + name).c_str());
    return *info;
}

void check_row(const DTypeInfo& info, size_t k, size_t bytes) {
    if (k % info.block_elements != 0 || bytes % info.block_bytes != 0 ||
        bytes / info.block_bytes != k / info.block_elements) {
        throw nb::value_error(("a row of " + std::to_string(bytes) + " bytes does not hold " + std::to_string(k) +
                               " elements of " + std::string(info.name))
                                  .c_str());
    }
}

nb::ndarray<nb::numpy, float> to_numpy(std::unique_ptr<float[]> data, std::initializer_list<size_t> shape) {
    float* values = data.get();
    nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    data.release();
    return nb::ndarray<nb::numpy, float>(values, shape, owner);
}

nb::ndarray<nb::numpy, float> dequantise(const std::string& name, ByteRow raw, size_t k) {
    const DTypeInfo& info = weight_type(name);
    check_row(info, k, raw.size());
    // Copied, so that the blocks are aligned whatever the array is a view of.
    const AlignedBytes row = make_aligned(raw.size());
    if (raw.size() > 0) std::memcpy(row.get(), raw.data(), raw.size());
    auto out = std::make_unique<float[]>(k);
    dequantise_row(info.dtype, row.get(), k, out.get());
    return to_numpy(std::move(out), {k});
}

nb::ndarray<nb::numpy, float> matmul(const std::string& isa, const std::string& dtype, ByteRows w, size_t k,
                                     FloatRows a) {
    const cpu::MatmulKernels* kernels = find_kernels(isa);
    if (kernels == nullptr) throw nb::value_error(("no such kernels on this processor: " + isa).c_str());
    const DTypeInfo& info = weight_type(dtype);
    if (info.dtype == DType::I32) throw nb::value_error("I32 holds no weights");
    check_row(info, k, w.shape(1));
    if (a.shape(1) != k) throw nb::value_error("the activations must have k columns");
    const size_t rows = w.shape(0), m_rows = a.shape(0);
    const cpu::ActivationFormat format = cpu::activation_format(info.dtype);
    const size_t stride = cpu::activation_row_bytes(format, k);
    const AlignedBytes weights = make_aligned(rows * w.shape(1)), packed = make_aligned(m_rows * stride);
    const AlignedBytes scratch = make_aligned(cpu::matmul_scratch_bytes(k));
    auto out = std::make_unique<float[]>(m_rows * rows);
    {
        nb::gil_scoped_release unlocked;
        if (w.size() > 0) std::memcpy(weights.get(), w.data(), w.size());
        for (size_t m = 0; m < m_rows; ++m) kernels->quantise(format, a.data() + m * k, k, packed.get() + m * stride);
        kernels->multiply(info.dtype, weights.get(), w.shape(1), rows, k, packed.get(), stride, m_rows, out.get(), rows,
                          scratch.get());
    }
    return to_numpy(std::move(out), {m_rows, rows});
}

std::vector<std::string> matmul_isas() {
    std::vector<std::string> names;
    for (const cpu::Isa& isa : cpu::supported_isas()) names.emplace_back(isa.name);
    return names;
}

}  // namespace

void bind_kernels(nb::module_& m) {
    m.def("dequantise", &dequantise, nb::arg("name"), nb::arg("raw"), nb::arg("k"),
          "The k float32 values in one row of a GGUF element type, given its bytes as uint8.\n\n"
          "Raises ValueError for an unknown type, or where the bytes are not those of k elements.");
    m.def(
        "matmul", &matmul, nb::arg("isa"), nb::arg("dtype"), nb::arg("w"), nb::arg("k"), nb::arg("a"),
        "a @ w.T in float32 ([m, rows]) of activations a ([m, k], float32) and weights w ([rows, row bytes], uint8)\n"
        "of a GGUF element type, computed by the CPU kernels of one instruction set.\n\n"
        "Raises ValueError for an unknown type, kernels that this processor cannot run, or shapes that do not agree.");
    m.def("matmul_isas", &matmul_isas, "The instruction sets whose matmul kernels this processor can run.");
}

}  // namespace metallic

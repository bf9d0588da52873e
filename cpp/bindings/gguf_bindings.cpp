#include <Python.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "bindings/bindings.h"
#include "core/dtype.h"
#include "gguf/model_file.h"

namespace nb = nanobind;

namespace metallic {
namespace {

// New reference. Bytes that are not UTF-8 become lone surrogates (PEP 383), so that no string is lost or refused.
PyObject* decode(std::string_view text) {
    PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
    if (decoded == nullptr) throw nb::python_error();
    return decoded;
}

nb::object to_python(std::string_view text) {
    return nb::steal(decode(text));
}

// The inverse of decode().
std::string encode(const nb::str& text) {
    const nb::object bytes = nb::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogateescape"));
    char* data = nullptr;
    Py_ssize_t size = 0;
    const bool ok = bytes.is_valid() && PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) == 0;
    if (!ok) throw nb::python_error();
    return {data, static_cast<size_t>(size)};
}

template <typename T>
    requires std::is_arithmetic_v<T>
nb::object to_python(T value) {
    return nb::cast(value);
}

template <typename T>
nb::object to_python(const ArrayView<T>& array) {
    auto copy = std::make_unique<T[]>(array.size());
    array.copy_to(copy.get());
    const nb::capsule owner(copy.get(), [](void* data) noexcept { delete[] static_cast<T*>(data); });
    T* data = copy.release();
    const size_t shape[1] = {array.size()};
    return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, 1, shape, owner));
}

// A vocabulary has hundreds of thousands of strings, hence no nb::list::append and no casters here.
nb::object to_python(const StringArray& array) {
    const auto size = static_cast<Py_ssize_t>(array.size());
    nb::object list = nb::steal(PyList_New(size));
    if (!list.is_valid()) throw nb::python_error();
    for (Py_ssize_t i = 0; i < size; ++i) {
        if (PyList_SetItem(list.ptr(), i, decode(array[static_cast<size_t>(i)])) != 0) throw nb::python_error();
    }
    return list;
}

nb::dict metadata_dict(const ModelFile& model) {
    nb::dict dict;
    for (const MetadataEntry& entry : model.metadata().entries()) {
        dict[to_python(entry.key)] = std::visit([](const auto& value) { return to_python(value); }, entry.value);
    }
    return dict;
}

nb::list tensor_list(const ModelFile& model) {
    nb::list list;
    for (const TensorInfo& tensor : model.tensors()) list.append(nb::cast(tensor));
    return list;
}

nb::list path_list(const ModelFile& model) {
    nb::list list;
    for (const std::string& path : model.paths()) {
        const auto size = static_cast<Py_ssize_t>(path.size());
        const nb::object text = nb::steal(PyUnicode_DecodeFSDefaultAndSize(path.data(), size));
        if (!text.is_valid()) throw nb::python_error();
        list.append(text);
    }
    return list;
}

nb::tuple shape_tuple(const TensorInfo& tensor) {
    nb::list shape;
    for (uint32_t i = 0; i < tensor.n_dims; ++i) shape.append(nb::cast(tensor.shape[i]));
    return nb::tuple(shape);
}

nb::object dtype_name(const TensorInfo& tensor) {
    return to_python(dtype_info(tensor.dtype).name);
}

nb::object tensor_repr(const TensorInfo& tensor) {
    return nb::str("TensorInfo(name={!r}, dtype={!r}, shape={!r}, offset={}, nbytes={}, file={})")
        .format(to_python(std::string_view(tensor.name)), dtype_name(tensor), shape_tuple(tensor), tensor.offset,
                tensor.bytes, tensor.file);
}

// The array holds a reference to the Python object of the model, and with it the mapping.
nb::object tensor_data(nb::handle self, const nb::str& name) {
    const auto& model = nb::cast<const ModelFile&>(self);
    const auto bytes = model.tensor_bytes(model.tensor(encode(name)));
    const size_t shape[1] = {bytes.size()};
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    return nb::cast(nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(data, 1, shape, self));
}

}  // namespace

void bind_gguf(nb::module_& m) {
    nb::class_<TensorInfo>(m, "TensorInfo", "A tensor of a GGUF model file.")
        .def_prop_ro(
            "name", [](const TensorInfo& tensor) { return to_python(std::string_view(tensor.name)); },
            nb::sig("def name(self) -> str"))
        .def_prop_ro("dtype", &dtype_name, nb::sig("def dtype(self) -> str"), "GGUF's name of the type, as \"Q4_K\".")
        .def_prop_ro("shape", &shape_tuple, nb::sig("def shape(self) -> tuple[int, ...]"),
                     "1 to 4 dimensions in GGUF's order: shape[0] is the length of a row.")
        .def_ro("offset", &TensorInfo::offset, "Of the data, in bytes from the beginning of its file.")
        .def_ro("nbytes", &TensorInfo::bytes)
        .def_ro("file", &TensorInfo::file, "Index into `GgufModelFile.paths`.")
        .def("__repr__", &tensor_repr, nb::sig("def __repr__(self) -> str"));

    nb::class_<ModelFile>(m, "GgufModelFile",
                          "A GGUF model, of one file or several parts, mapped read-only and checked.\n\n"
                          "Opening raises `ModelFormatError` for a corrupt file or a missing part,\n"
                          "`UnsupportedModelError` for a GGUF version or tensor type that is not supported,\n"
                          "and `Error` when a file cannot be opened.")
        .def(
            "__init__",
            [](ModelFile* self, const std::filesystem::path& path) {
                new (self) ModelFile(ModelFile::open(path.string()));
            },
            nb::arg("path"), nb::call_guard<nb::gil_scoped_release>(),
            nb::sig("def __init__(self, path: str | os.PathLike[str]) -> None"))
        .def_prop_ro("metadata", &metadata_dict, nb::sig("def metadata(self) -> dict[str, object]"),
                     "The key-value pairs of the first part, made anew by each access: int, float, bool, str,\n"
                     "list[str], or a one-dimensional NumPy array. Bytes that are not UTF-8 are surrogate-escaped.")
        .def_prop_ro("tensors", &tensor_list, nb::sig("def tensors(self) -> list[TensorInfo]"),
                     "The tensors of all parts, in the order of the files.")
        .def_prop_ro("paths", &path_list, nb::sig("def paths(self) -> list[str]"))
        .def_prop_ro("version", &ModelFile::version, "The GGUF version of the first part.")
        .def("tensor_data", &tensor_data, nb::arg("name"),
             nb::sig("def tensor_data(self, name: str) -> numpy.typing.NDArray[numpy.uint8]"),
             "The raw bytes of a tensor: a read-only array of uint8 over the mapped file, without a copy.\n\n"
             "Raises `RequestError` when there is no such tensor, and `ModelFormatError` when the file has been\n"
             "truncated since it was opened.");
}

}  // namespace metallic

#include <exception>
#include <new>

#include "backend/backend.h"
#include "bindings/bindings.h"
#include "core/error.h"

namespace nb = nanobind;

namespace metallic {
namespace {

nb::object text(const std::string& bytes) {
    return nb::steal(PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape"));
}

void raise(const char* name, const std::string& message, const nb::dict& facts) {
    try {
        const nb::object type = nb::module_::import_("metallic_native.errors").attr(name);
        const nb::object error = type(text(message), **facts);
        PyErr_SetObject(type.ptr(), error.ptr());
    } catch (nb::python_error& error) {  // of a signal handler, say, that came while the error was made
        error.restore();
    }
}

void translate(const std::exception_ptr& pointer, void*) {
    nb::dict facts;
    try {
        std::rethrow_exception(pointer);
    } catch (const ModelFormatError& error) {
        facts["file"] = text(error.file);
        if (!error.where.empty()) facts["where"] = text(error.where);
        if (error.offset != ModelFormatError::kNowhere) facts["offset"] = error.offset;
        raise("ModelFormatError", error.message, facts);
    } catch (const UnsupportedModelError& error) {
        raise("UnsupportedModelError", error.what(), facts);
    } catch (const OutOfMemory& error) {
        facts["needed"] = error.needed;
        facts["available"] = error.available;
        facts["owner"] = text(error.owner);
        raise("OutOfMemory", error.what(), facts);
    } catch (const DeviceError& error) {
        facts["scope"] = text(error.scope);
        facts["status"] = text(error.status);
        raise("DeviceError", error.what(), facts);
    } catch (const RequestError& error) {
        raise("RequestError", error.what(), facts);
    } catch (const Error& error) {
        raise("Error", error.what(), facts);
    } catch (const std::bad_alloc&) {
        raise("OutOfMemory", "the system has no memory left", facts);
    } catch (const Interrupted&) {
        // The Python signal handler that asked for the stop has set its exception already.
        if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
}

}  // namespace

void bind_errors(nb::module_&) {
    nb::register_exception_translator(&translate);
}

}  // namespace metallic

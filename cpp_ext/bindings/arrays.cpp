#include "bindings/arrays.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace tensor_ops::bindings {
namespace {

struct DtypeName {
    Dtype dtype;
    const char* name;
    char kind;
    py::ssize_t bytes;
};
constexpr DtypeName dtype_names[] = {
    {Dtype::float32, "float32", 'f', 4}, {Dtype::float16, "float16", 'f', 2},
    {Dtype::uint16, "uint16", 'u', 2},   {Dtype::uint8, "uint8", 'u', 1},
    {Dtype::int32, "int32", 'i', 4},
};

const DtypeName& of(Dtype dtype) { return dtype_names[static_cast<int>(dtype)]; }

std::string joined(std::initializer_list<Dtype> allowed) {
    std::string text;
    for (const Dtype dtype : allowed)
        text += (text.empty() ? "" : " or ") + std::string(of(dtype).name);
    return text;
}

bool is_native(const py::dtype& dtype) {
    const char order = dtype.byteorder();
    return order == '=' || order == '|' ||
           order == (std::endian::native == std::endian::little ? '<' : '>');
}

py::object numpy_bool() { return py::module_::import("numpy").attr("bool_"); }

}  // namespace

py::array plain_array(const char* op, const char* name, py::handle value) {
    const auto& numpy = py::detail::npy_api::get();
    if (Py_TYPE(value.ptr()) == numpy.PyArray_Type_)
        return py::reinterpret_borrow<py::array>(value);
    if (py::isinstance(value, py::module_::import("numpy.ma").attr("MaskedArray")))
        throw py::type_error(std::string(op) + ": " + name + " is " + describe_kind(value) +
                             "; expected a numpy array without a mask, which would be ignored. "
                             "Convert with " +
                             name + ".filled(...).");
    return py::module_::import("numpy").attr("asarray")(value);
}

std::string text(const py::handle& h) { return py::str(h).cast<std::string>(); }

std::string to_text(Shape shape) {
    std::string inside;
    for (const py::ssize_t axis : shape)
        inside += (inside.empty() ? "" : ", ") + std::to_string(axis);
    return "(" + inside + (shape.size() == 1 ? ",)" : ")");
}

std::string describe_kind(const py::handle& h) {
    if (h.is_none()) return "None";
    const std::string name = text(py::type::of(h).attr("__name__"));
    const bool vowel = std::string("aeiouAEIOU").find(name[0]) != std::string::npos;
    return (vowel ? "an " : "a ") + name;
}

Array::Array(const Argument& argument, std::initializer_list<Dtype> allowed, py::ssize_t min_axes)
    : op_(argument.op), name_(argument.name) {
    // Messages are put together only when they are needed: a good call costs no allocation.
    const auto where = [&] { return std::string(op_) + ": " + name_; };
    const char* first = of(*allowed.begin()).name;
    if (!py::isinstance<py::array>(argument.value))
        throw py::type_error(where() + " is " + describe_kind(argument.value) +
                             "; expected a numpy array of " + joined(allowed) +
                             ". Convert with np.asarray(" + name_ + ", dtype=np." + first + ").");
    array_ = plain_array(op_, name_, argument.value);
    n_axes_ = static_cast<std::size_t>(array_.ndim());
    std::copy_n(array_.shape(), n_axes_, shape_.begin());
    size_ = static_cast<std::size_t>(array_.size());
    data_ = array_.data();
    const py::dtype dtype = array_.dtype();
    bool found = false;
    for (const Dtype candidate : allowed) {
        if (dtype.kind() == of(candidate).kind && dtype.itemsize() == of(candidate).bytes &&
            is_native(dtype)) {
            dtype_ = candidate;
            found = true;
        }
    }
    if (!found) {
        const std::string name = text(dtype.attr("name"));
        throw py::type_error(where() + " is " + (is_native(dtype) ? name : "byte-swapped " + name) +
                             "; expected " + joined(allowed) + ". Convert with " + name_ +
                             ".astype(np." + first + ").");
    }
    if (static_cast<py::ssize_t>(n_axes_) < min_axes)
        value_error(where() + " has shape " + to_text(shape()) + "; expected at least " +
                    std::to_string(min_axes) + (min_axes == 1 ? " axis" : " axes") +
                    ". Add one with " + name_ + "[np.newaxis].");
    if (!(array_.flags() & py::array::c_style))
        value_error(where() + " has shape " + to_text(shape()) + " and strides " +
                    text(array_.attr("strides")) + "; expected C-contiguous memory. " +
                    "Copy with np.ascontiguousarray(" + name_ + ").");
    if (!(array_.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
        value_error(where() + " starts at an unaligned address; expected a multiple of " +
                    std::to_string(dtype.itemsize()) + " bytes. Copy with " + name_ + ".copy().");
}

std::size_t Array::bytes() const { return size_ * static_cast<std::size_t>(of(dtype_).bytes); }

std::size_t Array::rows() const {
    std::size_t rows = 1;
    for (const py::ssize_t axis : shape().first(shape().size() - 1))
        rows *= static_cast<std::size_t>(axis);
    return rows;
}

void Array::require_shape(Shape expected, const char* why) const {
    if (std::equal(shape().begin(), shape().end(), expected.begin(), expected.end())) return;
    value_error(std::string(op_) + ": " + name_ + " has shape " + to_text(shape()) + "; expected " +
                to_text(expected) + ", " + why + ".");
}

void Array::require_axes(py::ssize_t count, const char* names) const {
    if (static_cast<py::ssize_t>(n_axes_) == count) return;
    value_error(std::string(op_) + ": " + name_ + " has shape " + to_text(shape()) + "; expected " +
                std::to_string(count) + (count == 1 ? " axis, " : " axes, ") + names +
                ". Reshape with " + name_ + ".reshape(...).");
}

Output::Output(const char* op, py::handle out, Shape shape, std::span<const Input> inputs) {
    if (out.is_none()) {
        array_ =
            py::array(py::dtype::of<float>(), std::vector<py::ssize_t>(shape.begin(), shape.end()));
        data_ = static_cast<float*>(array_.mutable_data());
        size_ = static_cast<std::size_t>(array_.size());
        return;
    }
    const auto advice = [&] {
        return " Allocate it with np.empty(" + to_text(shape) + ", np.float32).";
    };
    const Array checked({op, "out", out}, {Dtype::float32}, 0);
    if (!std::equal(shape.begin(), shape.end(), checked.shape().begin(), checked.shape().end()))
        value_error(std::string(op) + ": out has shape " + to_text(checked.shape()) +
                    "; expected " + to_text(shape) + "." + advice());
    if (!checked.handle().writeable())
        value_error(std::string(op) + ": out is read-only; expected a writeable array." + advice());
    const auto begin = reinterpret_cast<std::uintptr_t>(checked.data());
    for (const Input& input : inputs) {
        const auto other = reinterpret_cast<std::uintptr_t>(input.data);
        const bool apart = begin + checked.bytes() <= other || other + input.bytes <= begin ||
                           checked.bytes() == 0 || input.bytes == 0;
        if (apart || (input.in_place && begin == other && checked.bytes() == input.bytes)) continue;
        value_error(std::string(op) + ": out overlaps " + input.name + "; expected " +
                    (input.in_place ? std::string(input.name) + " itself or " : std::string()) +
                    "separate memory." + advice());
    }
    array_ = checked.handle();
    data_ = static_cast<float*>(const_cast<void*>(checked.data()));
    size_ = checked.size();
}

bool Output::overlaps(const Output& other) const {
    return size_ && other.size_ && data_ < other.data_ + other.size_ && other.data_ < data_ + size_;
}

std::size_t choice(const Argument& argument, std::span<const char* const> allowed) {
    const bool is_text = PyUnicode_Check(argument.value.ptr());
    const char* word = is_text ? PyUnicode_AsUTF8(argument.value.ptr()) : nullptr;
    if (is_text && !word) PyErr_Clear();  // a lone surrogate: no allowed word
    for (std::size_t i = 0; word && i < allowed.size(); ++i)
        if (std::strcmp(word, allowed[i]) == 0) return i;
    std::string expected;
    for (std::size_t i = 0; i < allowed.size(); ++i)
        expected += std::string(i == 0                    ? ""
                                : i + 1 == allowed.size() ? " or "
                                                          : ", ") +
                    "\"" + allowed[i] + "\"";
    const std::string where = std::string(argument.op) + ": " + argument.name + " is ";
    if (!is_text)
        throw py::type_error(where + describe_kind(argument.value) + "; expected " + expected +
                             ".");
    value_error(where + "\"" + (word ? word : "?") + "\"; expected " + expected + ".");
}

DType dtype_argument(const Argument& argument, bool (*allowed)(DType)) {
    std::vector<DType> types;
    std::vector<const char*> names;
    for (const Format& format : formats) {
        if (!allowed(format.type)) continue;
        types.push_back(format.type);
        names.push_back(format.name);
    }
    return types[choice(argument, names)];
}

std::size_t count(const Argument& argument, std::size_t minimum, const char* otherwise) {
    const py::handle value = argument.value;
    const std::string where = std::string(argument.op) + ": " + argument.name + " is ";
    const std::string expected =
        "; expected an integer of at least " + std::to_string(minimum) + otherwise + ".";
    if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr()) ||
        py::isinstance<py::array>(value))
        throw py::type_error(where + describe_kind(value) + expected);
    const py::ssize_t n = PyNumber_AsSsize_t(value.ptr(), nullptr);  // the nearest that fits
    if (n == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (n < static_cast<py::ssize_t>(minimum)) value_error(where + text(value) + expected);
    return static_cast<std::size_t>(n);
}

double number(const Argument& argument, double minimum, bool inclusive) {
    const auto where = [&] { return std::string(argument.op) + ": " + argument.name + " is "; };
    PyObject* value = argument.value.ptr();
    const bool is_number = PyFloat_Check(value) || PyLong_Check(value) ||
                           (PyNumber_Check(value) && !py::isinstance<py::array>(argument.value) &&
                            !PyComplex_Check(value) && py::hasattr(argument.value, "__float__"));
    if (!is_number)
        throw py::type_error(where() + describe_kind(argument.value) + "; expected a number.");
    double result = PyFloat_AsDouble(value);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
        PyErr_Clear();  // an int of hundreds of digits
        result = std::numeric_limits<double>::infinity();
    }
    if (!std::isfinite(result) || (inclusive ? result < minimum : result <= minimum)) {
        std::string least = std::to_string(minimum);
        while (least.back() == '0') least.pop_back();
        if (least.back() == '.') least.pop_back();
        value_error(where() + text(py::float_(result)) + "; expected a finite number " +
                    (inclusive ? "at least " : "above ") + least + ".");
    }
    return result;
}

bool flag(const Argument& argument) {
    const py::handle value = argument.value;
    if (!PyBool_Check(value.ptr()) && !py::isinstance(value, numpy_bool()))
        throw py::type_error(std::string(argument.op) + ": " + argument.name + " is " +
                             describe_kind(value) + "; expected True or False.");
    return value.cast<bool>();
}

}  // namespace tensor_ops::bindings

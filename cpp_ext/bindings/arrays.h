// The checks of a caller's arguments, in one place, before anything is computed or allocated.
//
// Every message reads "operation: argument is this; expected that. How to fix it.", the same as
// those of airllm.numpy_ops.checks.  TypeError: not an array, or of another dtype.  ValueError:
// everything else.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "kernels.h"

namespace tensor_ops::bindings {

namespace py = pybind11;

using Shape = std::span<const py::ssize_t>;

std::string to_text(Shape shape);                // "(2, 3)", as Python writes it
std::string text(const py::handle& h);           // str(h)
std::string describe_kind(const py::handle& h);  // "a list", "None"

// An argument of an operation: op and name are for messages.
struct Argument {
    const char* op;
    const char* name;
    py::handle value;
};

enum class Dtype { float32, float16, uint16, uint8, int32 };

// No array: py::array() would make NumPy create an empty one, in a quarter of a microsecond.
inline py::array no_array() { return py::reinterpret_steal<py::array>(py::handle()); }

// An array from numpy.asarray, so of no subclass, which might compute differently (np.matrix).
// Throws py::type_error for a masked array, whose mask would be ignored.
py::array plain_array(const char* op, const char* name, py::handle value);

// A C-contiguous, aligned array, kept alive.  Shape and data stay as they were checked, even if
// another thread, or Python code that a later argument runs, changes the array's shape or dtype.
class Array {
 public:
    // Throws py::type_error or py::value_error.
    Array(const Argument& argument, std::initializer_list<Dtype> allowed, py::ssize_t min_axes = 1);

    const char* name() const { return name_; }
    Dtype dtype() const { return dtype_; }
    Shape shape() const { return {shape_.data(), n_axes_}; }
    std::size_t axis(py::ssize_t i) const {  // negative: from the end
        const auto n = static_cast<py::ssize_t>(n_axes_);
        return static_cast<std::size_t>(shape_[static_cast<std::size_t>(i < 0 ? n + i : i)]);
    }
    std::size_t size() const { return size_; }
    std::size_t rows() const;  // product of all axes but the last
    std::size_t bytes() const;
    const void* data() const { return data_; }
    const float* floats() const { return static_cast<const float*>(data_); }
    const py::array& handle() const { return array_; }

    // Throw py::value_error; `why` says where the expectation comes from.
    void require_shape(Shape expected, const char* why) const;
    void require_axes(py::ssize_t count, const char* names) const;

 private:
    friend class Output;
    const char* op_;
    const char* name_;
    py::array array_ = no_array();
    Dtype dtype_;
    const void* data_ = nullptr;
    std::size_t size_ = 0, n_axes_ = 0;
    std::array<py::ssize_t, 64> shape_;  // as many axes as NumPy has at most
};

inline Array float_array(const char* op, const char* name, py::handle value,
                         py::ssize_t min_axes = 1) {
    return Array({op, name, value}, {Dtype::float32}, min_axes);
}

// Memory that an output must not overlap; with `in_place`, the output may be exactly that memory.
struct Input {
    const char* name;
    const void* data;
    std::size_t bytes;
    bool in_place;

    Input(const Array& array, bool may_be_output)
        : name(array.name()), data(array.data()), bytes(array.bytes()), in_place(may_be_output) {}
    Input(const char* n, const void* d, std::size_t b)
        : name(n), data(d), bytes(b), in_place(false) {}
};

// `out` if it can take the result, a new array if it is None.
class Output {
 public:
    Output(const char* op, py::handle out, Shape shape, std::span<const Input> inputs);
    Output(const char* op, py::handle out, Shape shape, std::initializer_list<Input> inputs)
        : Output(op, out, shape, std::span(inputs.begin(), inputs.end())) {}
    float* data() { return data_; }
    py::array release() { return std::move(array_); }
    bool overlaps(const Output& other) const;

 private:
    py::array array_ = no_array();
    float* data_ = nullptr;
    std::size_t size_ = 0;
};

// Checks that the argument is one of the allowed words; returns its index.
std::size_t choice(const Argument& argument, std::span<const char* const> allowed);
inline std::size_t choice(const Argument& argument, std::initializer_list<const char*> allowed) {
    return choice(argument, std::span(allowed.begin(), allowed.size()));
}
// The type of weights that the argument names; it has to be one of those that `allowed` holds for.
DType dtype_argument(const Argument& argument, bool (*allowed)(DType) = [](DType) { return true; });
// A finite number above (or at) minimum.
double number(const Argument& argument, double minimum, bool inclusive);

// An integer of at least minimum. otherwise: what else is allowed, for the message.
std::size_t count(const Argument& argument, std::size_t minimum, const char* otherwise = "");

// True or False, and nothing that merely counts as one.
bool flag(const Argument& argument);

[[noreturn]] inline void value_error(const std::string& message) { throw py::value_error(message); }

}  // namespace tensor_ops::bindings

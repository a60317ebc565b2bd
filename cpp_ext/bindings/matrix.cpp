// Matrix products, and the matrices that are packed for them.
#include "bindings/gil.h"
#include "bindings/matrix_object.h"
#include "bindings/module.h"
#include "bindings/parallel.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace tensor_ops::bindings {
namespace {

// The work of a product, as run_parallel counts it: 32 multiply-adds take about a nanosecond.
std::size_t product_work(std::size_t m, std::size_t k, std::size_t n) { return m * k * n / 32; }

// The bytes of an array of any dtype, or of a bytes-like object; `owner` keeps them alive.
struct Bytes {
    py::object owner;
    std::span<const std::byte> data;
};

Bytes bytes_of(const char* op, py::handle value) {
    py::object array;
    if (py::isinstance<py::array>(value)) {
        array = plain_array(op, "data", value);
    } else if (PyObject_CheckBuffer(value.ptr())) {
        const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(value.ptr()));
        if (!view) throw py::error_already_set();  // a memoryview that was released, for one
        array = py::module_::import("numpy").attr("asarray")(view);
    } else {
        throw py::type_error(std::string(op) + ": data is " + describe_kind(value) +
                             "; expected bytes or a numpy array of the matrix's raw bytes.");
    }
    const auto checked = py::reinterpret_borrow<py::array>(array);
    if (checked.dtype().kind() == 'O' || checked.dtype().attr("hasobject").cast<bool>())
        throw py::type_error(std::string(op) + ": data is object; expected raw bytes, uint8.");
    if (!(checked.flags() & py::array::c_style))
        value_error(std::string(op) + ": data has shape " +
                    to_text({checked.shape(), static_cast<std::size_t>(checked.ndim())}) +
                    " and strides " + py::str(checked.attr("strides")).cast<std::string>() +
                    "; expected C-contiguous memory. Copy with np.ascontiguousarray(data).");
    return {array,
            {static_cast<const std::byte*>(checked.data()),
             static_cast<std::size_t>(checked.nbytes())}};
}

struct MatrixArguments {
    DType type;
    std::size_t n, k;
    Bytes bytes;
};

MatrixArguments matrix_arguments(const char* op, py::handle data, py::handle type,
                                 py::handle shape) {
    MatrixArguments a;
    a.type = dtype_argument({op, "type", type});
    const bool sequence = py::isinstance<py::tuple>(shape) || py::isinstance<py::list>(shape);
    bool integers = sequence;
    if (sequence)
        for (const py::handle axis : shape) integers &= PyIndex_Check(axis.ptr()) != 0;
    if (!integers)
        throw py::type_error(std::string(op) + ": shape is " + py::repr(shape).cast<std::string>() +
                             "; expected two integers, (n, k).");
    const auto axes = py::reinterpret_borrow<py::sequence>(shape);
    py::ssize_t size[2] = {-1, -1};
    for (std::size_t i = 0; i < axes.size() && i < 2; ++i) {
        size[i] =
            PyNumber_AsSsize_t(py::object(axes[i]).ptr(), nullptr);  // clips what is too large
        if (size[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
    // Without a limit, a matrix of no columns could have any number of rows, and no bytes.
    constexpr py::ssize_t longest = 0x7fffffff;
    if (axes.size() != 2 || std::min(size[0], size[1]) < 0 || std::max(size[0], size[1]) > longest)
        value_error(std::string(op) + ": shape is " +
                    py::repr(py::tuple(axes)).cast<std::string>() +
                    "; expected (n, k), each from 0 to " + std::to_string(longest) + ".");
    a.n = static_cast<std::size_t>(size[0]);
    a.k = static_cast<std::size_t>(size[1]);
    const std::size_t block = block_size(a.type).elements;
    if (a.k % block)
        value_error(std::string(op) + ": shape is " + to_text(size) +
                    "; expected a number of columns that is a multiple of " +
                    std::to_string(block) + ", the block of " + dtype_name(a.type) + ".");
    a.bytes = bytes_of(op, data);
    std::string in_words = "more than memory can hold";
    bool fits = true;
    try {
        const std::size_t expected = matrix_bytes(a.type, a.n, a.k);
        in_words = std::to_string(expected);
        fits = a.bytes.data.size() == expected;
    } catch (const std::invalid_argument&) {  // the product overflows
        fits = false;
    }
    if (!fits)
        value_error(std::string(op) + ": data has " + std::to_string(a.bytes.data.size()) +
                    " bytes; expected " + in_words + ", for " + std::to_string(a.n) + " rows of " +
                    std::to_string(a.k) + " " + dtype_name(a.type) + " values.");
    return a;
}

PackedMatrixPtr make_packed(py::handle data, py::handle type, py::handle shape) {
    const MatrixArguments a = matrix_arguments("PackedMatrix", data, type, shape);
    const WithoutGil released;
    return std::make_shared<PackedMatrix>(a.type, a.bytes.data, a.n, a.k);
}

void fill(const PackedMatrix& w, py::handle data) {
    const Bytes bytes = bytes_of("PackedMatrix.fill", data);
    const std::size_t expected = matrix_bytes(w.type(), w.n(), w.k());
    if (bytes.data.size() != expected)
        value_error("PackedMatrix.fill: data has " + std::to_string(bytes.data.size()) +
                    " bytes; expected " + std::to_string(expected) + ".");
    const WithoutGil released;
    w.pack(bytes.data);
}

RawRowsObject make_raw_rows(py::handle data, py::handle type, py::handle shape) {
    const MatrixArguments a = matrix_arguments("RawRows", data, type, shape);
    return {a.bytes.owner, {a.bytes.data.data(), a.type, a.n, a.k}};
}

py::array unpack(const PackedMatrix& w) {
    py::array_t<float> out({w.n(), w.k()});
    float* y = out.mutable_data();
    {
        const WithoutGil released;
        run_team([&](const Worker& worker) {
            for_rows(worker, w.n(), w.k(), [&](std::size_t first, std::size_t count) {
                w.table().unpack(w.view(), first, first + count, y + first * w.k());
            });
        });
    }
    return out;
}

py::array matmul(py::handle a_object, py::handle b_object, py::handle out_object) {
    const Array a = float_array("matmul", "a", a_object, 2);
    const Array b = float_array("matmul", "b", b_object);
    b.require_axes(2, "[k, n]");
    const std::size_t k = b.axis(0), n = b.axis(1), m = a.rows();
    if (a.axis(-1) != k)
        value_error("matmul: a has shape " + to_text(a.shape()) + "; expected [..., m, " +
                    std::to_string(k) + "], as b has " + std::to_string(k) + " rows (shape " +
                    to_text(b.shape()) + ").");
    std::vector<py::ssize_t> shape(a.shape().begin(), a.shape().end());
    shape.back() = static_cast<py::ssize_t>(n);
    Output out("matmul", out_object, shape, {{a, false}, {b, false}});
    const float *left = a.floats(), *right = b.floats();
    float* c = out.data();
    const KernelTable& table = kernels();
    auto* sums = static_cast<float*>(team_scratch(matmul_sums(m) * n * sizeof(float)));
    run_parallel(product_work(m, k, n), [&](const Worker& worker) {
        tensor_ops::matmul(worker, table, left, right, c, m, k, n, sums);
    });
    return out.release();
}

void require_columns(const char* op, const Array& x, std::size_t n, std::size_t k) {
    if (x.axis(-1) == k) return;
    const py::ssize_t shape[] = {static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(k)};
    value_error(std::string(op) + ": x has shape " + to_text(x.shape()) + "; expected [..., " +
                std::to_string(k) + "], as w has " + std::to_string(k) + " columns (shape " +
                to_text(shape) + ").");
}

std::vector<py::ssize_t> linear_shape(const Array& x, std::size_t n) {
    std::vector<py::ssize_t> shape(x.shape().begin(), x.shape().end());
    shape.back() = static_cast<py::ssize_t>(n);
    return shape;
}

// One run of the team for all matrices: x is quantised once, and no thread waits between them.
std::vector<py::array> linear_packed(const char* op, const Array& x,
                                     const std::vector<PackedMatrixPtr>& matrices, Activations kind,
                                     const std::vector<py::object>& out_objects) {
    struct Product {
        const PackedMatrix* w;
        Output out;
        float* y;
    };
    std::vector<Product> products;
    std::size_t work = 0;
    const PackedMatrix* quantized_for = nullptr;  // any matrix that takes x quantised
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        const PackedMatrix& w = *matrices[i];
        require_columns(op, x, w.n(), w.k());
        products.push_back(
            {&w, Output(op, out_objects[i], linear_shape(x, w.n()), {{x, false}}), nullptr});
        products.back().y = products.back().out.data();
        for (std::size_t o = 0; o < i; ++o)
            if (products[o].out.overlaps(products[i].out))
                value_error(std::string(op) + ": two arrays of out overlap; expected separate " +
                            "memory for each.");
        work += product_work(x.rows(), w.k(), w.n());
        if (kind == Activations::f32 || !is_quantized(w.type())) continue;
        if (quantized_for && &quantized_for->table() != &w.table())
            value_error(std::string(op) + ": the matrices were packed for different ISAs.");
        quantized_for = &w;
    }
    const std::size_t rows = x.rows();
    const float* input = x.floats();
    AlignedBytes quantized;
    if (quantized_for)
        quantized = AlignedBytes(quantized_activation_bytes(kind, rows, quantized_for->k()));
    run_parallel(work, [&](const Worker& worker) {
        if (quantized_for) {
            quantize_activations(worker, quantized_for->table(), kind, input, rows,
                                 quantized_for->k(), quantized.data());
            worker.barrier();
        }
        for (const Product& p : products)
            tensor_ops::linear(worker, *p.w, input, kind, quantized.data(), rows, p.y);
    });
    std::vector<py::array> results;
    for (Product& p : products) results.push_back(p.out.release());
    return results;
}

py::tuple linear_many(py::handle x_object, py::handle ws_object, py::handle activations,
                      py::handle out_object) {
    const char* op = "linear_many";
    const auto is_sequence = [](py::handle h) {
        return py::isinstance<py::tuple>(h) || py::isinstance<py::list>(h);
    };
    const Array x = float_array(op, "x", x_object);
    const auto kind = activations_argument(op, activations).value_or(activations_for(x.rows()));
    if (!is_sequence(ws_object))
        throw py::type_error("linear_many: ws is " + describe_kind(ws_object) +
                             "; expected a list or tuple of PackedMatrix.");
    std::vector<PackedMatrixPtr> matrices;
    for (const py::handle w : ws_object) {
        matrices.push_back(packed_matrix(w));
        if (!matrices.back())
            throw py::type_error("linear_many: ws holds " + describe_kind(w) +
                                 "; expected a list or tuple of PackedMatrix.");
    }
    std::vector<py::object> outs(matrices.size(), py::none());
    if (!out_object.is_none()) {
        if (!is_sequence(out_object) || py::len(out_object) != matrices.size())
            throw py::type_error("linear_many: out is " + describe_kind(out_object) +
                                 "; expected a list or tuple of " +
                                 std::to_string(matrices.size()) + " arrays, one for each matrix.");
        for (std::size_t i = 0; i < outs.size(); ++i)
            outs[i] = py::reinterpret_borrow<py::sequence>(out_object)[i];
    }
    return py::tuple(py::cast(linear_packed(op, x, matrices, kind, outs)));
}

py::array linear(py::handle x_object, py::handle w_object, py::handle activations,
                 py::handle out_object) {
    const Array x = float_array("linear", "x", x_object);
    const auto kind =
        activations_argument("linear", activations).value_or(activations_for(x.rows()));
    if (const PackedMatrixPtr packed = packed_matrix(w_object))
        return linear_packed("linear", x, {packed}, kind,
                             {py::reinterpret_borrow<py::object>(out_object)})[0];
    if (!py::isinstance<py::array>(w_object))
        throw py::type_error("linear: w is " + describe_kind(w_object) +
                             "; expected a numpy array of float32 or float16, or a PackedMatrix. "
                             "Convert with np.asarray(w, dtype=np.float32).");
    const Array w({"linear", "w", w_object}, {Dtype::float32, Dtype::float16});
    w.require_axes(2, "[n, k]");
    const std::size_t n = w.axis(0), k = w.axis(1), rows = x.rows();
    require_columns("linear", x, n, k);
    Output out("linear", out_object, linear_shape(x, n), {{x, false}, {w, false}});
    const float* input = x.floats();
    float* y = out.data();
    const DType type = w.dtype() == Dtype::float32 ? DType::f32 : DType::f16;
    const KernelTable& table = kernels();
    run_parallel(product_work(rows, k, n), [&](const Worker& worker) {
        linear_plain(worker, table, type, w.data(), n, k, input, rows, y);
    });
    return out.release();
}

template <class Matrix>
py::tuple shape_of(const Matrix& w) {
    return py::make_tuple(w.n(), w.k());
}

std::string describe(const char* name, const char* type, const py::tuple& shape) {
    return std::string(name) + "(type='" + type +
           "', shape=" + py::repr(shape).cast<std::string>() + ")";
}

}  // namespace

void bind_matrix(py::module_& m) {
    using py::arg;
    py::class_<PackedMatrix, PackedMatrixPtr> packed(
        m, "PackedMatrix",
        "A weight matrix [n, k] in the layout of the kernels.\n\n"
        "data: C-contiguous array of any dtype, or bytes-like: exactly the bytes of the n rows in "
        "a GGUF file. All threads pack them; the object does not keep them.\n"
        "type: \"f32\", \"f16\", \"bf16\", or one of GGML's \"q8_0\", \"q4_0\", \"q4_1\", "
        "\"q5_0\", \"q5_1\", \"q2_k\", \"q3_k\", \"q4_k\", \"q5_k\", \"q6_k\", "
        "\"iq4_nl\", \"iq4_xs\", \"mxfp4\", \"iq3_xxs\", \"iq3_s\", \"iq2_xxs\", \"iq2_xs\", "
        "\"iq2_s\", \"iq1_s\", \"iq1_m\", \"tq1_0\", \"tq2_0\", \"nvfp4\".\n"
        "shape: (n, k), k a multiple of the type's block.\n"
        "Attributes: type, shape, nbytes (bytes of the packed form).");
    define_init(packed, make_packed, arg("data"), arg("type"), arg("shape"));
    packed.def_property_readonly("type", [](const PackedMatrix& w) { return dtype_name(w.type()); })
        .def_property_readonly("shape", shape_of<PackedMatrix>)
        .def_property_readonly("nbytes", &PackedMatrix::bytes)
        .def("fill", fill, py::arg("data"),
             "Pack other rows, bytes as those that the constructor takes. Not while it is in use.")
        .def("dequantize", unpack, "The whole matrix: float32 [n, k].")
        .def("__repr__", [](const PackedMatrix& w) {
            return describe("PackedMatrix", dtype_name(w.type()), shape_of(w));
        });
    py::class_<RawRowsObject> raw_rows(
        m, "RawRows",
        "A matrix whose rows are looked up rather than multiplied by: an embedding.\n\n"
        "Arguments as PackedMatrix. The bytes are kept as they are, not copied.");
    define_init(raw_rows, make_raw_rows, arg("data"), arg("type"), arg("shape"));
    raw_rows
        .def_property_readonly("type",
                               [](const RawRowsObject& w) { return dtype_name(w.rows.type); })
        .def_property_readonly(
            "shape", [](const RawRowsObject& w) { return py::make_tuple(w.rows.n, w.rows.k); })
        .def_property_readonly(
            "nbytes",
            [](const RawRowsObject& w) { return matrix_bytes(w.rows.type, w.rows.n, w.rows.k); })
        .def("__repr__", [](const RawRowsObject& w) {
            return describe("RawRows", dtype_name(w.rows.type), py::make_tuple(w.rows.n, w.rows.k));
        });
    m.def(
        "matmul", matmul, arg("a"), arg("b"), py::kw_only(), arg("out") = py::none(),
        "a @ b.\n\na: float32 [..., m, k]; b: float32 [k, n]; out: float32 [..., m, n], neither a "
        "nor b. Returns out.");
    m.def("linear", linear, arg("x"), arg("w"), py::kw_only(), arg("activations") = "auto",
          arg("out") = py::none(),
          "x @ w.T: w as checkpoints store it, one row for each output feature.\n\n"
          "x: float32 [..., k]; w: float32 or float16 array [n, k], or PackedMatrix of shape (n, "
          "k).\n"
          "activations: how x meets a quantised w: rounded to 8 or to 16 bits in blocks of 32 "
          "(\"q8\", \"q16\"), or exactly (\"f32\"); \"auto\" is q16 for up to 64 rows, else q8.\n"
          "out: float32 [..., n], neither x nor w. Returns out.");
    m.def("linear_many", linear_many, arg("x"), arg("ws"), py::kw_only(),
          arg("activations") = "auto", arg("out") = py::none(),
          "linear(x, w) for each w of ws, as one call: x is quantised once, and no thread waits "
          "between the matrices.\n\n"
          "ws: list or tuple of PackedMatrix, each (n_i, k). out: as many arrays, float32 [..., "
          "n_i], "
          "apart from each other. Returns a tuple of them.");
}

}  // namespace tensor_ops::bindings

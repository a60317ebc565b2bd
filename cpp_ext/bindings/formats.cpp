// Conversion between float32 and the number formats of weights.
#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "bindings/module.h"
#include "dispatch.h"
#include "ops/matrix.h"

namespace tensor_ops::bindings {
namespace {

bool is_made(DType type) { return is_quantized(type) && format_of(type).writable; }

std::vector<py::ssize_t> with_last_axis(Shape shape, std::size_t last) {
    std::vector<py::ssize_t> result(shape.begin(), shape.end());
    result.back() = static_cast<py::ssize_t>(last);
    return result;
}

template <class T>
py::array_t<T> empty(const std::vector<py::ssize_t>& shape) {
    return py::array_t<T>(shape);
}

void encode(DType type, const float* x, void* y, std::size_t n) {
    const WithoutGil released;
    kernels().from_float(type, x, static_cast<std::byte*>(y), n);
}

void decode(DType type, const void* x, float* y, std::size_t n) {
    const WithoutGil released;
    kernels().to_float(type, static_cast<const std::byte*>(x), y, n);
}

py::array quantize(py::handle x_object, py::handle type_object) {
    const Array x = float_array("quantize", "x", x_object);
    const DType type = dtype_argument({"quantize", "type", type_object}, is_made);
    if (x.axis(-1) % quant_block)
        value_error("quantize: x has shape " + to_text(x.shape()) +
                    "; expected a last axis that is a multiple of 32, the block of " +
                    py::str(type_object).cast<std::string>() + ". Pad the rows with zeros.");
    auto out = empty<std::uint8_t>(with_last_axis(x.shape(), row_bytes(type, x.axis(-1))));
    encode(type, x.floats(), out.mutable_data(), x.size());
    return out;
}

py::array dequantize(py::handle data_object, py::handle type_object) {
    const Array data({"dequantize", "data", data_object}, {Dtype::uint8});
    const DType type = dtype_argument({"dequantize", "type", type_object}, is_quantized);
    const auto [elements, block] = block_size(type);
    if (data.axis(-1) % block)
        value_error("dequantize: data has shape " + to_text(data.shape()) +
                    "; expected a last axis that is a multiple of " + std::to_string(block) +
                    ", the bytes of a " + py::str(type_object).cast<std::string>() + " block.");
    auto out = empty<float>(with_last_axis(data.shape(), data.axis(-1) / block * elements));
    decode(type, data.data(), out.mutable_data(), static_cast<std::size_t>(out.size()));
    return out;
}

py::array float32_to_float16(py::handle x_object) {
    const Array x = float_array("float32_to_float16", "x", x_object);
    py::array out(py::dtype("float16"),
                  std::vector<py::ssize_t>(x.shape().begin(), x.shape().end()));
    encode(DType::f16, x.floats(), out.mutable_data(), x.size());
    return out;
}

py::array float16_to_float32(py::handle x_object) {
    const Array x({"float16_to_float32", "x", x_object}, {Dtype::float16});
    auto out = empty<float>({x.shape().begin(), x.shape().end()});
    decode(DType::f16, x.data(), out.mutable_data(), x.size());
    return out;
}

py::array float32_to_bfloat16(py::handle x_object) {
    const Array x = float_array("float32_to_bfloat16", "x", x_object);
    auto out = empty<std::uint16_t>({x.shape().begin(), x.shape().end()});
    encode(DType::bf16, x.floats(), out.mutable_data(), x.size());
    return out;
}

py::array bfloat16_to_float32(py::handle x_object) {
    const Array x({"bfloat16_to_float32", "x", x_object}, {Dtype::uint16});
    auto out = empty<float>({x.shape().begin(), x.shape().end()});
    decode(DType::bf16, x.data(), out.mutable_data(), x.size());
    return out;
}

}  // namespace

void bind_formats(py::module_& m) {
    using py::arg;
    m.def(
        "quantize", quantize, arg("x"), arg("type"),
        "Pack each row of x into blocks of 32, rounding as GGML does.\n\n"
        "x: float32 [..., n], n a multiple of 32; type: \"q8_0\", \"q4_0\", \"q4_1\", \"q5_0\", "
        "\"q5_1\", \"iq4_nl\" or \"mxfp4\".\n"
        "Returns uint8 [..., n / 32 * bytes of a block]. A block that holds NaN, an infinity, or a "
        "value so large that the float16 scale overflows does not dequantise to finite values.");
    m.def("dequantize", dequantize, arg("data"), arg("type"),
          "The values of packed rows, exactly.\n\n"
          "data: uint8 [..., row_bytes]; type: what `quantize` makes, or \"q2_k\", \"q3_k\", "
          "\"q4_k\", \"q5_k\", \"q6_k\", \"iq4_xs\", \"iq3_xxs\", \"iq3_s\", \"iq2_xxs\", "
          "\"iq2_xs\", \"iq2_s\", \"iq1_s\", \"iq1_m\", \"tq1_0\", \"tq2_0\" or \"nvfp4\".\n"
          "Returns float32 [..., row_bytes / bytes of a block * elements of a block].");
    m.def("float32_to_float16", float32_to_float16, arg("x"),
          "Rounded to the nearest, ties to even; from 65520 on, infinity.\n\n"
          "x: float32 [...]. Returns float16 [...].");
    m.def("float16_to_float32", float16_to_float32, arg("x"),
          "x: float16 [...]. Returns float32 [...], the same values.");
    m.def("float32_to_bfloat16", float32_to_bfloat16, arg("x"),
          "The upper half of each float32, rounded to the nearest, ties to even; NaN stays NaN.\n\n"
          "x: float32 [...]. Returns uint16 [...], as NumPy has no bfloat16.");
    m.def("bfloat16_to_float32", bfloat16_to_float32, arg("x"),
          "x: uint16 [...], the bits of bfloat16. Returns float32 [...], the same values.");
}

}  // namespace tensor_ops::bindings

// Conversion between float32 and the number formats of weights.
#include <limits>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "bindings/module.h"
#include "bindings/parallel.h"
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

// Nanoseconds that a value takes, for the number of threads.
constexpr std::size_t search_time = 32, rounding_time = 4;

// One for each column of x, or none.
std::optional<Array> importance_argument(const Array& x, DType type, py::handle object) {
    if (object.is_none()) return std::nullopt;
    if (!is_searched(type) && !is_weighted(type))
        value_error("quantize: importance is given; expected None for " +
                    std::string(dtype_name(type)) +
                    ", whose scales are not searched for. Choose a type of 2 to 6 bits, or leave "
                    "importance out.");
    Array importance = float_array("quantize", "importance", object);
    const auto columns = static_cast<py::ssize_t>(x.axis(-1));
    importance.require_shape(std::array{columns}, "one number for each column of x");
    for (std::size_t i = 0; i < importance.size(); ++i) {
        const float value = importance.floats()[i];
        if (!(value >= 0.0f && value <= std::numeric_limits<float>::max()))
            value_error("quantize: importance[" + std::to_string(i) + "] is " +
                        text(py::float_(value)) + "; expected finite numbers from 0 on.");
    }
    return importance;
}

py::array quantize(py::handle x_object, py::handle type_object, py::handle importance_object) {
    const Array x = float_array("quantize", "x", x_object);
    const DType type = dtype_argument({"quantize", "type", type_object}, is_made);
    const std::string name = dtype_name(type);
    const auto [elements, bytes] = block_size(type);
    if (x.axis(-1) % elements)
        value_error("quantize: x has shape " + to_text(x.shape()) +
                    "; expected a last axis that is a multiple of " + std::to_string(elements) +
                    ", the block of " + name + ". Pad the rows with zeros.");
    const std::optional<Array> importance = importance_argument(x, type, importance_object);
    auto out = empty<std::uint8_t>(with_last_axis(x.shape(), row_bytes(type, x.axis(-1))));
    const KernelTable& table = kernels();
    const float* values = x.floats();
    const float* weights = importance ? importance->floats() : nullptr;
    auto* const blocks = reinterpret_cast<std::byte*>(out.mutable_data());
    const std::size_t columns = x.axis(-1), block = elements, step = bytes;
    const bool searched = is_searched(type), weighted = weights != nullptr && !searched;
    const std::size_t time = searched || weighted ? search_time : rounding_time;
    run_parallel(x.size() * time, [&](const Worker& worker) {
        // Blocks of 32 are searched side by side.
        deal(worker, x.size() / block, block == 32 ? 16 : 1,
             [&](std::size_t first, std::size_t last) {
                 if (weighted)
                     return table.quantize_weighted(type, values + first * block, weights, columns,
                                                    first * block % columns, blocks + first * step,
                                                    (last - first) * block);
                 if (!searched)
                     return table.from_float(type, values + first * block, blocks + first * step,
                                             (last - first) * block);
                 for (std::size_t b = first; b < last; ++b)
                     table.quantize_k(type, values + b * block,
                                      weights != nullptr ? weights + b * block % columns : nullptr,
                                      blocks + b * step, block);
             });
    });
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
        "quantize", quantize, arg("x"), arg("type"), arg("importance") = py::none(),
        "Pack each row of x into blocks.\n\n"
        "x: float32 [..., n], n a multiple of the block; type: \"q8_0\", \"q4_0\", \"q4_1\", "
        "\"q5_0\", \"q5_1\", \"iq4_nl\" or \"mxfp4\", which have blocks of 32 and are rounded as "
        "GGML does; or \"q2_k\", \"q3_k\", \"q4_k\", \"q5_k\" or \"q6_k\", which have blocks of "
        "256 and the scales with the least squared error that a search finds.\n"
        "importance: float32 [n], finite and not negative: how much the squared error of each "
        "column counts in the search; the scales of blocks of 32 are then searched for, too, but "
        "for \"q8_0\" and \"mxfp4\", which take none. None: the same for all.\n"
        "Returns uint8 [..., n / values of a block * bytes of a block]. A block that holds NaN, an "
        "infinity, or a value so large that the float16 scale overflows does not dequantise to "
        "finite values.");
    m.def("dequantize", dequantize, arg("data"), arg("type"),
          "The values of packed rows, exactly.\n\n"
          "data: uint8 [..., row_bytes]; type: what `quantize` makes, or \"iq4_xs\", "
          "\"iq3_xxs\", \"iq3_s\", \"iq2_xxs\", \"iq2_xs\", \"iq2_s\", \"iq1_s\", \"iq1_m\", "
          "\"tq1_0\", \"tq2_0\" or \"nvfp4\".\n"
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

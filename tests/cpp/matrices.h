// Random weight matrices as a file stores them, with their exact values.
#pragma once

#include "arrays.h"
#include "reference_formats.h"

namespace matrices {

using arrays::Array;
using tensor_ops::block_size;
using tensor_ops::DType;
using tensor_ops::KernelTable;
using tensor_ops::row_bytes;

inline const char* name(DType type) { return tensor_ops::dtype_name(type); }

template <class Wanted>
std::vector<DType> types_that(Wanted&& wanted) {
    std::vector<DType> types;
    for (const auto& format : tensor_ops::formats)
        if (wanted(format.type)) types.push_back(format.type);
    return types;
}
inline bool is_float(DType type) { return !tensor_ops::is_quantized(type); }

inline const auto all_types = types_that([](DType) { return true; });
inline const auto float_types = types_that(is_float);
inline const auto quantized_types = types_that(tensor_ops::is_quantized);
// The quantised types that numbers can be turned into.
inline const auto simple_types =
    types_that([](DType t) { return !is_float(t) && block_size(t).elements == 32; });
inline const auto half_types = types_that([](DType t) { return block_size(t).bytes == 2; });

// At least k columns, in whole blocks.
inline std::size_t in_blocks(DType type, std::size_t k) {
    const std::size_t unit = block_size(type).elements;
    return (k + unit - 1) / unit * unit;
}

struct Matrix {
    DType type;
    std::size_t n, k;
    Array<std::byte> bytes;    // rows as a file stores them
    reference::Values values;  // [n][k]
    reference::Values sizes;   // what errors are measured by: |d q| + |minimum|
};

// Fills in values and sizes from the bytes.
inline void decode(Matrix& m) {
    m.values.clear();
    m.sizes.clear();
    for (std::size_t j = 0; j < m.n; ++j) {
        const std::byte* row = m.bytes.data() + j * row_bytes(m.type, m.k);
        for (const auto& [product, minimum] : reference::decode_elements(m.type, row, m.k)) {
            m.values.push_back(product + minimum);
            m.sizes.push_back(std::abs(product) + std::abs(minimum));
        }
    }
}

// Random bytes under Gaussian scales of that size, so that every code occurs.
inline void fill_blocks(DType type, Array<std::byte>& bytes, unsigned seed, double scale) {
    std::mt19937 engine(seed + 1);
    for (std::byte& b : bytes) b = static_cast<std::byte>(engine());
    const std::size_t blocks = bytes.size() / block_size(type).bytes;
    const auto scales = arrays::normal(2 * blocks, seed, scale);
    for (std::size_t i = 0; i < blocks; ++i)
        reference::write_scales(type, scales[2 * i], scales[2 * i + 1],
                                &bytes[i * block_size(type).bytes]);
}

// Gaussian numbers; for a quantised type random codes.  The bytes start `offset` bytes after a
// 64-byte boundary.
inline Matrix random(DType type, std::size_t n, std::size_t k, unsigned seed,
                     std::size_t offset = 0) {
    Matrix m{type, n, k, Array<std::byte>(n * row_bytes(type, k), offset), {}, {}};
    if (is_float(type))
        reference::encode_row(type, arrays::normal(n * k, seed).data(), n * k, m.bytes.data());
    else
        fill_blocks(type, m.bytes, seed, block_size(type).elements == 256 ? 0.01 : 0.1);
    decode(m);
    return m;
}

// Gaussian numbers of that scale, quantised where the type is; for the types that from_float makes.
inline Matrix normal(DType type, std::size_t n, std::size_t k, unsigned seed, double scale = 1) {
    Matrix m{type, n, k, Array<std::byte>(n * row_bytes(type, k)), {}, {}};
    reference::encode_row(type, arrays::normal(n * k, seed, scale).data(), n * k, m.bytes.data());
    decode(m);
    return m;
}

struct Packed {
    Array<std::byte> bytes;
    tensor_ops::PackedView view;
    std::size_t groups;
};

inline Packed pack(const KernelTable& table, const Matrix& m) {
    const std::size_t rows = table.group_rows(m.type), groups = (m.n + rows - 1) / rows;
    Packed packed{Array<std::byte>(groups * table.group_bytes(m.type, m.k)), {}, groups};
    table.pack(m.type, m.bytes.data(), m.n, m.k, 0, groups, packed.bytes.data());
    packed.view = {packed.bytes.data(), m.n, m.k, m.type};
    return packed;
}

// |error| <= (k + 8) u * sum_i |x_i w_i|, as linear_f32, linear_plain and matmul promise.
inline double float_bound(const float* x, const double* sizes, std::size_t k) {
    const double sum = reference::dot_of_magnitudes(x, sizes, k);
    return static_cast<double>(k + 8) *
           (arrays::roundoff * (std::isfinite(sum) ? sum : 0) + arrays::tiny);
}

// Checks y = x w^T, [rows][w.n].
template <class Bound>
void check_products(const Matrix& w, const arrays::Floats& x, std::size_t rows,
                    const arrays::Floats& y, Bound&& bound, const std::source_location& where) {
    for (std::size_t r = 0; r < rows; ++r) {
        const float* row = x.data() + r * w.k;
        for (std::size_t j = 0; j < w.n; ++j)
            check::near({name(w.type), where}, y[r * w.n + j],
                        reference::dot(row, &w.values[j * w.k], w.k), bound(row, j), w.n, " x ",
                        w.k, " at ", r, " of ", rows, ", ", j);
    }
}

// Checks that the columns [first, last) of `part` are those of `whole`, bit for bit, and the others
// as they were made: an output does not depend on which part of the work a call is given.
inline void check_columns(const arrays::Floats& whole, const arrays::Floats& part,
                          std::size_t columns, std::size_t first, std::size_t last,
                          const std::source_location& where = std::source_location::current()) {
    for (std::size_t i = 0; i < whole.size(); ++i) {
        const bool inside = i % columns >= first && i % columns < last;
        check::equal(std::bit_cast<std::uint32_t>(part[i]),
                     inside ? std::bit_cast<std::uint32_t>(whole[i]) : 0xffffffff,
                     inside ? "bits of an output by parts" : "bits beside the part", where);
    }
}

}  // namespace matrices

// Conversion of keys and values from the cache's types to the forms that attention's products read.
#pragma once

#include <limits>

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

struct BlockQ8 {  // q8_0 of dtype.h
    std::uint16_t d;
    std::byte code[quant_block];
};

struct E4m3 {  // a sign, four bits of exponent (bias 7), three bits of fraction
    std::uint8_t bits;
};

template <class Isa>
inline Floats<Isa> load_as_float(const E4m3* p) {
    using I = Ints<Isa>;
    std::int32_t lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i) lane[i] = p[i].bits;
    const I bits = I::load_unaligned(lane), magnitude = bits & I(0x7f);
    // Below the normal numbers are the multiples of 2^-9; 0x7f is NaN.
    const Floats<Isa> normal = xsimd::bitwise_cast<float>((magnitude << 20) + I(120 << 23)),
                      small = xsimd::to_float(magnitude) * 0x1p-9f,
                      number = xsimd::select(small < 0x1p-6f, small, normal),
                      nan(std::numeric_limits<float>::quiet_NaN()),
                      sign = xsimd::bitwise_cast<float>((bits & I(0x80)) << 24);
    return xsimd::select(small < 0x7fp-9f, number, nan) | sign;
}
inline float load_one(const E4m3* p) {
    const std::uint32_t magnitude = p->bits & 0x7fu;
    float value = static_cast<float>(magnitude) * 0x1p-9f;
    if (magnitude >= 8) value = bits_to_float((magnitude << 20) + (120u << 23));
    if (magnitude == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
    return p->bits & 0x80 ? -value : value;
}

// Calls f with a null pointer of the type that a KV cache of that DType holds.
template <class F>
inline void with_kv_source(DType type, F&& f) {
    if (type == DType::f32)
        f(static_cast<const float*>(nullptr));
    else if (type == DType::f16)
        f(static_cast<const Half*>(nullptr));
    else
        f(static_cast<const BlockQ8*>(nullptr));
}
template <class F>
inline void with_kv_source(KvType type, F&& f) {
    if (type == KvType::bf16)
        f(static_cast<const Bfloat16*>(nullptr));
    else if (type == KvType::e4m3)
        f(static_cast<const E4m3*>(nullptr));
    else
        with_kv_source(type == KvType::f32   ? DType::f32
                       : type == KvType::f16 ? DType::f16
                                             : DType::q8_0,
                       f);
}

template <class Source>
inline const Source* kv_row(const KvRows& kv, std::size_t position) {
    return reinterpret_cast<const Source*>(kv.row(position));
}

// Calls f(position, row, count) for the runs of positions [begin, end) whose rows lie one after
// another.
template <class Source, class F>
inline void for_runs(const KvRows& kv, std::size_t begin, std::size_t end, F&& f) {
    for (std::size_t p = begin; p < end;) {
        const std::size_t n = kv.run(p, end - p);
        f(p, kv_row<Source>(kv, p), n);
        p += n;
    }
}

// The bytes of a row of n numbers.
template <class Source>
constexpr std::size_t bytes_of_row(std::size_t n) {
    return (std::is_same_v<Source, BlockQ8> ? n / quant_block : n) * sizeof(Source);
}

// Begins to read a row into the second cache.  One Zen 4 core reads scattered runs of 8 KB at 20
// GB/s that way, but at 13 if they are fetched into the nearest cache, and at 12 if they are not
// fetched.
template <class Source>
inline void fetch_row(const Source* row, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(reinterpret_cast<const std::byte*>(row) + i, 0, 2);
}

// y[n] = row.
template <class Isa, class Source>
inline void unpack_row(const Source* row, std::size_t n, float* y) {
    constexpr std::size_t w = lanes<Isa>;
    if constexpr (std::is_same_v<Source, BlockQ8>) {
        for (std::size_t i = 0; i < n; i += quant_block, ++row) {
            const Floats<Isa> d(half_to_float(row->d));
            unroll<quant_block / w>([&](auto v) {
                (load_int8<Isa>(row->code + v * w) * d).store_unaligned(y + i + v * w);
            });
        }
    } else {
        std::size_t i = 0;
        for (; i + w <= n; i += w) load_as_float<Isa>(row + i).store_unaligned(y + i);
        for (; i < n; ++i) y[i] = load_one(row + i);
    }
}

// The row at y + j * y_stride = row j of n rows that are `step` apart.  ahead: as many rows to
// fetch, or null.
template <class Isa, class Source>
inline void unpack_run(const Source* rows, std::size_t step, std::size_t n, std::size_t dim,
                       float* y, std::size_t y_stride, const Source* ahead = nullptr) {
    for (std::size_t j = 0; j < n; ++j) {
        if (ahead) fetch_row(ahead + j * step, bytes_of_row<Source>(dim));
        unpack_row<Isa>(rows + j * step, dim, y + j * y_stride);
    }
}

// The row at y + j * y_stride = row first + j, for j < n.
template <class Isa, class Source>
void copy_rows(const KvRows& kv, std::size_t dim, std::size_t first, std::size_t n, float* y,
               std::size_t y_stride, const Source* ahead = nullptr) {
    const std::size_t step = kv.row_bytes / sizeof(Source);
    for_runs<Source>(kv, first, first + n,
                     [&](std::size_t p, const Source* rows, std::size_t count) {
                         const std::size_t j = p - first;
                         unpack_run<Isa>(rows, step, count, dim, y + j * y_stride, y_stride,
                                         ahead ? ahead + j * step : nullptr);
                     });
}

// Rows [first, first + n) as float32 [n][dim]: copied to y, or in place if they are that.
template <class Isa, class Source>
const float* unpack_rows(const KvRows& kv, std::size_t dim, std::size_t first, std::size_t n,
                         float* y) {
    if constexpr (std::is_same_v<Source, float>)
        if (kv.run(first, n) == n && kv.row_bytes == dim * sizeof(float))
            return kv_row<float>(kv, first);
    copy_rows<Isa, Source>(kv, dim, first, n, y, dim);
    return y;
}

// The same rows as panels of columns, [dim / panel][n][panel], the last padded with zeros.
template <class Isa, class Source>
void unpack_panels(const KvRows& kv, std::size_t dim, std::size_t first, std::size_t n, float* y) {
    alignas(64) float unpacked[attention_max_head_dim + panel<Isa>] = {};
    const std::size_t step = kv.row_bytes / sizeof(Source);
    for_runs<Source>(kv, first, first + n,
                     [&](std::size_t p, const Source* rows, std::size_t count) {
                         for (std::size_t j = 0; j < count; ++j) {
                             unpack_row<Isa>(rows + j * step, dim, unpacked);
                             float* to = y + (p - first + j) * panel<Isa>;
                             for (std::size_t c = 0; c < dim; c += panel<Isa>)
                                 for (std::size_t i = 0; i < panel<Isa>; i += lanes<Isa>)
                                     load<Isa>(unpacked + c + i).store_unaligned(to + c * n + i);
                         }
                     });
}

}  // namespace
}  // namespace tensor_ops

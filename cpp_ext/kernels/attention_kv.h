// Conversion of keys and values from the cache's types to the forms that attention's products read.
#pragma once

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

struct BlockQ8 {  // q8_0 of dtype.h
    std::uint16_t d;
    std::byte code[quant_block];
};

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

template <class Source>
inline const Source* kv_row(const KvRows& kv, std::size_t position) {
    return reinterpret_cast<const Source*>(kv.row(position));
}

// Calls f(position, row, count, next) for the runs of positions [begin, end) whose rows lie one
// after another; next: the row of the position after them, or for the last run `after`.
template <class Source, class F>
inline void for_runs(const KvRows& kv, std::size_t begin, std::size_t end, const Source* after,
                     F&& f) {
    for (std::size_t p = begin; p < end;) {
        const std::size_t n = kv.run(p, end - p);
        const Source* row = kv_row<Source>(kv, p);
        f(p, row, n, p + n < end ? kv_row<Source>(kv, p + n) : after);
        p += n;
    }
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

// y[j] = row j of n rows that are `step` apart; y: [n][dim].  ahead: as many rows to fetch, or
// null.
template <class Isa, class Source>
inline void unpack_run(const Source* rows, std::size_t step, std::size_t n, std::size_t dim,
                       float* y, const Source* ahead = nullptr) {
    for (std::size_t j = 0; j < n; ++j) {
        if (ahead) fetch_row(ahead + j * step, step * sizeof(Source));
        unpack_row<Isa>(rows + j * step, dim, y + j * dim);
    }
}

// Rows [first, first + n) as float32 [n][dim]: copied to y, or in place if they are that.
template <class Isa, class Source>
const float* unpack_rows(const KvRows& kv, std::size_t dim, std::size_t first, std::size_t n,
                         float* y) {
    if constexpr (std::is_same_v<Source, float>)
        if (kv.run(first, n) == n && kv.row_bytes == dim * sizeof(float))
            return kv_row<float>(kv, first);
    const std::size_t step = kv.row_bytes / sizeof(Source);
    for_runs<Source>(kv, first, first + n, nullptr,
                     [&](std::size_t p, const Source* rows, std::size_t count, const Source*) {
                         unpack_run<Isa>(rows, step, count, dim, y + (p - first) * dim);
                     });
    return y;
}

// The same rows as panels of columns, [dim / panel][n][panel], the last padded with zeros.
template <class Isa, class Source>
void unpack_panels(const KvRows& kv, std::size_t dim, std::size_t first, std::size_t n, float* y) {
    alignas(64) float unpacked[attention_max_head_dim + panel<Isa>] = {};
    const std::size_t step = kv.row_bytes / sizeof(Source);
    for_runs<Source>(kv, first, first + n, nullptr,
                     [&](std::size_t p, const Source* rows, std::size_t count, const Source*) {
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

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

// Row j of a cache [n][head_dim].
template <class Source>
inline const Source* cache_row(const void* cache, std::size_t head_dim, std::size_t j) {
    constexpr std::size_t elements = std::is_same_v<Source, BlockQ8> ? quant_block : 1;
    return static_cast<const Source*>(cache) + j * (head_dim / elements);
}

// y[n] = row; n is head_dim.
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

// Rows [first, first + n) as float32 [n][head_dim]: converted to y, or in place if they are that.
template <class Isa, class Source>
const float* unpack_rows(const void* cache, std::size_t head_dim, std::size_t first, std::size_t n,
                         float* y) {
    if constexpr (std::is_same_v<Source, float>) return cache_row<float>(cache, head_dim, first);
    for (std::size_t j = 0; j < n; ++j)
        unpack_row<Isa>(cache_row<Source>(cache, head_dim, first + j), head_dim, y + j * head_dim);
    return y;
}

// The same rows as panels of columns, [head_dim / panel][n][panel], the last padded with zeros.
template <class Isa, class Source>
void unpack_panels(const void* cache, std::size_t head_dim, std::size_t first, std::size_t n,
                   float* y) {
    alignas(64) float unpacked[attention_max_head_dim + panel<Isa>] = {};
    for (std::size_t j = 0; j < n; ++j) {
        unpack_row<Isa>(cache_row<Source>(cache, head_dim, first + j), head_dim, unpacked);
        for (std::size_t c = 0; c < head_dim; c += panel<Isa>)
            for (std::size_t i = 0; i < panel<Isa>; i += lanes<Isa>)
                load<Isa>(unpacked + c + i).store_unaligned(y + c * n + j * panel<Isa> + i);
    }
}

}  // namespace
}  // namespace tensor_ops

// The vector types of an ISA, and the loops over a row, with their unrolling and their tails.
//
// An `Isa` is a struct of isa/<name>.cpp, see table.h.  Everything in kernels/ is in an anonymous
// namespace, so that objects compiled with different flags cannot share a function by accident.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include "kernels/neon_arch.h"
#endif

#include <xsimd/xsimd.hpp>

namespace tensor_ops {
namespace {

template <class Isa>
using Floats = xsimd::batch<float, typename Isa::Arch>;
template <class Isa>
using Ints = xsimd::batch<std::int32_t, typename Isa::Arch>;

template <class Isa>
inline constexpr std::size_t lanes = Floats<Isa>::size;

template <class Isa>
inline Floats<Isa> load(const float* p) {
    return Floats<Isa>::load_unaligned(p);
}

// A vector of signed bytes, as floats.
template <class Isa>
inline Floats<Isa> load_int8(const std::byte* p) {
    std::int32_t lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i) lane[i] = static_cast<std::int8_t>(p[i]);
    return xsimd::to_float(Ints<Isa>::load_unaligned(lane));
}

// The first `count` lanes from p, the others `fill`.
template <class Isa>
inline Floats<Isa> load_partial(const float* p, std::size_t count, float fill) {
    float lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i) lane[i] = i < count ? p[i] : fill;
    return load<Isa>(lane);
}

template <class Isa>
inline void store_partial(Floats<Isa> v, float* p, std::size_t count) {
    float lane[lanes<Isa>];
    v.store_unaligned(lane);
    for (std::size_t i = 0; i < count; ++i) p[i] = lane[i];
}

// y[i] = body(x[i]...), a vector at a time.  Two vectors in flight hide the latency of a division
// or a polynomial.  The tail runs the same body on a padded vector.
template <class Isa, class Body, class... In>
inline void map(std::size_t n, float* y, Body body, const In*... x) {
    constexpr std::size_t w = lanes<Isa>;
    std::size_t i = 0;
    for (; i + 2 * w <= n; i += 2 * w) {
        const auto first = body(load<Isa>(x + i)...);
        const auto second = body(load<Isa>(x + i + w)...);
        first.store_unaligned(y + i);
        second.store_unaligned(y + i + w);
    }
    for (; i < n; i += w) {
        if (i + w <= n)
            body(load<Isa>(x + i)...).store_unaligned(y + i);
        else
            store_partial<Isa>(body(load_partial<Isa>(x + i, n - i, 0.0f)...), y + i, n - i);
    }
}

// Folds a row with body(accumulator, x[i]) into four independent accumulators, which cover the
// latency of an FMA or max, and combines these with join(a, b).  Lanes past the end hold `fill`,
// which body must ignore.
template <class Isa, class Body, class Join>
inline Floats<Isa> fold(const float* x, std::size_t n, float start, float fill, Body body,
                        Join join) {
    constexpr std::size_t w = lanes<Isa>;
    Floats<Isa> a(start), b(start), c(start), d(start);
    std::size_t i = 0;
    for (; i + 4 * w <= n; i += 4 * w) {
        a = body(a, load<Isa>(x + i));
        b = body(b, load<Isa>(x + i + w));
        c = body(c, load<Isa>(x + i + 2 * w));
        d = body(d, load<Isa>(x + i + 3 * w));
    }
    for (; i + w <= n; i += w) a = body(a, load<Isa>(x + i));
    if (i < n) b = body(b, load_partial<Isa>(x + i, n - i, fill));
    return join(join(a, b), join(c, d));
}

// Calls f with std::integral_constant<std::size_t, 0> to <N - 1>: an unrolled loop.
template <std::size_t N, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
    [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<std::size_t, I>{}), ...);
    }(std::make_index_sequence<N>{});
}

}  // namespace
}  // namespace tensor_ops

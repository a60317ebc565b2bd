// Elementwise kernels: the arithmetic of one vector each; simd.h has the loop.
#pragma once

#include "kernels/vmath.h"

namespace tensor_ops {
namespace {

template <class Isa>
void sigmoid(const float* x, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto v) { return sigmoid_of<Isa>(v); }, x);
}

template <class Isa>
void silu(const float* x, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto v) { return times_sigmoid<Isa>(v, v); }, x);
}

template <class Isa>
void gelu_tanh(const float* x, float* y, std::size_t n) {
    using F = Floats<Isa>;
    // 0.5 (1 + tanh(v / 2)) = sigmoid(v), with v / 2 = sqrt(2 / pi) (x + 0.044715 x^3).
    map<Isa>(
        n, y,
        [](F v) {
            const F cubic = xsimd::fma(v * v, F(0.0713548162726f), F(1.5957691216057f));
            return times_sigmoid<Isa>(v, v * cubic);
        },
        x);
}

template <class Isa>
void gelu_erf(const float* x, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto v) { return times_normal_cdf<Isa>(v); }, x);
}

template <class Isa>
void elu(const float* x, float* y, std::size_t n) {
    using F = Floats<Isa>;
    map<Isa>(
        n, y,
        [](F v) {
            // scale - 1 is exact, so that small results keep their relative precision.
            const auto [scale, above_one] = scaled_exp<Isa>(xsimd::min(v, F(0.0f)));
            const F below = xsimd::fma(above_one, scale, scale - F(1.0f));
            return xsimd::select(v > F(0.0f), v, below);
        },
        x);
}

template <class Isa>
void swiglu(const float* gate, const float* up, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto g, auto u) { return times_sigmoid<Isa>(g, g) * u; }, gate, up);
}

template <class Isa>
void add(const float* a, const float* b, float* y, std::size_t n) {
    map<Isa>(n, y, [](auto u, auto v) { return u + v; }, a, b);
}

}  // namespace
}  // namespace tensor_ops

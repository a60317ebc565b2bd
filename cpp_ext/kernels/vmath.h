// Vector maths: exp and the functions built on it.  The bounds hold on every ISA, with or without
// FMA.
//
// xsimd::max and min behave like std::max and std::min: if the first operand is NaN, so is the
// result.  xsimd does not promise that, but the tests with NaN would notice a change.
#pragma once

#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

// Horner's scheme, highest coefficient first.
template <class F>
inline F polynomial(F, float c) {
    return F(c);
}
template <class F, class... Rest>
inline F polynomial(F x, float c0, float c1, Rest... rest) {
    F y = xsimd::fma(F(c0), x, F(c1));
    ((y = xsimd::fma(y, x, F(rest))), ...);
    return y;
}

// Adding this to x rounds it to a whole number n, as float32 has no bits for fractions at that
// size, and leaves n + 127 in the last bits: the exponent field of 2^n.
inline constexpr float to_exponent = 0x1.8p23f + 127.0f;

// 2^n where shifted = n + to_exponent, for whole n from -126 to 127; 0 for -127.
template <class F>
inline F power_of_two(F shifted) {
    return xsimd::bitwise_cast<float>(xsimd::bitwise_cast<std::int32_t>(shifted) << 23);
}

template <class F>
struct ScaledExp {
    F scale, above_one;  // exp(x) = scale (1 + above_one); scale is a power of 2
};

// exp(high + low) for high <= 0, |low| small against 1.  Below -87.7 the scale is 0.
// exp(x) = 2^n exp(r), n = round(x / ln 2), r in +-0.35: degree 6, truncation below 9e-9.
template <class Isa, class... Low>
inline ScaledExp<Floats<Isa>> scaled_exp(Floats<Isa> high, Low... low) {
    using F = Floats<Isa>;
    const F x = xsimd::max(high, F(-88.0f));  // n = -127
    const F shifted = xsimd::fma(x, F(1.44269504f), F(to_exponent)), n = shifted - F(to_exponent);
    // ln 2 in two parts; the first has 9 significant bits, so n * part is exact without FMA too.
    F r = xsimd::fnma(n, F(0.693359375f), x);
    r = (xsimd::fnma(n, F(-2.12194440e-4f), r) + ... + low);
    const F q = polynomial(r, 0.00139269266f, 0.00836377387f, 0.0416665501f, 0.166665734f, 0.5f);
    return {power_of_two(shifted), xsimd::fma(r * r, q, r)};
}

// exp(high + low), see scaled_exp.  The error is at most 1.5 ulp while the result is a normal
// number; otherwise it is 0.  NaN stays NaN.
template <class Isa, class... Low>
inline Floats<Isa> exp_to_one(Floats<Isa> high, Low... low) {
    const auto [scale, above_one] = scaled_exp<Isa>(high, low...);
    return xsimd::fma(above_one, scale, scale);
}

// 2^x for x <= 0.  The error is at most 2 ulp; the result is exactly 1 for 0, and 0 below about
// -126.5, where it would be no normal number.  NaN stays NaN.  2^x = 2^n 2^r, r in +-0.5: degree 6,
// truncation below 2e-9.
template <class Isa>
inline Floats<Isa> exp2_to_one(Floats<Isa> x) {
    using F = Floats<Isa>;
    const F bounded = xsimd::max(x, F(-127.0f)), shifted = bounded + F(to_exponent);
    const F e = polynomial(bounded - (shifted - F(to_exponent)), 1.5345812e-4f, 1.33999312e-3f,
                           9.61848896e-3f, 5.55032878e-2f, 0.240226469f, 0.693147206f, 1.0f);
    return e * power_of_two(shifted);
}

// Whether the sign bit is set, of NaN too.  Cheaper than a comparison, which takes an FMA's place.
template <class F>
inline auto is_negative(F x) {
    const auto bits = xsimd::bitwise_cast<std::int32_t>(x);
    return xsimd::batch_bool_cast<float>(bits < decltype(bits)(0));
}

// 1 / (1 + exp(-v)).  It computes exp(-|v|), which cannot overflow, so that both tails keep their
// relative precision.
template <class Isa>
inline Floats<Isa> sigmoid_of(Floats<Isa> v) {
    using F = Floats<Isa>;
    const F e = exp_to_one<Isa>(v | F(-0.0f));
    return divide(xsimd::select(is_negative(v), e, F(1.0f)), F(1.0f) + e);
}

// x * sigmoid(v) for x and v of the same sign.  x has a lower bound, below which the product is 0
// anyway, because inf * 0 is NaN.
template <class Isa>
inline Floats<Isa> times_sigmoid(Floats<Isa> x, Floats<Isa> v) {
    return xsimd::max(x, Floats<Isa>(-1e30f)) * sigmoid_of<Isa>(v);
}

// exp(-x^2 / 2), relative error below 2e-7 while it is a normal number: x^2 is split so that its
// rounding, which exp would amplify by up to 100, is carried along.
template <class Isa>
inline Floats<Isa> gaussian(Floats<Isa> x) {
    using F = Floats<Isa>;
    const F bounded = xsimd::min(x, F(15.0f));
    const F head = xsimd::bitwise_cast<float>(xsimd::bitwise_cast<std::int32_t>(bounded) &
                                              Ints<Isa>(~0xfff));  // 12 bits: its square is exact
    const F tail = (bounded - head) * (bounded + head);
    return exp_to_one<Isa>(head * head * F(-0.5f), tail * F(-0.5f));
}

// erfc(x / sqrt 2) for x >= 0, relative error below 6e-7 while it is a normal number.
// exp(z^2) erfc(z) = t P(t), t = 3 / (z + 3): P is a Chebyshev fit on z in [0, 11], error 2e-9.
template <class Isa>
inline Floats<Isa> erfc_scaled(Floats<Isa> x) {
    using F = Floats<Isa>;
    const F t = divide(F(3.0f), xsimd::fma(x, F(0.707106781f), F(3.0f)));
    const F p = polynomial(t, 0.05663792f, -0.29699361f, 0.54672718f, -0.45527095f, 0.41470727f,
                           -0.0076214718f, 0.19399821f, 0.17105420f, 0.18872744f, 0.18803381f);
    return gaussian<Isa>(x) * t * p;
}

}  // namespace
}  // namespace tensor_ops

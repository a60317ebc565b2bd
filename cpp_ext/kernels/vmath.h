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
template <class F, class... Rest>
inline F horner(F y, F x, Rest... rest) {
    ((y = xsimd::fma(y, x, F(rest))), ...);
    return y;
}
template <class F, class... Rest>
inline F polynomial(F x, float c0, Rest... rest) {
    return horner(F(c0), x, rest...);
}
// The same with 1 before these coefficients: an addition in place of an FMA.
template <class F, class... Rest>
inline F monic_polynomial(F x, float c0, Rest... rest) {
    return horner(x + F(c0), x, rest...);
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

// exp(v) for v <= 0.  Below -87.7 the scale is 0.
// exp(x) = 2^n exp(r), n = round(x / ln 2), r in +-0.35: degree 6, truncation below 9e-9.
template <class Isa>
inline ScaledExp<Floats<Isa>> scaled_exp(Floats<Isa> v) {
    using F = Floats<Isa>;
    const F x = xsimd::max(v, F(-88.0f));  // n = -127
    const F shifted = xsimd::fma(x, F(1.44269504f), F(to_exponent)), n = shifted - F(to_exponent);
    // ln 2 in two parts; the first has 9 significant bits, so n * part is exact without FMA too.
    const F high = xsimd::fnma(n, F(0.693359375f), x);
    const F r = xsimd::fnma(n, F(-2.12194440e-4f), high);
    const F q = polynomial(r, 0.00139269266f, 0.00836377387f, 0.0416665501f, 0.166665734f, 0.5f);
    return {power_of_two(shifted), xsimd::fma(r * r, q, r)};
}

// exp(v), see scaled_exp.  The error is at most 1.5 ulp while the result is a normal number;
// otherwise it is 0.  NaN stays NaN.
template <class Isa>
inline Floats<Isa> exp_to_one(Floats<Isa> v) {
    const auto [scale, above_one] = scaled_exp<Isa>(v);
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

// x Phi(x) with Phi(x) = (1 + erf(x / sqrt 2)) / 2.  It is max(x, 0) - a Phi(-a) for a = |x|, and
// the left tail keeps its relative precision.  The relative error is at most 5.2e-7 with FMA and
// 6.4e-7 without: that is the largest of all floats from -13.21 on.
//
// Phi(-a) = 2^(-a^2 / T) R(a).  T is 2 ln 2 in 17 bits, so that n T is exact and r = a^2 - n T has
// no rounding error of a^2, which the power would amplify by up to 88.  R contains what that T is
// off: the minimax fit of degrees 4 and 4 on [0, 13.25], error 7.8e-8.  The power of r is the
// minimax fit of degree 5 on +-T / 2, error 7.5e-8.  (Remez's algorithm with 40 digits.)  The
// denominator and the power are scaled to have 1 as their highest coefficient, which the numerator
// undoes; the scaled power is negative.
template <class Isa>
inline Floats<Isa> times_normal_cdf(Floats<Isa> x) {
    using F = Floats<Isa>;
    constexpr float t = 90852.0f / 65536.0f;
    const F a = xsimd::min(xsimd::abs(x), F(13.25f));  // n = -127
    const F shifted = xsimd::fma(a * a, F(-1.0f / t), F(to_exponent));
    const F n = shifted - F(to_exponent);
    const F r = square_plus(a, n * F(t));
    const F e = monic_polynomial(r, -10.102891f, 80.347755f, -482.0486f, 1928.2325f, -3856.4585f);
    const F q = monic_polynomial(a, 7.6992292f, 26.124666f, 43.9314f, 30.185701f);
    const F p =
        polynomial(a, 7.605254e-9f, 1.0326883e-4f, 7.992014e-4f, 2.5731933e-3f, 3.9136554e-3f);
    const F below = divide(p * e * a, q);  // - a Phi(-a) / 2^n
    return xsimd::fma(below, power_of_two(shifted), xsimd::max(x, F(0.0f)));
}

}  // namespace
}  // namespace tensor_ops

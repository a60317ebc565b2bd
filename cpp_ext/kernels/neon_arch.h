// NEON for xsimd with its plainest operations written as the compiler's own vector operations.
//
// xsimd 14.1 picks the intrinsic of a NEON operation out of a tuple of function pointers, one for
// each type.  GCC 12 takes 1 to 3 s for each operation that an object uses, 9 s of the 16 s of an
// object of small kernels.  The instructions are the same.
//
// xsimd's batches find the functions that were declared before them.
#pragma once

#include <arm_neon.h>

#include <concepts>
#include <cstdint>

namespace xsimd {

template <class T, class A>
class batch;
template <class T, class A>
class batch_bool;
struct neon_lanes;

namespace kernel {

template <class T>
concept neon_lane = std::same_as<T, float> || std::same_as<T, std::int32_t>;

template <class A, neon_lane T>
inline batch<T, A> add(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return a.data + b.data;
}
template <class A, neon_lane T>
inline batch<T, A> sub(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return a.data - b.data;
}
template <class A, neon_lane T>
inline batch<T, A> mul(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return a.data * b.data;
}

template <class A, neon_lane T>
inline batch_bool<T, A> eq(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return reinterpret_cast<uint32x4_t>(a.data == b.data);
}
template <class A, neon_lane T>
inline batch_bool<T, A> lt(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return reinterpret_cast<uint32x4_t>(a.data < b.data);
}
template <class A, neon_lane T>
inline batch_bool<T, A> le(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return reinterpret_cast<uint32x4_t>(a.data <= b.data);
}
template <class A, neon_lane T>
inline batch_bool<T, A> gt(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return reinterpret_cast<uint32x4_t>(a.data > b.data);
}
template <class A, neon_lane T>
inline batch_bool<T, A> ge(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return reinterpret_cast<uint32x4_t>(a.data >= b.data);
}

// f of the bits of two vectors, or of two masks.
template <class V, class F>
inline V neon_bitwise(const V& a, const V& b, F f) {
    const auto bits = [](auto data) { return reinterpret_cast<uint32x4_t>(data); };
    return reinterpret_cast<typename V::register_type>(f(bits(a.data), bits(b.data)));
}
template <class A, neon_lane T>
inline batch<T, A> bitwise_and(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x & y; });
}
template <class A, neon_lane T>
inline batch_bool<T, A> bitwise_and(const batch_bool<T, A>& a, const batch_bool<T, A>& b,
                                    const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x & y; });
}
template <class A, neon_lane T>
inline batch<T, A> bitwise_or(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x | y; });
}
template <class A, neon_lane T>
inline batch_bool<T, A> bitwise_or(const batch_bool<T, A>& a, const batch_bool<T, A>& b,
                                   const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x | y; });
}
template <class A, neon_lane T>
inline batch<T, A> bitwise_xor(const batch<T, A>& a, const batch<T, A>& b, const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x ^ y; });
}
template <class A, neon_lane T>
inline batch_bool<T, A> bitwise_xor(const batch_bool<T, A>& a, const batch_bool<T, A>& b,
                                    const neon_lanes&) {
    return neon_bitwise(a, b, [](uint32x4_t x, uint32x4_t y) { return x ^ y; });
}
template <class A, neon_lane T>
inline batch_bool<T, A> bitwise_not(const batch_bool<T, A>& a, const neon_lanes&) {
    return ~a.data;
}
template <class A, neon_lane T>
inline batch<T, A> select(const batch_bool<T, A>& where, const batch<T, A>& a, const batch<T, A>& b,
                          const neon_lanes&) {
    const auto bits = [](auto data) { return reinterpret_cast<uint32x4_t>(data); };
    const uint32x4_t chosen = (where.data & bits(a.data)) | (~where.data & bits(b.data));
    return reinterpret_cast<typename batch<T, A>::register_type>(chosen);
}
template <class A, neon_lane T, neon_lane R>
inline batch<R, A> bitwise_cast(const batch<T, A>& a, const batch<R, A>&, const neon_lanes&) {
    return reinterpret_cast<typename batch<R, A>::register_type>(a.data);
}

}  // namespace kernel
}  // namespace xsimd

#include <xsimd/xsimd.hpp>

namespace xsimd {

struct neon_lanes : neon64 {};

namespace types {

XSIMD_DECLARE_SIMD_REGISTER_ALIAS(neon_lanes, neon64);

template <class T>
struct get_bool_simd_register<T, neon_lanes> : detail::neon_bool_simd_register<T, neon_lanes> {};

}  // namespace types
}  // namespace xsimd

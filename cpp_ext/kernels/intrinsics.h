// The operations that xsimd lacks, and the only place for intrinsics: the 8-bit dot product and the
// conversion of halves, in one struct for each instruction set and a generic one; shuffles of 16
// bytes; on every ISA, a division that rounds correctly and a square that keeps its low bits;
// non-temporal stores; sums across lanes, and lanes across vectors.
//
// An Int8 struct multiplies a vector of weight codes (a 32-bit lane is one row's 4 columns) by the
// 4 activation codes of those columns, the same for all lanes:
//   Acc                      the type of the accumulator
//   start(correction)        an Acc that begins at `correction` (int32 per lane)
//   dot_nibbles(acc, w, x)   acc += dot(w, x) per lane, codes w in [0, 15]
//   dot_codes(acc, w, x)     the same for codes w in [0, 128]
//   dot_bytes(acc, w, x)     the same for whole bytes, w = weight + byte_bias
//   dot_at(acc, w, p)        the same for any w, x being the 4 bytes at p: only where an
//                            instruction reads and repeats them
//   finish(acc)              the int32 sums per lane
// At most 8 steps may be taken between start and finish.  A struct whose dot product takes several
// instructions has these too, for linear_unpacked.h:
//   Products                 int16 [2] per lane, each the sum of the products of two columns
//   multiply(w, x)           Products of codes w in [0, 127]
//   add(p, q)                their sum, which must fit
//   widen(p, f)              per lane p[0] * f[0] + p[1] * f[1], with f like Products
//   add_widened(sum, p, f)   sum + widen(p, f)
// A struct whose instruction multiplies bytes with a sign has these, for the same:
//   dot_lane<i>(acc, w, x)   as dot_bytes, with lane i of x
//   subtract_bytes(a, b)     a - b for each byte
//   widen(p, f)              as above, of int16 [2] per lane
// and if it multiplies two rows by two rows, these:
//   add_square(s, x, w)      int32 s [2 rows of x][2 rows of w] + x w^T, int8 [2 rows][8 columns]
//   low_rows(a, b)           of int8 a and b, [4 rows][4 columns]: rows 0 and 1 of [a b]
//   high_rows(a, b)          rows 2 and 3
//   first_row(s, t)          of int32 s and t, [2 rows][2 columns]: row 0 of [s t]
//   second_row(s, t)         row 1
#pragma once

#include "kernels/simd.h"

namespace tensor_ops {
namespace {

inline float bits_to_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t float_to_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// f16 to f32 by moving exponent and mantissa and rescaling by 2^112, which also normalises
// denormals; the largest exponent is infinity or NaN.
template <class Isa>
inline Floats<Isa> halves_by_shifts(const std::uint16_t* p) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    std::int32_t lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i) lane[i] = p[i];
    const I half = I::load_unaligned(lane);
    const I magnitude = (half & I(0x7fff)) << 13;
    const F finite = xsimd::bitwise_cast<float>(magnitude) * F(0x1p112f);
    const F special = xsimd::bitwise_cast<float>(magnitude | I(0x7f800000));
    const auto is_special = xsimd::batch_bool_cast<float>((half & I(0x7c00)) == I(0x7c00));
    const F sign = xsimd::bitwise_cast<float>((half & I(0x8000)) << 16);
    return xsimd::select(is_special, special, finite) | sign;
}

// Replaces each byte of `places`, from 0 to 15, by that one of the 16 bytes of `bytes` among which
// it lies itself.  xsimd's swizzle moves bytes across the whole vector, which takes AVX2 several
// instructions.
template <class I>
inline I shuffle_bytes(I bytes, I places) {
#if defined(__AVX512BW__)
    if constexpr (I::size == 16) return _mm512_shuffle_epi8(bytes, places);
#elif defined(__AVX2__)
    if constexpr (I::size == 8) return _mm256_shuffle_epi8(bytes, places);
#elif defined(__aarch64__)
    if constexpr (std::is_same_v<I, xsimd::batch<std::int32_t, xsimd::neon_lanes> >)
        return vreinterpretq_s32_u8(
            vqtbl1q_u8(vreinterpretq_u8_s32(bytes), vreinterpretq_u8_s32(places)));
#endif
    std::uint8_t from[4 * I::size], to[4 * I::size];
    bytes.store_unaligned(reinterpret_cast<std::int32_t*>(from));
    places.store_unaligned(reinterpret_cast<std::int32_t*>(to));
    for (std::size_t i = 0; i < 4 * I::size; ++i) to[i] = from[i / 16 * 16 + to[i]];
    return I::load_unaligned(reinterpret_cast<const std::int32_t*>(to));
}

// Replaces each byte of `codes`, from 0 to 15, by that byte of `table`.
struct alignas(64) ByteTable {
    std::uint8_t bytes[64];  // the same 16 bytes in each quarter
};
template <class I>
inline I look_up(const ByteTable& table, I codes) {
    return shuffle_bytes(I::load_aligned(reinterpret_cast<const std::int32_t*>(table.bytes)),
                         codes);
}

// The lowest byte of each lane, in all bytes of the lane.
template <class I>
inline I repeat_byte(I v) {
    static constexpr ByteTable places = [] {
        ByteTable table{};
        for (std::size_t i = 0; i < 64; ++i)
            table.bytes[i] = static_cast<std::uint8_t>(i % 16 / 4 * 4);
        return table;
    }();
    return shuffle_bytes(v, I::load_aligned(reinterpret_cast<const std::int32_t*>(places.bytes)));
}

template <class F>
inline F divide(F a, F b) {
    return a / b;
}

#if defined(__aarch64__)
// xsimd's division, written for 32-bit ARM, refines an estimate and is up to 2 ulp off.
inline xsimd::batch<float, xsimd::neon_lanes> divide(xsimd::batch<float, xsimd::neon_lanes> a,
                                                     xsimd::batch<float, xsimd::neon_lanes> b) {
    return vdivq_f32(a, b);
}
#endif

// a * a + b without the rounding error of the square, for b near -a * a.
template <class F>
inline F square_plus(F a, F b) {
    return xsimd::fma(a, a, b);
}

#if XSIMD_WITH_EMULATED
// Here xsimd::fma multiplies and adds.  The square of the first 12 bits is exact.
template <std::size_t Bits>
inline xsimd::batch<float, xsimd::emulated<Bits> > square_plus(
    xsimd::batch<float, xsimd::emulated<Bits> > a, xsimd::batch<float, xsimd::emulated<Bits> > b) {
    const auto bits = xsimd::bitwise_cast<std::int32_t>(a);
    const auto head = xsimd::bitwise_cast<float>(bits & decltype(bits)(~0xfff));
    return xsimd::fma(a - head, a + head, head * head + b);
}
#endif

// Stores a vector at an aligned address.  If the ISA has non-temporal stores, the store bypasses
// the caches, and the CPU does not read the memory first.  Other threads see it after stream_fence.
template <class F>
inline void stream_store(F v, float* p) {
#if defined(__AVX512F__)
    if constexpr (F::size == 16) return _mm512_stream_ps(p, v);
#elif defined(__AVX__)
    if constexpr (F::size == 8) return _mm256_stream_ps(p, v);
#endif
    v.store_aligned(p);
}
inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// Lane i of the result is the sum of all lanes of x[i], for `lanes<Isa>` vectors x.
template <class Isa>
inline Floats<Isa> sum_each(const Floats<Isa>* x) {
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16) {  // xsimd 14.1's haddp has the sums out of order
        __m512 fours[4];               // 4 lanes of x[i], of x[i + 4], of x[i + 8], of x[i + 12]
        unroll<4>([&](auto i) {
            const auto halves = [](__m512 a, __m512 b) {
                return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
                                     _mm512_shuffle_f32x4(a, b, 0xee));
            };
            const __m512 a = halves(x[i], x[i + 4]), b = halves(x[i + 8], x[i + 12]);
            fours[i] =
                _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        });
        const auto twos = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        };
        const __m512 a = twos(fours[0], fours[1]), b = twos(fours[2], fours[3]);
        return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    }
#endif
    return xsimd::haddp(x);
}

// Transposes the square x[lanes<Isa>][lanes<Isa>].
template <class Isa>
inline void transpose(Floats<Isa>* x) {
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16) {  // xsimd 14.1 moves the numbers one by one
        __m512 quarters[16];           // [column of a quarter][row / 4], transposed within quarters
        unroll<4>([&](auto r) {
            const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[4 * r], x[4 * r + 1]));
            const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(x[4 * r + 2], x[4 * r + 3]));
            const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(x[4 * r], x[4 * r + 1]));
            const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(x[4 * r + 2], x[4 * r + 3]));
            quarters[r] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quarters[4 + r] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
            quarters[8 + r] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
            quarters[12 + r] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
        });
        unroll<4>([&](auto column) {
            const __m512* q = quarters + 4 * column;
            const __m512 a = _mm512_shuffle_f32x4(q[0], q[1], 0x44);
            const __m512 b = _mm512_shuffle_f32x4(q[2], q[3], 0x44);
            const __m512 c = _mm512_shuffle_f32x4(q[0], q[1], 0xee);
            const __m512 d = _mm512_shuffle_f32x4(q[2], q[3], 0xee);
            x[column] = _mm512_shuffle_f32x4(a, b, 0x88);
            x[4 + column] = _mm512_shuffle_f32x4(a, b, 0xdd);
            x[8 + column] = _mm512_shuffle_f32x4(c, d, 0x88);
            x[12 + column] = _mm512_shuffle_f32x4(c, d, 0xdd);
        });
        return;
    }
#endif
    xsimd::transpose(x, x + lanes<Isa>);
}

template <class Isa>
struct GenericInt8 {
    using I = Ints<Isa>;
    using Acc = I;
    static constexpr int byte_bias = 0;
    static Acc start(I correction) { return correction; }
    // A function of its own: where it is inlined, an object takes one to two minutes to compile.
    [[gnu::noinline]] static Acc dot_bytes(Acc acc, I w, I x) {
        constexpr std::size_t bytes = 4 * lanes<Isa>;
        std::int8_t a[bytes], b[bytes];
        std::int32_t sum[lanes<Isa>];
        w.store_unaligned(reinterpret_cast<std::int32_t*>(a));
        x.store_unaligned(reinterpret_cast<std::int32_t*>(b));
        acc.store_unaligned(sum);
        for (std::size_t i = 0; i < lanes<Isa>; ++i)
            for (std::size_t j = 4 * i; j < 4 * i + 4; ++j) sum[i] += a[j] * b[j];
        return I::load_unaligned(sum);
    }
    static Acc dot_nibbles(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static Acc dot_codes(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static I finish(Acc acc) { return acc; }
};

template <class Isa>
struct GenericHalf {
    static Floats<Isa> load(const std::uint16_t* p) { return halves_by_shifts<Isa>(p); }
};

#if defined(__AVX2__) && defined(__F16C__)
template <class Isa>
struct Avx2Half {
    static Floats<Isa> load(const std::uint16_t* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};

// AVX2 has no dot product.  Nibbles are summed in 16 bits (8 steps reach at most 8 * 2 * 15 * 127 =
// 30,480).  Signed bytes are multiplied as |w| * sign(x, w), whose sums of two stay below 2^15
// (2 * 128 * 127).
template <class Isa>
struct Avx2Int8 {
    using I = Ints<Isa>;
    static constexpr int byte_bias = 0;
    struct Acc {
        __m256i sum16, sum32;
    };
    static Acc start(I correction) { return {_mm256_setzero_si256(), correction}; }
    static Acc dot_nibbles(Acc acc, I w, I x) {
        acc.sum16 = _mm256_add_epi16(acc.sum16, _mm256_maddubs_epi16(w, x));
        return acc;
    }
    static Acc dot_codes(Acc acc, I w, I x) {
        const __m256i pairs = _mm256_maddubs_epi16(w, x);
        acc.sum32 = _mm256_add_epi32(acc.sum32, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        return acc;
    }
    static Acc dot_bytes(Acc acc, I w, I x) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        acc.sum32 = _mm256_add_epi32(acc.sum32, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        return acc;
    }
    static I finish(Acc acc) {
        return _mm256_add_epi32(acc.sum32, _mm256_madd_epi16(acc.sum16, _mm256_set1_epi16(1)));
    }

    // GCC 12 puts off additions until all products are there, and keeps these in memory: an empty
    // asm holds it to the order.
    using Products = __m256i;
    static Products multiply(I w, I x) { return _mm256_maddubs_epi16(w, x); }
    static Products add(Products sum, Products more) {
        sum = _mm256_add_epi16(sum, more);
        __asm__("" : "+x"(sum));
        return sum;
    }
    static I widen(Products sum, I factors) { return _mm256_madd_epi16(sum, factors); }
    static I add_widened(I sum, Products more, I factors) {
        __m256i total = _mm256_add_epi32(sum, _mm256_madd_epi16(more, factors));
        __asm__("" : "+x"(total));
        return total;
    }
};
#endif

#if defined(__AVXVNNI__)
// vpdpbusd multiplies unsigned by signed bytes, so weights carry a bias of 128, which the
// correction subtracts.
template <class Isa>
struct AvxVnniInt8 {
    using I = Ints<Isa>;
    using Acc = I;
    static constexpr int byte_bias = 128;
    static Acc start(I correction) { return correction; }
    static Acc dot_nibbles(Acc acc, I w, I x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
    static Acc dot_codes(Acc acc, I w, I x) { return dot_nibbles(acc, w, x); }
    static Acc dot_bytes(Acc acc, I w, I x) { return dot_nibbles(acc, w, x); }
    static I finish(Acc acc) { return acc; }
};
#endif

#if defined(__AVX512VNNI__)
template <class Isa>
struct Avx512VnniInt8 {
    using I = Ints<Isa>;
    using Acc = I;
    static constexpr int byte_bias = 128;
    static Acc start(I correction) { return correction; }
    static Acc dot_nibbles(Acc acc, I w, I x) { return _mm512_dpbusd_epi32(acc, w, x); }
    static Acc dot_codes(Acc acc, I w, I x) { return dot_nibbles(acc, w, x); }
    static Acc dot_bytes(Acc acc, I w, I x) { return dot_nibbles(acc, w, x); }
    // GCC 12 knows no such operand, and loads x into a register.  The registers that are in flight
    // then limit a Zen 4: TQ2_0 by one row takes 24.5 cycles for a block, and 21.1 this way.
    static Acc dot_at(Acc acc, I w, const std::byte* p) {
        __m512i sum = acc;
        const __m512i codes = w;
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(sum)
                : "v"(codes), "m"(*reinterpret_cast<const std::byte(*)[4]>(p)));
        return sum;
    }
    static I finish(Acc acc) { return acc; }
};

template <class Isa>
struct Avx512Half {
    static Floats<Isa> load(const std::uint16_t* p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
};
#endif

#if defined(__aarch64__)
template <class Isa>
struct NeonHalf {
    static Floats<Isa> load(const std::uint16_t* p) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
    }
};

template <class Isa>
struct NeonInt8 {
    using I = Ints<Isa>;
    using Acc = I;
    static constexpr int byte_bias = 0;
    static Acc start(I correction) { return correction; }
    static Acc dot_bytes(Acc acc, I w, I x) {
        const int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
        const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        const int16x8_t high = vmull_high_s8(a, b);
        return vpadalq_s16(acc, vpaddq_s16(low, high));
    }
    static Acc dot_nibbles(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static Acc dot_codes(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static I finish(Acc acc) { return acc; }
};
#endif

#if defined(__ARM_FEATURE_DOTPROD)
template <class Isa>
struct NeonDotInt8 {
    using I = Ints<Isa>;
    using Acc = I;
    static constexpr int byte_bias = 0;
    static Acc start(I correction) { return correction; }
    static Acc dot_bytes(Acc acc, I w, I x) {
        return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
    }
    static Acc dot_nibbles(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static Acc dot_codes(Acc acc, I w, I x) { return dot_bytes(acc, w, x); }
    static I finish(Acc acc) { return acc; }

    template <std::size_t Lane>
    static I dot_lane(I acc, I w, I x) {
        return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x), Lane);
    }
    static I subtract_bytes(I a, I b) {
        return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
    }
    static I widen(I p, I f) {
        const int16x8_t a = vreinterpretq_s16_s32(p), b = vreinterpretq_s16_s32(f);
        return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
    }
};
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
template <class Isa>
struct NeonMatmulInt8 : NeonDotInt8<Isa> {
    using I = Ints<Isa>;
    static I add_square(I sum, I x, I w) {
        return vmmlaq_s32(sum, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w));
    }
    static I low_rows(I a, I b) { return vzip1q_s32(a, b); }
    static I high_rows(I a, I b) { return vzip2q_s32(a, b); }
    static I first_row(I s, I t) {
        return vreinterpretq_s32_s64(
            vzip1q_s64(vreinterpretq_s64_s32(s), vreinterpretq_s64_s32(t)));
    }
    static I second_row(I s, I t) {
        return vreinterpretq_s32_s64(
            vzip2q_s64(vreinterpretq_s64_s32(s), vreinterpretq_s64_s32(t)));
    }
};
#endif

}  // namespace
}  // namespace tensor_ops

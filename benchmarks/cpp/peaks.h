// Fills limits::Peaks for one ISA.  Included by peaks/<name>.cpp only, which defines
//
//     struct Isa {
//         using Arch = xsimd::...; using Int8 = ...;  // as isa/<name>.cpp does for the kernels
//         static constexpr std::size_t sums = ...;      // multiply-adds in flight: registers less
//         static constexpr std::size_t dot_sums = ...;  // the operands; the same for dot products
//     };
#pragma once

#include "kernels/intrinsics.h"
#include "machine_limits.h"

namespace limits {
namespace {

using tensor_ops::Floats;
using tensor_ops::Ints;
using tensor_ops::lanes;
using tensor_ops::unroll;

#if defined(__aarch64__)
#define IN_A_VECTOR_REGISTER "+w"
#else
#define IN_A_VECTOR_REGISTER "+v"
#endif

// Costs nothing, and leaves the value as it is, but the compiler must believe that it changed: what
// is computed from it cannot move out of a loop, be left out, or be shared with what came before.
template <class Batch>
inline __attribute__((always_inline)) void launder(Batch& value) {
    if constexpr (requires { value.data.size(); })  // an emulated vector, an array
        asm volatile("" : "+m"(value.data));
    else
        asm volatile("" : IN_A_VECTOR_REGISTER(value.data));
}

// Every loop over the sums is unrolled, or the compiler would keep them in memory, and each starts
// from another value, or it would compute one for all.
template <class Isa>
double multiply_add(std::size_t rounds) {
    using F = Floats<Isa>;
    F sum[Isa::sums];
    unroll<Isa::sums>([&](auto j) { sum[j] = F(static_cast<float>(j)); });
    F a(0.5f), b(0.25f);
    for (std::size_t i = 0; i < rounds; ++i) {
        launder(a);
        unroll<Isa::sums>([&](auto j) { sum[j] = xsimd::fma(a, b, sum[j]); });
    }
    F total(0.0f);
    unroll<Isa::sums>([&](auto j) { total += sum[j]; });
    launder(total);
    return 2.0 * static_cast<double>(rounds * Isa::sums * lanes<Isa>);
}

template <class Isa>
double dot_int8(std::size_t rounds) {
    using Int8 = typename Isa::Int8;
    using Acc = typename Int8::Acc;
    using I = Ints<Isa>;
    I w(0x01020304), x(0x04030201);
    constexpr bool has_squares = requires { Int8::add_square(w, w, w); };
    const auto multiply = [](Acc sum, I a, I b) {
        if constexpr (has_squares)
            return Int8::add_square(sum, b, a);
        else
            return Int8::dot_nibbles(sum, a, b);
    };
    Acc sum[Isa::dot_sums];
    unroll<Isa::dot_sums>([&](auto j) __attribute__((always_inline)) {
        launder(w);
        sum[j] = multiply(Int8::start(I(0)), w, x);
    });
    for (std::size_t i = 0; i < rounds; ++i)
        unroll<Isa::dot_sums>([&](auto j) __attribute__((always_inline)) {
            launder(w);  // each time: where a dot product takes several instructions, equal
                         // operands would let the sums share all but the last one
            sum[j] = multiply(sum[j], w, x);
        });
    I total(0);
    unroll<Isa::dot_sums>([&](auto j) { total += Int8::finish(sum[j]); });
    launder(total);
    constexpr double products = has_squares ? 8 : 4;  // of a lane
    return 2.0 * products * static_cast<double>(rounds * Isa::dot_sums * lanes<Isa>);
}

template <class Isa, std::size_t Streams>
std::int32_t read_streams(const std::byte* data, std::size_t bytes) {
    using I = Ints<Isa>;
    constexpr std::size_t line = 128;  // two cache lines a step and stream
    constexpr std::size_t vectors = line / sizeof(I);
    const std::size_t part = bytes / Streams / line * line;
    I sum[Streams * 2];
    unroll<Streams * 2>([&](auto j) { sum[j] = I(0); });
    for (std::size_t i = 0; i < part; i += line)
        unroll<Streams>([&](auto stream) {
            const std::byte* p = data + stream * part + i;
            unroll<vectors>([&](auto j) {
                sum[stream * 2 + j % 2] +=
                    I::load_unaligned(reinterpret_cast<const std::int32_t*>(p + j * sizeof(I)));
            });
        });
    I total(0);
    unroll<Streams * 2>([&](auto j) { total += sum[j]; });
    return xsimd::reduce_add(total);
}

template <class Isa>
std::int32_t read(const std::byte* data, std::size_t bytes, std::size_t streams) {
    if (streams == 1) return read_streams<Isa, 1>(data, bytes);
    if (streams == 2) return read_streams<Isa, 2>(data, bytes);
    return read_streams<Isa, 4>(data, bytes);
}

template <class Isa>
constexpr Peaks make_peaks(const char* name) {
    return {name, multiply_add<Isa>, dot_int8<Isa>, read<Isa>};
}

}  // namespace
}  // namespace limits

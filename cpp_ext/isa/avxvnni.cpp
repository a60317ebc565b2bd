// AVX2 with the 8-bit dot product (Alder Lake, Zen 5).
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::fma3<xsimd::avx2>;
    using Int8 = AvxVnniInt8<Isa>;
    using HalfLoad = Avx2Half<Isa>;
    static constexpr std::size_t float_tile = 6;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

// 16 registers of 8 floats: 6 x 2 sums, 2 weights, 1 broadcast.
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::fma3<xsimd::avx2>;
    using Int8 = Avx2Int8<Isa>;
    using HalfLoad = Avx2Half<Isa>;
    static constexpr std::size_t float_tile = 6;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

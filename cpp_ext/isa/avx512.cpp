// 32 registers of 16 floats: 12 x 2 sums, 2 weights, broadcasts from memory.
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::avx512vnni<xsimd::avx512bw>;
    using Int8 = Avx512VnniInt8<Isa>;
    using HalfLoad = Avx512Half<Isa>;
    static constexpr std::size_t float_tile = 12;
    static constexpr std::size_t activation_tile = 8;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

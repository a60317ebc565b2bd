// 32 registers of 4 floats: 8 x 2 sums.
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::neon_lanes;
    using Int8 = NeonInt8<Isa>;
    using HalfLoad = NeonHalf<Isa>;
    static constexpr std::size_t float_tile = 8;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

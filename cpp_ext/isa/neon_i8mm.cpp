// NEON with the 8-bit matrix product (i8mm: Cortex-A510 and A710, Neoverse V1 and N2).
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::neon_lanes;
    using Int8 = NeonMatmulInt8<Isa>;
    using HalfLoad = NeonHalf<Isa>;
    static constexpr std::size_t float_tile = 8;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

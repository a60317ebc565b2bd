// NEON with the 8-bit dot product (ARMv8.2: Cortex-A55, A76, Apple M1 and later).
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::neon_lanes;
    using Int8 = NeonDotInt8<Isa>;
    using HalfLoad = NeonHalf<Isa>;
    static constexpr std::size_t float_tile = 8;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

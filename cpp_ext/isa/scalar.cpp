// The fallback for any CPU: loops over 4 floats, no intrinsics.
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::emulated<128>;
    using Int8 = GenericInt8<Isa>;
    using HalfLoad = GenericHalf<Isa>;
    static constexpr std::size_t float_tile = 4;
    static constexpr std::size_t activation_tile = 2;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

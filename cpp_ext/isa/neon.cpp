// 32 registers of 4 floats: 8 x 2 sums.
#include "kernels/table.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::neon64;
    using Int8 = NeonInt8<Isa>;
    using HalfLoad = NeonHalf<Isa>;
    static constexpr std::size_t float_tile = 8;
    static constexpr std::size_t activation_tile = 4;
};

}  // namespace

extern const KernelTable neon_kernels;
const KernelTable neon_kernels = make_table<Isa>("neon");

}  // namespace tensor_ops

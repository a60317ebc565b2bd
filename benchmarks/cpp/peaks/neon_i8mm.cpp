#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::neon_lanes;
    using Int8 = tensor_ops::NeonMatmulInt8<Isa>;
    static constexpr std::size_t sums = 24, dot_sums = 24;
};

}  // namespace

extern const Peaks neon_i8mm_peaks;
const Peaks neon_i8mm_peaks = make_peaks<Isa>("neon_i8mm");

}  // namespace limits

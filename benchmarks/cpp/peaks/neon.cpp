#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::neon_lanes;
    using Int8 = tensor_ops::NeonInt8<Isa>;
    static constexpr std::size_t sums = 24, dot_sums = 8;
};

}  // namespace

extern const Peaks neon_peaks;
const Peaks neon_peaks = make_peaks<Isa>("neon");

}  // namespace limits

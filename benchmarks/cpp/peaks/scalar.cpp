#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::emulated<128>;
    using Int8 = tensor_ops::GenericInt8<Isa>;
    static constexpr std::size_t sums = 12, dot_sums = 2;
};

}  // namespace

extern const Peaks scalar_peaks;
const Peaks scalar_peaks = make_peaks<Isa>("scalar");

}  // namespace limits

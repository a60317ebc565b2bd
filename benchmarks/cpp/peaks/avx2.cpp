#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::fma3<xsimd::avx2>;
    using Int8 = tensor_ops::Avx2Int8<Isa>;
    static constexpr std::size_t sums = 12, dot_sums = 6;
};

}  // namespace

extern const Peaks avx2_peaks;
const Peaks avx2_peaks = make_peaks<Isa>("avx2");

}  // namespace limits

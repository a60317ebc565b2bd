#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::avx512vnni<xsimd::avx512bw>;
    using Int8 = tensor_ops::Avx512VnniInt8<Isa>;
    static constexpr std::size_t sums = 24, dot_sums = 24;
};

}  // namespace

extern const Peaks avx512_peaks;
const Peaks avx512_peaks = make_peaks<Isa>("avx512");

}  // namespace limits

#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::fma3<xsimd::avx2>;
    using Int8 = tensor_ops::AvxVnniInt8<Isa>;
    static constexpr std::size_t sums = 12, dot_sums = 12;
};

}  // namespace

extern const Peaks avxvnni_peaks;
const Peaks avxvnni_peaks = make_peaks<Isa>("avxvnni");

}  // namespace limits

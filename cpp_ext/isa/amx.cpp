// AVX-512 with AMX's tile registers (Xeons since Sapphire Rapids).
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

struct Isa {
    using Arch = xsimd::avx512vnni<xsimd::avx512bw>;
    using Int8 = Avx512VnniInt8<Isa>;
    using HalfLoad = Avx512Half<Isa>;
    static constexpr std::size_t activation_tile = 16;
};

}  // namespace
}  // namespace tensor_ops

#include "kernels/part.h"

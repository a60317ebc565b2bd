#include "kernels/amx.h"

#include "peaks.h"

namespace limits {
namespace {

struct Isa {
    using Arch = xsimd::avx512vnni<xsimd::avx512bw>;
    using Int8 = tensor_ops::Avx512VnniInt8<Isa>;
    static constexpr std::size_t sums = 24;
};

double multiply_tiles(std::size_t rounds) {
    constexpr std::size_t side = tensor_ops::tile_side, columns = 64;
    alignas(64) const std::int8_t ones[side][columns] = {{1}};
    alignas(64) std::int32_t sum[side][side];
    tensor_ops::Tiles tiles(columns);
    tiles.load<4>(ones, columns);
    tiles.load<5>(ones, columns);
    tiles.load<6>(ones, columns);
    tiles.load<7>(ones, columns);
    tensor_ops::unroll<4>([&](auto i) { tiles.zero<static_cast<int>(i)>(); });
    for (std::size_t i = 0; i < rounds; ++i) {
        tiles.multiply<0, 4, 6>();
        tiles.multiply<1, 4, 7>();
        tiles.multiply<2, 5, 6>();
        tiles.multiply<3, 5, 7>();
    }
    tiles.store<0>(sum);
    return 2.0 * 4 * side * side * columns * static_cast<double>(rounds);
}

}  // namespace

extern const Peaks amx_peaks;
const Peaks amx_peaks = {"amx", multiply_add<Isa>, multiply_tiles, read<Isa>};

}  // namespace limits

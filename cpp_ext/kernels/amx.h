// The tile registers of AMX, which multiply matrices of bytes, and a plain double of them for tests
// on CPUs without.
//
// A register holds up to 16 rows of 64 bytes.  Numbers 0 to 3 are sums, int32 [16 rows of x][16
// rows of w].  4 and 5 are for x, int8 [16 rows][columns], and 6 and 7 for w, int8 [columns / 4][16
// rows][4].  A struct of tiles has, where the registers are template arguments:
//   Tiles(columns)           sets the registers up for so many columns, until its end
//   zero<Sum>()
//   load<Tile>(p, stride)    reads the rows of x or w, `stride` bytes apart
//   multiply<Sum, X, W>()    Sum += x w^T
//   store<Sum>(p)            to int32 [16][16]
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tensor_ops {
namespace {

inline constexpr std::size_t tile_side = 16;

// What an instruction reads that sets up all registers.  (Intel, "Instruction Set Extensions
// Programming Reference", chapter 3.)
struct TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};

    explicit TileConfig(std::size_t columns) {
        for (std::size_t tile = 0; tile < 8; ++tile) {
            const bool x = tile == 4 || tile == 5, w = tile > 5;
            row_bytes[tile] = static_cast<std::uint16_t>(x ? columns : 64);
            rows[tile] = static_cast<std::uint8_t>(w ? columns / 4 : tile_side);
        }
    }
};
static_assert(sizeof(TileConfig) == 64);

#if defined(TENSOR_OPS_PLAIN_TILES)

class Tiles {
 public:
    explicit Tiles(std::size_t columns) : config_(columns) {}

    template <int Sum>
    void zero() {
        std::memset(tile_[Sum], 0, sizeof tile_[Sum]);
    }
    template <int Tile>
    void load(const void* p, std::size_t stride) {
        for (std::size_t r = 0; r < config_.rows[Tile]; ++r)
            std::memcpy(tile_[Tile][r], static_cast<const std::byte*>(p) + r * stride,
                        config_.row_bytes[Tile]);
    }
    template <int Sum, int X, int W>
    void multiply() {
        for (std::size_t i = 0; i < tile_side; ++i)
            for (std::size_t j = 0; j < tile_side; ++j) {
                std::int32_t sum;
                std::memcpy(&sum, tile_[Sum][i] + 4 * j, sizeof sum);
                for (std::size_t c = 0; c < config_.row_bytes[X]; ++c)
                    sum += tile_[X][i][c] * tile_[W][c / 4][4 * j + c % 4];
                std::memcpy(tile_[Sum][i] + 4 * j, &sum, sizeof sum);
            }
    }
    template <int Sum>
    void store(std::int32_t (*p)[tile_side]) const {
        std::memcpy(p, tile_[Sum], sizeof tile_[Sum]);
    }

 private:
    TileConfig config_;
    std::int8_t tile_[8][tile_side][64];
};

#elif defined(__AMX_INT8__)

// The compiler's own functions take no template arguments.  It knows nothing of these registers;
// that all are volatile keeps their order.
class Tiles {
 public:
    explicit Tiles(std::size_t columns) {
        const TileConfig config(columns);
        __asm__ volatile("ldtilecfg %0" : : "m"(config));
    }
    // Threads are switched faster while the registers hold nothing.
    ~Tiles() { __asm__ volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    template <int Sum>
    void zero() {
        __asm__ volatile("tilezero %%tmm%c0" : : "i"(Sum));
    }
    template <int Tile>
    void load(const void* p, std::size_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                         :
                         : "r"(p), "r"(stride), "i"(Tile)
                         : "memory");
    }
    template <int Sum, int X, int W>
    void multiply() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(X), "i"(W));
    }
    template <int Sum>
    void store(std::int32_t (*p)[tile_side]) const {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                         :
                         : "r"(p), "r"(sizeof *p), "i"(Sum)
                         : "memory");
    }
};

#endif

}  // namespace
}  // namespace tensor_ops

// Where the bits of a block's codes lie among its vectors, as packed.h describes it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace tensor_ops {
namespace {

// The place in a block of vector i of the plane of `width` bits.  Vectors come in the order of the
// first quads that they hold, and of equal ones that of the narrower plane first.
constexpr std::size_t plane_vector(int bits, int width, std::size_t i) {
    const std::size_t quad = i * 8 / static_cast<std::size_t>(width);
    std::size_t place = i;
    for (int other = 1; other <= 4; other *= 2) {
        if (other == width || !(bits & other)) continue;
        const std::size_t quads = 8 / static_cast<std::size_t>(other);
        place += quad / quads + (other < width);
    }
    return place;
}

// A part of a quad's codes: `width` bits from bit `code_shift` of each code on, which lie from bit
// `shift` of the bytes of a vector on.
struct CodePart {
    std::size_t vector;
    int shift, code_shift, width;
};

// The parts of a quad's codes, from the lowest up.
struct QuadParts {
    CodePart part[2] = {};
    std::size_t count = 0;

    constexpr QuadParts(int bits, std::size_t quad) {
        const int q = static_cast<int>(quad);
        if (bits == 8) {
            add({quad, 0, 0, 8});
        } else if (bits == 3 && quad < 6) {
            add({quad / 2, 3 * (q % 2), 0, 3});
        } else if (bits == 3) {
            add({quad - 6, 6, 0, 2});
            add({2, q, 2, 1});
        } else {
            for (int width = 4, code_shift = 0; width > 0; width /= 2) {
                if (!(bits & width)) continue;
                const int per_vector = 8 / width;
                add({plane_vector(bits, width, quad * static_cast<std::size_t>(width) / 8),
                     width * (q % per_vector), code_shift, width});
                code_shift += width;
            }
        }
    }
    constexpr void add(CodePart p) { part[count++] = p; }
};

// The bits of a plane in each of a quad's four bytes.
constexpr std::uint32_t plane_mask(int width) { return 0x01010101u * ((1u << width) - 1); }

// The lowest bit of a code that is stored with the codes.
constexpr int lowest_stored_bit(const Format& format) {
    return format.scale == Scale::half_by_nibble ? 2 : 0;
}

}  // namespace
}  // namespace tensor_ops

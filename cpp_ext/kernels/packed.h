// The packed layouts: how weights lie in memory for the matrix kernels.
//
// Weights, floating types (f32, f16, bf16): groups of 2 vectors of rows; a group is [k][rows].
//
// Weights, quantised: groups of one vector of rows (16 for AVX-512).  The kernels read a group as
// one stream in strict order, which prefetchers follow best: one core of a Zen 4 reads Q4_0 as fast
// as it reads a single stream.  It reads at 71 % of that speed if the scales lie four lines further
// on, and at 75 % with four neighbouring groups and their scales as streams side by side.  Four
// groups that are far from each other are no better: one group after the other is read 6 to 19 %
// faster with one thread, and 5 to 9 % with two, whose eight streams share the memory.
//
// A record holds two blocks of 32 columns of each row, or four if the scales of two are half a
// vector: the scales of all, then the codes of the first, then the codes of the second, and so on.
// The scales are half d [blocks][rows], then d_min likewise if the type has minima.  Where a scale
// is d times an int8, they are int8 s [blocks][32 / sub][rows], then s_min, and a head before the
// records of every 8 blocks holds half d [rows] and d_min [rows] (or as much padding) of these.
// q2_k's s and s_min, of 4 bits, share a byte.
// Scales of one byte are stored as s is, without a head; a d of 256 columns without s is a head.
//
// The codes of a block fill `bits` vectors, so that no bit is wasted.  A 32-bit lane belongs to one
// row, and each of its bytes to one column of a quad.  The codes of the 8 quads are divided among
// planes, each of which holds some bits of every code, from the lowest up:
//     8 bits   8 vectors, one a quad
//     4 bits   4 vectors, quad q in the half q % 2 of vector q / 2
//     2 bits   2 vectors, quad q in the bits 2 (q % 4) of vector q / 4
//     1 bit    1 vector,  quad q in bit q
// q5 is 4 + 1 bits, q6 4 + 2; their vectors lie in the order in which quads need them.  Codes of 3
// bits (q3, iq2) lie together, as two planes would take 12 (AVX-512) to 18 (AVX2) more instructions
// for a block:
//     3 bits   3 vectors, quad q < 6 in the bits 3 (q % 2) of vector q / 2; of quads 6 and 7, the
//              lower two bits in the upper two of vectors 0 and 1, bit 2 in those of vector 2
// Of iq1's codes, the lower two bits are not stored: bit 0 lies with the scale, and bit 1 is 0.
#pragma once

#include <algorithm>

#include "kernels/blocks.h"
#include "kernels/code_bits.h"
#include "kernels/interleave.h"

namespace tensor_ops {
namespace {

// Fetches the lines of `bytes` bytes that lie `read_ahead` bytes behind p, which is read now.  The
// hardware's prefetchers stop at the end of a page, and lose their lead between many products.  On
// a Xeon with AVX-512 (15 GB/s a core), one row by Q4_K then reads 15.7 GB/s in place of 14.4, by
// Q6_K 14.3 (11.3), by Q3_K 12.5 (7.4), by IQ2_S 9.4 of the file (5.1), with its AVX2 by Q4_0 12.8
// (8.7); 12 rows by f16 do 109 GFLOP/s in place of 64, and 48 rows 142 in place of 115.  1.5 to
// 3 KB ahead do as well, 4 KB lose most of it.  On a Zen 4, a tile of 8 rows by quantised weights
// takes 0.86 of the time, and 2 to 6 KB do as well.
inline constexpr std::size_t read_ahead = 2048;
template <std::size_t bytes>
[[gnu::always_inline]] inline void fetch_ahead(const void* p) {
    unroll<(bytes + 63) / 64>([p](auto line) {
        __builtin_prefetch(static_cast<const std::byte*>(p) + read_ahead + 64 * line);
    });
}

constexpr std::size_t round_up(std::size_t n, std::size_t unit) {
    return (n + unit - 1) / unit * unit;
}

template <class Isa>
std::size_t group_rows(DType type) {
    return is_quantized(type) ? lanes<Isa> : 2 * lanes<Isa>;
}

// The offsets of the parts of a quantised group, in bytes.
template <class Isa>
struct GroupLayout {
    static constexpr std::size_t rows = lanes<Isa>;
    Format format;
    bool has_d, has_s;        // halves; scales of a byte
    bool pairs;               // a byte has s and s_min
    std::size_t subs;         // scales of a block
    std::size_t block_bytes;  // codes of a block
    std::size_t scale_bytes;  // of a block's d or s of one row
    std::size_t kind_bytes;   // of a record's d or s, or of its d_min or s_min
    std::size_t record_blocks, record_bytes;
    std::size_t run_blocks, run_bytes, head_bytes;  // a run shares a head

    constexpr explicit GroupLayout(DType type) : format(format_of(type)) {
        has_d = format.scale != Scale::e8m0 && format.scale != Scale::ue4m3;
        has_s = format.scale != Scale::half;
        pairs = format.scale == Scale::half_by_pair;
        const bool shared_d = has_d && format.elements == 256;
        subs = quant_block / std::max(format.sub, std::size_t{1});
        block_bytes = static_cast<std::size_t>(format.bits) * 4 * rows;
        scale_bytes = subs * (has_s ? 1 : shared_d ? 0 : 2);
        const std::size_t kinds = format.has_min && !pairs ? 2 : 1;
        record_blocks = 2 * kinds * scale_bytes % 4 == 0 ? 2 : 4;  // whole vectors, of 4 rows
        kind_bytes = record_blocks * scale_bytes * rows;
        record_bytes = kinds * kind_bytes + record_blocks * block_bytes;
        head_bytes = shared_d ? 4 * rows : 0;
        run_blocks = head_bytes ? 8 : record_blocks;
        run_bytes = head_bytes + run_blocks / record_blocks * record_bytes;
    }
    constexpr std::size_t total(std::size_t k) const {
        const std::size_t run = run_blocks * quant_block;
        return round_up((k + run - 1) / run * run_bytes, 64);
    }
    // Offsets of the parts of block b (of 32 columns).
    constexpr std::size_t head(std::size_t b) const { return b / run_blocks * run_bytes; }
    constexpr std::size_t record(std::size_t b) const {
        return head(b) + head_bytes + b % run_blocks / record_blocks * record_bytes;
    }
    constexpr std::size_t codes(std::size_t b) const {
        return record(b) + record_bytes - (record_blocks - b % record_blocks) * block_bytes;
    }
    constexpr std::size_t s(std::size_t b) const {
        return record(b) + b % record_blocks * scale_bytes * rows;
    }
    constexpr std::size_t s_min(std::size_t b) const { return s(b) + kind_bytes; }
    constexpr std::size_t d(std::size_t b) const { return head_bytes ? head(b) : s(b); }
    constexpr std::size_t d_min(std::size_t b) const {
        return d(b) + (head_bytes ? 2 * rows : kind_bytes);
    }
};

template <class Isa>
std::size_t group_bytes(DType type, std::size_t k) {
    if (is_quantized(type)) return GroupLayout<Isa>(type).total(k);
    return round_up(row_bytes(type, k) * group_rows<Isa>(type), 64);
}

template <class Isa>
inline std::uint32_t get_quad(int bits, const std::byte* codes, std::size_t quad, std::size_t r) {
    std::uint32_t four = 0;
    const QuadParts parts(bits, quad);
    for (std::size_t i = 0; i < parts.count; ++i) {
        const auto [vector, shift, code_shift, width] = parts.part[i];
        const auto lane = read<std::uint32_t>(codes + (vector * lanes<Isa> + r) * 4);
        four |= (lane >> shift & plane_mask(width)) << code_shift;
    }
    return four;
}

// A format as products see it.  Where bit 0 is the same for all codes of a block (iq1_s), products
// multiply the levels alone, and the bit becomes a minimum.  That takes 48 vector instructions for
// a block with AVX-512, where looking up the values of levels and bits took 70.
constexpr Format product_format(DType type) {
    Format format = format_of(type);
    if (format.scale == Scale::half_by_nibble && format.sub == quant_block) {
        format.has_min = true;
        format.zero = 0;
        format.product_bits = format.bits;
        format.step = 1;
        format.unit = 1.0f;
    }
    return format;
}

// What products add to the values of a type, so that their codes suit the ISA's dot product.
template <class Isa>
constexpr int product_bias(DType type) {
    const Format format = product_format(type);
    return format.product_bits == 8 ? Isa::Int8::byte_bias : format.zero;
}

// The codes of q8_0 are unsigned in Block.  For an ISA whose dot product takes signed codes, this
// flip subtracts 128 again.
template <class Isa>
constexpr std::uint32_t quad_flip(DType type) {
    return type == DType::q8_0 && product_bias<Isa>(type) == 0 ? 0x80808080 : 0;
}

// Packs row r of a group.  The row's lane of each vector of codes is put together from the quads,
// then stored at once.
template <class Isa, DType Type>
void pack_quantized_row(const std::byte* row, std::size_t k, std::size_t r, std::byte* group) {
    constexpr GroupLayout<Isa> at{Type};
    constexpr auto bits = static_cast<std::size_t>(at.format.bits);
    for (std::size_t b = 0; b < k / quant_block; ++b) {
        const Block block = read_block(Type, row, b);
        std::uint32_t lane[bits] = {};
        unroll<8>([&](auto quad) {
            const std::uint32_t four =
                read<std::uint32_t>(reinterpret_cast<const std::byte*>(block.code) + 4 * quad) ^
                quad_flip<Isa>(Type);
            constexpr QuadParts parts(at.format.bits, quad);
            unroll<parts.count>([&](auto i) {
                constexpr CodePart p = parts.part[i];
                constexpr int from = p.code_shift + lowest_stored_bit(at.format);
                lane[p.vector] |= (four >> from & plane_mask(p.width)) << p.shift;
            });
        });
        std::byte* codes = group + at.codes(b) + r * 4;
        for (std::size_t v = 0; v < bits; ++v) std::memcpy(codes + v * 4 * at.rows, &lane[v], 4);
        if (at.has_d) std::memcpy(group + at.d(b) + 2 * r, &block.d, 2);
        if (at.format.has_min) std::memcpy(group + at.d_min(b) + 2 * r, &block.d_min, 2);
        if (!at.has_s) continue;
        for (std::size_t i = 0; i < at.subs; ++i) {
            const int s = at.pairs ? block.s[i] | block.s_min[i] << 4 : block.s[i];
            group[at.s(b) + i * at.rows + r] = static_cast<std::byte>(s);
            if (at.format.has_min && !at.pairs)
                group[at.s_min(b) + i * at.rows + r] = static_cast<std::byte>(block.s_min[i]);
        }
    }
}

// Calls f with std::integral_constant<DType, type> of a quantised type.
template <DType Type = DType::q8_0, class F>
inline void with_quantized(DType type, F&& f) {
    if (type == Type) return f(std::integral_constant<DType, Type>{});
    constexpr auto next = static_cast<std::size_t>(Type) + 1;
    if constexpr (next < n_types) with_quantized<formats[next].type>(type, static_cast<F&&>(f));
}

// The same with the packed form of the type: types that are packed alike share what f does.
template <DType Form = DType::q8_0, class F>
inline void with_packed_form(DType type, F&& f) {
    if constexpr (packed_form(Form) == Form)
        if (packed_form(type) == Form) return f(std::integral_constant<DType, Form>{});
    constexpr auto next = static_cast<std::size_t>(Form) + 1;
    if constexpr (next < n_types) with_packed_form<formats[next].type>(type, static_cast<F&&>(f));
}

template <class Isa>
void pack(DType type, const std::byte* src, std::size_t n, std::size_t k, std::size_t first,
          std::size_t last, std::byte* dst) {
    const std::size_t rows = group_rows<Isa>(type), bytes = group_bytes<Isa>(type, k);
    const std::size_t source_bytes = row_bytes(type, k);
    for (std::size_t g = first; g < last; ++g) {
        std::byte* group = dst + g * bytes;
        const std::byte* row = src + g * rows * source_bytes;
        const std::size_t here = std::min(rows, n - g * rows);
        if (is_quantized(type)) {
            std::memset(group, 0, bytes);
            with_quantized(type, [&](auto constant) {
                for (std::size_t r = 0; r < here; ++r, row += source_bytes)
                    pack_quantized_row<Isa, constant>(row, k, r, group);
            });
        } else {
            std::memset(group + k * rows * block_size(type).bytes, 0,
                        bytes - k * rows * block_size(type).bytes);
            if (type == DType::f32)
                weave<4>(row, here, k, rows, group);
            else
                weave<2>(row, here, k, rows, group);
        }
    }
}

template <class Isa>
void unpack_quantized_row(const PackedView& w, const std::byte* group, std::size_t r, float* y) {
    const GroupLayout<Isa> at(w.type);
    Block block;
    for (std::size_t b = 0; b < w.k / quant_block; ++b, y += quant_block) {
        const auto half = [&](std::size_t offset) {
            return read<std::uint16_t>(group + offset + 2 * r);
        };
        if (at.has_d) block.d = half(at.d(b));
        if (at.format.has_min) block.d_min = half(at.d_min(b));
        for (std::size_t i = 0; at.has_s && i < 2; ++i) {
            const std::size_t at_s = i % at.subs * at.rows + r;
            block.s[i] = static_cast<std::int8_t>(group[at.s(b) + at_s]);
            if (at.pairs) {
                const unsigned both = byte_at(group, at.s(b) + at_s);
                block.s[i] = both & 15;
                block.s_min[i] = static_cast<std::int8_t>(both >> 4);
            } else if (at.format.has_min) {
                block.s_min[i] = static_cast<std::int8_t>(group[at.s_min(b) + at_s]);
            }
        }
        for (std::size_t quad = 0; quad < 8; ++quad) {
            const std::uint32_t stored =
                get_quad<Isa>(at.format.bits, group + at.codes(b), quad, r);
            const std::uint32_t four =
                stored << lowest_stored_bit(at.format) ^ quad_flip<Isa>(w.type);
            std::memcpy(block.code + 4 * quad, &four, 4);
        }
        if (at.format.scale == Scale::half_by_nibble)
            for (std::size_t i = 0; i < quant_block; ++i)
                block.code[i] |= static_cast<std::uint8_t>(block.s[i / 16] >> i / 8 % 2 & 1);
        block_values(w.type, block, y);
    }
}

template <class Isa>
void unpack(const PackedView& w, std::size_t first, std::size_t last, float* y) {
    const std::size_t rows = group_rows<Isa>(w.type), bytes = group_bytes<Isa>(w.type, w.k);
    const std::size_t element = block_size(w.type).bytes;
    for (std::size_t j = first; j < last; ++j, y += w.k) {
        const std::byte* group = w.data + j / rows * bytes;
        if (is_quantized(w.type)) {
            unpack_quantized_row<Isa>(w, group, j % rows, y);
            continue;
        }
        for (std::size_t c = 0; c < w.k; ++c)
            to_float(w.type, group + (c * rows + j % rows) * element, y + c, 1);
    }
}

}  // namespace
}  // namespace tensor_ops

// The caller's tensors: what is checked of them, and where their rows lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "flash_attention/flash_attn.h"

namespace tensor_ops::flash {

// By fa_dtype.
inline constexpr const char* type_names[] = {"f32", "f16", "bf16", "e4m3", "q8_0"};

// A set of fa_dtypes.
using Types = unsigned;
constexpr Types types_of(std::initializer_list<fa_dtype> list) {
    Types types = 0;
    for (const fa_dtype type : list) types |= 1u << type;
    return types;
}
inline constexpr Types halves_and_floats = types_of({FA_F32, FA_F16, FA_BF16});
inline constexpr Types any_float = halves_and_floats | types_of({FA_E4M3});

// Bytes of n elements, n a multiple of the type's block.
constexpr std::size_t bytes_of(std::int32_t type, std::size_t n) {
    if (type == FA_Q8_0) return n / 32 * 34;
    return n * (type == FA_F32 ? 4 : type == FA_E4M3 ? 1 : 2);
}

bool has_elements(const fa_tensor& t);
// Whether the caller gave that tensor: an empty one may have no data.
bool is_there(const fa_tensor& t);

// Gives dimensions of one element, whose strides have no meaning, those of contiguous rows, and
// tensors without elements strides of 0.
void settle_strides(fa_tensor& t);

// Refuses a pointer that is null or not aligned.
void check_address(const void* pointer, std::size_t alignment, const char* name);
// Refuses a tensor whose type, rank, sizes, strides or alignment cannot be right, by name.
void check_tensor(const fa_tensor& t, const char* name, Types types, int rank,
                  bool any_stride = false);
// Refuses another size than n of dimension i; what: where n comes from.
void check_size(const fa_tensor& t, const char* name, int i, std::size_t n, const char* what);
// Refuses a tensor of which two elements lie at the same place.
void check_distinct(const fa_tensor& t, const char* name);

// The memory from the first to the last byte of a tensor; nothing if there is none.
struct Range {
    const char* name;
    std::uintptr_t begin, end;
};
Range range_of(const fa_tensor& t, const char* name);
void check_apart(const Range& written, const Range& other);
// Whether two tensors, each with strides that a check has found sound, take turns in memory, as
// keys and values of one array do: they have a stride in common, of which each has a part of its
// own.
bool take_turns(const fa_tensor& a, const fa_tensor& b);

inline std::size_t size(const fa_tensor& t, int i) { return static_cast<std::size_t>(t.shape[i]); }
// Bytes from one element of dimension i to the next, or for the last dimension of a block.
inline std::size_t step(const fa_tensor& t, int i) {
    return bytes_of(t.type, static_cast<std::size_t>(t.stride[i]));
}
inline std::byte* data(const fa_tensor& t) { return static_cast<std::byte*>(t.data); }

// Of tensors of rows of heads, [n][head][d] in the last three dimensions: the bytes from a row, or
// from a head, to the next.
inline std::size_t row_step(const fa_tensor& t) { return step(t, t.rank - 3); }
inline std::size_t head_step(const fa_tensor& t) { return step(t, t.rank - 2); }
// The first row of sequence b; with all sequences in one dimension, row `first` of that.
inline std::byte* rows_of(const fa_tensor& t, std::size_t b, std::size_t first) {
    return data(t) + (t.rank == 4 ? b * step(t, 0) : first * step(t, 0));
}

}  // namespace tensor_ops::flash

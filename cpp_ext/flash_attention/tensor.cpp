#include "flash_attention/tensor.h"

#include <algorithm>
#include <cstring>

#include "flash_attention/refusal.h"

namespace tensor_ops::flash {
namespace {

// Elements from the first to the last one: more than any address space holds.
constexpr std::int64_t most_elements = std::int64_t{1} << 46;

void check_type(const fa_tensor& t, const char* name, Types types) {
    if (t.type >= 0 && t.type <= FA_Q8_0 && types >> t.type & 1) return;
    char expected[64] = "";  // has room for all of the names
    for (int i = 0; i <= FA_Q8_0; ++i) {
        if (!(types >> i & 1)) continue;
        if (*expected) std::strcat(expected, ", ");
        std::strcat(expected, type_names[i]);
    }
    refuse(FA_INVALID, "%s.type is %d; expected one of: %s", name, t.type, expected);
}

void check_strides(const fa_tensor& t, const char* name, bool any_stride) {
    std::int64_t last = 0;
    for (int i = 0; i < t.rank; ++i) {
        const auto stride = static_cast<long long>(t.stride[i]);
        if (stride < 0)
            refuse(FA_INVALID, "%s.stride[%d] is %lld; expected 0 or more", name, i, stride);
        std::int64_t reach = 0;
        if (__builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach) || reach > most_elements ||
            (last += reach) > most_elements)
            refuse(FA_INVALID, "%s.stride[%d] is %lld: no memory holds %lld of them", name, i,
                   stride, static_cast<long long>(t.shape[i]));
        if (i + 1 == t.rank) {
            if (!any_stride && t.shape[i] > 1 && stride != 1)
                refuse(FA_INVALID,
                       "%s.stride[%d] is %lld; expected 1, as elements of a row lie "
                       "side by side",
                       name, i, stride);
        } else if (t.type == FA_Q8_0 && stride % 32 != 0) {
            refuse(FA_INVALID, "%s.stride[%d] is %lld; expected a multiple of 32 for q8_0", name, i,
                   stride);
        }
    }
}

// The distance in elements from the first to the last one.
std::int64_t extent(const fa_tensor& t) {
    std::int64_t last = 0;
    for (int i = 0; i < t.rank; ++i)
        last += std::max<std::int64_t>(t.shape[i] - 1, 0) * t.stride[i];
    return last;
}

}  // namespace

bool has_elements(const fa_tensor& t) {
    if (t.rank < 1 || t.rank > FA_MAX_RANK) return false;
    return std::all_of(t.shape, t.shape + t.rank, [](std::int64_t n) { return n > 0; });
}

bool is_there(const fa_tensor& t) { return t.data || (t.rank != 0 && !has_elements(t)); }

void check_address(const void* pointer, std::size_t alignment, const char* name) {
    if (!pointer) refuse(FA_INVALID, "%s is NULL", name);
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0)
        refuse(FA_INVALID, "%s is %p; expected a multiple of %zu", name, pointer, alignment);
}

void settle_strides(fa_tensor& t) {
    if (!has_elements(t)) {
        std::fill_n(t.stride, FA_MAX_RANK, 0);
        return;
    }
    std::int64_t contiguous = 1;
    for (int i = t.rank; i-- > 0;) {
        if (t.shape[i] == 1) t.stride[i] = contiguous;
        // No memory holds so much: the dimension itself will be refused.
        if (__builtin_mul_overflow(t.shape[i], t.stride[i], &contiguous) || contiguous < 0)
            contiguous = 0;
    }
}

void check_tensor(const fa_tensor& t, const char* name, Types types, int rank, bool any_stride) {
    if (t.rank != rank)
        refuse(FA_INVALID, "%s.rank is %d; expected %d dimensions", name, t.rank, rank);
    check_type(t, name, types);
    for (int i = 0; i < rank; ++i)
        if (t.shape[i] < 0 || t.shape[i] > INT32_MAX)
            refuse(FA_INVALID, "%s.shape[%d] is %lld; expected 0 to %d", name, i,
                   static_cast<long long>(t.shape[i]), INT32_MAX);
    if (t.type == FA_Q8_0 && t.shape[rank - 1] % 32 != 0)
        refuse(FA_INVALID, "%s.shape[%d] is %lld; expected a multiple of 32 for q8_0", name,
               rank - 1, static_cast<long long>(t.shape[rank - 1]));
    if (!has_elements(t)) return;  // strides and data have no meaning
    check_strides(t, name, any_stride);
    if (!t.data) refuse(FA_INVALID, "%s.data is NULL", name);
    const std::size_t alignment = t.type == FA_Q8_0 ? 2 : bytes_of(t.type, 1);
    const auto address = reinterpret_cast<std::uintptr_t>(t.data);
    if (address % alignment != 0)
        refuse(FA_INVALID, "%s.data is %p; expected a multiple of %zu", name, t.data, alignment);
    if (range_of(t, name).end < address)
        refuse(FA_INVALID, "%s.data is %p: its rows go beyond the end of memory", name, t.data);
}

void check_size(const fa_tensor& t, const char* name, int i, std::size_t n, const char* what) {
    if (size(t, i) != n)
        refuse(FA_INVALID, "%s.shape[%d] is %lld; expected %zu, %s", name, i,
               static_cast<long long>(t.shape[i]), n, what);
}

void check_distinct(const fa_tensor& t, const char* name) {
    if (!has_elements(t)) return;
    int order[FA_MAX_RANK];  // of the dimensions, by their strides
    for (int i = 0; i < t.rank; ++i) {
        int j = i;
        for (; j > 0 && t.stride[order[j - 1]] > t.stride[i]; --j) order[j] = order[j - 1];
        order[j] = i;
    }
    std::int64_t reach = 0;  // of the dimensions with smaller strides
    for (int j = 0; j < t.rank; ++j) {
        const int i = order[j];
        const std::int64_t stride = t.stride[i];
        if (t.shape[i] == 1) continue;
        if (stride <= reach)
            refuse(FA_INVALID,
                   "%s.stride[%d] is %lld; expected more than %lld, so that no two elements lie at "
                   "the same place",
                   name, i, static_cast<long long>(stride), static_cast<long long>(reach));
        reach += (t.shape[i] - 1) * stride;
    }
}

Range range_of(const fa_tensor& t, const char* name) {
    const auto begin = reinterpret_cast<std::uintptr_t>(t.data);
    if (!t.data || !has_elements(t)) return {name, begin, begin};
    const auto last = static_cast<std::size_t>(extent(t));
    if (t.type == FA_Q8_0) return {name, begin, begin + (last / 32 + 1) * 34};
    return {name, begin, begin + bytes_of(t.type, last + 1)};
}

bool take_turns(const fa_tensor& a, const fa_tensor& b) {
    for (const fa_tensor* t : {&a, &b})
        if (!t->data || !has_elements(*t) || t->type == FA_Q8_0) return false;
    // Bytes that t has of each stretch of `stride` elements; 0 if it has others between them.
    const auto bytes_of_stretch = [](const fa_tensor& t, std::int64_t stride) -> std::size_t {
        std::int64_t last = 0;
        for (int i = 0; i < t.rank; ++i) {
            if (t.shape[i] == 1) continue;
            if (t.stride[i] < stride)
                last += (t.shape[i] - 1) * t.stride[i];
            else if (t.stride[i] % stride != 0)
                return 0;
        }
        return bytes_of(t.type, static_cast<std::size_t>(last + 1));
    };
    for (int i = 0; i < a.rank; ++i) {
        const std::int64_t stride = a.stride[i];
        const std::size_t period = bytes_of(a.type, static_cast<std::size_t>(stride));
        if (a.shape[i] == 1 || stride == 0 || period % bytes_of(b.type, 1) != 0) continue;
        const auto stride_of_b = static_cast<std::int64_t>(period / bytes_of(b.type, 1));
        const std::size_t of_a = bytes_of_stretch(a, stride);
        const std::size_t of_b = bytes_of_stretch(b, stride_of_b);
        const auto begin_a = reinterpret_cast<std::uintptr_t>(a.data) % period;
        const auto begin_b = reinterpret_cast<std::uintptr_t>(b.data) % period;
        const std::size_t from_a_to_b = (begin_b + period - begin_a) % period;
        if (of_a && of_b && of_a <= from_a_to_b && from_a_to_b + of_b <= period) return true;
    }
    return false;
}

void check_apart(const Range& written, const Range& other) {
    if (written.begin < other.end && other.begin < written.end && written.begin < written.end &&
        other.begin < other.end)
        refuse(FA_INVALID, "%s lies in the memory of %s; expected memory of its own", written.name,
               other.name);
}

}  // namespace tensor_ops::flash

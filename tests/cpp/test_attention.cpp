// attention within the bound of kernels.h: |error| <= (4e-6 + 1.2e-7 S) max|v|, S the largest
// score.

#include <array>

#include "arrays.h"
#include "reference_formats.h"

using namespace arrays;
using tensor_ops::AttentionTask;
using tensor_ops::DType;
using tensor_ops::KernelTable;

namespace {

using Where = std::source_location;

struct Shape {
    std::size_t n_q, group, n_kv, head_dim;
    DType kv_type = DType::f32;
    bool causal = true;
    std::size_t window = 0;
    float softcap = 0;
    bool sinks = false;
    std::size_t gap = 0;  // floats between the tokens of q and of out
    float sink = 0;       // of all heads, unless 0
    std::size_t rows() const { return n_q * group; }
    std::size_t stride() const { return group * head_dim + gap; }
    std::size_t at(std::size_t row) const {
        return row / group * stride() + row % group * head_dim;
    }
    float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))); }
};

constexpr DType kv_types[] = {DType::f32, DType::f16, DType::q8_0};
bool has_type(std::size_t head_dim, DType type) {
    return head_dim % tensor_ops::block_size(type).elements == 0;
}

// Keys or values in their type, and what they are exactly.
struct Cache {
    Array<std::byte> bytes;
    reference::Values exact;
};

Cache cache(DType type, const Floats& values, std::size_t offset = 0) {
    const std::size_t unit = type == DType::f32 ? 4 : 2;
    Cache c{Array<std::byte>(tensor_ops::row_bytes(type, values.size()), offset * unit), {}};
    reference::encode_row(type, values.data(), values.size(), c.bytes.data());
    c.exact = reference::decode_row(type, c.bytes.data(), values.size());
    return c;
}

Cache random_cache(const Shape& s, unsigned seed) {
    return cache(s.kv_type, normal(s.n_kv * s.head_dim, seed), s.head_dim % 16);
}

Floats random_q(const Shape& s) { return normal(s.n_q * s.stride(), 1, 1, s.head_dim % 16); }

Floats sinks(const Shape& s) { return s.sink != 0 ? filled(s.group, s.sink) : normal(s.group, 9); }

tensor_ops::KvRows rows_of(const Shape& s, const Cache& c) {
    return {.rows = c.bytes.data(), .row_bytes = tensor_ops::row_bytes(s.kv_type, s.head_dim)};
}

struct Result {
    Floats out, lse;  // laid out as q; [n_q][group]
};

// Rows [first, last), all positions at once or by parts that end at multiples of `part`, each in a
// call of its own or all in one.
Result run(const KernelTable& table, const Shape& s, const Floats& q, const Cache& k,
           const Cache& v, float scale, std::size_t first, std::size_t last, std::size_t part = 0,
           bool one_call = false) {
    Result result{Floats(s.n_q * s.stride(), 3), Floats(s.rows(), 5)};
    Floats scratch(table.attention_scratch_floats, 1);
    const Floats sink = sinks(s);
    const AttentionTask task{.q = q.data(),
                             .q_stride = s.stride(),
                             .k = rows_of(s, k),
                             .v = rows_of(s, v),
                             .kv_type = tensor_ops::kv_type_of(s.kv_type),
                             .n_q = s.n_q,
                             .group = s.group,
                             .n_kv = s.n_kv,
                             .head_dim = s.head_dim,
                             .value_dim = s.head_dim,
                             .scale = scale,
                             .causal = s.causal,
                             .window = s.window,
                             .softcap = s.softcap,
                             .sinks = s.sinks ? sink.data() : nullptr,
                             .out = result.out.data(),
                             .out_stride = s.stride(),
                             .lse = result.lse.data(),
                             .lse_stride = s.group};
    if (part == 0) {
        table.attention(task, first, last, scratch.data());
        return result;
    }
    const std::size_t parts = (s.n_kv + part - 1) / part;
    const std::size_t part_floats = s.rows() * (s.head_dim + 2);
    Floats between(parts * part_floats);
    const tensor_ops::AttentionParts layout{part, 0, between.data(), part_floats};
    if (one_call)
        table.attention_parts(task, first, last, layout, 0, parts, scratch.data());
    else
        for (std::size_t i = parts; i-- > 0;)  // in any order
            table.attention_parts(task, first, last, layout, i, i + 1, scratch.data());
    table.attention_merge(task, first, last, layout);
    return result;
}

// The positions that a token sees: from, to.
std::array<std::size_t, 2> seen(const Shape& s, std::size_t token) {
    const auto n = static_cast<long>(s.n_kv);
    const auto window = static_cast<long>(std::min<std::size_t>(s.window, 1 << 30));
    const long position = n - static_cast<long>(s.n_q) + static_cast<long>(token);
    long from = 0, to = n;
    if (s.causal) to = std::clamp(position + 1, 0l, n);
    if (s.window) from = std::clamp(position - window + 1, 0l, to);
    if (s.window && !s.causal) {
        from = std::clamp(position - window + 1, 0l, n);
        to = std::clamp(position + window, from, n);
    }
    return {static_cast<std::size_t>(from), static_cast<std::size_t>(to)};
}

double largest_finite(const reference::Values& values) {
    double largest = 0;
    for (const double value : values)
        if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
    return largest;
}

// Whether out and lse of rows [first, last) are right, and nothing else was written.
void check_rows(const Shape& s, const Floats& q, const Cache& k, const Cache& v, float scale,
                std::size_t first, std::size_t last, const Result& result, const Where& where,
                double largest_score = 0) {
    const double largest = largest_finite(v.exact);
    const Floats sink = sinks(s);
    std::vector<char> written(result.out.size());
    for (std::size_t row = first; row < last; ++row) {
        const auto [from, to] = seen(s, row / s.group);
        const auto exact =
            reference::attend(q.data() + s.at(row), k.exact.data() + from * s.head_dim,
                              v.exact.data() + from * s.head_dim, to - from, s.head_dim, scale,
                              s.softcap, s.sinks ? sink[row % s.group] : -infinity);
        for (std::size_t i = 0; i < s.head_dim; ++i) {
            written[s.at(row) + i] = 1;
            check::near({"attention", where}, result.out[s.at(row) + i], exact.out[i],
                        (4e-6 + 1.2e-7 * largest_score) * largest, "dimension ", i, " of ",
                        s.head_dim, ", row ", row, " of ", s.n_q, " x ", s.group, ", positions ",
                        from, " to ", to);
        }
        check::near({"lse", where}, result.lse[row], exact.lse, 4e-7 * (8 + exact.largest_score),
                    "of row ", row, " of ", s.n_q, " x ", s.group, ", positions ", from, " to ",
                    to);
    }
    const auto untouched = [](float x) { return std::bit_cast<std::uint32_t>(x) == 0xffffffff; };
    for (std::size_t i = 0; i < written.size(); ++i)
        check::that(written[i] || untouched(result.out[i]), "written outside of the rows", where);
    for (std::size_t row = 0; row < s.rows(); ++row)
        check::that((row >= first && row < last) || untouched(result.lse[row]),
                    "lse written outside of the rows", where);
}

void check_attention(const KernelTable& table, const Shape& s, const Floats& q, const Cache& k,
                     const Cache& v, float scale, Where where = Where::current()) {
    check_rows(s, q, k, v, scale, 0, s.rows(), run(table, s, q, k, v, scale, 0, s.rows()), where);
}

void check_random(const KernelTable& table, const Shape& s, Where where = Where::current()) {
    check_attention(table, s, random_q(s), random_cache(s, 2), random_cache(s, 3), s.scale(),
                    where);
}

}  // namespace

KERNEL_TEST(every_head_size_at_any_start) {
    for (const DType type : kv_types)
        for (const std::size_t d :
             {1u, 2u, 3u, 8u, 15u, 16u, 17u, 32u, 33u, 64u, 70u, 96u, 128u, 255u, 256u, 512u, 576u})
            for (const std::size_t n_q : {1u, 5u})
                if (has_type(d, type)) check_random(table, {n_q, 2, 21, d, type});
}

KERNEL_TEST(every_number_of_positions) {
    for (const DType type : kv_types) {
        for (std::size_t n_kv = 0; n_kv <= 70; ++n_kv) {
            check_random(table, {1, 3, n_kv, 32, type});
            check_random(table, {1, 5, n_kv, 32, type});
            if (has_type(20, type)) check_random(table, {1, 3, n_kv, 20, type});
        }
        for (const std::size_t n_kv : {95u, 96u, 97u, 511u, 512u, 513u, 2047u, 2049u}) {
            check_random(table, {1, 3, n_kv, 32, type});
            check_random(table, {7, 3, n_kv, 32, type});
        }
    }
}

KERNEL_TEST(every_number_of_queries) {
    for (std::size_t n_q = 0; n_q <= 35; ++n_q) check_random(table, {n_q, 2, n_q + 5, 16});
    check_random(table, {70, 3, 130, 16});
}

KERNEL_TEST(heads_that_share_keys) {
    for (const std::size_t group : {1u, 4u, 9u, 64u, 65u, 130u})
        check_random(table, {3, group, 30, 24});
}

KERNEL_TEST(without_a_mask_every_query_sees_every_position) {
    for (const DType type : kv_types) check_random(table, {5, 2, 70, 32, type, false});
}

KERNEL_TEST(a_query_that_sees_nothing_gives_zeros) {
    check_random(table, {6, 2, 4, 8});  // the first two queries come before the first position
    check_random(table, {3, 2, 0, 8});
    check_random(table, {3, 2, 0, 8, DType::f16, false});
}

KERNEL_TEST(a_window_hides_what_lies_further_back) {
    for (const bool causal : {true, false})
        for (const std::size_t n_q : {1u, 4u, 60u})
            for (const std::size_t window : {1u, 2u, 17u, 59u, 60u, 61u, 1000u})
                for (const std::size_t group : {1u, 3u})
                    check_random(table, {n_q, group, 60, 16, DType::f32, causal, window});
    check_random(table, {1, 2, 3000, 16, DType::f32, true, 700});
    check_random(table, {200, 1, 700, 16, DType::f32, true, 130});
    check_random(table, {9, 2, 4, 16, DType::f32, true, 2});  // the first ones see nothing
    check_random(table, {9, 2, 4, 16, DType::f32, false, 2});
    check_random(table, {5, 2, 20, 16, DType::f32, true, SIZE_MAX});
    check_random(table, {5, 2, 20, 16, DType::f32, false, SIZE_MAX});
}

KERNEL_TEST(softcap_bounds_the_scores) {
    for (const float softcap : {0.5f, 2.0f, 50.0f})
        for (const std::size_t n_q : {1u, 6u})
            check_random(table, {n_q, 2, 70, 16, DType::f32, true, 0, softcap});
}

KERNEL_TEST(sinks_take_part_of_the_weight) {
    for (const std::size_t n_q : {1u, 6u})
        for (const std::size_t n_kv : {0u, 3u, 70u})
            check_random(table, {n_q, 3, n_kv, 16, DType::f32, true, 0, 0, true});
}

KERNEL_TEST(all_options_together) {
    for (const DType type : kv_types)
        for (const std::size_t n_q : {1u, 5u, 100u})
            check_random(table, {n_q, 4, 1300, 64, type, true, 600, 30, true});
}

KERNEL_TEST(parts_of_the_positions_give_the_same_as_all) {
    for (const DType type : kv_types)
        for (const std::size_t n_q : {1u, 3u, 40u})
            for (const std::size_t part : {512u, 1024u})
                for (const std::size_t window : {0u, 900u}) {
                    const Shape s{n_q, 3, 1300, 32, type, true, window, 0, true};
                    const Floats q = random_q(s);
                    const Cache k = random_cache(s, 2), v = random_cache(s, 3);
                    check_rows(s, q, k, v, s.scale(), 0, s.rows(),
                               run(table, s, q, k, v, s.scale(), 0, s.rows(), part),
                               Where::current());
                }
}

KERNEL_TEST(parts_have_the_same_bits_however_calls_divide_them) {
    for (const std::size_t n_q : {1u, 3u, 40u})
        for (const std::size_t part : {512u, 1024u}) {
            const Shape s{n_q, 3, 2600, 32, DType::f32, true, 900};
            const Floats q = random_q(s);
            const Cache k = random_cache(s, 2), v = random_cache(s, 3);
            const auto by_calls = run(table, s, q, k, v, s.scale(), 0, s.rows(), part);
            const auto in_one = run(table, s, q, k, v, s.scale(), 0, s.rows(), part, true);
            check::that(same_bytes(by_calls.out, in_one.out), std::to_string(n_q) + " queries");
        }
}

// Parts that no row of the call sees are not computed, and hold anything.
KERNEL_TEST(parts_that_are_not_seen_are_not_merged) {
    const Shape s{4, 3, 514, 32};  // the first token sees all of the first part but its last
    const Floats q = random_q(s);
    const Cache k = random_cache(s, 2), v = random_cache(s, 3);
    check_rows(s, q, k, v, s.scale(), 0, 3, run(table, s, q, k, v, s.scale(), 0, 3, 512),
               Where::current());
}

// Tiles of positions lie alike for all rows, so that a prompt's result does not depend on the
// batches in which it is evaluated.
KERNEL_TEST(a_row_among_many_has_the_same_bits_whatever_rows_are_beside_it) {
    const Shape s{120, 1, 700, 16, DType::f32, true, 130};
    const Floats q = random_q(s);
    const Cache k = random_cache(s, 2), v = random_cache(s, 3);
    const Floats whole = run(table, s, q, k, v, s.scale(), 0, 120).out;
    for (const std::size_t first : {1u, 50u, 75u}) {
        const Floats part = run(table, s, q, k, v, s.scale(), first, 120).out;
        check::that(std::memcmp(&whole[first * 16], &part[first * 16],
                                (120 - first) * 16 * sizeof(float)) == 0,
                    "from row " + std::to_string(first));
    }
}

KERNEL_TEST(some_rows_are_right_and_no_other_is_written) {
    const Shape s{.n_q = 40, .group = 3, .n_kv = 50, .head_dim = 20, .gap = 7};
    const Floats q = random_q(s);
    const Cache k = random_cache(s, 2), v = random_cache(s, 3);
    const std::size_t ranges[][2] = {{0, 120}, {0, 1}, {13, 13}, {7, 119}, {119, 120}};
    for (const auto& [first, last] : ranges) {
        check_rows(s, q, k, v, s.scale(), first, last,
                   run(table, s, q, k, v, s.scale(), first, last), Where::current());
    }
}

KERNEL_TEST(scale_may_be_zero_or_negative) {
    const Shape s{3, 2, 70, 16};
    for (const float scale : {0.0f, -0.3f, 0.01f})
        check_attention(table, s, random_q(s), random_cache(s, 2), random_cache(s, 3), scale);
}

KERNEL_TEST(scores_up_to_eighty) {
    for (const DType type : kv_types) {
        for (const std::size_t d : {32u, 64u, 128u}) {
            const Shape s{9, 2, 200, d, type};
            const Floats q = random_q(s);
            const Cache k = random_cache(s, 2), v = random_cache(s, 3);
            double largest = 0;
            for (std::size_t r = 0; r < s.n_q * s.group; ++r)
                for (std::size_t p = 0; p < s.n_kv; ++p)
                    largest =
                        std::max(largest, std::abs(reference::dot(&q[r * d], &k.exact[p * d], d)));
            const auto scale = static_cast<float>(79 / largest);
            check_rows(s, q, k, v, scale, 0, s.rows(), run(table, s, q, k, v, scale, 0, s.rows()),
                       Where::current(), 79);
        }
    }
}

KERNEL_TEST(one_dominant_position_gives_its_value) {
    for (const std::size_t at : {0u, 16u, 69u}) {
        const Shape s{1, 1, 70, 16};
        Floats keys = filled(70 * 16, 0);
        for (std::size_t i = 0; i < 16; ++i) keys[at * 16 + i] = 100;
        const Cache k = cache(s.kv_type, keys), v = random_cache(s, 3);
        const Floats out = run(table, s, filled(16, 1), k, v, 1, 0, 1).out;
        for (std::size_t i = 0; i < 16; ++i)
            check::near("attention", out[i], v.exact[at * 16 + i], 0, "at ", i);
    }
}

KERNEL_TEST(scores_far_beyond_exps_range_do_not_overflow) {
    for (const float size : {1e4f, -1e4f, 1e30f}) {  // equal scores: the mean, whatever their size
        const Shape s{2, 2, 40, 8, DType::f32, false};
        check_attention(table, s, filled(2 * 2 * 8, 1), cache(s.kv_type, filled(40 * 8, size)),
                        random_cache(s, 3), s.scale());
    }
}

KERNEL_TEST(sinks_may_be_as_large_as_the_largest_float) {
    for (const std::size_t n_q : {1u, 6u}) {
        Shape s{n_q, 3, 70, 16, DType::f32, true, 0, 0, true};
        s.sink = 3e38f;
        const Cache k = random_cache(s, 2), v = random_cache(s, 3);
        const Result all = run(table, s, random_q(s), k, v, s.scale(), 0, s.rows());
        for (std::size_t row = 0; row < s.rows(); ++row) {
            check::equal(all.out[s.at(row)], 0.0f, "what is left for the values");
            check::near("lse", all.lse[row], 3e38f, 4e-7 * 3e38, "of row ", row);
        }
        s.sink = -3e38f;
        check_random(table, s);
    }
}

// The products overflow, though keys and queries are finite.
KERNEL_TEST(scores_of_minus_infinity_give_zeros) {
    for (const std::size_t n_q : {1u, 20u})
        for (const std::size_t part : {std::size_t{0}, std::size_t{512}}) {
            const Shape s{n_q, 2, 1100, 16};
            const Cache k = cache(s.kv_type, filled(1100 * 16, -1e30f)), v = random_cache(s, 3);
            const Result all =
                run(table, s, filled(s.n_q * s.stride(), 1e30f), k, v, 1, 0, s.rows(), part);
            for (const float x : all.out) check::equal(x, 0.0f, "out");
            for (const float x : all.lse) check::equal(x, -infinity, "lse");
        }
}

// Where all numbers are equal, all roundings go the same way.
KERNEL_TEST(many_positions_of_equal_numbers) {
    for (const float value : {0.1f, 0.3f, 0.7f, 1.1f, 1.7f}) {
        for (const std::size_t n_q : {1u, 4u}) {
            const Shape s{n_q, 1, 16384, 16};
            check_attention(table, s, filled(n_q * 16, 0), cache(s.kv_type, filled(16384 * 16, 0)),
                            cache(s.kv_type, filled(16384 * 16, value)), 1);
        }
    }
}

KERNEL_TEST(nan_in_a_query_spoils_its_head_alone) {
    const Shape s{4, 2, 20, 16};
    Floats q = random_q(s);
    q[1 * s.stride() + 16 + 3] = not_a_number;
    check_attention(table, s, q, random_cache(s, 2), random_cache(s, 3), s.scale());
}

KERNEL_TEST(nan_and_infinity_in_what_is_seen_are_not_hidden) {
    const Shape s{2, 2, 20, 16};
    for (const float bad : {not_a_number, infinity}) {
        Floats values = normal(20 * 16, 3);
        values[5 * 16 + 3] = bad;
        check_attention(table, s, random_q(s), random_cache(s, 2), cache(s.kv_type, values),
                        s.scale());
    }
    Floats keys = normal(20 * 16, 2);
    keys[5 * 16 + 3] = not_a_number;
    check_attention(table, s, random_q(s), cache(s.kv_type, keys), random_cache(s, 3), s.scale());
}

// The cache behind the last position that a call's queries see may hold anything.
KERNEL_TEST(nan_and_infinity_in_what_is_not_seen_touch_nothing) {
    const Shape s{8, 2, 20, 16};
    for (const float bad : {not_a_number, infinity}) {
        Floats keys = normal(20 * 16, 2), values = normal(20 * 16, 3);
        for (std::size_t i = 16 * 16; i < 20 * 16; ++i) keys[i] = values[i] = bad;
        const Cache k = cache(s.kv_type, keys), v = cache(s.kv_type, values);
        const Floats q = random_q(s);
        for (const std::size_t last : {1u, 2u, 8u})
            check_rows(s, q, k, v, s.scale(), 0, last, run(table, s, q, k, v, s.scale(), 0, last),
                       Where::current());
    }
}

// So may the cache in front of the window of a call's first query.
KERNEL_TEST(nan_and_infinity_in_front_of_what_is_seen_touch_nothing) {
    for (const std::size_t group : {1u, 2u, 9u})
        for (const std::size_t part : {std::size_t{0}, std::size_t{512}}) {
            const Shape s{4, group, 1200, 16, DType::f32, true, 5};
            for (const float bad : {not_a_number, infinity}) {
                Floats keys = normal(1200 * 16, 2), values = normal(1200 * 16, 3);
                // The third query stands at position 1198.
                for (std::size_t i = 0; i < 1194 * 16; ++i) keys[i] = values[i] = bad;
                const Cache k = cache(s.kv_type, keys), v = cache(s.kv_type, values);
                const Floats q = random_q(s);
                const std::size_t first = 2 * group, last = 4 * group;
                check_rows(s, q, k, v, s.scale(), first, last,
                           run(table, s, q, k, v, s.scale(), first, last, part), Where::current());
            }
        }
}

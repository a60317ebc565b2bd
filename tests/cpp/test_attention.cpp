// attention within the bound of kernels.h: |error| <= (4e-6 + 1.2e-7 S) max|v|, S the largest
// score.

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
    std::size_t gap = 0;  // floats between the tokens of q and of out
    std::size_t stride() const { return group * head_dim + gap; }
    float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(head_dim))); }
};

constexpr DType kv_types[] = {DType::f32, DType::f16};

// Keys or values in their type, and what they are exactly.
struct Cache {
    Array<std::byte> bytes;
    reference::Values exact;
};

Cache cache(DType type, const Floats& values, std::size_t offset = 0) {
    const std::size_t element = tensor_ops::row_bytes(type, 1);
    Cache c{Array<std::byte>(values.size() * element, offset * element), {}};
    reference::encode_row(type, values.data(), values.size(), c.bytes.data());
    c.exact = reference::decode_row(type, c.bytes.data(), values.size());
    return c;
}

Cache random_cache(const Shape& s, unsigned seed) {
    return cache(s.kv_type, normal(s.n_kv * s.head_dim, seed), s.head_dim % 16);
}

Floats random_q(const Shape& s) { return normal(s.n_q * s.stride(), 1, 1, s.head_dim % 16); }

Floats run(const KernelTable& table, const Shape& s, const Floats& q, const Cache& k,
           const Cache& v, float scale, std::size_t first, std::size_t last) {
    Floats out(s.n_q * s.stride(), 3), scratch(table.attention_scratch_floats, 1);
    const AttentionTask task{.q = q.data(),
                             .q_stride = s.stride(),
                             .k = k.bytes.data(),
                             .v = v.bytes.data(),
                             .kv_type = s.kv_type,
                             .n_q = s.n_q,
                             .group = s.group,
                             .n_kv = s.n_kv,
                             .head_dim = s.head_dim,
                             .scale = scale,
                             .causal = s.causal,
                             .out = out.data(),
                             .out_stride = s.stride()};
    table.attention(task, first, last, scratch.data());
    return out;
}

std::size_t positions_seen(const Shape& s, std::size_t token) {
    if (!s.causal) return s.n_kv;
    return s.n_kv + token + 1 > s.n_q ? s.n_kv + token + 1 - s.n_q : 0;
}

void check_tokens(const Shape& s, const Floats& q, const Cache& k, const Cache& v, float scale,
                  std::size_t first, std::size_t last, const Floats& out, const Where& where,
                  double largest_score = 0) {
    double largest = 0;
    for (const double value : v.exact)
        if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
    for (std::size_t t = 0; t < s.n_q; ++t) {
        for (std::size_t i = 0; i < s.stride(); ++i) {
            const float actual = out[t * s.stride() + i];
            if (t < first || t >= last || i >= s.group * s.head_dim)
                check::that(std::bit_cast<std::uint32_t>(actual) == 0xffffffff,
                            "written outside of the tokens asked for", where);
        }
        for (std::size_t h = 0; h < s.group && t >= first && t < last; ++h) {
            const std::size_t at = t * s.stride() + h * s.head_dim;
            const auto exact = reference::attend(q.data() + at, k.exact.data(), v.exact.data(),
                                                 positions_seen(s, t), s.head_dim, scale);
            for (std::size_t i = 0; i < s.head_dim; ++i)
                check::near({"attention", where}, out[at + i], exact[i],
                            (4e-6 + 1.2e-7 * largest_score) * largest, "token ", t, " of ", s.n_q,
                            ", head ", h, " of ", s.group, ", ", s.n_kv, " positions, dimension ",
                            i, " of ", s.head_dim);
        }
    }
}

void check_attention(const KernelTable& table, const Shape& s, const Floats& q, const Cache& k,
                     const Cache& v, float scale, Where where = Where::current()) {
    const Floats out = run(table, s, q, k, v, scale, 0, s.n_q);
    check_tokens(s, q, k, v, scale, 0, s.n_q, out, where);
}

void check_random(const KernelTable& table, const Shape& s, Where where = Where::current()) {
    check_attention(table, s, random_q(s), random_cache(s, 2), random_cache(s, 3), s.scale(),
                    where);
}

}  // namespace

KERNEL_TEST(every_head_size_at_any_start) {
    for (const DType type : kv_types)
        for (const std::size_t d :
             {1u, 2u, 3u, 8u, 15u, 16u, 17u, 32u, 33u, 64u, 70u, 96u, 128u, 255u, 256u})
            for (const std::size_t n_q : {1u, 5u}) check_random(table, {n_q, 2, 21, d, type});
}

KERNEL_TEST(every_number_of_positions) {
    for (const DType type : kv_types) {
        for (std::size_t n_kv = 0; n_kv <= 70; ++n_kv) {
            check_random(table, {1, 3, n_kv, 20, type});
            check_random(table, {1, 5, n_kv, 32, type});
        }
        check_random(table, {2, 3, 515, 20, type});
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
    for (const DType type : kv_types) check_random(table, {5, 2, 70, 16, type, false});
}

KERNEL_TEST(a_query_that_sees_nothing_gives_zeros) {
    check_random(table, {6, 2, 4, 8});  // the first two queries come before the first position
    check_random(table, {3, 2, 0, 8});
    check_random(table, {3, 2, 0, 8, DType::f16, false});
}

KERNEL_TEST(some_tokens_are_right_and_no_other_is_written) {
    const Shape s{.n_q = 40, .group = 3, .n_kv = 50, .head_dim = 20, .gap = 7};
    const Floats q = random_q(s);
    const Cache k = random_cache(s, 2), v = random_cache(s, 3);
    const std::size_t ranges[][2] = {{0, 40}, {0, 1}, {13, 13}, {7, 39}, {39, 40}};
    for (const auto& [first, last] : ranges) {
        const Floats out = run(table, s, q, k, v, s.scale(), first, last);
        check_tokens(s, q, k, v, s.scale(), first, last, out, Where::current());
    }
}

KERNEL_TEST(scale_may_be_zero_or_negative) {
    const Shape s{3, 2, 70, 16};
    for (const float scale : {0.0f, -0.3f, 0.01f})
        check_attention(table, s, random_q(s), random_cache(s, 2), random_cache(s, 3), scale);
}

KERNEL_TEST(scores_up_to_eighty) {
    for (const DType type : kv_types) {
        for (const std::size_t d : {8u, 64u, 128u}) {
            const Shape s{9, 2, 200, d, type};
            const Floats q = random_q(s);
            const Cache k = random_cache(s, 2), v = random_cache(s, 3);
            double largest = 0;
            for (std::size_t r = 0; r < s.n_q * s.group; ++r)
                for (std::size_t p = 0; p < s.n_kv; ++p)
                    largest =
                        std::max(largest, std::abs(reference::dot(&q[r * d], &k.exact[p * d], d)));
            const auto scale = static_cast<float>(79 / largest);
            const Floats out = run(table, s, q, k, v, scale, 0, s.n_q);
            check_tokens(s, q, k, v, scale, 0, s.n_q, out, Where::current(), 79);
        }
    }
}

KERNEL_TEST(one_dominant_position_gives_its_value) {
    for (const std::size_t at : {0u, 16u, 69u}) {
        const Shape s{1, 1, 70, 16};
        Floats keys = filled(70 * 16, 0);
        for (std::size_t i = 0; i < 16; ++i) keys[at * 16 + i] = 100;
        const Cache k = cache(s.kv_type, keys), v = random_cache(s, 3);
        const Floats out = run(table, s, filled(16, 1), k, v, 1, 0, 1);
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
        const Floats q = random_q(s), out = run(table, s, q, k, v, s.scale(), 0, 4);
        check_tokens({4, 2, 16, 16}, q, k, v, s.scale(), 0, 4, out, Where::current());
    }
}

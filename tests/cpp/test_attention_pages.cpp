// attention over keys and values in pages: the same bits as where they lie in one place; values of
// another width than the keys; values that are the first dimensions of the keys.

#include <bit>
#include <numeric>

#include "arrays.h"
#include "reference_formats.h"

using namespace arrays;
using tensor_ops::AttentionTask;
using tensor_ops::DType;
using tensor_ops::KernelTable;
using tensor_ops::KvRows;

namespace {

constexpr DType kv_types[] = {DType::f32, DType::f16, DType::q8_0};

struct Shape {
    std::size_t n_q, group, n_kv, head_dim, value_dim;
    DType type;
    std::size_t window = 0;
    float scale() const { return 1 / std::sqrt(static_cast<float>(head_dim)); }
};

// Rows in one place, and what they are exactly.
struct Contiguous {
    Array<std::byte> bytes;
    reference::Values exact;
    KvRows rows;
};

Contiguous contiguous(DType type, std::size_t n, std::size_t width, unsigned seed) {
    const Floats values = normal(n * width, seed);
    Contiguous c{Array<std::byte>(tensor_ops::row_bytes(type, n * width), 0), {}, {}};
    reference::encode_row(type, values.data(), n * width, c.bytes.data());
    c.exact = reference::decode_row(type, c.bytes.data(), n * width);
    c.rows = {.rows = c.bytes.data(), .row_bytes = tensor_ops::row_bytes(type, width)};
    return c;
}

// The same rows in pages of page_rows positions, which lie in the opposite order and far apart.
// Pages before `first` do not exist.
struct Paged {
    Array<std::byte> memory;
    std::vector<std::byte*> pages;
    KvRows rows;
};

Paged paged(const KvRows& from, std::size_t n, std::size_t page_rows, std::size_t first = 0) {
    constexpr std::size_t offset = 48;  // of the rows in a page
    const std::size_t page_bytes = offset + page_rows * from.row_bytes + 64;
    const std::size_t count = (n + page_rows - 1) / page_rows;
    Paged p{Array<std::byte>(count * page_bytes, 0), std::vector<std::byte*>(count), {}};
    std::memset(p.memory.data(), 0xff, p.memory.size());  // NaN behind the last row
    for (std::size_t i = first / page_rows; i < count; ++i) {
        p.pages[i] = p.memory.data() + (count - 1 - i) * page_bytes;
        const std::size_t rows = std::min(page_rows, n - i * page_rows);
        std::memcpy(p.pages[i] + offset, from.row(i * page_rows), rows * from.row_bytes);
    }
    p.rows = {p.pages.data(), nullptr, offset,
              static_cast<std::size_t>(std::countr_zero(page_rows)), from.row_bytes};
    return p;
}

Floats run(const KernelTable& table, const Shape& s, const Floats& q, const KvRows& k,
           const KvRows& v, std::size_t part = 0) {
    Floats out(s.n_q * s.group * s.value_dim, 3);
    Floats scratch(table.attention_scratch_floats, 1);
    const AttentionTask task{.q = q.data(),
                             .q_stride = s.group * s.head_dim,
                             .k = k,
                             .v = v,
                             .kv_type = tensor_ops::kv_type_of(s.type),
                             .n_q = s.n_q,
                             .group = s.group,
                             .n_kv = s.n_kv,
                             .head_dim = s.head_dim,
                             .value_dim = s.value_dim,
                             .scale = s.scale(),
                             .causal = true,
                             .window = s.window,
                             .out = out.data(),
                             .out_stride = s.group * s.value_dim};
    const std::size_t rows = s.n_q * s.group;
    if (part == 0) {
        table.attention(task, 0, rows, scratch.data());
        return out;
    }
    const std::size_t parts = (s.n_kv + part - 1) / part, floats = rows * (s.value_dim + 2);
    Floats between(parts * floats);
    const tensor_ops::AttentionParts layout{part, 0, between.data(), floats};
    table.attention_parts(task, 0, rows, layout, 0, parts, scratch.data());
    table.attention_merge(task, 0, rows, layout);
    return out;
}

// Against float64; v_stride: of the exact values.
void check_exact(const Shape& s, const Floats& q, const reference::Values& k,
                 const reference::Values& v, std::size_t v_stride, const Floats& out) {
    double largest = 0;
    for (const double value : v) largest = std::max(largest, std::abs(value));
    for (std::size_t row = 0; row < s.n_q * s.group; ++row) {
        const std::size_t end = s.n_kv - s.n_q + row / s.group + 1;
        std::vector<double> weights(end);
        for (std::size_t j = 0; j < end; ++j)
            weights[j] =
                s.scale() * reference::dot(&q[row * s.head_dim], &k[j * s.head_dim], s.head_dim);
        const double top = *std::max_element(weights.begin(), weights.end());
        for (double& weight : weights) weight = std::exp(weight - top);
        const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (std::size_t i = 0; i < s.value_dim; ++i) {
            double sum = 0;
            for (std::size_t j = 0; j < end; ++j) sum += weights[j] * v[j * v_stride + i];
            check::near("attention", out[row * s.value_dim + i], sum / total, 5e-6 * largest,
                        "dimension ", i, " of ", s.value_dim, ", row ", row);
        }
    }
}

}  // namespace

KERNEL_TEST(pages_give_the_same_bits_as_one_place) {
    for (const DType type : kv_types)
        for (const std::size_t n_kv : {70u, 97u, 1300u}) {
            const auto k = contiguous(type, n_kv, 32, 2), v = contiguous(type, n_kv, 32, 3);
            for (const std::size_t n_q : {1u, 2u, 70u})
                for (const std::size_t group : {1u, 4u}) {
                    const Shape s{n_q, group, n_kv, 32, 32, type};
                    const Floats q = normal(n_q * group * 32, 1);
                    for (const std::size_t part : {std::size_t{0}, std::size_t{512}}) {
                        const Floats expected = run(table, s, q, k.rows, v.rows, part);
                        for (const std::size_t page_rows : {16u, 64u, 128u}) {
                            const auto k_pages = paged(k.rows, n_kv, page_rows),
                                       v_pages = paged(v.rows, n_kv, page_rows);
                            check::that(same_bytes(expected, run(table, s, q, k_pages.rows,
                                                                 v_pages.rows, part)),
                                        std::string(tensor_ops::dtype_name(type)) + ", " +
                                            std::to_string(n_q) + " of " + std::to_string(n_kv) +
                                            ", pages of " + std::to_string(page_rows));
                        }
                    }
                }
        }
}

// So the pages that a window has left behind need not exist.
KERNEL_TEST(pages_in_front_of_a_window_are_not_read) {
    for (const DType type : kv_types)
        for (const std::size_t n_q : {1u, 2u, 70u})
            for (const std::size_t window : {1u, 37u, 700u}) {
                const Shape s{n_q, 2, 1500, 32, 32, type, window};
                const std::size_t first = 1500 - n_q + 1 > window ? 1500 - n_q + 1 - window : 0;
                const Floats q = normal(n_q * 2 * 32, 1);
                const auto k = contiguous(type, 1500, 32, 2), v = contiguous(type, 1500, 32, 3);
                const auto k_pages = paged(k.rows, 1500, 64, first),
                           v_pages = paged(v.rows, 1500, 64, first);
                for (const std::size_t part : {std::size_t{0}, std::size_t{512}})
                    check::that(same_bytes(run(table, s, q, k.rows, v.rows, part),
                                           run(table, s, q, k_pages.rows, v_pages.rows, part)),
                                std::to_string(n_q) + " queries, window " + std::to_string(window));
            }
}

KERNEL_TEST(values_may_have_another_width_than_keys) {
    constexpr std::size_t widths[][2] = {{32, 64}, {192, 128}, {64, 32},
                                         {20, 36}, {33, 7},    {64, 576}};
    for (const DType type : kv_types)
        for (const auto& [head_dim, value_dim] : widths)
            for (const std::size_t n_q : {1u, 40u}) {
                if (type == DType::q8_0 && (head_dim % 32 || value_dim % 32)) continue;
                const Shape s{n_q, 3, 130, head_dim, value_dim, type};
                const Floats q = normal(n_q * 3 * head_dim, 1);
                const auto k = contiguous(type, 130, head_dim, 2),
                           v = contiguous(type, 130, value_dim, 3);
                const auto k_pages = paged(k.rows, 130, 64), v_pages = paged(v.rows, 130, 64);
                check_exact(s, q, k.exact, v.exact, value_dim,
                            run(table, s, q, k_pages.rows, v_pages.rows));
                check_exact(s, q, k.exact, v.exact, value_dim,
                            run(table, s, q, k.rows, v.rows, 512));
            }
}

KERNEL_TEST(values_may_be_the_first_dimensions_of_the_keys) {
    for (const DType type : kv_types)
        for (const std::size_t n_q : {1u, 9u})
            for (const std::size_t group : {1u, 16u}) {
                const Shape s{n_q, group, 700, 96, 64, type};
                const Floats q = normal(n_q * group * 96, 1);
                const auto k = contiguous(type, 700, 96, 2);
                const auto pages = paged(k.rows, 700, 64);
                const Floats out = run(table, s, q, k.rows, k.rows);
                check_exact(s, q, k.exact, k.exact, 96, out);
                check::that(same_bytes(out, run(table, s, q, pages.rows, pages.rows)), "pages");
            }
}

// index_scores: the sum over heads of weight * max(q . k, 0), for each position; and block_scores:
// each head's largest q . k of a block.

#include <limits>

#include "arrays.h"
#include "ops/attention.h"
#include "ops/ops.h"
#include "ops/sparse.h"
#include "reference.h"

using namespace arrays;
using tensor_ops::DType;
using tensor_ops::IndexTask;
using tensor_ops::KernelTable;
using tensor_ops::KvRows;

namespace {

struct Shape {
    std::size_t n_heads, head_dim, n;
};

Floats scores_of(const KernelTable& table, const Shape& s, const Floats& q, const Floats& weights,
                 const Floats& keys, std::initializer_list<std::size_t> cuts) {
    // Memory that was used before: nothing of it counts.
    Floats scratch = filled(table.index_scratch_floats(s.n_heads, s.head_dim),
                            std::numeric_limits<float>::infinity(), 1);
    Floats scores(s.n, 3);
    const IndexTask task{q.data(),
                         weights.data(),
                         s.n_heads,
                         s.head_dim,
                         {nullptr, keys.data(), 0, 0, s.head_dim * sizeof(float)},
                         DType::f32,
                         scores.data()};
    std::size_t first = 0;
    for (const std::size_t last : cuts) {
        table.index_scores(task, first, last, scratch.data());
        first = last;
    }
    return scores;
}

}  // namespace

KERNEL_TEST(scores_of_an_index_are_those_of_float64) {
    for (const Shape& s : {Shape{1, 1, 1}, Shape{3, 7, 100}, Shape{8, 24, 97}, Shape{64, 128, 193},
                           Shape{33, 576, 5}}) {
        const Floats q = normal(s.n_heads * s.head_dim, 1), weights = normal(s.n_heads, 2);
        const Floats keys = normal(s.n * s.head_dim, 3);
        const Floats scores = scores_of(table, s, q, weights, keys, {s.n});
        for (std::size_t p = 0; p < s.n; ++p) {
            double exact = 0, size = 0;
            for (std::size_t h = 0; h < s.n_heads; ++h) {
                double product = 0, largest = 0;
                for (std::size_t c = 0; c < s.head_dim; ++c) {
                    const double term =
                        static_cast<double>(q[h * s.head_dim + c]) * keys[p * s.head_dim + c];
                    product += term;
                    largest += std::abs(term);
                }
                exact += weights[h] * std::max(product, 0.0);
                size += std::abs(weights[h]) * largest;
            }
            const auto roundings = static_cast<double>(s.head_dim + s.n_heads + 4);
            check::near("index_scores", scores[p], exact, 6e-8 * roundings * size, "at ", p);
        }
    }
}

KERNEL_TEST(a_score_does_not_depend_on_the_positions_of_the_call) {
    const Shape s{20, 32, 200};
    const Floats q = normal(20 * 32, 1), weights = normal(20, 2), keys = normal(200 * 32, 3);
    const Floats whole = scores_of(table, s, q, weights, keys, {200});
    const Floats cut = scores_of(table, s, q, weights, keys, {1, 97, 98, 150, 200});
    for (std::size_t p = 0; p < s.n; ++p) check::equal(cut[p], whole[p], "score");
}

// ---- block_scores -------------------------------------------------------------------------------

namespace {

// [n_heads][blocks], in calls that end at these blocks.
Floats block_scores_of(const KernelTable& table, const Shape& s, const Floats& q,
                       const Floats& keys, std::size_t block_size,
                       std::initializer_list<std::size_t> cuts) {
    const std::size_t blocks = tensor_ops::divide_up(s.n, block_size);
    Floats scratch(table.index_scratch_floats(s.n_heads, s.head_dim), 1);
    Floats scores(s.n_heads * blocks, 3);
    const tensor_ops::BlockTask task{
        q.data(),   s.n_heads,
        s.head_dim, {nullptr, keys.data(), 0, 0, s.head_dim * sizeof(float)},
        DType::f32, block_size,
        s.n,        scores.data(),
        blocks};
    std::size_t first = 0;
    for (const std::size_t last : cuts) {
        table.block_scores(task, first, last, scratch.data());
        first = last;
    }
    table.block_scores(task, first, blocks, scratch.data());
    return scores;
}

}  // namespace

KERNEL_TEST(the_score_of_a_block_is_each_heads_largest_product) {
    for (const Shape& s : {Shape{1, 1, 1}, Shape{3, 7, 100}, Shape{4, 128, 517}, Shape{33, 24, 97}})
        for (const std::size_t size : {1u, 7u, 96u, 128u, 600u}) {
            const Floats q = normal(s.n_heads * s.head_dim, 1), keys = normal(s.n * s.head_dim, 3);
            const Floats scores = block_scores_of(table, s, q, keys, size, {});
            const std::size_t blocks = tensor_ops::divide_up(s.n, size);
            for (std::size_t i = 0; i < scores.size(); ++i) {
                const std::size_t h = i / blocks, b = i % blocks;
                double best = -1e30, largest = 0;
                for (std::size_t p = b * size; p < std::min((b + 1) * size, s.n); ++p) {
                    double product = 0, terms = 0;
                    for (std::size_t c = 0; c < s.head_dim; ++c) {
                        const double term =
                            static_cast<double>(q[h * s.head_dim + c]) * keys[p * s.head_dim + c];
                        product += term;
                        terms += std::abs(term);
                    }
                    best = std::max(best, product);
                    largest = std::max(largest, terms);
                }
                const auto roundings = static_cast<double>(s.head_dim);
                check::near("block_scores", scores[i], best, 6e-8 * roundings * largest, "at ", i);
            }
        }
}

KERNEL_TEST(a_score_of_a_block_does_not_depend_on_the_blocks_of_the_call) {
    const Shape s{20, 32, 500};
    const Floats q = normal(20 * 32, 1), keys = normal(500 * 32, 3);
    const Floats whole = block_scores_of(table, s, q, keys, 13, {});
    const Floats cut = block_scores_of(table, s, q, keys, 13, {1, 2, 17, 30});
    for (std::size_t i = 0; i < whole.size(); ++i) check::equal(cut[i], whole[i], "score");
}

KERNEL_TEST(products_that_are_nan_do_not_count) {
    const Shape s{3, 16, 40};
    const Floats q = normal(3 * 16, 1);
    Floats keys = normal(40 * 16, 3), without = normal(40 * 16, 3);
    for (std::size_t c = 0; c < 16; ++c) {
        keys[12 * 16 + c] = not_a_number;
        without[12 * 16 + c] = without[13 * 16 + c];  // which is in the same block
    }
    for (std::size_t i = 30 * 16; i < keys.size(); ++i) keys[i] = not_a_number;
    const Floats scores = block_scores_of(table, s, q, keys, 10, {});
    const Floats expected = block_scores_of(table, s, q, without, 10, {});
    for (std::size_t i = 0; i < scores.size(); ++i)
        check::equal(scores[i], i % 4 == 3 ? -std::numeric_limits<float>::infinity() : expected[i],
                     "score");
}

// ---- the highest scores
// --------------------------------------------------------------------------

namespace {

std::vector<float> highest(const Floats& scores, std::size_t n) {
    Floats out(n);
    tensor_ops::select_highest(scores.data(), scores.size(), n, out.data());
    return {out.data(), out.data() + n};
}

}  // namespace

TEST(nan_of_either_sign_is_the_highest_score) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float minus_nan = std::copysign(not_a_number, -1.0f);
    Floats scores(6, 0);
    const float values[] = {infinity, minus_nan, 3, -infinity, not_a_number, 4};
    std::copy_n(values, 6, scores.data());
    check::that(highest(scores, 1) == std::vector<float>{1}, "the highest");
    check::that(highest(scores, 2) == std::vector<float>{1, 4}, "the two highest");
    check::that(highest(scores, 4) == std::vector<float>{0, 1, 4, 5}, "the four highest");
}

TEST(zeros_of_either_sign_are_equal_and_the_first_are_the_highest) {
    Floats scores = filled(5, 0.0f);
    scores[1] = scores[2] = -0.0f;
    scores[4] = -1e-45f;
    check::that(highest(scores, 2) == std::vector<float>{0, 1}, "the two highest");
    check::that(highest(scores, 4) == std::vector<float>{0, 1, 2, 3}, "the four highest");
}

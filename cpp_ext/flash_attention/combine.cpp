// Partial results over parts of the keys, combined by their log-sum-exp.
#include "flash_attention/combine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flash_attention/refusal.h"
#include "flash_attention/rows.h"
#include "flash_attention/tensor.h"
#include "threads/team.h"

namespace tensor_ops::flash {
namespace {

constexpr std::size_t most_dims = 4096;  // of a row, which is summed on the stack

void check(const fa_combine_params& p) {
    if (p.flags != 0)
        refuse(FA_UNSUPPORTED, "params.flags is 0x%x; this library knows none", p.flags);
    check_tensor(p.out_partial, "out_partial", types_of({FA_F32}), 5);
    check_tensor(p.lse_partial, "lse_partial", types_of({FA_F32}), 4, true);
    check_tensor(p.out, "out", halves_and_floats, 4);
    for (int i = 0; i < 4; ++i) {
        check_size(p.lse_partial, "lse_partial", i, size(p.out_partial, i), "as out_partial has");
        check_size(p.out, "out", i, size(p.out_partial, i + 1), "as out_partial has");
    }
    if (const std::size_t dim = size(p.out, 3); dim < 1 || dim > most_dims)
        refuse(dim ? FA_UNSUPPORTED : FA_INVALID, "out.shape[3] is %zu; expected 1 to %zu", dim,
               most_dims);
    check_distinct(p.out, "out");
    const Range partial = range_of(p.out_partial, "out_partial"),
                partial_lse = range_of(p.lse_partial, "lse_partial");
    check_apart(range_of(p.out, "out"), partial);
    check_apart(range_of(p.out, "out"), partial_lse);
    if (!is_there(p.lse)) return;
    check_tensor(p.lse, "lse", types_of({FA_F32}), 3, true);
    for (int i = 0; i < 3; ++i) check_size(p.lse, "lse", i, size(p.out, i), "as out has");
    check_distinct(p.lse, "lse");
    for (const Range& other : {partial, partial_lse, range_of(p.out, "out")})
        check_apart(range_of(p.lse, "lse"), other);
}

const float* floats_at(const std::byte* p) { return reinterpret_cast<const float*>(p); }

// One row, [d], of one head.
void combine_row(const KernelTable& table, const fa_combine_params& p, std::size_t b, std::size_t i,
                 std::size_t head) {
    const auto offset = [&](const fa_tensor& t, int first) {
        return b * step(t, first) + i * step(t, first + 1) + head * step(t, first + 2);
    };
    const std::size_t splits = size(p.out_partial, 0), dim = size(p.out, 3);
    const auto lse_of = [&](std::size_t split) {
        return static_cast<double>(*floats_at(data(p.lse_partial) + split * step(p.lse_partial, 0) +
                                              offset(p.lse_partial, 1)));
    };
    constexpr double lowest = -std::numeric_limits<double>::infinity();
    double top = lowest, sum = 0.0;
    for (std::size_t split = 0; split < splits; ++split)
        if (const double each = lse_of(split); each > top || std::isnan(each)) top = each;
    for (std::size_t split = 0; split < splits && top != lowest; ++split)
        sum += std::exp(lse_of(split) - top);
    float row[most_dims];
    std::fill_n(row, dim, 0.0f);
    for (std::size_t split = 0; split < splits && top != lowest; ++split) {
        const auto weight = static_cast<float>(std::exp(lse_of(split) - top) / sum);
        if (weight == 0.0f) continue;  // what has seen nothing may be anything
        const float* x = floats_at(data(p.out_partial) + split * step(p.out_partial, 0) +
                                   offset(p.out_partial, 1));
        for (std::size_t c = 0; c < dim; ++c) row[c] += weight * x[c];
    }
    store_row(table, p.out.type, row, dim, data(p.out) + offset(p.out, 0));
    if (is_there(p.lse))
        *reinterpret_cast<float*>(data(p.lse) + offset(p.lse, 0)) =
            static_cast<float>(top == lowest ? top : top + std::log(sum));
}

}  // namespace

void combine(const KernelTable& table, int threads, const fa_combine_params* params) {
    check_address(params, alignof(fa_combine_params), "params");
    if (params->struct_size != sizeof(fa_combine_params))
        refuse(FA_INVALID, "params.struct_size is %u; expected sizeof(fa_combine_params), %zu",
               params->struct_size, sizeof(fa_combine_params));
    fa_combine_params p = *params;
    for (fa_tensor* t : {&p.out_partial, &p.lse_partial, &p.out, &p.lse}) settle_strides(*t);
    check(p);
    if (!has_elements(p.out)) return;
    const std::size_t tokens = size(p.out, 1), heads = size(p.out, 2);
    run_team(
        [&](const Worker& worker) {
            deal(worker, size(p.out, 0) * tokens * heads, 1,
                 [&](std::size_t first, std::size_t last) {
                     for (std::size_t r = first; r < last; ++r)
                         combine_row(table, p, r / heads / tokens, r / heads % tokens, r % heads);
                 });
        },
        threads);
}

}  // namespace tensor_ops::flash

#include <cstring>

#include "flash_attention/forward.h"
#include "flash_attention/rows.h"
#include "flash_attention/tensor.h"

namespace tensor_ops::flash {
namespace {

// Where row `row` of the cache of a sequence lies in t, which is k or v.
std::byte* cache_row(const Call& c, const Sequence& s, const fa_tensor& t, std::size_t row) {
    if (!c.page_size) return rows_of(t, s.cache, s.first) + row * row_step(t);
    const std::int32_t* table =
        c.p.page_table + s.index * static_cast<std::size_t>(c.p.page_table_stride);
    const auto page = static_cast<std::size_t>(table[row / c.page_size]);
    return rows_of(t, page, 0) + row % c.page_size * row_step(t);
}

// Writes new row j of a sequence, from `from` to `to`, for all KV heads.
void append_row(const KernelTable& table, const Call& c, const Sequence& s, std::size_t j,
                const fa_tensor& from, const fa_tensor& to, std::size_t rotary_dim, float* row,
                float* angles) {
    const std::byte* source = rows_of(from, s.index, s.new_first) + j * row_step(from);
    std::byte* target = cache_row(c, s, to, s.used + j);
    const std::size_t dim = size(to, to.rank - 1);
    for (std::size_t head = 0; head < c.kv_heads; ++head) {
        const std::byte* x = source + head * head_step(from);
        std::byte* y = target + head * head_step(to);
        if (from.type == to.type && rotary_dim == 0) {
            std::memcpy(y, x, bytes_of(to.type, dim));
            continue;
        }
        load_row(table, from.type, x, dim, row);
        if (rotary_dim) rotate_rows(table, c, s.rotary + j, 1, dim, row, angles);
        store_row(table, to.type, row, dim, y);
    }
}

}  // namespace

void append(const Worker& worker, const KernelTable& table, const Call& c, float* row,
            float* angles) {
    std::size_t rows = 0;
    for (std::size_t b = 0; b < c.batch; ++b) rows += sequence(c, b).n_new;
    Deal deal(worker, rows);
    std::size_t at = 0;  // rows before this sequence's
    for (std::size_t b = 0; b < c.batch; ++b) {
        const Sequence s = sequence(c, b);
        deal.within(at, at + s.n_new, [&](std::size_t from, std::size_t to) {
            for (std::size_t j = from - at; j < to - at; ++j) {
                append_row(table, c, s, j, c.p.k_new, c.p.k, c.rotary_dim, row, angles);
                append_row(table, c, s, j, c.p.v_new, c.p.v, 0, row, angles);
            }
        });
        at += s.n_new;
    }
}

void append(const KernelTable& table, int threads, const Call& call) {
    run_team(
        [&](const Worker& worker) {
            float row[attention_max_head_dim], angles[attention_max_head_dim];
            append(worker, table, call, row, angles);
        },
        threads);
}

}  // namespace tensor_ops::flash

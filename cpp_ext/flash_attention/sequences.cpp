#include "flash_attention/call.h"
#include "flash_attention/refusal.h"
#include "flash_attention/tensor.h"

namespace tensor_ops::flash {
namespace {

std::size_t at(const std::int32_t* array, std::size_t b) {
    return static_cast<std::size_t>(array[b]);
}

// Starts ascend from 0 to at most `rows`, at most `longest` apart.
void check_starts(const std::int32_t* starts, const char* name, std::size_t batch, std::size_t rows,
                  const char* rows_of_what, std::size_t longest, const char* longest_name) {
    if (!starts) return;
    if (starts[0] != 0) refuse(FA_INVALID, "%s[0] is %d; expected 0", name, starts[0]);
    for (std::size_t b = 0; b < batch; ++b) {
        if (starts[b + 1] < starts[b])
            refuse(FA_INVALID, "%s[%zu] is %d; expected %d or more, where the sequence begins",
                   name, b + 1, starts[b + 1], starts[b]);
        if (at(starts, b + 1) > rows)
            refuse(FA_INVALID, "%s[%zu] is %d; %s has %zu rows", name, b + 1, starts[b + 1],
                   rows_of_what, rows);
        if (longest_name && at(starts, b + 1) - at(starts, b) > longest)
            refuse(FA_INVALID, "%s is %zu; sequence %zu has %zu rows by %s", longest_name, longest,
                   b, at(starts, b + 1) - at(starts, b), name);
    }
}

void check_in_use(const std::int32_t* used, const char* name, std::size_t b, std::size_t most,
                  const char* what) {
    if (used && (used[b] < 0 || at(used, b) > most))
        refuse(FA_INVALID, "%s[%zu] is %d; expected 0 to %zu, %s", name, b, used[b], most, what);
}

std::size_t cache_rows(const Call& c, std::size_t b) {
    return c.p.cu_seqlens_k ? at(c.p.cu_seqlens_k, b + 1) - at(c.p.cu_seqlens_k, b) : c.most_keys;
}

void check_rotation(const Call& c, std::size_t b) {
    const fa_fwd_params& p = c.p;
    const Sequence s = sequence(c, b);
    const char* name = p.seqlens_rotary ? "seqlens_rotary" : "seqused_k";
    const std::int32_t first = (p.seqlens_rotary ? p.seqlens_rotary : p.seqused_k)[b];
    std::size_t n = c.rotates_by_query() && s.n_q > s.n_new ? s.n_q : s.n_new;
    if (n == 0 && s.n_q) n = 1;
    const std::size_t rows = size(p.rotary_cos, 0);
    if (first < 0 || (n && s.rotary + n > rows))
        refuse(FA_INVALID, "%s[%zu] is %d, and %zu positions follow; rotary_cos has %zu rows", name,
               b, first, n, rows);
}

void check_pages(const Call& c, std::size_t b) {
    const fa_fwd_params& p = c.p;
    const Sequence s = sequence(c, b);
    const std::size_t end = s.used + s.n_new;
    if (end == s.leftpad) return;
    const std::int32_t* table = p.page_table + b * static_cast<std::size_t>(p.page_table_stride);
    for (std::size_t i = s.leftpad / c.page_size; i * c.page_size < end; ++i)
        if (table[i] < 0 || at(table, i) >= size(p.k, 0))
            refuse(FA_INVALID, "page_table[%zu][%zu] is %d; k has %zu pages", b, i, table[i],
                   size(p.k, 0));
}

}  // namespace

void check_arrays(const Call& c) {
    const fa_fwd_params& p = c.p;
    check_starts(p.cu_seqlens_q, "cu_seqlens_q", c.batch, c.total_queries, "q", c.most_queries,
                 "max_seqlen_q");
    check_starts(p.cu_seqlens_k, "cu_seqlens_k", c.batch, size(p.k, 0), "k", c.most_keys,
                 "max_seqlen_k");
    if (c.appends)
        check_starts(p.cu_seqlens_k_new, "cu_seqlens_k_new", c.batch, size(p.k_new, 0), "k_new", 0,
                     nullptr);
    for (std::size_t b = 0; b < c.batch; ++b) {
        if (p.seqused_q)
            check_in_use(
                p.seqused_q, "seqused_q", b,
                p.cu_seqlens_q ? at(p.cu_seqlens_q, b + 1) - at(p.cu_seqlens_q, b) : c.most_queries,
                "the queries of the sequence");
        check_in_use(p.seqused_k, "seqused_k", b, cache_rows(c, b), "the keys that there are");
        const Sequence s = sequence(c, b);
        check_in_use(p.leftpad_k, "leftpad_k", b, s.used, "the keys in use");
        if (p.kv_batch_idx && (p.kv_batch_idx[b] < 0 || at(p.kv_batch_idx, b) >= size(p.k, 0)))
            refuse(FA_INVALID, "kv_batch_idx[%zu] is %d; k has %zu rows", b, p.kv_batch_idx[b],
                   size(p.k, 0));
        if (s.n_new > cache_rows(c, b) - s.used)
            refuse(FA_INVALID, "seqused_k[%zu] is %zu: no room for %zu new keys, as k has %zu rows",
                   b, s.used, s.n_new, cache_rows(c, b));
        if (c.rotary_dim) check_rotation(c, b);
        if (c.page_size) check_pages(c, b);
    }
}

Sequence sequence(const Call& c, std::size_t b) {
    const fa_fwd_params& p = c.p;
    Sequence s{};
    s.index = b;
    s.q_first = p.cu_seqlens_q ? at(p.cu_seqlens_q, b) : b * c.most_queries;
    s.n_q = p.seqused_q      ? at(p.seqused_q, b)
            : p.cu_seqlens_q ? at(p.cu_seqlens_q, b + 1) - s.q_first
                             : c.most_queries;
    s.cache = p.kv_batch_idx ? at(p.kv_batch_idx, b) : b;
    s.first = p.cu_seqlens_k ? at(p.cu_seqlens_k, b) : 0;
    s.leftpad = p.leftpad_k ? at(p.leftpad_k, b) : 0;
    s.used = p.seqused_k ? at(p.seqused_k, b) : cache_rows(c, b);
    if (c.appends) {
        s.new_first = p.cu_seqlens_k_new ? at(p.cu_seqlens_k_new, b) : 0;
        s.n_new =
            p.cu_seqlens_k_new ? at(p.cu_seqlens_k_new, b + 1) - s.new_first : size(p.k_new, 1);
    }
    s.n_kv = s.used - s.leftpad + s.n_new;
    s.rotary = p.seqlens_rotary ? at(p.seqlens_rotary, b) : s.used;
    return s;
}

}  // namespace tensor_ops::flash

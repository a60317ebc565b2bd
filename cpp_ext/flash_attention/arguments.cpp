#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "flash_attention/call.h"
#include "flash_attention/divide.h"
#include "flash_attention/refusal.h"
#include "flash_attention/tensor.h"

namespace tensor_ops::flash {
namespace {

constexpr std::uint32_t known_flags =
    FA_CAUSAL | FA_ROTARY_INTERLEAVED | FA_DETERMINISTIC | FA_SCALE_SET;
constexpr std::int32_t most_splits = 256;
constexpr std::int64_t most_table = std::int64_t{1} << 46;  // numbers of a page table

// The tensors of a call, by name.
constexpr std::pair<fa_tensor fa_fwd_params::*, const char*> tensors[] = {
    {&fa_fwd_params::q, "q"},
    {&fa_fwd_params::k, "k"},
    {&fa_fwd_params::v, "v"},
    {&fa_fwd_params::k_new, "k_new"},
    {&fa_fwd_params::v_new, "v_new"},
    {&fa_fwd_params::q_v, "q_v"},
    {&fa_fwd_params::out, "out"},
    {&fa_fwd_params::lse, "lse"},
    {&fa_fwd_params::sinks, "sinks"},
    {&fa_fwd_params::rotary_cos, "rotary_cos"},
    {&fa_fwd_params::rotary_sin, "rotary_sin"},
    {&fa_fwd_params::q_descale, "q_descale"},
    {&fa_fwd_params::k_descale, "k_descale"},
    {&fa_fwd_params::v_descale, "v_descale"}};

// The arrays of numbers, and how many more than one for each sequence; page_table has its own size.
constexpr struct {
    const std::int32_t* fa_fwd_params::* member;
    const char* name;
    std::size_t more = 0;
} arrays[] = {{&fa_fwd_params::cu_seqlens_q, "cu_seqlens_q", 1},
              {&fa_fwd_params::cu_seqlens_k, "cu_seqlens_k", 1},
              {&fa_fwd_params::cu_seqlens_k_new, "cu_seqlens_k_new", 1},
              {&fa_fwd_params::seqused_q, "seqused_q"},
              {&fa_fwd_params::seqused_k, "seqused_k"},
              {&fa_fwd_params::page_table, "page_table"},
              {&fa_fwd_params::kv_batch_idx, "kv_batch_idx"},
              {&fa_fwd_params::leftpad_k, "leftpad_k"},
              {&fa_fwd_params::seqlens_rotary, "seqlens_rotary"}};

// The caller's struct, which a newer header than this one may have described.
fa_fwd_params own_copy(const fa_fwd_params* params) {
    check_address(params, alignof(fa_fwd_params), "params");
    const std::size_t given = params->struct_size;
    constexpr std::size_t known = sizeof(fa_fwd_params);
    if (given < known)
        refuse(FA_INVALID, "params.struct_size is %zu; expected sizeof(fa_fwd_params), %zu", given,
               known);
    if (given > 16 * known)
        refuse(FA_INVALID, "params.struct_size is %zu; no version of fa_fwd_params is so large",
               given);
    const auto* bytes = reinterpret_cast<const unsigned char*>(params);
    if (std::any_of(bytes + known, bytes + given, [](unsigned char b) { return b != 0; }))
        refuse(FA_UNSUPPORTED,
               "params.struct_size is %zu: the caller's header is newer than this library, which "
               "knows %zu bytes, and uses what is new; install a newer library",
               given, known);
    fa_fwd_params copy;
    std::memcpy(&copy, params, known);
    return copy;
}

void check_between(long long value, long long least, long long most, const char* name) {
    if (value < least || value > most)
        refuse(FA_INVALID, "%s is %lld; expected %lld to %lld", name, value, least, most);
}

void check_numbers(const fa_fwd_params& p) {
    if (p.flags & ~known_flags)
        refuse(FA_UNSUPPORTED, "params.flags is 0x%x; this library knows 0x%x", p.flags,
               known_flags);
    check_between(p.batch, 0, INT32_MAX, "batch");
    check_between(p.window_left, -1, INT32_MAX, "window_left");
    check_between(p.window_right, -1, INT32_MAX, "window_right");
    check_between(p.attention_chunk, 0, INT32_MAX, "attention_chunk");
    check_between(p.num_splits, 0, most_splits, "num_splits");
    check_between(p.pack_gqa, -1, 1, "pack_gqa");
    check_between(p.sm_margin, 0, INT32_MAX, "sm_margin");
    check_between(p.max_seqlen_q, 0, INT32_MAX, "max_seqlen_q");
    check_between(p.max_seqlen_k, 0, INT32_MAX, "max_seqlen_k");
    if (!std::isfinite(p.softmax_scale))
        refuse(FA_INVALID, "softmax_scale is %g; expected a finite number",
               static_cast<double>(p.softmax_scale));
    if (!(p.softcap >= 0.0f && std::isfinite(p.softcap)))
        refuse(FA_INVALID, "softcap is %g; expected 0 or a positive number",
               static_cast<double>(p.softcap));
    for (const auto& [member, name, more] : arrays)
        if (p.*member) check_address(p.*member, alignof(std::int32_t), name);
}

// b, by batch or by the first tensor that has a dimension for it.
std::size_t batch_of(const fa_fwd_params& p, Use use) {
    const fa_tensor& t = use == Use::forward ? p.q : p.k_new;
    const char* name = use == Use::forward ? "q" : "k_new";
    const bool has = !(use == Use::forward ? p.cu_seqlens_q : p.cu_seqlens_k_new);
    if (!has && p.batch == 0)
        refuse(FA_INVALID,
               "batch is 0; expected the number of sequences, as %s has no such "
               "dimension",
               name);
    if (has && p.batch != 0) check_size(t, name, 0, static_cast<std::size_t>(p.batch), "batch");
    return has ? size(t, 0) : static_cast<std::size_t>(p.batch);
}

void check_queries(Call& c) {
    const fa_fwd_params& p = c.p;
    const int rank = p.cu_seqlens_q ? 3 : 4;
    check_tensor(p.q, "q", any_float, rank);
    c.batch = batch_of(p, Use::forward);
    c.heads = size(p.q, rank - 2);
    c.k_dim = c.query_dim = size(p.q, rank - 1);
    c.most_queries = p.cu_seqlens_q ? static_cast<std::size_t>(p.max_seqlen_q) : size(p.q, 1);
    c.total_queries = p.cu_seqlens_q ? size(p.q, 0) : c.batch * c.most_queries;
    check_between(static_cast<long long>(c.heads), 1, INT32_MAX, "the number of heads in q.shape");
}

void check_cache(Call& c) {
    const fa_fwd_params& p = c.p;
    constexpr Types types = any_float | types_of({FA_Q8_0});
    const int rank = p.cu_seqlens_k ? 3 : 4;
    if (p.page_table && p.cu_seqlens_k)
        refuse(FA_INVALID, "cu_seqlens_k and page_table exclude each other: pages have no starts");
    if (p.page_table && p.kv_batch_idx)
        refuse(FA_INVALID, "kv_batch_idx and page_table exclude each other: the table says it all");
    if (p.cu_seqlens_k && p.kv_batch_idx)
        refuse(FA_INVALID, "kv_batch_idx and cu_seqlens_k exclude each other");
    check_tensor(p.k, "k", types, rank);
    check_tensor(p.v, "v", types, rank);
    if (p.v.type != p.k.type)
        refuse(FA_INVALID, "v.type is %d; expected %d, the type of k", p.v.type, p.k.type);
    for (int i = 0; i + 1 < rank; ++i) check_size(p.v, "v", i, size(p.k, i), "as k has");
    c.kv_heads = size(p.k, rank - 2);
    c.value_dim = size(p.v, rank - 1);
    check_between(static_cast<long long>(c.kv_heads), 1, INT32_MAX,
                  "the number of heads in k.shape");
    if (p.page_table) {
        c.page_size = size(p.k, 1);
        check_between(p.k.shape[1], 1, INT32_MAX, "the page size, k.shape[1],");
        check_between(p.page_table_columns, 0, INT32_MAX, "page_table_columns");
        if (p.page_table_stride == 0) c.p.page_table_stride = p.page_table_columns;
        check_between(p.page_table_stride, c.batch > 1 ? p.page_table_columns : 0,
                      most_table / std::max<std::int64_t>(static_cast<std::int64_t>(c.batch), 1),
                      "page_table_stride");
        c.most_keys = c.page_size * static_cast<std::size_t>(p.page_table_columns);
        // A padding may begin anywhere in a page, and the kernels' pages at its end.
        const auto bits = static_cast<std::size_t>(std::countr_zero(c.page_size));
        c.page_bits = p.leftpad_k ? 0 : bits;
    } else if (p.cu_seqlens_k) {
        c.most_keys = static_cast<std::size_t>(p.max_seqlen_k);
    } else {
        c.most_keys = size(p.k, 1);
        if (!p.kv_batch_idx) check_size(p.k, "k", 0, c.batch, "a row for each sequence");
    }
}

void check_heads(Call& c) {
    const fa_fwd_params& p = c.p;
    if (c.heads % c.kv_heads != 0)
        refuse(FA_INVALID, "k.shape[%d] is %zu KV heads; expected a divisor of q's %zu heads",
               p.k.rank - 2, c.kv_heads, c.heads);
    c.group = c.heads / c.kv_heads;
    const int rank = p.q.rank;
    if (is_there(p.q_v)) {
        check_tensor(p.q_v, "q_v", any_float, rank);
        for (int i = 0; i + 1 < rank; ++i) check_size(p.q_v, "q_v", i, size(p.q, i), "as q has");
        check_size(p.q_v, "q_v", rank - 1, c.value_dim, "the d_v of v");
        if (p.k.type == FA_E4M3 || p.q.type == FA_E4M3 || p.q_v.type == FA_E4M3)
            refuse(FA_UNSUPPORTED, "q_v with e4m3: k and v have scales of their own in one score");
        c.query_dim += c.value_dim;
    }
}

void check_dims(Call& c, Use use) {
    const fa_fwd_params& p = c.p;
    const int last = p.k.rank - 1;
    if (use == Use::append) c.k_dim = c.query_dim = size(p.k, last);
    check_size(p.k, "k", last, c.k_dim, "the d of q");
    if (use == Use::forward) check_heads(c);
    for (const auto& [n, name] : {std::pair{c.k_dim, "k (d)"},
                                  {c.value_dim, "v (d_v)"},
                                  {c.query_dim, "q and q_v together"}})
        if (n < 1 || n > attention_max_head_dim)
            refuse(n ? FA_UNSUPPORTED : FA_INVALID, "the last size of %s is %zu; expected 1 to %zu",
                   name, n, attention_max_head_dim);
}

void check_outputs(const Call& c) {
    const fa_fwd_params& p = c.p;
    const int rank = p.q.rank;
    check_tensor(p.out, "out", halves_and_floats, rank);
    for (int i = 0; i + 1 < rank; ++i) check_size(p.out, "out", i, size(p.q, i), "as q has");
    check_size(p.out, "out", rank - 1, c.value_dim, "the d_v of v");
    check_distinct(p.out, "out");
    if (is_there(p.lse)) {
        check_tensor(p.lse, "lse", types_of({FA_F32}), rank - 1, true);
        if (rank == 4) check_size(p.lse, "lse", 0, c.batch, "b");
        check_size(p.lse, "lse", rank - 3, c.heads, "the heads of q");
        check_size(p.lse, "lse", rank - 2, rank == 4 ? c.most_queries : c.total_queries,
                   "the queries of q");
        check_distinct(p.lse, "lse");
    }
    if (is_there(p.sinks)) {
        check_tensor(p.sinks, "sinks", types_of({FA_F32}), 1);
        check_size(p.sinks, "sinks", 0, c.heads, "the heads of q");
    }
}

void check_descale(const Call& c, const fa_tensor& t, const char* name, const fa_tensor& of,
                   const char* of_name) {
    if (!is_there(t)) return;
    check_tensor(t, name, types_of({FA_F32}), 2, true);
    check_size(t, name, 0, c.batch, "b");
    check_size(t, name, 1, c.kv_heads, "the KV heads");
    if (of.type != FA_E4M3) refuse(FA_INVALID, "%s is there, but %s is not e4m3", name, of_name);
}

void check_rotary(Call& c, Use use) {
    const fa_fwd_params& p = c.p;
    if (!is_there(p.rotary_cos) && !is_there(p.rotary_sin)) {
        if (p.seqlens_rotary) refuse(FA_INVALID, "seqlens_rotary is there, but no rotary_cos");
        return;
    }
    if (!c.appends)
        refuse(FA_INVALID, "rotary_cos is there, but no k_new: only calls with new keys rotate");
    check_tensor(p.rotary_cos, "rotary_cos", halves_and_floats, 2);
    check_tensor(p.rotary_sin, "rotary_sin", halves_and_floats, 2);
    for (int i = 0; i < 2; ++i)
        check_size(p.rotary_sin, "rotary_sin", i, size(p.rotary_cos, i), "as rotary_cos has");
    c.rotary_dim = 2 * size(p.rotary_cos, 1);
    if (c.rotary_dim > c.k_dim)
        refuse(FA_INVALID, "rotary_cos.shape[1] is %zu; expected d / 2 or less, of d = %zu",
               c.rotary_dim / 2, c.k_dim);
    if (p.k.type == FA_E4M3 || (use == Use::forward && p.q.type == FA_E4M3))
        refuse(FA_UNSUPPORTED, "rotary_cos with e4m3: what is rotated would be rounded again");
}

void check_new_keys(Call& c) {
    const fa_fwd_params& p = c.p;
    c.appends = is_there(p.k_new) || is_there(p.v_new);
    if (!c.appends) {
        if (p.cu_seqlens_k_new) refuse(FA_INVALID, "cu_seqlens_k_new is there, but no k_new");
        return;
    }
    const int rank = p.cu_seqlens_k_new ? 3 : 4;
    const bool e4m3 = p.k.type == FA_E4M3;
    const auto check = [&](const fa_tensor& t, const char* name, std::size_t dim) {
        check_tensor(t, name, e4m3 ? types_of({FA_E4M3}) : halves_and_floats, rank);
        if (rank == 4) check_size(t, name, 0, c.batch, "b");
        check_size(t, name, rank - 3, size(p.k_new, rank - 3), "as k_new has");
        check_size(t, name, rank - 2, c.kv_heads, "the KV heads of k");
        check_size(t, name, rank - 1, dim, "as in the cache");
    };
    check(p.k_new, "k_new", c.k_dim);
    check(p.v_new, "v_new", c.value_dim);
    if (!p.seqused_k)
        refuse(FA_INVALID, "seqused_k is NULL; expected the keys in use, behind which k_new goes");
    if (p.cu_seqlens_k)
        refuse(FA_INVALID,
               "cu_seqlens_k and k_new exclude each other: there is no room for new "
               "keys");
    check_distinct(p.k, "k");
    check_distinct(p.v, "v");
}

Range range_of_array(const std::int32_t* array, std::size_t n, const char* name) {
    const auto begin = reinterpret_cast<std::uintptr_t>(array);
    if (!array) return {name, begin, begin};
    const std::uintptr_t end = begin + n * sizeof(std::int32_t);
    if (end < begin)
        refuse(FA_INVALID, "%s is %p: its numbers go beyond the end of memory", name,
               static_cast<const void*>(array));
    return {name, begin, end};
}

// Calls f(memory, the tensor or null) for all memory that the struct names but the workspace.
template <class F>
void for_memory(const Call& c, F&& f) {
    const fa_fwd_params& p = c.p;
    for (const auto& [member, name] : tensors) f(range_of(p.*member, name), member);
    const std::size_t of_table =
        c.page_size && c.batch ? (c.batch - 1) * static_cast<std::size_t>(p.page_table_stride) +
                                     static_cast<std::size_t>(p.page_table_columns)
                               : 0;
    for (const auto& [member, name, more] : arrays) {
        const std::size_t n = member == &fa_fwd_params::page_table ? of_table : c.batch + more;
        f(range_of_array(p.*member, n, name), nullptr);
    }
}

// What is written overlaps nothing else.
void check_memory(const Call& c) {
    for (const auto& [member, name] : tensors) {
        const bool is_cache = member == &fa_fwd_params::k || member == &fa_fwd_params::v;
        const bool is_result = member == &fa_fwd_params::out || member == &fa_fwd_params::lse;
        if (!is_result && !(c.appends && is_cache)) continue;
        const Range written = range_of(c.p.*member, name);
        for_memory(c, [&, own = member](const Range& other, fa_tensor fa_fwd_params::* tensor) {
            if (tensor != own && !(tensor && take_turns(c.p.*own, c.p.*tensor)))
                check_apart(written, other);
        });
    }
}

}  // namespace

Call checked_call(const fa_fwd_params* params, Use use) {
    Call c{};
    c.p = own_copy(params);
    fa_fwd_params& p = c.p;
    for (const auto& [member, name] : tensors) settle_strides(p.*member);
    check_numbers(p);
    if (use == Use::append) {
        p.q = p.q_v = p.out = p.lse = p.sinks = p.q_descale = fa_tensor{};
        p.cu_seqlens_q = p.seqused_q = nullptr;
        if (!is_there(p.k_new))
            refuse(FA_INVALID, "k_new.data is NULL: there is nothing to append");
        check_tensor(p.k_new, "k_new", any_float, p.cu_seqlens_k_new ? 3 : 4);
        c.batch = batch_of(p, use);
    } else {
        check_queries(c);
    }
    check_cache(c);
    check_dims(c, use);
    check_new_keys(c);
    check_rotary(c, use);
    if (use == Use::forward) {
        check_outputs(c);
        check_descale(c, p.q_descale, "q_descale", p.q, "q");
    }
    check_descale(c, p.k_descale, "k_descale", p.k, "k");
    check_descale(c, p.v_descale, "v_descale", p.v, "v");
    check_memory(c);
    const auto window = [](std::int32_t n) {
        return n < 0 ? unlimited_window : static_cast<std::size_t>(n);
    };
    c.causal = p.flags & FA_CAUSAL;
    c.left = window(p.window_left);
    c.right = c.causal ? 0 : window(p.window_right);
    c.chunk = static_cast<std::size_t>(p.attention_chunk);
    c.scale = p.softmax_scale;
    if (c.scale == 0.0f && !(p.flags & FA_SCALE_SET))
        c.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.query_dim)));
    if (use == Use::forward) c.most_parts = most_parts(c);
    return c;
}

void check_workspace(const Call& c, std::size_t needed) {
    if (!c.p.workspace)
        refuse(FA_INVALID, "workspace is NULL; expected %zu bytes, as fa_fwd_workspace says",
               needed);
    if (c.p.workspace_bytes < needed)
        refuse(FA_INVALID, "workspace_bytes is %llu; expected %zu, as fa_fwd_workspace says",
               static_cast<unsigned long long>(c.p.workspace_bytes), needed);
    const auto begin = reinterpret_cast<std::uintptr_t>(c.p.workspace);
    if (begin + needed < begin)
        refuse(FA_INVALID, "workspace is %p: its %zu bytes go beyond the end of memory",
               c.p.workspace, needed);
    for_memory(c, [&](const Range& other, fa_tensor fa_fwd_params::*) {
        check_apart(other, {"workspace", begin, begin + needed});
    });
}

}  // namespace tensor_ops::flash

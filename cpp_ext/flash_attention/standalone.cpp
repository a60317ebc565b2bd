// mha_fwd_standalone: its arguments as an fa_fwd_params.
#include <algorithm>
#include <cstdlib>
#include <memory>

#include "flash_attention/context.h"

using namespace tensor_ops::flash;

namespace {

// The context of all such calls, made by the first one.
fa_context* default_context() {
    static fa_context* const context = [] {
        fa_context* made = nullptr;
        if (const fa_status status = fa_context_create("cpu", &made); status != FA_OK)
            refuse(status, "%s", fa_last_error());
        return made;
    }();
    return context;
}

// A tensor of contiguous rows of heads, [first][second][heads][dim], or without `second` where all
// sequences share a dimension of `total` rows; absent where there is no data.
fa_tensor rows(void* data, fa_dtype type, bool together, int total, std::int64_t first, int second,
               int heads, int dim) {
    if (!data) return fa_tensor{};
    return together ? fa_contiguous(data, type, 3, total, heads, dim, 0)
                    : fa_contiguous(data, type, 4, first, second, heads, dim);
}

fa_tensor matrix(void* data, fa_dtype type, int n, int m) {
    return data ? fa_contiguous(data, type, 2, n, m, 0, 0) : fa_tensor{};
}

}  // namespace

void mha_fwd_standalone(void* q, void* k, void* v, void* k_new, void* v_new, void* q_v, void* out,
                        int* cu_seqlens_q, int* cu_seqlens_k, int* cu_seqlens_k_new, int* seqused_q,
                        int* seqused_k, int max_seqlen_q, int max_seqlen_k, int* page_table,
                        int* kv_batch_idx, int* leftpad_k, void* rotary_cos, void* rotary_sin,
                        int* seqlens_rotary, float* q_descale, float* k_descale, float* v_descale,
                        float softmax_scale, bool is_causal, int window_left, int window_right,
                        int attention_chunk, float softcap, bool is_rotary_interleaved,
                        int* scheduler_metadata, int num_splits, bool pack_gqa, int sm_margin,
                        bool is_bf16, bool is_e4m3, int batch, int seqlen_q, int num_heads,
                        int head_dim, int seqlen_k, int num_heads_k, int head_dim_v, int total_q,
                        int total_k, int page_size, int num_pages, int max_pages_per_seq,
                        int seqlen_k_new, int total_k_new, int rotary_dim, int seqlen_ro,
                        float* softmax_lse, void* workspace, void* stream) {
    guarded([&] {
        if (batch < 1) refuse(FA_INVALID, "batch is %d; expected 1 or more", batch);
        const fa_dtype type = is_e4m3 ? FA_E4M3 : is_bf16 ? FA_BF16 : FA_F16;
        const fa_dtype wide = is_e4m3 ? FA_BF16 : type;
        if ((rotary_cos || rotary_sin) && (rotary_dim < 0 || rotary_dim % 2))
            refuse(FA_INVALID, "rotary_dim is %d; expected an even number", rotary_dim);
        std::int64_t cache_rows = batch;
        if (kv_batch_idx)
            cache_rows = std::int64_t{*std::max_element(kv_batch_idx, kv_batch_idx + batch)} + 1;
        const std::int64_t first = page_table ? num_pages : cache_rows;
        const int second = page_table ? page_size : seqlen_k;
        fa_fwd_params p = fa_fwd_defaults();
        p.flags =
            (is_causal ? FA_CAUSAL : 0u) | (is_rotary_interleaved ? FA_ROTARY_INTERLEAVED : 0u);
        p.q = rows(q, type, cu_seqlens_q, total_q, batch, seqlen_q, num_heads, head_dim);
        p.k = rows(k, type, cu_seqlens_k, total_k, first, second, num_heads_k, head_dim);
        p.v = rows(v, type, cu_seqlens_k, total_k, first, second, num_heads_k, head_dim_v);
        p.k_new = rows(k_new, type, cu_seqlens_k_new, total_k_new, batch, seqlen_k_new, num_heads_k,
                       head_dim);
        p.v_new = rows(v_new, type, cu_seqlens_k_new, total_k_new, batch, seqlen_k_new, num_heads_k,
                       head_dim_v);
        p.q_v = rows(q_v, type, cu_seqlens_q, total_q, batch, seqlen_q, num_heads, head_dim_v);
        p.out = rows(out, wide, cu_seqlens_q, total_q, batch, seqlen_q, num_heads, head_dim_v);
        if (softmax_lse)
            p.lse = cu_seqlens_q
                        ? fa_contiguous(softmax_lse, FA_F32, 2, num_heads, total_q, 0, 0)
                        : fa_contiguous(softmax_lse, FA_F32, 3, batch, num_heads, seqlen_q, 0);
        p.rotary_cos = matrix(rotary_cos, wide, seqlen_ro, rotary_dim / 2);
        p.rotary_sin = matrix(rotary_sin, wide, seqlen_ro, rotary_dim / 2);
        p.q_descale = matrix(q_descale, FA_F32, batch, num_heads_k);
        p.k_descale = matrix(k_descale, FA_F32, batch, num_heads_k);
        p.v_descale = matrix(v_descale, FA_F32, batch, num_heads_k);
        p.cu_seqlens_q = cu_seqlens_q;
        p.cu_seqlens_k = cu_seqlens_k;
        p.cu_seqlens_k_new = cu_seqlens_k_new;
        p.seqused_q = seqused_q;
        p.seqused_k = seqused_k;
        p.page_table = page_table;
        p.kv_batch_idx = kv_batch_idx;
        p.leftpad_k = leftpad_k;
        p.seqlens_rotary = seqlens_rotary;
        p.batch = batch;
        p.page_table_columns = max_pages_per_seq;
        p.max_seqlen_q = max_seqlen_q;
        p.max_seqlen_k = max_seqlen_k;
        p.window_left = window_left;
        p.window_right = window_right;
        p.attention_chunk = attention_chunk;
        p.num_splits = num_splits;
        p.pack_gqa = pack_gqa;
        p.sm_margin = sm_margin;
        p.softmax_scale = softmax_scale;
        p.softcap = softcap;
        p.scheduler_metadata = scheduler_metadata;
        fa_context* context = default_context();
        const auto check = [](fa_status status) {
            if (status != FA_OK) refuse(status, "%s", fa_last_error());
        };
        std::unique_ptr<void, void (*)(void*)> own(nullptr, std::free);
        check(fa_fwd_workspace(context, &p, &p.workspace_bytes));
        if (!workspace) {
            own.reset(std::malloc(p.workspace_bytes));
            if (!own) throw std::bad_alloc();
        }
        p.workspace = workspace ? workspace : own.get();
        check(fa_fwd(context, &p, stream));
    });
}

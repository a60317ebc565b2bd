/* Attention for C and C++ programs: FlashAttention-3's forward pass with all its arguments, in one
 * shared library, libflash_attn_standalone.so.
 *
 * The arguments are one struct, fa_fwd_params, of tensors that the caller owns. A call allocates
 * nothing: fa_fwd_workspace says how much memory it needs beside its tensors. Every function
 * returns an fa_status and never throws or exits; fa_last_error says in words what is wrong, with
 * the name of the field. A context may be used by several threads at the same time.
 *
 * Letters in shapes: b sequences, h query heads, h_k KV heads (h is a multiple of h_k; query head i
 * reads KV head i / (h / h_k)), s_q and s_k positions of a sequence, d elements of a query or a
 * key, d_v elements of a value. Query i of a sequence stands at position p = i + s_k - s_q: the
 * last query at the last key. */
#ifndef FLASH_ATTN_H
#define FLASH_ATTN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FA_API __attribute__((visibility("default")))
#else
#define FA_API
#endif

/* The version of this header: 1,000,000 major + 1,000 minor + patch. fa_version tells the
 * library's. */
#define FA_VERSION 1000000u

typedef enum fa_status {
    FA_OK = 0,
    FA_INVALID = 1,       /* an argument is wrong: fa_last_error names it */
    FA_UNSUPPORTED = 2,   /* the arguments have a meaning, but this library does not do it */
    FA_NO_DEVICE = 3,     /* there is no such device, or this build does not know it */
    FA_NO_KERNEL = 4,     /* this CPU runs none of the kernels in this build */
    FA_OUT_OF_MEMORY = 5, /* for a context, or the workspace of mha_fwd_standalone */
    FA_DEVICE_ERROR = 6   /* the device or the system failed */
} fa_status;

typedef enum fa_dtype {
    FA_F32 = 0,
    FA_F16 = 1,
    FA_BF16 = 2,
    FA_E4M3 = 3, /* 8-bit floats of OCP's FP8; their values are multiplied by the descales */
    FA_Q8_0 = 4  /* k and v alone: blocks of 32 elements in 34 bytes, a float16 scale and 32 int8 */
} fa_dtype;

#define FA_MAX_RANK 5

/* A tensor of the caller. Element [i][j].. is at data + (i * stride[0] + j * stride[1] + ..)
 * elements. The last stride is 1, and none is negative; that of a dimension of size 1 does not
 * count. For FA_Q8_0, strides and the last dimension
 * are multiples of 32. */
typedef struct fa_tensor {
    void* data;   /* NULL: absent, or without elements; aligned to the size of an element */
    int32_t type; /* fa_dtype */
    int32_t rank; /* dimensions in use */
    int64_t shape[FA_MAX_RANK];
    int64_t stride[FA_MAX_RANK]; /* in elements */
} fa_tensor;

/* Bits of fa_fwd_params.flags. */
#define FA_CAUSAL 1u             /* a query sees no later positions: window_right counts as 0 */
#define FA_ROTARY_INTERLEAVED 2u /* rotary pairs are (0, 1), (2, 3)..; else (0, n / 2).. */
#define FA_DETERMINISTIC 4u      /* the same bits in every run; always so on a CPU */
#define FA_SCALE_SET 8u          /* softmax_scale counts, even if it is 0 */

/* Make one with fa_fwd_defaults, then fill in what the call has. Memory that is written (out, lse,
 * the workspace, and the cache if keys are appended) overlaps nothing else that is named here;
 * tensors may take turns in memory, as slices of one array do. */
typedef struct fa_fwd_params {
    uint32_t struct_size; /* sizeof(fa_fwd_params) of the caller's header */
    uint32_t flags;       /* FA_CAUSAL.. */

    /* f32, f16, bf16 or e4m3: [b][s_q][h][d], or [total_q][h][d] with cu_seqlens_q. */
    fa_tensor q;
    /* f32, f16, bf16, e4m3 or q8_0, whatever q is: [b_k][s_k][h_k][d], or [total_k][h_k][d] with
     * cu_seqlens_k, or pages, [num_pages][page_size][h_k][d], with page_table. b_k is b, or any
     * number with kv_batch_idx. */
    fa_tensor k;
    fa_tensor v; /* as k, and of the same type, with d_v in place of d */
    /* New keys and values, which are written into the cache k and v behind the seqused_k[b] keys in
     * use, and then seen: [b][s_new][h_k][d], or [total_new][h_k][d] with cu_seqlens_k_new. f32,
     * f16 or bf16, whatever k is; for e4m3 caches e4m3. No two sequences may append to the same
     * rows. */
    fa_tensor k_new;
    fa_tensor v_new; /* as k_new, with d_v in place of d */
    /* As q with d_v in place of d (multi-head latent attention): scores are q k^T + q_v v^T. */
    fa_tensor q_v;
    fa_tensor out; /* f32, f16 or bf16: as q with d_v in place of d */
    /* f32, written if present: [b][h][s_q], or [h][total_q] with cu_seqlens_q; the natural
     * logarithm of the sum of exp(score), sinks included. -infinity for a query that sees nothing,
     * whose out is 0. */
    fa_tensor lse;
    fa_tensor sinks; /* f32 [h]: for each head one more score, which has no value */
    /* Cosines and sines by position, f32, f16 or bf16 [s_ro][rotary_dim / 2]. They rotate the first
     * rotary_dim elements of k_new, and of q. Only with k_new. */
    fa_tensor rotary_cos;
    fa_tensor rotary_sin;
    /* f32 [b][h_k], of any strides, for e4m3 tensors: what the stored values are multiplied by. The
     * queries of all heads that share a KV head have one. Absent: 1. */
    fa_tensor q_descale;
    fa_tensor k_descale;
    fa_tensor v_descale;

    /* Where each sequence begins in q, in k and v, in k_new and v_new, and where the last one ends:
     * [b + 1], ascending from 0. NULL: the tensor has a dimension for the sequences. */
    const int32_t* cu_seqlens_q;
    const int32_t* cu_seqlens_k;
    const int32_t* cu_seqlens_k_new;
    /* [b]: how many queries and keys of each sequence are in use. NULL: all of them. seqused_k is
     * required with k_new, whose rows it does not count. */
    const int32_t* seqused_q;
    const int32_t* seqused_k;
    /* [b], rows page_table_stride apart, of page_table_columns pages: which page of k and v holds
     * positions i * page_size to (i + 1) * page_size - 1 of the sequence. */
    const int32_t* page_table;
    const int32_t*
        kv_batch_idx;         /* [b]: the row of k and v that each sequence has; not with pages */
    const int32_t* leftpad_k; /* [b]: keys before this one are padding, which seqused_k counts */
    /* [b]: the position of the first new key, for the rotation. NULL: seqused_k. Queries stand at
     * the following positions if the call is causal or has a window, and else all at this one. */
    const int32_t* seqlens_rotary;

    int64_t batch;             /* b; 0: that of q, which only [total_q][h][d] does not have */
    int64_t page_table_stride; /* 0: page_table_columns */
    int64_t page_table_columns;

    int32_t max_seqlen_q; /* with cu_seqlens_q: no sequence has more queries */
    int32_t max_seqlen_k; /* with cu_seqlens_k: no sequence has more keys */
    int32_t window_left; /* a query at p sees keys from p - window_left on; -1: from the first on */
    int32_t window_right;    /* ..and up to p + window_right; -1: up to the last one */
    int32_t attention_chunk; /* ..and only keys j with j / chunk == p / chunk; 0: any */
    int32_t num_splits; /* parts of the keys, computed independently and combined: 0: as many as
                           keep the threads busy; 1: one; at most 256 */
    int32_t
        pack_gqa; /* -1, 0 or 1: for GPUs; a CPU reads keys once for all heads that share them */
    int32_t sm_margin; /* for GPUs; not negative */

    float softmax_scale; /* of the scores; 0 (without FA_SCALE_SET): 1 / sqrt(d), or with q_v
                            1 / sqrt(d + d_v) */
    float softcap;       /* unless 0, scores become softcap * tanh(score / softcap) */

    void* workspace;          /* of fa_fwd_workspace bytes, of any alignment */
    uint64_t workspace_bytes; /* how many there are */
    void* scheduler_metadata; /* for GPUs; a CPU does not read it */
} fa_fwd_params;

/* Partial results over parts of the keys, as other calls or machines have made them. */
typedef struct fa_combine_params {
    uint32_t struct_size;  /* sizeof(fa_combine_params) */
    uint32_t flags;        /* 0 */
    fa_tensor out_partial; /* f32 [splits][b][s][h][d], each normalised by itself */
    fa_tensor lse_partial; /* f32 [splits][b][s][h]; -infinity: the part has seen nothing */
    fa_tensor out;         /* f32, f16 or bf16 [b][s][h][d] */
    fa_tensor lse;         /* f32 [b][s][h], written if present */
} fa_combine_params;

/* A device and how it is used. */
typedef struct fa_context fa_context;

/* device: "cpu" for as many threads as the process should use, "cpu:4" for four; in a build with
 * CUDA "cuda:0" for a GPU, in whose memory then all data and arrays of a call lie. */
FA_API fa_status fa_context_create(const char* device, fa_context** context);
FA_API void fa_context_destroy(fa_context* context); /* NULL is fine */

/* out = softmax(scores) v. If there are new keys, they are appended first. stream: NULL, or on a
 * GPU a cudaStream_t; the call returns before the GPU has done its work. */
FA_API fa_status fa_fwd(fa_context* context, const fa_fwd_params* params, void* stream);
/* The bytes of workspace that a call needs. They depend on shapes, max_seqlen_q, max_seqlen_k,
 * num_splits, and on which fields are there, but on no content of an array. */
FA_API fa_status fa_fwd_workspace(fa_context* context, const fa_fwd_params* params,
                                  uint64_t* bytes);
/* Whether fa_fwd does it, given a workspace. Where not, `reason` holds up to n - 1 bytes that say
 * why. */
FA_API fa_status fa_supported(fa_context* context, const fa_fwd_params* params, char* reason,
                              size_t n);
/* Appends k_new and v_new, rotated, and computes nothing; q and out are not needed. */
FA_API fa_status fa_kv_append(fa_context* context, const fa_fwd_params* params, void* stream);
/* lse = log(sum(exp(lse_i))) and out = sum(exp(lse_i - lse) out_i) over the splits i. */
FA_API fa_status fa_combine(fa_context* context, const fa_combine_params* params, void* stream);

/* Why the last call of this thread failed; "" if it did not. It lasts until the next call. */
FA_API const char* fa_last_error(void);
/* The status of the last call of this thread. */
FA_API fa_status fa_last_status(void);
FA_API uint32_t fa_version(void);
/* The version, and the kernels in this build: "1.0.0; cpu: scalar avx2 avx512, in use avx512". */
FA_API const char* fa_build_info(void);

/* Everything in one call, for contiguous tensors of one type (f16, or what is_bf16 or is_e4m3 say;
 * the output of e4m3 is bf16) on the default CPU context. NULL stands for what is absent,
 * softmax_scale 0 for the default, and a workspace of NULL for memory that the call allocates and
 * frees; else it has the bytes that fa_fwd_workspace says for the same arguments. Tensors have the
 * shapes of fa_fwd_params: with cu_seqlens_q, _k or _k_new those of total_q, total_k and
 * total_k_new rows; with page_table the cache has num_pages pages of page_size rows. softmax_lse is
 * as lse. The status is fa_last_status(). */
FA_API void mha_fwd_standalone(
    void* q, void* k, void* v, void* k_new, void* v_new, void* q_v, void* out, int* cu_seqlens_q,
    int* cu_seqlens_k, int* cu_seqlens_k_new, int* seqused_q, int* seqused_k, int max_seqlen_q,
    int max_seqlen_k, int* page_table, int* kv_batch_idx, int* leftpad_k, void* rotary_cos,
    void* rotary_sin, int* seqlens_rotary, float* q_descale, float* k_descale, float* v_descale,
    float softmax_scale, bool is_causal, int window_left, int window_right, int attention_chunk,
    float softcap, bool is_rotary_interleaved, int* scheduler_metadata, int num_splits,
    bool pack_gqa, int sm_margin, bool is_bf16, bool is_e4m3, int batch, int seqlen_q,
    int num_heads, int head_dim, int seqlen_k, int num_heads_k, int head_dim_v, int total_q,
    int total_k, int page_size, int num_pages, int max_pages_per_seq, int seqlen_k_new,
    int total_k_new, int rotary_dim, int seqlen_ro, float* softmax_lse, void* workspace,
    void* stream);

/* A struct in which everything is absent, and there are no windows. */
static inline fa_fwd_params fa_fwd_defaults(void) {
    fa_fwd_params params;
    memset(&params, 0, sizeof params);
    params.struct_size = (uint32_t)sizeof params;
    params.window_left = params.window_right = params.pack_gqa = -1;
    return params;
}

/* A contiguous tensor of rank 1 to 4; the sizes n after the last dimension do not count. */
static inline fa_tensor fa_contiguous(void* data, fa_dtype type, int32_t rank, int64_t n0,
                                      int64_t n1, int64_t n2, int64_t n3) {
    const int64_t shape[4] = {n0, n1, n2, n3};
    uint64_t stride = 1; /* sizes that no memory holds are for the library to refuse */
    fa_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.data = data;
    tensor.type = (int32_t)type;
    tensor.rank = rank;
    if (rank > 4) return tensor;
    for (int32_t i = rank; i-- > 0; stride *= (uint64_t)shape[i]) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = (int64_t)stride;
    }
    return tensor;
}

#ifdef __cplusplus
}
#endif

#endif /* FLASH_ATTN_H */

// The contract between the kernels and everything above them: one table of plain functions per ISA.
//
// Common to all entries, unless an entry says otherwise:
//   - Single-threaded, no allocation, no exceptions, no global state.  Deterministic.
//   - A call may compute any part of the result.  Each column of a product, and each element or row
//     of the other kernels, has the same bits in every call that computes it.  Attention is the
//     exception: its last bits depend on whether a call has few rows, and on the parts that the KV
//     positions are divided into.  ops/ chooses both in the same way for any number of threads.
//   - A pointer needs only the alignment of its type.  Any size may be zero.
//   - An output overlaps no input.  Where an entry says "y may be x", the two may be exactly the
//     same array.
//   - Every result that depends on a NaN is NaN.  Infinities follow the limit of the formula.
//   - "ulp" is a unit in the last place of the exact result in float32; u = 2^-24.  The tests check
//     the error bounds against float64 on every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace tensor_ops {

// A matrix of n rows (outputs) and k columns (inputs) in the ISA's own layout, see
// kernels/packed.h.  The rows of a group are interleaved, so that one vector holds the same columns
// of several rows.  The bytes of a group are contiguous, and groups are `group_bytes` apart.  The
// last group is padded with rows of zeros.
struct PackedView {
    const std::byte* data;  // 64-byte aligned
    std::size_t n, k;
    DType type;
};

// The form in which activations are multiplied by quantised weights: 8-bit integers, 16-bit
// integers (two 8-bit digits, so twice the dot products), or float32 without rounding.
enum class Activations : std::uint8_t { q8, q16, f32 };

// Bytes of a block of 32 quantised activations; a row of k activations has k / 32 blocks.  See
// kernels/activations.h and tile_activations.h for their layout.
static constexpr std::size_t quantized_block_bytes(Activations kind) {
    return (kind == Activations::q16 ? 64 : 32) + 4 * 4;
}

inline constexpr std::size_t attention_max_head_dim =
    576;  // DeepSeek's latents and their rotated part
inline constexpr std::size_t attention_query_tile = 128;  // rows for which K and V are read once

// The keys, or the values, of one KV head: a row for each position.  They lie in pages of
// 2^page_bits positions, or all in one place.  (A division for each block of 16 rows would take 4
// to 10 % of attention's time.)
inline constexpr std::size_t attention_page_unit = 16;  // smaller pages are copied, row by row
struct KvRows {
    const std::byte* const* pages = nullptr;  // null: all rows are at `rows`
    const void* rows = nullptr;
    std::size_t offset = 0;     // bytes before the head's first row in each page
    std::size_t page_bits = 0;  // if in pages
    std::size_t row_bytes = 0;  // from one row to the next

    bool exist() const { return pages || rows; }
    const std::byte* row(std::size_t position) const {
        if (!pages) return static_cast<const std::byte*>(rows) + position * row_bytes;
        const std::size_t in_page = position & ((std::size_t{1} << page_bits) - 1);
        return pages[position >> page_bits] + offset + in_page * row_bytes;
    }
    // Whether pages hold whole blocks of attention_page_unit rows.
    bool in_blocks() const {
        return !pages || (std::size_t{1} << page_bits) >= attention_page_unit;
    }
    // How many of n rows from `position` on lie one after another.
    std::size_t run(std::size_t position, std::size_t n) const {
        const std::size_t page = std::size_t{1} << page_bits;
        const std::size_t left = pages ? page - (position & (page - 1)) : n;
        return left < n ? left : n;
    }
};

// What keys and values are stored as: a DType, or the 8-bit floats E4M3 of OCP's FP8
// (arXiv:2209.05433), which have no infinity.
enum class KvType : std::uint8_t { f32, f16, bf16, q8_0, e4m3 };
static constexpr KvType kv_type_of(DType type) {
    return type == DType::f32    ? KvType::f32
           : type == DType::f16  ? KvType::f16
           : type == DType::bf16 ? KvType::bf16
                                 : KvType::q8_0;
}

inline constexpr std::size_t unlimited_window = ~std::size_t{0};

// The input and output of the attention kernels: one KV head, and the query heads that share it.
// A row is one query head of one token: row = token * group + head, head < group.
struct AttentionTask {
    const float* q;         // token t, head h at q + t * q_stride + h * head_dim
    std::size_t q_stride;   // floats from one token to the next
    KvRows k;               // rows of head_dim
    KvRows v;               // rows of value_dim; they may be the first dimensions of k's rows
    KvType kv_type;         // with q8_0 both widths are multiples of 32
    std::size_t n_q;        // query tokens
    std::size_t group;      // query heads that share this KV head
    std::size_t n_kv;       // KV positions; the last one is that of the last query token
    std::size_t head_dim;   // of queries and keys; at most attention_max_head_dim
    std::size_t value_dim;  // of values and outputs; likewise
    float scale;
    // Query token t stands at position p = n_kv - n_q + t.  It sees the positions j with j <= p (if
    // causal) and |j - p| < window (if window is not 0) or, if chunked, j / window = p / window.
    bool causal;
    std::size_t window = 0;
    bool chunked = false;
    // And only positions with p - left <= j <= p + right.
    std::size_t left = unlimited_window, right = unlimited_window;
    // Unless 0: a key is a row of k, of k_dim numbers, and then the row of v at the same position;
    // head_dim = k_dim + value_dim.
    std::size_t k_dim = 0;
    float softcap = 0.0f;           // unless 0, scores become softcap * tanh(score / softcap)
    const float* sinks = nullptr;   // [group]: for each head a score that has no value; or null
    const float* slopes = nullptr;  // [group]: slopes[h] * (j - p) is added to scores; or null
    float* out;                     // token t, head h at out + t * out_stride + h * value_dim
    std::size_t out_stride;
    float* lse = nullptr;        // log(sum(exp(scores))), sink included, of token t and head h at
    std::size_t lse_stride = 0;  // lse + t * lse_stride + h * lse_head_stride; or null
    std::size_t lse_head_stride = 1;
    // The keys that the next call reads, from a position below n_kv on; or without rows.  They are
    // fetched while the last values are read.
    KvRows next = {};
    std::size_t next_from = 0;
};

// KV positions divided into parts, and the results of the parts.  Part i begins at position
// i * positions.  Its result for a row is: value_dim weighted sums of values, the largest score (in
// units of log 2), and the sum of the weights.
inline constexpr std::size_t attention_part_unit = 512;
struct AttentionParts {
    std::size_t positions;  // of a part, a multiple of attention_part_unit
    std::size_t first;      // the first part that any row sees
    float* data;            // [parts from the first on][row][value_dim + 2]
    std::size_t stride;     // floats from one part to the next
    float* row(std::size_t part, std::size_t r, std::size_t value_dim) const {
        return data + (part - first) * stride + r * (value_dim + 2);
    }
};

// The input and output of index_scores: of one query token, over keys that all its heads share.
struct IndexTask {
    const float* q;        // [n_heads][head_dim]
    const float* weights;  // [n_heads]
    std::size_t n_heads, head_dim;
    KvRows keys;
    DType type;     // of the keys: f32, f16 or q8_0
    float* scores;  // that of position p is written to scores[p]
};

// Likewise of block_scores.  Block b has the positions from b * block_size on, those from
// n_positions on left out.
struct BlockTask {
    const float* q;  // [n_heads][head_dim]
    std::size_t n_heads, head_dim;
    KvRows keys;
    DType type;  // of the keys: f32, f16 or q8_0
    std::size_t block_size, n_positions;
    float* scores;  // that of head h and block b is written to scores[h * stride + b]
    std::size_t stride;
};

// The input and output of the causal convolution of a sequence.
inline constexpr std::size_t conv_max_taps = 8;
struct ConvTask {
    std::size_t n_tokens, channels, taps;  // 1 to conv_max_taps
    const float* x;  // [n_tokens][channels], a token `stride` floats from the next
    std::size_t stride;
    const float* weight;  // [channels][taps]
    const float* bias;    // [channels], or null
    bool silu;            // of the result
    float* y;             // as x; may be x
    float* state;         // [taps - 1][channels]: the inputs of the last tokens, oldest first
};

// The input and output of the gated delta rule: one value head of a sequence.  Token t's rows are
// t * stride floats after those of token 0.
inline constexpr std::size_t delta_rule_max_key_dim = 256;
struct DeltaRuleTask {
    std::size_t n_tokens, d_k, d_v;  // d_k is at most delta_rule_max_key_dim
    const float* q;                  // [d_k]
    const float* k;                  // [d_k]
    std::size_t qk_stride;
    const float* v;          // [d_v]
    std::size_t v_stride;    // of out, too
    const float* log_decay;  // one number, or [d_k] if decay_by_channel
    std::size_t log_decay_stride;
    bool decay_by_channel;
    const float* beta;  // one number
    std::size_t beta_stride;
    float scale;
    float* out;    // [d_v]
    float* state;  // [d_k][d_v]
};

// The input and output of the scan of Mamba-2: one head of a sequence.
struct ScanTask {
    std::size_t n_tokens, head_dim, d_state;
    const float* x;  // token t at x + t * x_stride: [head_dim]
    std::size_t x_stride;
    const float* dt;  // [n_tokens]: the length of each step
    const float* b;   // token t at b + t * bc_stride: [d_state]
    const float* c;   // likewise
    std::size_t bc_stride;
    float a, skip;
    float* y;      // as x
    float* state;  // [head_dim][d_state]
};

// The input and output of the scan of Mamba: one sequence.
struct SelectiveScanTask {
    std::size_t n_tokens, d_state;
    const float* x;   // token t at x + t * stride: [channels]
    const float* dt;  // likewise: the length of each channel's step
    std::size_t stride;
    const float* b;  // [n_tokens][d_state]
    const float* c;  // likewise
    const float* a;  // [channels][d_state]
    float* y;        // as x
    float* state;    // [channels][d_state]
};

// Up to this many rows, packing b costs matmul more than it saves.
inline constexpr std::size_t matmul_few_rows = 24;

// Longer rows than this, 16 KB on the stack, softmax does not write past the caches.
inline constexpr std::size_t softmax_longest_streamed = 4096;

struct KernelTable {
    const char* isa;            // "avx512", as TENSOR_OPS_ISA spells it
    std::size_t vector_floats;  // floats in one vector register

    // ---- elementwise; y may be x (or gate, up, a, b) -------------------------------------------

    // y = 1 / (1 + exp(-x)).  The error is at most 3 ulp, or 2^-126 for x < -87.33, where exp(x) is
    // no normal number (below -87.7 it counts as 0).
    void (*sigmoid)(const float* x, float* y, std::size_t n);
    // y = x / (1 + exp(-x)).  The error is at most 3 ulp, or 2^-119 for x < -87.33, where exp(x) is
    // no normal number (below -87.7 it counts as 0).  -inf gives -0.
    void (*silu)(const float* x, float* y, std::size_t n);
    // y = 0.5 x (1 + tanh(v / 2)) with v = 2 sqrt(2/pi) (x + 0.044715 x^3).  The relative error is
    // below 2e-7 * (2 + |v|); the term |v| comes from the rounding of v, which exp amplifies.  For
    // v < -87 the absolute error is below 1e-36.
    void (*gelu_tanh)(const float* x, float* y, std::size_t n);
    // y = 0.5 x (1 + erf(x / sqrt(2))).  The relative error is below 1e-6, in the left tail too.
    // Where |y| < 1e-36, the absolute error is below 1e-42; for x < -13.21, where exp(-x^2 / 2) is
    // no normal number, it is below 1e-38.
    void (*gelu_erf)(const float* x, float* y, std::size_t n);
    // y = x for x > 0, and exp(x) - 1 for the others.  The error is at most 2 ulp.
    void (*elu)(const float* x, float* y, std::size_t n);
    // y = silu(gate) * up, with silu(gate) rounded to float32.  The error is at most 4 ulp, or
    // 2^-119 * |up| for gate < -87.33.
    void (*swiglu)(const float* gate, const float* up, float* y, std::size_t n);
    // y = a + b.  Correctly rounded.
    void (*add)(const float* a, const float* b, float* y, std::size_t n);

    // ---- rows; y may be x ----------------------------------------------------------------------
    // Where there is a parameter `streamed`, y may go past the caches, by non-temporal stores if
    // the ISA has them: the CPU does not read the memory that it overwrites.  That is for outputs
    // larger than the caches; x and y do not overlap then.  The numbers are the same.

    // y[r][i] = x[r][i] * w[i] / sqrt(mean(x[r][:]^2) + eps).  x, y: [rows][n].
    // The relative error is below 1e-6 for n up to 65536: each lane of 4 vectors sums 32 squares in
    // float32, and those sums are added in float64.  A row whose squares leave float32's range is
    // computed in float64.
    void (*rms_norm)(const float* x, const float* w, float eps, float* y, std::size_t rows,
                     std::size_t n, bool streamed);
    // y[r][i] = (x[r][i] - mean) * w[i] / sqrt(variance + eps) with the mean of x[r][:] and the
    // mean of (x[r][:] - mean)^2.  The error is below 1e-6 * (|y| + |w[i]|) for n up to 65536.  A
    // row whose squares leave float32's range is computed in float64.
    void (*layer_norm)(const float* x, const float* w, float eps, float* y, std::size_t rows,
                       std::size_t n, bool streamed);
    // y[r][:] = exp(x[r][:] - max) / sum(exp(x[r][:] - max)).  The relative error is below
    // 1e-6 + 6e-8 * |x - max| where y is a normal number; elsewhere the absolute error is at most
    // 2^-126.  A row of only -inf gives zeros.  Rows of more than softmax_longest_streamed are
    // never streamed.
    void (*softmax)(const float* x, float* y, std::size_t rows, std::size_t n, bool streamed);
    // Rotates pairs of x by the angles in table.  x, y: [rows][n_heads][head_dim];
    // table: [rows][n_dims] = cos[n_dims / 2] then sin[n_dims / 2].  Pair j is (2j, 2j+1) when
    // interleaved, else (j, j + n_dims / 2).  Dimensions from n_dims on are copied.
    // The pair (a, b) becomes (a cos - b sin, b cos + a sin).  The error of either is at most 2u
    // times the sum of the magnitudes of its two products.
    void (*rope)(const float* x, const float* table, float* y, std::size_t rows,
                 std::size_t n_heads, std::size_t head_dim, std::size_t n_dims, bool interleaved);

    // ---- conversion and block formats ----------------------------------------------------------

    // Convert n elements, a multiple of the type's block, between float32 and any DType; from_float
    // takes no K type.  f16 and bf16 round to nearest even, overflow to infinity and keep NaN.
    // Quantisation rounds as GGML's reference does.  If the inverse of a block's scale overflows,
    // the scale becomes 0.  A block with NaN or infinity dequantises to NaN or infinity.
    void (*from_float)(DType type, const float* x, std::byte* y, std::size_t n);
    void (*to_float)(DType type, const std::byte* x, float* y, std::size_t n);
    // One row of n elements, a multiple of 256, to a K type: the block with the least error
    // sum(importance * (x - value)^2) that a search finds, see kernels/k_search.h.  importance: of
    // each column, finite and not negative; null for the same for all.  The bytes are the same on
    // every ISA.  Blocks below 2^-26 become zero.  A block with NaN, an infinity or a number beyond
    // the range of the scale in half precision dequantises to NaN.
    void (*quantize_k)(DType type, const float* x, const float* importance, std::byte* y,
                       std::size_t n);
    // n elements, whole blocks, of rows of k, from column `at` of the first on, to a type whose
    // blocks have a scale of their own (is_weighted), with the importance [k] of the columns: as
    // quantize_k, see kernels/weighted_blocks.h.
    void (*quantize_weighted)(DType type, const float* x, const float* importance, std::size_t k,
                              std::size_t at, std::byte* y, std::size_t n);

    // ---- matrices ------------------------------------------------------------------------------

    // Rows in a group of the packed layout, and the bytes of one group.
    std::size_t (*group_rows)(DType type);
    std::size_t (*group_bytes)(DType type, std::size_t k);
    // Packs groups [first, last) of an n x k matrix.  src: the whole matrix, in rows as the file
    // stores them.  dst: the start of the whole packed matrix.
    void (*pack)(DType type, const std::byte* src, std::size_t n, std::size_t k, std::size_t first,
                 std::size_t last, std::byte* dst);
    // The float32 values of rows [first, last) of a packed matrix.  Exact.
    void (*unpack)(const PackedView& w, std::size_t first, std::size_t last, float* y);

    // Rows of activations in a full tile.  The quantised kernels process a tile at once, and its
    // rows lie together.
    std::size_t activation_tile;
    // Quantises rows [first, last) of x ([rows][k], k a multiple of 32) for linear_quantized;
    // `first` must be the first row of a tile.  In each block of 32, q = round(x / d), with
    // d = max|x| / 127 for q8 and max|x| / 32512 for q16.  A block with NaN or infinity makes the
    // outputs of its row NaN.
    void (*quantize_activations)(Activations kind, const float* x, std::size_t rows, std::size_t k,
                                 std::size_t first, std::size_t last, std::byte* q);
    // y[r][j] = sum_i x[r][i] w[j][i] for the rows j of groups [first, last) of a quantised matrix;
    // one function for each quantised type, by its DType (types that are packed alike share it). xq
    // is x as quantize_activations writes it.  The dot product of a block is exact in int32, and
    // blocks are summed in float32.  The error is that of rounding x.  For Gaussian x it is about
    // 0.5% of the output vector's norm with q8 (bound 1%) and 0.002% with q16 (bound 0.01%).
    using LinearQuantized = void (*)(Activations kind, const PackedView& w, const std::byte* xq,
                                     std::size_t rows, std::size_t first, std::size_t last,
                                     float* y, std::size_t y_stride);
    LinearQuantized linear_quantized_of[n_types];
    void linear_quantized(Activations kind, const PackedView& w, const std::byte* xq,
                          std::size_t rows, std::size_t first, std::size_t last, float* y,
                          std::size_t y_stride) const {
        linear_quantized_of[static_cast<std::size_t>(w.type)](kind, w, xq, rows, first, last, y,
                                                              y_stride);
    }
    // The same for float32 x and any packed type: |error| <= (k + 8) u * sum_i |x[r][i] w[j][i]|.
    // It is usually far smaller, as each sum is divided among several lanes.  For a type with a
    // minimum, d * q and m are separate terms of the sum in the bound.  The bits of a row do not
    // depend on the other rows of the call.
    void (*linear_f32)(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                       std::size_t last, float* y, std::size_t y_stride);

    // y[r][j] = sum_i x[r][i] w[j][i] for rows j in [first, last) of a plain row-major w ([n][k],
    // f32, f16 or bf16), x [rows][k].  `scratch` holds matmul_scratch_floats floats.  The error
    // bound is that of linear_f32.
    void (*linear_plain)(DType type, const void* w, const float* x, std::size_t rows, std::size_t k,
                         std::size_t first, std::size_t last, float* y, std::size_t y_stride,
                         float* scratch);
    // Columns [first, last) of c = a b; a [m][k] and b [k][n] are row-major with the given strides.
    // `scratch` holds matmul_scratch_floats floats.  The error bound is that of linear_f32.  Up to
    // matmul_few_rows rows read b as it lies.  The bits of a row depend on whether there is one
    // row, few or more, and not on their number.
    void (*matmul)(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                   float* c, std::size_t c_stride, std::size_t m, std::size_t k, std::size_t first,
                   std::size_t last, float* scratch);
    std::size_t matmul_scratch_floats;

    // ---- attention -----------------------------------------------------------------------------

    // out = softmax(scores) v with scores = scale * q k^T, for rows [first, last) of the task, with
    // an online softmax over tiles of KV positions.  A row that sees no position gives zeros.
    // `scratch` holds attention_scratch_floats floats.
    // |error| <= (4e-6 + 1.2e-7 S) * max|v|, where S is the largest |score|: a score's rounding
    // error grows with the score, and exp makes it a relative error of the weight.  The error of
    // lse is below 4e-7 * (8 + S), where S includes finite sinks.  All types of K and V convert
    // exactly.
    // Positions that no row of the call sees are not read.  At all others K and V must be finite:
    // a row that does not see one gives it the weight 0, and 0 * inf is NaN.  The results do not
    // depend on the pages in which positions lie.
    void (*attention)(const AttentionTask& task, std::size_t first, std::size_t last,
                      float* scratch);
    // The same in two steps, for several threads.  attention_parts computes the results of parts
    // [from, to) for the rows.  Once all parts that the rows see are done, attention_merge computes
    // out and lse from them.  The results do not depend on how calls divide the parts.
    void (*attention_parts)(const AttentionTask& task, std::size_t first, std::size_t last,
                            const AttentionParts& parts, std::size_t from, std::size_t to,
                            float* scratch);
    void (*attention_merge)(const AttentionTask& task, std::size_t first, std::size_t last,
                            const AttentionParts& parts);
    std::size_t attention_scratch_floats;
    // scores[p] = sum over heads of weights[h] * max(q[h] . k[p], 0) for positions [first, last); a
    // product that is NaN counts as 0.
    // A score does not depend on the positions of the call.  `scratch` holds
    // index_scratch_floats(n_heads, head_dim) floats.
    void (*index_scores)(const IndexTask& task, std::size_t first, std::size_t last,
                         float* scratch);
    // Each head's largest product q[h] . k[p] with a position of the block, for blocks
    // [first, last), none of them empty; products that are NaN do not count, and -inf is the score
    // without any other.  The scratch is that of index_scores.
    void (*block_scores)(const BlockTask& task, std::size_t first, std::size_t last,
                         float* scratch);
    std::size_t (*index_scratch_floats)(std::size_t n_heads, std::size_t head_dim);

    // ---- recurrent layers ----------------------------------------------------------------------
    //
    // The bits of a result do not depend on how the tokens of a sequence are divided among calls.
    // Error bounds are those of one token, given the state before it, to first order in u.

    // y = log(1 + exp(x)); y may be x.  The error is at most 4 ulp, or 2^-126 for x < -87.33, where
    // exp(x) is no normal number (below -87.7 it counts as 0).
    void (*softplus)(const float* x, float* y, std::size_t n);
    // y[r][i] = x[r][i] / sqrt(sum(x[r][:]^2) + eps).  x, y: [rows][n]; y may be x.  The relative
    // error is below 1e-6 for n up to 65536.  A row whose squares leave float32's range is computed
    // in float64.
    void (*l2_norm)(const float* x, float eps, float* y, std::size_t rows, std::size_t n);
    // y[t][c] = bias[c] + sum_j weight[c][j] x[t - (taps - 1) + j][c], or silu of that, for
    // channels [first, last).  The tokens before token 0 are those of the state, which then holds
    // the last ones.  With s = |bias[c]| + sum_j |weight[c][j] x[...][c]|, |error| <= (taps + 1) u
    // s; with silu, 1.1 times that and the error of silu.
    void (*causal_conv)(const ConvTask& task, std::size_t first, std::size_t last);
    // For each token, with e = exp(log decay), a number for each row of the state S, or the same
    // for all: S = e S; d = beta (v - S^T k); S = S + k d^T; out = scale S^T q.  For columns
    // [first, last) of S, which are elements of v and out.
    // With the S before the token, A[i][j] = e[i] |S[i][j]| and
    // D[j] = |beta| (|v[j]| + sum_i |k[i]| A[i][j]):
    //   |error of S[i][j]| <= 5u A[i][j] + (d_k + 10) u |k[i]| D[j]
    //   |error of out[j]| <= (2 d_k + 14) u |scale| sum_i |q[i]| (A[i][j] + |k[i]| D[j])
    // A log decay below -87.33 has an absolute error of 2^-126 in e, and above 88 it counts as 88.
    void (*delta_rule)(const DeltaRuleTask& task, std::size_t first, std::size_t last);
    // For each token, with e = exp(dt a): h = e h + dt x b^T; y = h c + skip x.  For rows
    // [first, last) of the state h, which are elements of x and y.
    // With the h before the token and H[i][j] = e |h[i][j]| + |dt x[i] b[j]|:
    //   |error of h[i][j]| <= (6 + |dt a|) u H[i][j]
    //   |error of y[i]| <= (d_state + 8 + |dt a|) u (|skip x[i]| + sum_j |c[j]| H[i][j])
    // dt a below -87.33 has an absolute error of 2^-126 in e, and above 88 it counts as 88.
    void (*ssm_scan)(const ScanTask& task, std::size_t first, std::size_t last);
    // For each token and channel, with e = exp(dt a), a number for each element of the state h:
    // h = e h + dt x b; y = h . c.  For channels [first, last).  The errors are those of ssm_scan
    // with as many rows, without a skip.
    void (*selective_scan)(const SelectiveScanTask& task, std::size_t first, std::size_t last);
};

}  // namespace tensor_ops

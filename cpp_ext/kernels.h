// The contract between the kernels and everything above them: one table of plain functions per ISA.
//
// Common to all entries, unless an entry says otherwise:
//   - Single-threaded, no allocation, no exceptions, no global state.  Deterministic.
//   - Columns of a product, elements and rows of the other kernels are the same bit for bit
//     whatever part of them a call is given.  Attention's last bits depend on whether it is given
//     few rows, and on its parts; ops/ chooses both alike for any number of threads.
//   - Pointers need only the alignment of their type.  Sizes may be zero.
//   - Inputs and outputs do not overlap, or are exactly the same array where "may be" says so.
//   - NaN in gives NaN out in what depends on it; infinities follow the formula's limit.
//   - "ulp" is a float32 unit in the last place of the exact result, u = 2^-24.  The bounds are
//     checked in tests/ against float64 on every ISA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensor_ops {

// Element types as GGUF files store them; kernels/blocks.h reads their blocks.  Quantised types
// come in blocks of 32 columns with half precision scales,
//   q8_0: d * q      q4_0: d * (q - 8)      q5_0: d * (q - 16)      q4_1, q5_1: d * q + m
// or, the K types, in blocks of 256 cut into sub-blocks of 32 (q4_k, q5_k) or 16 with integer
// scales,
//   q2_k, q4_k, q5_k: d * s * q - d_min * s_min      q3_k: d * s * (q - 4)      q6_k: d * s * (q -
//   32)
enum class DType : std::uint8_t {
    f32,
    f16,
    bf16,
    q8_0,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k
};

// Columns that share a scale, or a pair of sub-blocks' scales: what the kernels take at a time.
inline constexpr std::size_t quant_block = 32;

static constexpr bool is_quantized(DType type) { return type >= DType::q8_0; }

// Elements and bytes of a block as files store it.
struct BlockSize {
    std::size_t elements, bytes;
};
static constexpr BlockSize block_size(DType type) {
    switch (type) {
        case DType::f32: return {1, 4};
        case DType::f16:
        case DType::bf16: return {1, 2};
        case DType::q8_0: return {32, 34};
        case DType::q4_0: return {32, 18};
        case DType::q4_1: return {32, 20};
        case DType::q5_0: return {32, 22};
        case DType::q5_1: return {32, 24};
        case DType::q2_k: return {256, 84};
        case DType::q3_k: return {256, 110};
        case DType::q4_k: return {256, 144};
        case DType::q5_k: return {256, 176};
        case DType::q6_k: return {256, 210};
    }
    return {1, 0};
}

// Bytes of one row of n elements; n is a multiple of the type's block.
static constexpr std::size_t row_bytes(DType type, std::size_t n) {
    return n / block_size(type).elements * block_size(type).bytes;
}

// A matrix of n rows (outputs) and k columns (inputs) in the ISA's own layout, see
// kernels/packed.h. Rows are interleaved in groups, so that one vector holds one column of several
// rows; a group's bytes are contiguous, groups are `group_bytes` apart, and the last one is padded
// with zero rows.
struct PackedView {
    const std::byte* data;  // 64-byte aligned
    std::size_t n, k;
    DType type;
};

// How activations meet quantised weights: as 8-bit integers, as 16-bit integers (two 8-bit digits,
// so twice the dot products), or exactly.
enum class Activations : std::uint8_t { q8, q16, f32 };

// Activations quantised per block of 32, interleaved by tiles of rows, see kernels/packed.h.
// The bytes of one row: k / 32 * quantized_block_bytes.
static constexpr std::size_t quantized_block_bytes(Activations kind) {
    return (kind == Activations::q16 ? 64 : 32) + 4 * 4;
}

inline constexpr std::size_t attention_max_head_dim = 256;
inline constexpr std::size_t attention_query_tile = 128;  // rows that share one reading of K and V

// What the attention kernels work on: one KV head, and the query heads that share it.  Rows are
// query tokens and heads: row = token * group + head of the group.
struct AttentionTask {
    const float* q;        // token t, head h at q + t * q_stride + h * head_dim
    std::size_t q_stride;  // floats from one token to the next
    const void* k;         // [n_kv][head_dim]
    const void* v;         // [n_kv][head_dim]
    DType kv_type;         // f32, f16 or q8_0 (head_dim is a multiple of 32 then)
    std::size_t n_q;       // query tokens
    std::size_t group;     // query heads that share this KV head
    std::size_t n_kv;      // KV positions; the last one belongs to the last query token if causal
    std::size_t head_dim;  // at most attention_max_head_dim
    float scale;
    // Query token t stands at position p = n_kv - n_q + t.  It sees positions j <= p if causal, and
    // of them, or of all, those with |j - p| < window, unless that is 0.
    bool causal;
    std::size_t window = 0;
    float softcap = 0.0f;  // scores become softcap * tanh(score / softcap); 0: stay as they are
    const float* sinks = nullptr;  // [group]: a score of each head that has no value; or none
    float* out;                    // laid out as q
    std::size_t out_stride;
    float* lse = nullptr;        // log(sum(exp(scores))), sink included, of token t and head h at
    std::size_t lse_stride = 0;  // lse + t * lse_stride + h; or none
};

// Positions by parts: part i begins at i * positions.  What a part contributes is, for each row,
// head_dim weighted sums of values, the largest score (in units of log 2) and the sum of weights.
inline constexpr std::size_t attention_part_unit = 512;
struct AttentionParts {
    std::size_t positions;  // of a part, a multiple of attention_part_unit
    std::size_t first;      // the first part that any row sees
    float* data;            // [parts from the first on][row][head_dim + 2]
    std::size_t stride;     // floats from one part to the next
    float* row(std::size_t part, std::size_t r, std::size_t head_dim) const {
        return data + (part - first) * stride + r * (head_dim + 2);
    }
};

struct KernelTable {
    const char* isa;            // "avx512", as TENSOR_OPS_ISA spells it
    std::size_t vector_floats;  // floats in one vector register

    // ---- elementwise; y may be x (or gate, up, a, b) -------------------------------------------

    // y = x / (1 + exp(-x)).  Within 3 ulp; for x < -87.33, where exp(x) is no normal number and
    // below -87.7 is taken for 0, within 2^-119.  -inf gives -0.
    void (*silu)(const float* x, float* y, std::size_t n);
    // y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).  With v = 2 sqrt(2/pi) (x + 0.044715
    // x^3): relative error below 2e-7 * (2 + |v|) (the rounding of v, through exp, is what the |v|
    // is); for v < -87 the result is within 1e-36 of the exact one.
    void (*gelu_tanh)(const float* x, float* y, std::size_t n);
    // y = 0.5 x (1 + erf(x / sqrt(2))).  Relative error below 1e-6, in the left tail too;
    // where |y| < 1e-36 the absolute error is below 1e-42, and for x < -13.21, where exp(-x^2 / 2)
    // is no normal number, below 1e-38.
    void (*gelu_erf)(const float* x, float* y, std::size_t n);
    // y = silu(gate) * up, silu rounded to float32 first.  Within 4 ulp; for gate < -87.33 within
    // 2^-119 * |up|.
    void (*swiglu)(const float* gate, const float* up, float* y, std::size_t n);
    // y = a + b.  Correctly rounded.
    void (*add)(const float* a, const float* b, float* y, std::size_t n);
    // y = x, past the caches where the ISA can: for outputs larger than they are, which are not
    // read before they are overwritten then.  x and y do not overlap.
    void (*stream)(const float* x, float* y, std::size_t n);

    // ---- rows; y may be x ----------------------------------------------------------------------

    // y[r][i] = x[r][i] * w[i] / sqrt(mean(x[r][:]^2) + eps).  x, y: [rows][n].
    // Sums in float32 over 4 vectors of lanes: relative error below 1e-6 for n up to 65536.  A row
    // whose squares leave float32's range is summed in float64.
    void (*rms_norm)(const float* x, const float* w, float eps, float* y, std::size_t rows,
                     std::size_t n);
    // y[r][:] = exp(x[r][:] - max) / sum(exp(x[r][:] - max)).  Relative error below
    // 1e-6 + 6e-8 * |x - max| where y is a normal number, else within 2^-126.  A row of only -inf
    // gives zeros.
    void (*softmax)(const float* x, float* y, std::size_t rows, std::size_t n);
    // Rotates pairs of x by the angles in table.  x, y: [rows][n_heads][head_dim];
    // table: [rows][n_dims] = cos[n_dims / 2] then sin[n_dims / 2].  Pair j is (2j, 2j+1) when
    // interleaved, else (j, j + n_dims / 2).  Dimensions from n_dims on are copied.
    // Each output within 2u * (|a cos| + |b sin|).
    void (*rope)(const float* x, const float* table, float* y, std::size_t rows,
                 std::size_t n_heads, std::size_t head_dim, std::size_t n_dims, bool interleaved);

    // ---- conversion and block formats ----------------------------------------------------------

    // Rows of float32 to and from any DType, n elements, a multiple of the type's block; the K
    // types can only be read.  f16 and bf16 round to nearest even, overflow to infinity and keep
    // NaN. Quantising rounds as GGML's reference does, and takes a block whose scale's inverse
    // overflows for zeros; a block that holds NaN or infinity dequantises to NaN or infinity.
    void (*from_float)(DType type, const float* x, std::byte* y, std::size_t n);
    void (*to_float)(DType type, const std::byte* x, float* y, std::size_t n);

    // ---- matrices ------------------------------------------------------------------------------

    // Rows in a group of the packed layout, and the bytes of one group.
    std::size_t (*group_rows)(DType type);
    std::size_t (*group_bytes)(DType type, std::size_t k);
    // Packs groups [first, last) of the n x k matrix at src (rows as the file stores them) to dst,
    // the start of the whole packed matrix.
    void (*pack)(DType type, const std::byte* src, std::size_t n, std::size_t k, std::size_t first,
                 std::size_t last, std::byte* dst);
    // The float32 values of rows [first, last) of a packed matrix.  Exact.
    void (*unpack)(const PackedView& w, std::size_t first, std::size_t last, float* y);

    // Rows that the quantised kernels take at once; activations are interleaved by tiles of it.
    std::size_t activation_tile;
    // Quantises rows of x ([rows][k], k a multiple of 32) for linear_quantized: q = round(x / d)
    // over each block of 32, d = max|x| / 127 for q8, max|x| / 32512 for q16.  A block with NaN or
    // infinity makes the outputs NaN.  rows [first, last) must start at a tile.
    void (*quantize_activations)(Activations kind, const float* x, std::size_t rows, std::size_t k,
                                 std::size_t first, std::size_t last, std::byte* q);
    // y[r][j] = sum_i x[r][i] w[j][i] for the rows j of groups [first, last) of a quantised matrix,
    // x quantised as above.  The dot products of a block are exact in int32, blocks are summed in
    // float32: the error against exact weights is that of x's rounding, for Gaussian x about 0.5%
    // of the output vector's norm with q8 (bound 1%) and 0.002% with q16 (bound 0.01%).
    void (*linear_quantized)(Activations kind, const PackedView& w, const std::byte* xq,
                             std::size_t rows, std::size_t first, std::size_t last, float* y,
                             std::size_t y_stride);
    // The same for any packed type with float32 x: |error| <= (k + 8) u * sum_i |x[r][i] w[j][i]|
    // (and far below it: sums run over several lanes).  For types with a minimum the sum counts
    // d * q and m apart.  A row's result is the same, bit for bit, whatever rows are beside it.
    void (*linear_f32)(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                       std::size_t last, float* y, std::size_t y_stride);

    // y[r][j] = sum_i x[r][i] w[j][i] for rows j in [first, last) of a plain row-major w ([n][k],
    // f32, f16 or bf16), x [rows][k].  `scratch` holds matmul_scratch_floats floats.  Bound as
    // linear_f32.
    void (*linear_plain)(DType type, const void* w, const float* x, std::size_t rows, std::size_t k,
                         std::size_t first, std::size_t last, float* y, std::size_t y_stride,
                         float* scratch);
    // c = a b for a [m][k], b [k][n] row-major with the strides given, columns [first, last) of c.
    // `scratch` holds matmul_scratch_floats floats.  Bound as linear_f32.
    void (*matmul)(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                   float* c, std::size_t c_stride, std::size_t m, std::size_t k, std::size_t first,
                   std::size_t last, float* scratch);
    std::size_t matmul_scratch_floats;

    // ---- attention -----------------------------------------------------------------------------

    // out = softmax(scores) v, scores = scale * q k^T, with an online softmax over tiles of KV
    // positions, for rows [first, last) of the task.  A row that sees no position gives zeros.
    // `scratch` holds attention_scratch_floats floats.
    // |error| <= (4e-6 + 1.2e-7 S) * max|v|, S the largest |score|: exp turns the relative rounding
    // of a score into an absolute one.  That of lse is below 4e-7 * (8 + S), where S
    // counts finite sinks, too.  f16 and q8_0 are read
    // exactly.  What no row of the call sees is not read; up to there K and V must be finite, as
    // 0 * inf is NaN.
    void (*attention)(const AttentionTask& task, std::size_t first, std::size_t last,
                      float* scratch);
    // The same in two steps, for several threads: what parts [from, to) of the positions contribute
    // to the rows, and when all parts that they see have been done, out and lse.  The results do
    // not depend on how the parts are divided into calls.
    void (*attention_parts)(const AttentionTask& task, std::size_t first, std::size_t last,
                            const AttentionParts& parts, std::size_t from, std::size_t to,
                            float* scratch);
    void (*attention_merge)(const AttentionTask& task, std::size_t first, std::size_t last,
                            const AttentionParts& parts);
    std::size_t attention_scratch_floats;
};

}  // namespace tensor_ops

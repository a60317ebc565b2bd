// The graph that the executor runs: ops over numbered buffers, with weights in numbered slots.
//
// Every buffer is [n_tokens][width] of float32, or int32 ids for the input of an embed op.  The
// caller passes the external buffers to each run; the executor owns the others.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "graph/op_kinds.h"
#include "ops/ops.h"

namespace tensor_ops {

struct Buffer {
    std::string name;
    std::size_t width;
    bool external;
};

struct Op {
    OpKind kind;
    std::vector<int> inputs;                                // buffers
    int output = -1;                                        // buffer, or -1
    int weight = -1;                                        // slot, or -1
    std::vector<int> more_outputs, more_weights;            // linear_many; glu_linear: its `up`
    std::size_t n_heads = 0, n_kv_heads = 0, head_dim = 0;  // ops on heads
    std::size_t taps = 0, dilation = 1;                     // conv
    float eps = 0.0f;                                       // norms
    float scale = 1.0f;                                     // embed, attention, route, scale
    bool interleaved = false;                               // rope
    std::size_t window = 0;   // attention: positions that a token sees; 0: all
    bool chunked = false;     // attention, see AttentionTask
    float alibi = 0.0f;       // attention: of alibi_slopes; 0: no slopes
    float cap = 0.0f;         // softcap; attention, for scores, 0: none
    std::size_t n_used = 0;   // route, expert_linear, expert_sum: experts of a token
    bool normalized = false;  // route, route_to, as the next four: see RouteTask
    Gating gating = Gating::softmax;
    std::size_t n_groups = 1, n_groups_used = 1;
    GroupScore group_score = GroupScore::top2;
    float alpha = 1.0f, limit = 0.0f, shift = 1.0f;       // swiglu_oai
    float low = 0.0f, high = 0.0f;                        // clamp
    float positive = 1.0f, negative = 1.0f, beta = 0.0f;  // xielu
    bool shared = false;                    // expert_linear: all experts have the same input
    bool silu = false;                      // conv: of the result
    bool tiled = false;                     // delta_rule, see HeadSharing
    float dt_min = 0.0f, dt_max = 0.0f;     // ssm_scan
    float bound = 0.0f;                     // log_decay
    float least = 0.0f;                     // signed_root
    std::size_t n_earlier = 0;              // residual_attention
    bool gelu = false;                      // glu_linear: gelu, else silu
    std::size_t offset = 0;                 // rope, take_columns and its like: the first column
    std::size_t n_streams = 1;              // mix_streams: of the input; hyper_factors, hyper_mix
    std::size_t n_iterations = 1;           // hyper_factors
    std::size_t every = 1;                  // ops on groups: positions of a group
    std::size_t block_size = 1;             // ops on blocks: positions of a block
    std::size_t n_chosen = 1, n_local = 0;  // choose_blocks, as the next: see BlockCall
    bool pooled = false;
    std::size_t n_choices = 1;  // block_attention
    std::size_t n_parts = 1;    // pool_groups, as the next: see PoolCall
    bool of_index = false;
    std::size_t first = 0;                   // add_to_streams: the first stream that is added to
    bool quantized = false;                  // merge_add, take_columns, put_columns: of Q8_0 blocks
    std::optional<Activations> activations;  // of products; none: activations_for(rows)

    std::vector<int> outputs() const;
    std::vector<int> weights() const;
};

// Whether an op writes keys to the cache, with or without values, and whether it has one at all.
bool appends_keys(OpKind kind);
bool uses_keys(OpKind kind);
// Whether an op reads keys and values of positions that another op has selected.
bool selects_positions(OpKind kind);
// Whether an op reads keys of groups, beside the others.
bool attends_groups(OpKind kind);
// Whether an op writes or reads the keys of the layer's index.
bool uses_index(OpKind kind);
// Whether an op reads all keys of the index.
bool scores_index(OpKind kind);

// Whether an op multiplies its first input by matrices, and may quantise it for that.
bool is_product(OpKind kind);

// The external buffer of an op that holds rows of Q8_0 instead of float32, or -1.
int quantized_buffer(const Op& op);

// The largest width of a buffer and the most rows of a batch: far beyond any model, but no product
// of the two overflows.
inline constexpr std::size_t longest_row = 1u << 30, largest_batch = 1u << 24;

struct Graph {
    std::vector<Buffer> buffers;
    std::vector<std::string> weights;  // the slots' names
    std::vector<Op> ops;

    // Throws std::invalid_argument, which names op and buffer, if the parts do not fit together and
    // an op could read or write outside its buffers.
    void check() const;

    // The width of a head's values: of an op for which uses_keys; 0 where the op does not say.
    std::size_t value_dim(const Op& op) const;
    // The floats of recurrent memory that an op has for a sequence.
    std::size_t recurrent_floats(const Op& op) const;
};

// A vector, or one for each expert.
struct Vector {
    const float* data;
    std::size_t n;
    std::size_t count = 1;
};
using Weight = std::variant<Vector, std::shared_ptr<const PackedMatrix>, RawRows, Experts>;

// Bytes of a weight, all experts included.
std::size_t weight_bytes(const Weight& weight);

// Checks the weights, one for each slot.  Throws std::invalid_argument if the kind or shape of a
// weight does not fit an op.
void check_weights(const Graph& graph, const std::vector<Weight>& weights);

}  // namespace tensor_ops

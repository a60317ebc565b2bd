// The kinds of op: one table, from whose rows the enum, the names and the checks follow.
// SIGNATURES in airllm/graph/ops/ is Python's table; a test compares the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tensor_ops {

// The shape of a weight: vector [n]; vectors [m, n], one for each expert or channel; matrix [n, k],
// to multiply by; rows [n, k], to look rows up in; experts [n_experts, n, k], a matrix for each;
// heads [n_heads, n, k], likewise.
enum class Role : std::uint8_t { vector, vectors, matrix, rows, experts, heads };

inline constexpr std::size_t largest_many = 8;  // matrices of a linear_many

enum class Outputs : std::uint8_t { none, one, many };  // many: as many as weights

// How many weights a kind has, all of one role.
struct Slots {
    std::size_t least = 0, most = 0;
    Role role = Role::vector;
};

// clang-format off
// Of each kind: inputs, outputs, weights, and the function of OpCheck (op_checks_by_kind.h) that
// checks widths and attributes.
#define TENSOR_OPS_OP_KINDS(op)                                     \
    op(embed,          1, one,  of(rows),          tokens)          \
    op(rms_norm,       1, one,  of(vector),        alike)           \
    op(head_norm,      1, one,  optional(vector),  head_norm)       \
    op(bias,           1, one,  of(vector),        alike)           \
    op(linear,         1, one,  of(matrix),        linear)          \
    op(rope,           2, one,  no_weight,         rope)            \
    op(kv_append,      2, none, no_weight,         kv_append)       \
    op(latent_append,  1, none, no_weight,         latent_append)   \
    op(attention,      1, one,  optional(vector),  attention)       \
    op(pool_groups,    2, one,  of(vectors),       pool_groups)     \
    op(group_append,   1, none, no_weight,         index_append)    \
    op(group_attention, 1, one, optional(vector),  group_attention) \
    op(sparse_group_attention, 2, one, optional(vector), sparse_group_attention) \
    op(swiglu,         2, one,  no_weight,         alike)           \
    op(geglu,          2, one,  no_weight,         alike)           \
    op(softcap,        1, one,  no_weight,         softcap)         \
    op(add,            2, one,  no_weight,         alike)           \
    op(route,          1, one,  optional(vector),  route)           \
    op(route_to,       2, one,  no_weight,         route_to)        \
    op(expert_linear,  2, one,  of(experts),       expert_linear)   \
    op(expert_sum,     2, one,  no_weight,         expert_sum)      \
    op(head_linear,    1, one,  of(heads),         head_linear)     \
    op(take_head_columns, 1, one, no_weight,       take_head_columns) \
    op(join_heads,     2, one,  no_weight,         join_heads)      \
    op(scale_shares,   1, one,  of(vector),        scale_shares)    \
    op(quantized_norm, 1, one,  of(vector),        alike)           \
    op(linear_many,    1, many, up_to(matrix, largest_many), linear_many) \
    op(linear_add,     2, one,  of(matrix),        linear_add)      \
    op(glu_linear,     1, one,  of(matrix, 2),     linear)          \
    op(rope_append,    3, none, no_weight,         rope_append)     \
    op(merge_add,      2, one,  no_weight,         merge_add)       \
    op(take_columns,   1, one,  no_weight,         take_columns)    \
    op(put_columns,    1, one,  no_weight,         put_columns)     \
    op(layer_columns,  1, one,  no_weight,         layer_columns)   \
    op(round_q8,       1, one,  no_weight,         round_q8)        \
    op(silu,           1, one,  no_weight,         alike)           \
    op(gelu,           1, one,  no_weight,         alike)           \
    op(gelu_erf,       1, one,  no_weight,         alike)           \
    op(xielu,          1, one,  no_weight,         xielu)           \
    op(multiply,       2, one,  no_weight,         alike)           \
    op(sigmoid,        1, one,  no_weight,         alike)           \
    op(softplus,       1, one,  no_weight,         alike)           \
    op(relu_squared,   1, one,  no_weight,         alike)           \
    op(swiglu_oai,     2, one,  no_weight,         swiglu_oai)      \
    op(scale,          1, one,  optional(vector),  alike)           \
    op(scale_rows,     2, one,  no_weight,         scale_rows)      \
    op(clamp,          1, one,  no_weight,         clamp)           \
    op(layer_norm,     1, one,  optional(vector),  alike)           \
    op(expert_bias,    2, one,  of(vectors),       of_experts)      \
    op(expert_scale,   2, one,  of(vector),        of_experts)      \
    op(conv,           1, one,  of(vectors),       conv)            \
    op(delta_rule,     5, one,  no_weight,         delta_rule)      \
    op(ssm_scan,       4, one,  of(vector, 3),     ssm_scan)        \
    op(selective_scan, 4, one,  of(vectors),       selective_scan)  \
    op(l2_norm,        1, one,  no_weight,         head_norm)       \
    op(log_decay,      1, one,  of(vector, 2),     log_decay)       \
    op(residual_attention, 2, one, of(vector),     residual_attention) \
    op(group_norm,     1, one,  of(vector),        group_norm)      \
    op(index_append,   1, none, no_weight,         index_append)    \
    op(index_select,   2, one,  no_weight,         index_select)    \
    op(sparse_attention, 2, one, optional(vector), sparse_attention) \
    op(block_mean,     1, one,  no_weight,         block_mean)      \
    op(choose_blocks,  1, one,  no_weight,         choose_blocks)   \
    op(block_attention, 2, one, no_weight,         block_attention) \
    op(stream_products, 2, one, no_weight,         stream_products) \
    op(signed_root,    1, one,  no_weight,         signed_root)     \
    op(mix_streams,    2, one,  no_weight,         mix_streams)     \
    op(hyper_factors,  1, one,  of(vector, 2),     hyper_factors)   \
    op(hyper_mix,      3, one,  no_weight,         hyper_mix)       \
    op(add_to_streams, 2, one,  no_weight,         add_to_streams)  \
    op(match_rms,      2, one,  no_weight,         match_rms)       \
    op(keep_above,     1, one,  no_weight,         alike)
// clang-format on

#define TENSOR_OPS_KIND(kind, ...) kind,
enum class OpKind { TENSOR_OPS_OP_KINDS(TENSOR_OPS_KIND) };
#undef TENSOR_OPS_KIND

struct Signature {
    const char* name;
    std::size_t inputs;
    Outputs outputs;
    Slots weights;
};

namespace op_table {

using enum Role;
using enum Outputs;
inline constexpr Slots no_weight{};
constexpr Slots of(Role role, std::size_t n = 1) { return {n, n, role}; }
constexpr Slots optional(Role role) { return {0, 1, role}; }
constexpr Slots up_to(Role role, std::size_t n) { return {1, n, role}; }

#define TENSOR_OPS_ROW(kind, inputs, outputs, weights, check) {#kind, inputs, outputs, weights},
inline constexpr Signature rows_of_kinds[] = {TENSOR_OPS_OP_KINDS(TENSOR_OPS_ROW)};
#undef TENSOR_OPS_ROW

}  // namespace op_table

inline constexpr auto& signatures = op_table::rows_of_kinds;  // in the order of OpKind

constexpr const Signature& signature(OpKind kind) {
    return signatures[static_cast<std::size_t>(kind)];
}

// Throws std::invalid_argument for a name that is no op.
OpKind op_kind_from_name(const std::string& name);
constexpr const char* op_kind_name(OpKind kind) { return signature(kind).name; }

}  // namespace tensor_ops

"""The kinds of op: SIGNATURES has the inputs, weights, attributes and output width of each.

The backends implement these kinds and nothing else. The C++ backend's table is
cpp_ext/graph/op_kinds.h; a test compares the two.
"""

from collections.abc import Callable, Mapping

from airllm.graph.vocabulary import Call, Role, Signature
from airllm.graph.widths import dense, experts, recurrent, slices, sparse, streams

__all__ = ["SIGNATURES"]


def _signature(
    inputs: str,
    width: Callable[[Call], int | None],
    *,
    flops: int,
    per: str = "out",
    weights: tuple[Role, ...] = (),
    attrs: str = "",
    in_place: str = "",
    optional: bool = False,
    many: bool = False,
    q8_0: str = "",
    state: Callable[[Call], int] | None = None,
) -> Signature:
    return Signature(
        tuple(inputs.split()),
        weights,
        frozenset(attrs.split()),
        width,
        flops,
        per,
        frozenset(in_place.split()),
        optional,
        many,
        q8_0,
        state,
    )


SIGNATURES: Mapping[str, Signature] = {
    # out[t] = scale * weight[tokens[t]]
    "embed": _signature("tokens", dense.embed, flops=1, weights=("rows",), attrs="scale"),
    # out = x / sqrt(mean(x^2) + eps) * weight
    "rms_norm": _signature(
        "x", dense.vector, flops=4, weights=("vector",), attrs="eps", in_place="x"
    ),
    # out = x @ weight.T; activations: how x is rounded for a quantised weight, see
    # tensor_ops_cpp.linear
    "linear": _signature("x", dense.linear, flops=0, weights=("matrix",), attrs="activations"),
    # out = x + weight
    "bias": _signature("x", dense.vector, flops=1, weights=("vector",), in_place="x"),
    # rms_norm of each of x's heads by itself; without a weight it is 1
    "head_norm": _signature(
        "x",
        dense.head_norm,
        flops=4,
        weights=("vector",),
        attrs="n_heads eps",
        in_place="x",
        optional=True,
    ),
    # rotates pairs of each head's dimensions, from dimension `offset` on; table:
    # [n_tokens, n_dims], n_dims / 2 cos, then sin
    "rope": _signature(
        "x table", dense.rope, flops=3, attrs="n_heads head_dim interleaved offset", in_place="x"
    ),
    # writes the batch's k and v behind the `past` tokens in the layer's KV cache
    "kv_append": _signature("k v", dense.kv_append, flops=0, attrs="n_kv_heads head_dim"),
    # writes x, the latents of MLA, as keys; their first dimensions are the values, too
    "latent_append": _signature("x", dense.latent_append, flops=0, attrs="n_kv_heads head_dim"),
    # causal attention of q over the layer's KV cache, which includes the batch; window: the number
    # of positions that a token sees, its own included (0: all); chunked: those from the last
    # multiple of the window on; softcap: a score s becomes softcap * tanh(s / softcap) (0: scores
    # stay); alibi: unless 0, a head's slope times (position - token's) is added to a score, see
    # numpy_ops.alibi_slopes; weight: [n_heads], for each head one more score, as it is, without a
    # value
    "attention": _signature(
        "q",
        dense.attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads n_kv_heads head_dim value_dim scale window chunked softcap alibi",
        optional=True,
    ),
    # writes x as keys of the layer's index, by which tokens select the positions that they see;
    # every: if above 1, the x of the last token of each group of `every` positions is the group's
    # key, and other tokens have none
    "index_append": _signature("x", sparse.index_append, flops=0, attrs="head_dim every"),
    # out: the n_selected positions, up to the token's own, with the highest scores, ascending, as
    # float32; or all of them, and then -1, if they are fewer. A position's score is the sum over
    # heads h of weights[h] * max(q[h] . key, 0), where a product that is NaN counts as 0. NaN is
    # the highest score; of equal ones the earlier position is selected. every: if above 1, groups
    # of positions are selected in their place, of those that end at the token's position or before.
    "index_select": _signature(
        "q weights", sparse.index_select, flops=0, attrs="n_heads head_dim n_selected every"
    ),
    # attention of q over the positions that index_select wrote for the token; a token at a position
    # below n_selected sees all up to its own, whatever is selected
    "sparse_attention": _signature(
        "q selection",
        sparse.sparse_attention,
        flops=0,
        attrs="n_heads n_kv_heads head_dim value_dim scale",
    ),
    # ---- attention over blocks: block b is the block_size positions from b * block_size on -------
    # out: of the last token of each block, the mean of x over the block; of other tokens 0
    "block_mean": _signature(
        "x",
        sparse.block_mean,
        flops=1,
        per="x",
        attrs="block_size",
        in_place="x",
        state=sparse.block_mean_state,
    ),
    # out: of each choice, numbers of blocks, ascending, and then -1. With keys of positions each
    # head chooses n_chosen blocks that begin at or before the token: the last n_local, and those of
    # the others with the highest products of q[h] with a key of a position, up to the token's own;
    # NaN is the lowest. With keys of blocks (pooled) the heads choose together: the n_chosen
    # complete blocks with the highest sum over heads of max(q[h] . key, 0), where NaN counts as 0,
    # and one more, the token's own block while it is incomplete. Of equal blocks the earlier is
    # chosen. The index has keys `every` block_size positions if pooled.
    "choose_blocks": _signature(
        "q",
        sparse.choose_blocks,
        flops=0,
        attrs="n_heads head_dim block_size n_chosen n_local pooled",
    ),
    # attention of q over the positions, up to the token's own, of the blocks that choose_blocks
    # wrote: n_choices choices, each for as many KV heads; a token at a position from which the
    # blocks of a choice reach further back than the first position sees all
    "block_attention": _signature(
        "q blocks",
        sparse.block_attention,
        flops=0,
        attrs="n_heads n_kv_heads head_dim value_dim scale block_size n_choices",
    ),
    # ---- groups of positions (DeepSeek V4, compressed attention) --------------------------------
    # Keeps x and gate of each token. out: of the last token of each group of `every` positions, for
    # each column a mean of x over the group, whose shares are the softmax of gate + weight[i] of
    # the group's token i; of other tokens 0. n_parts 2: out is half as wide, and a mean over the
    # first half of the columns for the group before, and the second half for the group itself.
    # of_index: out is for the index; a layer may have one of either.
    "pool_groups": _signature(
        "x gate",
        sparse.pool_groups,
        flops=7,
        per="x",
        weights=("vectors",),
        attrs="every n_parts of_index",
    ),
    # writes the x of the last token of each group as a key of all its positions together
    "group_append": _signature("x", sparse.index_append, flops=0, attrs="head_dim every"),
    # attention of q, with one KV head, over the last `window` positions and over the groups that
    # end at the token's position or before. Values are the keys. weight: as attention has it
    "group_attention": _signature(
        "q",
        sparse.group_attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads head_dim scale window every",
        optional=True,
    ),
    # the same over those groups only that index_select wrote for the token; the first ones for a
    # token with fewer than are selected
    "sparse_group_attention": _signature(
        "q selection",
        sparse.sparse_group_attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads head_dim scale window every",
        optional=True,
    ),
    # out = silu(gate) * up
    "swiglu": _signature("gate up", dense.elementwise, flops=5, in_place="gate up"),
    # out = gelu(gate) * up, with the tanh approximation
    "geglu": _signature("gate up", dense.elementwise, flops=10, in_place="gate up"),
    # out = cap * tanh(x / cap)
    "softcap": _signature("x", dense.softcap, flops=3, attrs="cap", in_place="x"),
    # chooses n_used experts for a token. logits: [n_experts]; the shares are their softmax, sigmoid
    # or the root of their softplus ("sqrtsoftplus", gating), and the scores the shares plus the
    # weight, a bias. The experts with the highest scores are chosen, of n_groups_used of n_groups
    # equal groups: those whose two highest scores have the highest sum (group_score "top2"), or
    # whose highest score is highest ("max"). out: the numbers of the experts, highest score first,
    # and then their shares; normalized: divided by their sum + 1e-20; then multiplied by scale. NaN
    # counts as the highest score; of equal ones the lower number comes first.
    "route": _signature(
        "logits",
        experts.route,
        flops=5,
        per="logits",
        weights=("vector",),
        attrs="n_used normalized gating scale n_groups n_groups_used group_score",
        optional=True,
    ),
    # a route to the given experts, the numbers of n_used: their shares as `route` computes them
    "route_to": _signature(
        "logits experts",
        experts.route_to,
        flops=5,
        per="logits",
        attrs="n_used normalized gating scale",
    ),
    # out: x @ weight[e].T for each expert e of the token's route, side by side; shared: all experts
    # have the same x, [k]; otherwise each has its own, [n_used * k]; reads no other expert
    "expert_linear": _signature(
        "x route",
        experts.expert_linear,
        flops=0,
        weights=("experts",),
        attrs="n_used shared activations",
    ),
    # x: the outputs of a token's experts, [n_used * n]; out: their sum, weighted by shares: [n]
    "expert_sum": _signature("x route", experts.expert_sum, flops=2, per="x", attrs="n_used"),
    # x: the outputs of a token's experts, [n_used * n]; out: each plus weight[e] of its expert e
    "expert_bias": _signature(
        "x route",
        experts.expert_bias,
        flops=1,
        weights=("vectors",),
        attrs="n_used",
        in_place="x",
    ),
    # x: the outputs of a token's experts, [n_used * n]; out: each times weight[e] of its expert e
    "expert_scale": _signature(
        "x route",
        experts.expert_scale,
        flops=1,
        weights=("vector",),
        attrs="n_used",
        in_place="x",
    ),
    # ---- heads ----------------------------------------------------------------------------------
    # out: x[h] @ weight[h].T for each head h, side by side; x: [n_heads * k]
    "head_linear": _signature(
        "x", slices.head_linear, flops=0, weights=("heads",), attrs="n_heads activations"
    ),
    # out: the columns offset to offset + width of each of x's heads, side by side
    "take_head_columns": _signature(
        "x", slices.take_head_columns, flops=0, attrs="n_heads offset width"
    ),
    # out: of each head the columns of a, then those of b
    "join_heads": _signature("a b", slices.join_heads, flops=0, attrs="n_heads"),
    # out = the route, with the share of each expert e multiplied by weight[e]
    "scale_shares": _signature(
        "route",
        experts.scale_shares,
        flops=1,
        weights=("vector",),
        attrs="n_used",
        in_place="route",
    ),
    "add": _signature("a b", dense.elementwise, flops=1, in_place="a b"),
    # ---- made by graph.rewrite ------------------------------------------------------------------
    # rms_norm whose output only matrix products read, so it is quantised at once; activations: as
    # those of the products
    "quantized_norm": _signature(
        "x",
        dense.quantized_norm,
        flops=4,
        weights=("vector",),
        attrs="eps activations",
        in_place="x",
    ),
    # x @ weight.T for each of the weights
    "linear_many": _signature(
        "x", dense.linear_many, flops=0, weights=("matrix",), attrs="activations", many=True
    ),
    # out = a + x @ weight.T
    "linear_add": _signature(
        "x a", dense.linear_add, flops=1, weights=("matrix",), attrs="activations", in_place="a"
    ),
    # out = activation(x @ gate.T) * (x @ up.T); activation: "silu" or "gelu"
    "glu_linear": _signature(
        "x",
        dense.glu_linear,
        flops=5,
        weights=("matrix", "matrix"),
        attrs="activations activation",
    ),
    # kv_append of rope(k) and v
    "rope_append": _signature(
        "k v table", dense.rope_append, flops=3, per="k", attrs="n_kv_heads head_dim interleaved"
    ),
    # ---- elementwise ----------------------------------------------------------------------------
    "multiply": _signature("a b", dense.elementwise, flops=1, in_place="a b"),
    "silu": _signature("x", dense.activation, flops=4, in_place="x"),
    # out = log(1 + exp(x))
    "softplus": _signature("x", dense.activation, flops=5, in_place="x"),
    # the tanh approximation
    "gelu": _signature("x", dense.activation, flops=9, in_place="x"),
    # x * (1 + erf(x / sqrt 2)) / 2
    "gelu_erf": _signature("x", dense.activation, flops=12, in_place="x"),
    # positive * x^2 + beta * x for x > 0, negative * (exp(min(x, eps)) - 1 - x) + beta * x for the
    # others (arXiv:2411.13010)
    "xielu": _signature(
        "x", dense.xielu, flops=8, attrs="positive negative beta eps", in_place="x"
    ),
    "sigmoid": _signature("x", dense.activation, flops=3, in_place="x"),
    # out = max(x, 0)^2
    "relu_squared": _signature("x", dense.activation, flops=2, in_place="x"),
    # out = g * sigmoid(alpha * g) * (u + shift), with g = min(gate, limit) and u = up, held between
    # -limit and limit
    "swiglu_oai": _signature(
        "gate up", dense.swiglu_oai, flops=8, attrs="alpha limit shift", in_place="gate up"
    ),
    # out = factor * x, or factor * weight * x; weight: [1] or [width]
    "scale": _signature(
        "x",
        dense.scale,
        flops=1,
        weights=("vector",),
        attrs="factor",
        in_place="x",
        optional=True,
    ),
    # out[t] = factors[t] * x[t]; factors: [n_tokens, m], each for width / m columns of x
    "scale_rows": _signature("x factors", dense.scale_rows, flops=1, in_place="x"),
    # out = min(max(x, low), high)
    "clamp": _signature("x", dense.clamp, flops=2, attrs="low high", in_place="x"),
    # out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight
    # ---- recurrent: with memory that each token of a sequence changes ---------------------------
    # out[c] = sum over j of weight[c, j] * x[c] of the token (taps - 1 - j) * dilation before, or
    # silu of that
    "conv": _signature(
        "x",
        recurrent.conv,
        flops=2,
        per="state",
        weights=("vectors",),
        attrs="taps dilation silu",
        in_place="x",
        state=recurrent.conv_state,
    ),
    # The gated delta rule (arXiv:2412.06464), for each head a matrix S, [d_k, d_v]:
    # S = exp(decay) S; d = beta * (v - S^T k); S = S + k d^T; out = scale * S^T q.
    # q, k: [n_kv_heads * d_k], v: [n_heads * d_v], beta: [n_heads]; decay: [n_heads], or
    # [n_heads * d_k], a number for each row of S (arXiv:2510.26692). Head h uses q and k of head
    # h // (n_heads / n_kv_heads), or if tiled of head h % n_kv_heads.
    "delta_rule": _signature(
        "q k v decay beta",
        recurrent.delta_rule,
        flops=7,
        per="state",
        attrs="n_heads n_kv_heads tiled scale",
        state=recurrent.delta_rule_state,
    ),
    # The scan of Mamba-2 (arXiv:2405.21060), for each head a matrix h [head_dim, d_state]:
    # s = softplus(dt + bias), held between dt_min and dt_max; h = exp(s a) h + s x b^T;
    # out = h c + skip * x. x: [n_heads * head_dim]; dt, weights a, skip, bias: [n_heads]; b, c:
    # [n_groups * d_state], each group for n_heads / n_groups heads.
    "ssm_scan": _signature(
        "x dt b c",
        recurrent.ssm_scan,
        flops=5,
        per="state",
        weights=("vector", "vector", "vector"),
        attrs="n_groups dt_min dt_max",
        state=recurrent.ssm_scan_state,
    ),
    # The scan of Mamba (arXiv:2312.00752), for each channel a vector h [d_state]:
    # h = exp(dt a) h + dt x b; out = h . c. x, dt: [channels], dt above 0; b, c: [d_state]; weight
    # a: [channels, d_state].
    "selective_scan": _signature(
        "x dt b c",
        recurrent.selective_scan,
        flops=10,
        per="state",
        weights=("vectors",),
        state=recurrent.selective_scan_state,
    ),
    # x / sqrt(sum(x^2) + eps) of each of x's heads
    "l2_norm": _signature("x", recurrent.l2_norm, flops=3, attrs="n_heads eps", in_place="x"),
    # out = a * softplus(x + bias), or with a bound below 0 out = bound * sigmoid(-a * (x + bias));
    # weights a, bias: [width], or a: [width / m], each for m columns
    "log_decay": _signature(
        "x", recurrent.log_decay, flops=5, weights=("vector", "vector"), attrs="bound", in_place="x"
    ),
    # rms_norm of each of n_groups equal parts of a row by itself; weight: [width]
    "group_norm": _signature(
        "x", recurrent.group_norm, flops=4, weights=("vector",), attrs="n_groups eps", in_place="x"
    ),
    # Without a weight it is 1.
    "layer_norm": _signature(
        "x",
        dense.vector,
        flops=7,
        weights=("vector",),
        attrs="eps",
        in_place="x",
        optional=True,
    ),
    # A mean of x and of n_earlier earlier rows, the first that lie side by side in `earlier`: the
    # shares are the softmax of sum(rms_norm(row) * weight) of each row.
    "residual_attention": _signature(
        "x earlier",
        streams.residual_attention,
        flops=6,
        per="earlier",
        weights=("vector",),
        attrs="n_earlier eps",
    ),
    # ---- several residual streams of a token, side by side (AltUp, arXiv:2301.13310) -------------
    # out[i] = sum over j of factors[i * n_streams + j] * x[j], for n_streams streams x[j]; flops:
    # of four streams
    "mix_streams": _signature("x factors", streams.mix_streams, flops=8, attrs="n_streams"),
    # How n_streams streams go through a part of a layer (hyper-connections, arXiv:2512.24880). The
    # columns of x, times scale and plus base, are a for each stream, b for each stream, and c, a
    # matrix [n_streams, n_streams]. out: sigmoid(a) + eps, by which the streams are summed up for
    # the part; 2 * sigmoid(b), by which its output is added to each; and the matrix, transposed, by
    # which the streams are mixed: softmax(c) + eps of each row, whose columns, and then
    # n_iterations - 1 times its rows and its columns, are divided by their sums + eps. x may have a
    # alone; so has out then. scale: [3], or [1]; flops: of 20 iterations
    "hyper_factors": _signature(
        "x",
        streams.hyper_factors,
        flops=55,
        weights=("vector", "vector"),
        attrs="n_streams n_iterations eps",
    ),
    # out[i] = sum over j of m[i, j] * x[j], plus b[i] * part, with m and b of what hyper_factors
    # gave: its last n_streams^2 columns, and those before; flops: of four streams
    "hyper_mix": _signature(
        "x part factors", streams.hyper_mix, flops=10, attrs="n_streams", in_place="x"
    ),
    # out = x, plus part in each stream from `first` on; part is as wide as a stream
    "add_to_streams": _signature(
        "x part", streams.add_to_streams, flops=1, attrs="first", in_place="x"
    ),
    # out = x * rms(like) / sqrt(max(mean(x^2), eps)) of each stream; like is as wide as a stream
    "match_rms": _signature("x like", streams.match_rms, flops=3, attrs="eps", in_place="x"),
    # out[i] = factor * sum(a[i] * b[i]) of each of n_streams streams
    "stream_products": _signature(
        "a b", streams.stream_products, flops=2, per="a", attrs="n_streams factor"
    ),
    # out = sign(x) * sqrt(max(|x|, least))
    "signed_root": _signature("x", dense.signed_root, flops=3, attrs="least", in_place="x"),
    # out = max(x - (mean + factor * deviation), 0), with those of the row
    "keep_above": _signature("x", dense.keep_above, flops=5, attrs="factor", in_place="x"),
    # ---- what layers do not share ---------------------------------------------------------------
    # out = the columns of x that belong to layer i: x[:, i * width : (i + 1) * width]
    "layer_columns": _signature("x", slices.layer_columns, flops=0, attrs="width"),
    # ---- what nodes of a cluster exchange --------------------------------------------------------
    # out = x rounded to the values that blocks of Q8_0 can hold
    "round_q8": _signature("x", slices.round_q8, flops=2, in_place="x"),
    # out = x + the parts, added in order; parts: [n_tokens, n_parts * width of x]
    "merge_add": _signature(
        "x parts",
        slices.merge_add,
        flops=1,
        per="parts",
        attrs="quantized",
        in_place="x",
        q8_0="parts",
    ),
    # out = x[:, offset : offset + width]
    "take_columns": _signature(
        "x", slices.take_columns, flops=0, attrs="offset width quantized", q8_0="x"
    ),
    # out[:, offset : offset + width of x] = x; other columns of out, an external buffer, stay
    "put_columns": _signature(
        "x", slices.put_columns, flops=0, attrs="offset width quantized", q8_0="out"
    ),
}

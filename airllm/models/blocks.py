"""The parts that layers of many families are made of.

Each part takes a normalised input h, float32 [n, hidden], and returns what the layer adds to its
residual, [n, hidden]. A weight's slot is named as GGUF names the tensor.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.vocabulary import Weight
from airllm.models.config import LayerConfig, ModelConfig

__all__ = [
    "AFTER",
    "BEFORE",
    "FOLDERS_BEFORE",
    "add",
    "attend_to_all",
    "attention",
    "embed",
    "expert_outputs",
    "fused_glu_mlp",
    "glu_mlp",
    "head",
    "layer",
    "linear",
    "mlp",
    "norm",
    "output_logits",
    "parallel_layer",
    "route",
    "routed_experts",
    "scaled_parts",
    "shared_expert",
    "vocabulary_logits",
]

Normed = Literal["", "heads", "rows", "rotated heads"]
# Of what multiplies the up values: SwiGLU, GEGLU, ...
Activation = Literal["silu", "gelu", "gelu_erf", "relu"]
Half = Callable[[GraphBuilder, ModelConfig, LayerConfig, Buffer], Buffer]  # of a layer
# Attention of rotated queries over the keys that are kept: of (graph, config, layer, q, h).
Attend = Callable[[GraphBuilder, ModelConfig, LayerConfig, Buffer, Buffer], Buffer]
BEFORE = ("attn_norm", "ffn_norm")  # GGUF's names of the norms before each half
FOLDERS_BEFORE = ("attn_norm", "post_attention_norm")  # likewise where the second is as in folders
_UNLIMITED = 3e38  # float32 has it
AFTER = ("post_attention_norm", "post_ffw_norm")  # GGUF's names of the norms behind each half


def embed(c: ModelConfig, activations: Activations) -> Graph:
    """Token ids to the residual."""
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    table = g.weight("token_embd", c.vocab_size, c.hidden_size)
    g.embed(tokens, table, scale=c.embedding_scale, out=x)
    if c.learned_positions:
        positions = g.external("positions", 1, "int32")  # [n]
        table = g.weight("position_embd", c.context_length, c.hidden_size)
        g.add(x, g.embed(positions, table), out=x)
    return g.build()


def head(c: ModelConfig, activations: Activations, *, norm_slot: str = "output_norm") -> Graph:
    """The residual to logits."""
    g = GraphBuilder("head", activations=activations)
    output_logits(g, c, g.external("residual", c.hidden_size), norm_slot=norm_slot)
    return g.build()


def output_logits(
    g: GraphBuilder, c: ModelConfig, x: Buffer, *, norm_slot: str = "output_norm"
) -> None:
    """Writes the logits of x, [n, hidden]."""
    vocabulary_logits(g, c, norm(g, c, x, norm_slot))


def vocabulary_logits(g: GraphBuilder, c: ModelConfig, h: Buffer) -> None:
    """Writes the logits of last hidden states, which are normalised: [n, hidden]."""
    output = "token_embd" if c.tied_embeddings else "output"
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    linear(g, c, h, output, c.vocab_size, out=logits)
    if c.logit_scale != 1.0:
        g.scale(logits, c.logit_scale, out=logits)
    if c.final_softcap:
        g.softcap(logits, c.final_softcap, out=logits)


def norm(
    g: GraphBuilder, c: ModelConfig, x: Buffer, slot: str, *, out: Buffer | None = None
) -> Buffer:
    """RMSNorm of whole rows (arXiv:1910.07467), or LayerNorm (arXiv:1607.06450), plus the slot's
    bias if the model has it."""
    if not c.layer_norms:
        return g.rms_norm(x, g.weight(slot, x.width), c.norm_eps, out=out)
    weight = None if c.plain_norms else g.weight(slot, x.width)
    y = g.layer_norm(x, weight, c.norm_eps, out=out)
    return g.bias(y, g.weight(f"{slot}.bias", x.width), out=y) if slot in c.biases else y


def add(g: GraphBuilder, c: ModelConfig, x: Buffer, part: Buffer) -> Buffer:
    """The residual x plus a part of the layer."""
    if c.residual_scale != 1.0:
        part = g.scale(part, c.residual_scale, out=part)
    return g.add(x, part, out=x)


def layer(
    c: ModelConfig,
    activations: Activations,
    layer: LayerConfig,
    *,
    normed: Normed = "",
    fused: bool = False,
    sinks: bool = False,
    gated: bool = False,
    attend: Attend | None = None,
    mixer: Half | None = None,
    before: tuple[str, str] = BEFORE,
    after: tuple[str, str] = ("", ""),
    feed_forward: Half | None = None,
) -> Graph:
    """The usual layer: x += attention(norm(x)), and then x += feed_forward(norm(x)).

    normed, fused, sinks, gated, attend: see attention. mixer, feed_forward: in place of attention
    and of dense_or_experts. before, after: the slots of the norms before and behind each half; "":
    it has none.
    """
    g = GraphBuilder("layer", activations=activations)
    behind = replace(c, norm_eps=c.after_eps or c.norm_eps)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = norm(g, c, x, before[0]) if before[0] else x
    if mixer is None:
        how = {"fused": fused, "sinks": sinks, "gated": gated}
        y = attention(g, c, layer, h, normed=normed, attend=attend, **how)
    else:
        y = mixer(g, c, layer, h)
    x = add(g, c, x, norm(g, behind, y, after[0], out=y) if after[0] else y)
    h = norm(g, c, x, before[1]) if before[1] else x
    y = (feed_forward or dense_or_experts)(g, c, layer, h)
    add(g, c, x, norm(g, behind, y, after[1], out=y) if after[1] else y)
    return g.build()


def parallel_layer(
    c: ModelConfig,
    activations: Activations,
    layer: LayerConfig,
    *,
    fused: bool = False,
    before: tuple[str, str] = (BEFORE[0], BEFORE[0]),
    feed_forward: Half | None = None,
) -> Graph:
    """Both halves of the layer side by side, behind one norm or a norm each. See layer."""
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = norm(g, c, x, before[0])
    a = attention(g, c, layer, h, fused=fused)
    if before[1] != before[0]:
        h = norm(g, c, x, before[1])
    x = add(g, c, x, (feed_forward or dense_or_experts)(g, c, layer, h))
    add(g, c, x, a)
    return g.build()


def linear(
    g: GraphBuilder,
    c: ModelConfig,
    x: Buffer,
    slot: str,
    width: int,
    *,
    out: Buffer | None = None,
) -> Buffer:
    """x W^T -> [n, width], plus the slot's bias if the model has it (`c.biases`)."""
    y = g.linear(x, g.weight(slot, width, x.width), out=out)
    if slot in c.biases:
        y = g.bias(y, g.weight(f"{slot}.bias", width), out=y)
    return y


def scaled_parts(g: GraphBuilder, x: Buffer, factors: Weight, n: int) -> Buffer:
    """Each of n equal parts of x times its number of factors: [n_tokens, width], in x."""
    zeros = g.clamp(g.take_columns(x, 0, n), 0.0, 0.0)
    return g.scale_rows(x, g.bias(zeros, factors, out=zeros), out=x)


def attention(
    g: GraphBuilder,
    c: ModelConfig,
    layer: LayerConfig,
    h: Buffer,
    *,
    normed: Normed = "",
    fused: bool = False,
    sinks: bool = False,
    gated: bool = False,
    attend: Attend | None = None,
) -> Buffer:
    """Causal attention with groups of heads that share keys and values (arXiv:2305.13245).

    normed: whether Q and K are normalised, each head by itself, before or behind its rotation, or
    all heads of a token together.
    fused: Q, K and V come from one matrix. sinks: each head has one more score, without a value
    (arXiv:2309.17453). gated: each head's values are multiplied by the sigmoid of a gate, whose
    rows in Q's matrix follow those of the head's query (arXiv:2505.06708). attend: in place of
    attention to all positions or to those of the window.
    """
    if fused:
        qkv = linear(g, c, h, "attn_qkv", c.q_width + c.kv_width + c.v_width)
        q = g.take_columns(qkv, 0, c.q_width)
        k = g.take_columns(qkv, c.q_width, c.kv_width)
        v = g.take_columns(qkv, c.q_width + c.kv_width, c.v_width)
    else:
        q = linear(g, c, h, "attn_q", (2 if gated else 1) * c.q_width)  # [n, q_width]
        k = linear(g, c, h, "attn_k", c.kv_width)  # [n, kv_width]
        v = linear(g, c, h, "attn_v", c.v_width)  # [n, v_width]
    if limit := c.qkv_limit:
        q, k, v = (g.clamp(each, -limit, limit, out=each) for each in (q, k, v))
    if c.value_scale != 1.0:
        v = g.scale(v, c.value_scale, out=v)
    if gated:
        gate = g.take_head_columns(q, c.n_heads, c.head_dim, c.head_dim)  # [n, q_width]
        q = g.take_head_columns(q, c.n_heads, 0, c.head_dim)  # [n, q_width]
    if normed == "heads":
        q, k = heads_normed(g, c, q, k)
    elif normed == "rows":
        q = norm(g, c, q, "attn_q_norm", out=q)
        k = norm(g, c, k, "attn_k_norm", out=k)
    if layer.rotates:
        table = g.external("rope", c.rope_dims)  # [n, rope_dims]
        of_q = g.external("rope_q", c.rope_dims) if c.attention_temperature else table
        q = g.rope(q, of_q, c.n_heads, c.head_dim, interleaved=c.rope_interleaved, out=q)
        k = g.rope(k, table, c.n_kv_heads, c.head_dim, interleaved=c.rope_interleaved, out=k)
    if normed == "rotated heads":
        q, k = heads_normed(g, c, q, k)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    if attend is not None:
        a = attend(g, c, layer, q, h)  # [n, q_width]
    else:
        a = attend_to_all(g, c, layer, q, sinks=sinks)  # [n, q_width]
    if gated:
        a = g.multiply(a, g.sigmoid(gate, out=gate), out=a)
    return linear(g, c, a, "attn_output", c.hidden_size)


def heads_normed(g: GraphBuilder, c: ModelConfig, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """Each head of Q and K, normalised by itself."""
    q = g.head_norm(q, g.weight("attn_q_norm", c.head_dim), c.n_heads, c.norm_eps, out=q)
    k = g.head_norm(k, g.weight("attn_k_norm", c.head_dim), c.n_kv_heads, c.norm_eps, out=k)
    return q, k


def attend_to_all(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, *, sinks: bool = False
) -> Buffer:
    """Attention to all positions, or to those of the layer's window: [n, n_heads * value_dim]."""
    return g.attention(
        q,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        scale=c.attention_scale,
        value_dim=c.value_dim,
        window=layer.window,
        softcap=c.attention_softcap,
        alibi=c.alibi,
        sinks=g.weight("attn_sinks", c.n_heads) if sinks else None,
    )


def dense_or_experts(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """SwiGLU, or a mixture of experts and the expert that all tokens use, as the layer has it."""
    if not layer.has_experts:
        return glu_mlp(g, c, h)
    y = experts(g, c, h)
    return g.add(y, shared_expert(g, c, h), out=y) if c.shared_expert_size else y


def glu_mlp(
    g: GraphBuilder,
    c: ModelConfig,
    h: Buffer,
    *,
    activation: Activation = "silu",
    width: int = 0,
    suffix: str = "",
) -> Buffer:
    """SwiGLU, GEGLU or ReGLU (arXiv:2002.05202). width: intermediate; 0: c.intermediate_size.
    suffix: of the slots' names."""
    width = width or c.intermediate_size
    gate = linear(g, c, h, f"ffn_gate{suffix}", width)
    up = linear(g, c, h, f"ffn_up{suffix}", width)
    return linear(g, c, gated(g, c, gate, up, activation), f"ffn_down{suffix}", c.hidden_size)


def fused_glu_mlp(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """SwiGLU, gate and up from one matrix."""
    hidden, ffn = c.hidden_size, c.intermediate_size
    both = g.linear(h, g.weight("ffn_up", 2 * ffn, hidden))  # [n, 2 * ffn]
    h = g.swiglu(g.take_columns(both, 0, ffn), g.take_columns(both, ffn, ffn))  # [n, ffn]
    return g.linear(h, g.weight("ffn_down", hidden, ffn))


def mlp(
    g: GraphBuilder,
    c: ModelConfig,
    h: Buffer,
    activation: Literal["gelu", "gelu_erf", "relu_squared"],
    *,
    width: int = 0,
    suffix: str = "",
) -> Buffer:
    """Two matrices with an activation between them. width, suffix: see glu_mlp."""
    up = linear(g, c, h, f"ffn_up{suffix}", width or c.intermediate_size)
    apply = {"gelu": g.gelu, "gelu_erf": g.gelu_erf, "relu_squared": g.relu_squared}
    up = apply[activation](up, out=up)
    return linear(g, c, up, f"ffn_down{suffix}", c.hidden_size)


def gated(
    g: GraphBuilder, c: ModelConfig, gate: Buffer, up: Buffer, activation: Activation
) -> Buffer:
    """The activation of the gate times the up values; or gpt-oss's."""
    if c.gate_limit:
        return g.swiglu_oai(gate, up, alpha=c.gate_alpha, limit=c.gate_limit, shift=c.up_shift)
    if limit := c.swiglu_limit:
        act = g.clamp(g.silu(gate, out=gate), -_UNLIMITED, limit, out=gate)
        return g.multiply(act, g.clamp(up, -limit, limit, out=up), out=act)
    if activation == "relu":
        return g.multiply(g.clamp(gate, 0.0, _UNLIMITED, out=gate), up, out=gate)
    if activation == "gelu_erf":
        return g.multiply(g.gelu_erf(gate, out=gate), up, out=gate)
    return g.geglu(gate, up) if activation == "gelu" else g.swiglu(gate, up)


def experts(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """A mixture: a router chooses, for each token, a few of many small networks."""
    return routed_experts(g, c, h, route(g, c, h))


def route(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """The experts of each token and their shares: [n, 2 * used]."""
    n, r = c.n_experts, c.router
    logits = linear(g, c, h, "ffn_gate_inp", n)  # [n, experts]
    if c.router_softcap:
        logits = g.softcap(logits, c.router_softcap, out=logits)
    return g.route(
        logits,
        c.n_experts_used,
        normalized=r.normalized,
        gating=r.gating,
        scale=r.scale,
        bias=g.weight(r.bias_slot, n) if r.biased else None,
        n_groups=r.n_groups,
        n_groups_used=r.n_groups_used,
        group_score=r.group_score,
    )


def routed_experts(
    g: GraphBuilder,
    c: ModelConfig,
    h: Buffer,
    route: Buffer,
    *,
    activation: Activation = "silu",
    suffix: str = "_exps",
) -> Buffer:
    """The sum of the experts' outputs. suffix: of the slots' names."""
    outputs = expert_outputs(g, c, h, route, activation=activation, suffix=suffix)
    return g.expert_sum(outputs, route)  # [n, hidden]


def expert_outputs(
    g: GraphBuilder,
    c: ModelConfig,
    h: Buffer,
    route: Buffer,
    *,
    activation: Activation = "silu",
    suffix: str = "_exps",
) -> Buffer:
    """The outputs of each token's experts, side by side: [n, used * hidden]. suffix: of the slots'
    names."""
    n, ffn, hidden = c.n_experts, c.expert_size, c.hidden_size

    def product(x: Buffer, slot: str, rows: int, columns: int) -> Buffer:
        y = g.expert_linear(x, route, g.weight(slot, n, rows, columns))
        if slot in c.biases:
            y = g.expert_bias(y, route, g.weight(f"{slot}.bias", n, rows), out=y)
        return y

    gate = product(h, f"ffn_gate{suffix}", ffn, hidden)
    up = product(h, f"ffn_up{suffix}", ffn, hidden)
    act = gated(g, c, gate, up, activation)  # [n, used * ffn]
    return product(act, f"ffn_down{suffix}", hidden, ffn)


def shared_expert(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """The expert that all tokens use."""
    y = glu_mlp(g, c, h, width=c.shared_expert_size, suffix="_shexp")
    if not c.shared_expert_gated:
        return y
    gate = g.linear(h, g.weight("ffn_gate_inp_shexp", 1, c.hidden_size))  # [n, 1]
    return g.scale_rows(y, g.sigmoid(gate, out=gate), out=y)

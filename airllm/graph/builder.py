"""Writes a graph down, op by op.

    g = GraphBuilder("mlp")
    x = g.external("residual", 576)                             # [n, 576]
    h = g.rms_norm(x, g.weight("ffn_norm", 576), eps=1e-5)      # [n, 576]
    g.add(x, g.linear(h, g.weight("ffn_down", 576, 576)), out=x)
    graph = g.build()

Shapes are checked at each call, so that an error points at the wrong line.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

from airllm.graph.graph import Graph, check_outputs, look_up
from airllm.graph.ops import SIGNATURES
from airllm.graph.vocabulary import (
    Activations,
    Attr,
    Buffer,
    DType,
    Gating,
    GraphError,
    Op,
    Weight,
)

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Writes a graph down op by op; each method returns the buffer that the op writes.

    A new buffer is named after the op's weight, or the op. `out` names another one to write to,
    which may be an input if the op works in place (ops.SIGNATURES).
    """

    def __init__(self, name: str, *, activations: Activations = "auto") -> None:
        """activations: how the graph's matrix products round their inputs, see ops.SIGNATURES."""
        self.name = name
        self._activations = activations
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, Weight] = {}
        self._ops: list[Op] = []

    def external(self, name: str, width: int, dtype: DType = "float32") -> Buffer:
        """A buffer that the caller passes with each run: an input, an output, or both."""
        buffer = Buffer(name, width, external=True, dtype=dtype)
        if self._buffers.setdefault(name, buffer) != buffer:
            raise GraphError(f"graph {self.name!r}: there is already a buffer {name!r}")
        return buffer

    def weight(self, name: str, *shape: int) -> Weight:
        """A weight slot; (n) is a vector, (n, k) a matrix as checkpoints store it, (n_experts, n,
        k) a matrix for each expert, (n_experts, n) a vector for each in expert_bias, (n_heads, n,
        k) a matrix for each head in head_linear."""
        weight = Weight(name, shape)
        if self._weights.setdefault(name, weight) != weight:
            raise GraphError(f"graph {self.name!r}: weight {name!r} has two shapes")
        return weight

    def embed(
        self, tokens: Buffer, table: Weight, *, scale: float = 1.0, out: Buffer | None = None
    ) -> Buffer:
        """scale * table[tokens]. table: [vocab, n] -> [n_tokens, n]"""
        return self._emit("embed", [tokens], out, [table], scale=scale)

    def rms_norm(
        self, x: Buffer, weight: Weight, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight over each row."""
        return self._emit("rms_norm", [x], out, [weight], eps=eps)

    def layer_norm(
        self, x: Buffer, weight: Weight, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """(x - mean) / sqrt(variance + eps) * weight over each row."""
        return self._emit("layer_norm", [x], out, [weight], eps=eps)

    def head_norm(
        self,
        x: Buffer,
        weight: Weight | None,
        n_heads: int,
        eps: float,
        *,
        out: Buffer | None = None,
    ) -> Buffer:
        """rms_norm of each head by itself. x: [n_tokens, n_heads * head_dim], weight: [head_dim];
        None: all 1"""
        weights = [] if weight is None else [weight]
        return self._emit("head_norm", [x], out, weights, n_heads=n_heads, eps=eps)

    def bias(self, x: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """x + weight, the same for each row."""
        return self._emit("bias", [x], out, [weight])

    def linear(self, x: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """x @ weight.T. x: [n_tokens, k], weight: [n, k] -> [n_tokens, n]"""
        return self._emit("linear", [x], out, [weight], activations=self._activations)

    def rope(
        self,
        x: Buffer,
        table: Buffer,
        n_heads: int,
        head_dim: int,
        *,
        interleaved: bool,
        offset: int = 0,
        out: Buffer | None = None,
    ) -> Buffer:
        """Rotates pairs of each head: (2j, 2j+1) interleaved, else (j, j + n_dims/2), counted from
        dimension `offset` on.

        table: [n_tokens, n_dims], the n_dims/2 cosines of the token's position, then the sines.
        The other dimensions of a head stay as they are.
        """
        return self._emit(
            "rope",
            [x, table],
            out,
            n_heads=n_heads,
            head_dim=head_dim,
            interleaved=interleaved,
            offset=offset,
        )

    def kv_append(self, k: Buffer, v: Buffer, n_kv_heads: int, head_dim: int) -> None:
        """Writes k, [n_tokens, n_kv_heads * head_dim], and v, whose heads may have another width,
        to the end of the KV cache."""
        self._append(
            Op(
                "kv_append",
                (k.name, v.name),
                None,
                (),
                {"n_kv_heads": n_kv_heads, "head_dim": head_dim},
            )
        )

    def latent_append(self, x: Buffer, n_kv_heads: int, head_dim: int) -> None:
        """Writes x, [n_tokens, n_kv_heads * head_dim], to the end of the KV cache as keys, whose
        first dimensions are the values."""
        attrs: dict[str, Attr] = {"n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self._append(Op("latent_append", (x.name,), None, (), attrs))

    def attention(
        self,
        q: Buffer,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        value_dim: int = 0,
        window: int = 0,
        chunked: bool = False,
        softcap: float = 0.0,
        sinks: Weight | None = None,
        out: Buffer | None = None,
    ) -> Buffer:
        """softmax(scale * q K^T) V over the KV cache, causal. -> [n_tokens, n_heads * value_dim]

        value_dim: of the heads of V; 0: as head_dim.

        window: positions that a token sees, its own included; 0: all before it.
        chunked: a token sees those of its own chunk of `window` positions, from the last multiple
        of window on.
        softcap: scores s become softcap * tanh(s / softcap); 0: they stay.
        sinks: [n_heads], one more score for each head, neither scaled nor capped, without a value.
        """
        return self._emit(
            "attention",
            [q],
            out,
            [] if sinks is None else [sinks],
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim or head_dim,
            scale=scale,
            window=window,
            chunked=chunked,
            softcap=softcap,
        )

    def index_append(self, x: Buffer, *, every: int = 1) -> None:
        """Writes x, [n_tokens, head_dim], to the end of the layer's index of keys; with groups of
        `every` positions, the rows of their last tokens only."""
        attrs: dict[str, Attr] = {"head_dim": x.width, "every": every}
        self._append(Op("index_append", (x.name,), None, (), attrs))

    def index_select(
        self,
        q: Buffer,
        weights: Buffer,
        n_heads: int,
        n_selected: int,
        *,
        every: int = 1,
        out: Buffer | None = None,
    ) -> Buffer:
        """The positions, or groups of `every` positions, that each token sees, up to its own: the
        n_selected that have the highest sums over heads h of weights[h] * max(q[h] . key, 0),
        ascending; all, and then -1, if they are fewer. q: [n_tokens, n_heads * head_dim], weights:
        [n_tokens, n_heads]
        -> [n_tokens, n_selected]"""
        return self._emit(
            "index_select",
            [q, weights],
            out,
            n_heads=n_heads,
            head_dim=q.width // n_heads,
            n_selected=n_selected,
            every=every,
        )

    def sparse_attention(
        self,
        q: Buffer,
        selection: Buffer,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        value_dim: int = 0,
        out: Buffer | None = None,
    ) -> Buffer:
        """As attention, over the positions of `selection`, [n_tokens, n_selected], see
        index_select. -> [n_tokens, n_heads * value_dim]"""
        return self._emit(
            "sparse_attention",
            [q, selection],
            out,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim or head_dim,
            scale=scale,
        )

    def block_mean(self, x: Buffer, block_size: int, *, out: Buffer | None = None) -> Buffer:
        """Of the last token of each block of positions, the mean of x over the block; of other
        tokens 0."""
        return self._emit("block_mean", [x], out, block_size=block_size)

    def choose_blocks(
        self,
        q: Buffer,
        n_heads: int,
        block_size: int,
        n_chosen: int,
        *,
        n_local: int = 0,
        pooled: bool = False,
        out: Buffer | None = None,
    ) -> Buffer:
        """The blocks of positions that each token sees, see ops.SIGNATURES. pooled: the index has
        keys of blocks, see index_append, and the heads choose together; else keys of positions, and
        each head chooses by itself, the last n_local blocks among others.
        q: [n_tokens, n_heads * head_dim]
        -> [n_tokens, n_chosen + 1] if pooled, else [n_tokens, n_heads * n_chosen]"""
        return self._emit(
            "choose_blocks",
            [q],
            out,
            n_heads=n_heads,
            head_dim=q.width // n_heads,
            block_size=block_size,
            n_chosen=n_chosen,
            n_local=n_local,
            pooled=pooled,
        )

    def block_attention(
        self,
        q: Buffer,
        blocks: Buffer,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        block_size: int,
        n_choices: int,
        value_dim: int = 0,
        out: Buffer | None = None,
    ) -> Buffer:
        """As attention, over the positions of `blocks`, [n_tokens, n_choices * n_entries], see
        choose_blocks. n_choices: the KV heads share as many choices evenly.
        -> [n_tokens, n_heads * value_dim]"""
        return self._emit(
            "block_attention",
            [q, blocks],
            out,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim or head_dim,
            scale=scale,
            block_size=block_size,
            n_choices=n_choices,
        )

    def pool_groups(
        self, x: Buffer, gate: Buffer, weight: Weight, *, n_parts: int = 1, of_index: bool = False
    ) -> Buffer:
        """Of the last token of each group of positions, a mean of x over the group, see
        ops.SIGNATURES; of other tokens 0. x, gate: [n_tokens, width], weight: [positions of a
        group, width] -> [n_tokens, width / n_parts]"""
        return self._emit(
            "pool_groups",
            [x, gate],
            None,
            [weight],
            every=weight.shape[0],
            n_parts=n_parts,
            of_index=of_index,
        )

    def group_append(self, x: Buffer, *, every: int) -> None:
        """Writes the rows of x, [n_tokens, head_dim], that belong to the last tokens of groups of
        `every` positions, to the end of the layer's keys of groups."""
        attrs: dict[str, Attr] = {"head_dim": x.width, "every": every}
        self._append(Op("group_append", (x.name,), None, (), attrs))

    def group_attention(
        self,
        q: Buffer,
        n_heads: int,
        *,
        scale: float,
        window: int,
        every: int,
        selection: Buffer | None = None,
        sinks: Weight | None = None,
    ) -> Buffer:
        """softmax(scale * q K^T) K over the keys of the last `window` positions, and over those of
        the groups of `every` positions up to the token's own: all, or those of `selection`,
        [n_tokens, n_selected], see index_select. q: [n_tokens, n_heads * head_dim]; sinks: see
        attention -> [n_tokens, n_heads * head_dim]"""
        return self._emit(
            "group_attention" if selection is None else "sparse_group_attention",
            [q] if selection is None else [q, selection],
            None,
            [] if sinks is None else [sinks],
            n_heads=n_heads,
            head_dim=q.width // n_heads,
            scale=scale,
            window=window,
            every=every,
        )

    def swiglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """silu(gate) * up"""
        return self._emit("swiglu", [gate, up], out)

    def geglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """gelu(gate) * up, gelu by its tanh approximation"""
        return self._emit("geglu", [gate, up], out)

    def swiglu_oai(
        self,
        gate: Buffer,
        up: Buffer,
        *,
        alpha: float,
        limit: float,
        shift: float = 1.0,
        out: Buffer | None = None,
    ) -> Buffer:
        """g * sigmoid(alpha * g) * (u + shift), with g = min(gate, limit) and u = up, held between
        -limit and limit"""
        return self._emit("swiglu_oai", [gate, up], out, alpha=alpha, limit=limit, shift=shift)

    def softcap(self, x: Buffer, cap: float, *, out: Buffer | None = None) -> Buffer:
        """cap * tanh(x / cap)"""
        return self._emit("softcap", [x], out, cap=cap)

    def route(
        self,
        logits: Buffer,
        n_used: int,
        *,
        normalized: bool,
        gating: Gating = "softmax",
        scale: float = 1.0,
        bias: Weight | None = None,
        n_groups: int = 1,
        n_groups_used: int = 1,
        group_score: Literal["top2", "max"] = "top2",
    ) -> Buffer:
        """Chooses n_used experts for each token. logits: [n_tokens, n_experts] -> [n_tokens,
        2 * n_used], the numbers of the experts, then their shares.

        gating: a share is the softmax or sigmoid of the logits, or the root of their softplus.
        normalized: the chosen shares are divided by their sum. scale: they are multiplied by it in
        the end.
        bias: [n_experts], added to the shares for the choice only.
        n_groups: equal groups of experts, of which only the best n_groups_used are chosen from; a
        group's score is the sum of its two highest scores, or its highest.

        Softmax over the chosen logits alone is the normalized softmax over all.
        """
        return self._emit(
            "route",
            [logits],
            None,
            [] if bias is None else [bias],
            n_used=n_used,
            normalized=normalized,
            gating=gating,
            scale=scale,
            n_groups=n_groups,
            n_groups_used=n_groups_used,
            group_score=group_score,
        )

    def route_to(
        self,
        logits: Buffer,
        experts: Buffer,
        *,
        normalized: bool,
        gating: Gating = "softmax",
        scale: float = 1.0,
    ) -> Buffer:
        """A route to given experts, with shares as of `route`. logits: [n_tokens, n_experts],
        experts: [n_tokens, n_used], their numbers -> [n_tokens, 2 * n_used]"""
        return self._emit(
            "route_to",
            [logits, experts],
            None,
            n_used=experts.width,
            normalized=normalized,
            gating=gating,
            scale=scale,
        )

    def expert_linear(self, x: Buffer, route: Buffer, weight: Weight) -> Buffer:
        """x @ weight[e].T for each expert e of a token's route. weight: [n_experts, n, k]

        x: [n_tokens, k], or [n_tokens, n_used * k] with one for each expert
        -> [n_tokens, n_used * n]
        """
        return self._emit(
            "expert_linear",
            [x, route],
            None,
            [weight],
            n_used=route.width // 2,
            shared=x.width == weight.shape[-1],
            activations=self._activations,
        )

    def expert_bias(
        self, x: Buffer, route: Buffer, weight: Weight, *, out: Buffer | None = None
    ) -> Buffer:
        """x plus weight[e] for each expert e of a token's route. x: [n_tokens, n_used * n],
        weight: [n_experts, n]"""
        return self._emit("expert_bias", [x, route], out, [weight], n_used=route.width // 2)

    def scale_shares(self, route: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """The route with the share of each expert e multiplied by weight[e]. weight:
        [n_experts]"""
        return self._emit("scale_shares", [route], out, [weight], n_used=route.width // 2)

    def expert_sum(self, x: Buffer, route: Buffer) -> Buffer:
        """The sum of the experts' outputs, weighted by their shares. [n_tokens, n_used * n] ->
        [n_tokens, n]"""
        return self._emit("expert_sum", [x, route], None, n_used=route.width // 2)

    def head_linear(self, x: Buffer, weight: Weight) -> Buffer:
        """x[h] @ weight[h].T for each head h. x: [n_tokens, n_heads * k], weight: [n_heads, n, k]
        -> [n_tokens, n_heads * n]"""
        n_heads = weight.shape[0]
        return self._emit(
            "head_linear", [x], None, [weight], n_heads=n_heads, activations=self._activations
        )

    def take_head_columns(self, x: Buffer, n_heads: int, offset: int, width: int) -> Buffer:
        """Of each of n_heads heads the columns offset to offset + width."""
        return self._emit(
            "take_head_columns", [x], None, n_heads=n_heads, offset=offset, width=width
        )

    def join_heads(self, a: Buffer, b: Buffer, n_heads: int) -> Buffer:
        """Of each of n_heads heads the columns of a, then those of b."""
        return self._emit("join_heads", [a, b], None, n_heads=n_heads)

    def add(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("add", [a, b], out)

    def multiply(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("multiply", [a, b], out)

    def scale(
        self,
        x: Buffer,
        factor: float = 1.0,
        weight: Weight | None = None,
        *,
        out: Buffer | None = None,
    ) -> Buffer:
        """factor * x, and times the weight, [1] or [width of x], if there is one"""
        return self._emit("scale", [x], out, [] if weight is None else [weight], factor=factor)

    def scale_rows(self, x: Buffer, factors: Buffer, *, out: Buffer | None = None) -> Buffer:
        """Each row of x times its factor. factors: [n_tokens, 1]"""
        return self._emit("scale_rows", [x, factors], out)

    def mix_streams(self, x: Buffer, factors: Buffer, n_streams: int) -> Buffer:
        """Stream i is the sum over j of factors[i, j] * x[j]. x: [n_tokens, n_streams * n],
        factors: [n_tokens, n_out * n_streams] -> [n_tokens, n_out * n]"""
        return self._emit("mix_streams", [x, factors], None, n_streams=n_streams)

    def hyper_factors(
        self, x: Buffer, scale: Weight, base: Weight, n_streams: int, n_iterations: int, eps: float
    ) -> Buffer:
        """How n_streams streams are summed up, added to and mixed, see ops.SIGNATURES. x:
        [n_tokens, n_streams * (2 + n_streams)], or [n_tokens, n_streams] for sums only"""
        return self._emit(
            "hyper_factors",
            [x],
            None,
            [scale, base],
            n_streams=n_streams,
            n_iterations=n_iterations,
            eps=eps,
        )

    def hyper_mix(
        self,
        x: Buffer,
        part: Buffer,
        factors: Buffer,
        n_streams: int,
        *,
        out: Buffer | None = None,
    ) -> Buffer:
        """The streams x, mixed, plus the part in each, by what hyper_factors gave. x: [n_tokens,
        n_streams * n], part: [n_tokens, n]"""
        return self._emit("hyper_mix", [x, part, factors], out, n_streams=n_streams)

    def add_to_streams(
        self, x: Buffer, part: Buffer, *, first: int = 0, out: Buffer | None = None
    ) -> Buffer:
        """x plus part in each stream from `first` on. x: [n_tokens, n_streams * n], part:
        [n_tokens, n]"""
        return self._emit("add_to_streams", [x, part], out, first=first)

    def match_rms(
        self, x: Buffer, like: Buffer, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """Each stream of x with the root mean square of `like`, but not more than
        rms(like) / sqrt(eps) times as large as it was. x: [n_tokens, n_streams * n], like:
        [n_tokens, n]"""
        return self._emit("match_rms", [x, like], out, eps=eps)

    def stream_products(self, a: Buffer, b: Buffer, n_streams: int, factor: float) -> Buffer:
        """factor * sum(a * b) of each stream. a, b: [n_tokens, n_streams * n]
        -> [n_tokens, n_streams]"""
        return self._emit("stream_products", [a, b], None, n_streams=n_streams, factor=factor)

    def signed_root(self, x: Buffer, least: float, *, out: Buffer | None = None) -> Buffer:
        """sign(x) * sqrt(max(|x|, least))"""
        return self._emit("signed_root", [x], out, least=least)

    def keep_above(self, x: Buffer, factor: float, *, out: Buffer | None = None) -> Buffer:
        """What of x is above mean + factor * deviation of its row, and 0 for the rest"""
        return self._emit("keep_above", [x], out, factor=factor)

    def sigmoid(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("sigmoid", [x], out)

    def relu_squared(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """max(x, 0)^2"""
        return self._emit("relu_squared", [x], out)

    def silu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("silu", [x], out)

    def gelu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """By its tanh approximation."""
        return self._emit("gelu", [x], out)

    def conv(
        self,
        x: Buffer,
        weight: Weight,
        *,
        dilation: int = 1,
        silu: bool = False,
        out: Buffer | None = None,
    ) -> Buffer:
        """A causal convolution of each channel over the tokens of the sequence, or silu of that.
        x: [n_tokens, channels], weight: [channels, taps], the last tap for the token itself, and
        each earlier one for the token `dilation` positions before that of the next tap."""
        taps = weight.shape[1]
        return self._emit("conv", [x], out, [weight], taps=taps, dilation=dilation, silu=silu)

    def delta_rule(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        decay: Buffer,
        beta: Buffer,
        n_heads: int,
        n_kv_heads: int,
        *,
        scale: float,
        tiled: bool = False,
    ) -> Buffer:
        """The gated delta rule, see ops.SIGNATURES. q, k: [n_tokens, n_kv_heads * d_k], v:
        [n_tokens, n_heads * d_v], decay: [n_tokens, n_heads] or [n_tokens, n_heads * d_k], a
        logarithm; beta: [n_tokens, n_heads] -> [n_tokens, n_heads * d_v]"""
        inputs = [q, k, v, decay, beta]
        attrs: dict[str, Attr] = {"n_heads": n_heads, "n_kv_heads": n_kv_heads}
        return self._emit("delta_rule", inputs, None, (), scale=scale, tiled=tiled, **attrs)

    def ssm_scan(
        self,
        x: Buffer,
        dt: Buffer,
        b: Buffer,
        c: Buffer,
        weights: tuple[Weight, Weight, Weight],
        *,
        n_groups: int,
        dt_limits: tuple[float, float] = (0.0, 3e38),
    ) -> Buffer:
        """The scan of Mamba-2, see ops.SIGNATURES. x: [n_tokens, n_heads * head_dim], dt:
        [n_tokens, n_heads], b, c: [n_tokens, n_groups * d_state]; weights: a, skip and the bias of
        dt, [n_heads] each -> [n_tokens, n_heads * head_dim]"""
        low, high = dt_limits
        attrs: dict[str, Attr] = {"n_groups": n_groups, "dt_min": low, "dt_max": high}
        return self._emit("ssm_scan", [x, dt, b, c], None, weights, **attrs)

    def l2_norm(self, x: Buffer, n_heads: int, eps: float, *, out: Buffer | None = None) -> Buffer:
        """x / sqrt(sum(x^2) + eps) of each head. x: [n_tokens, n_heads * d]"""
        return self._emit("l2_norm", [x], out, n_heads=n_heads, eps=eps)

    def log_decay(
        self,
        x: Buffer,
        a: Weight,
        bias: Weight,
        *,
        bound: float = 0.0,
        out: Buffer | None = None,
    ) -> Buffer:
        """a * softplus(x + bias), or with a bound below 0 bound * sigmoid(-a * (x + bias)). bias:
        [width], a: [width / m], each for m columns"""
        return self._emit("log_decay", [x], out, [a, bias], bound=bound)

    def residual_attention(
        self, x: Buffer, earlier: Buffer, weight: Weight, n_earlier: int, eps: float
    ) -> Buffer:
        """A mean of x and of the first n_earlier rows of as many values in each row of `earlier`,
        see ops.SIGNATURES. weight: [width of x]"""
        inputs = [x, earlier]
        return self._emit(
            "residual_attention", inputs, None, [weight], n_earlier=n_earlier, eps=eps
        )

    def group_norm(
        self, x: Buffer, weight: Weight, n_groups: int, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """rms_norm of each of n_groups equal parts of a row. weight: [width of x]"""
        return self._emit("group_norm", [x], out, [weight], n_groups=n_groups, eps=eps)

    def round_q8(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """x rounded to the values that blocks of Q8_0 can hold."""
        return self._emit("round_q8", [x], out)

    def merge_add(self, x: Buffer, parts: Buffer, *, out: Buffer | None = None) -> Buffer:
        """x plus the parts, in order. parts: [n_tokens, n_parts * width of x]"""
        return self._emit("merge_add", [x, parts], out, quantized=parts.dtype == "q8_0")

    def take_columns(
        self, x: Buffer, offset: int, width: int, *, out: Buffer | None = None
    ) -> Buffer:
        """x[:, offset : offset + width]"""
        quantized = x.dtype == "q8_0"
        return self._emit("take_columns", [x], out, offset=offset, width=width, quantized=quantized)

    def layer_columns(self, x: Buffer, width: int, *, out: Buffer | None = None) -> Buffer:
        """The columns of x that belong to the layer: x[:, i * width : (i + 1) * width] of layer i,
        as Executor.run_layers counts."""
        return self._emit("layer_columns", [x], out, width=width)

    def put_columns(self, x: Buffer, offset: int, *, out: Buffer) -> Buffer:
        """Writes x to the columns of `out`, which is external, from `offset` on."""
        quantized = out.dtype == "q8_0"
        return self._emit(
            "put_columns", [x], out, offset=offset, width=out.width, quantized=quantized
        )

    def build(self) -> Graph:
        """The graph. GraphError if an op reads a buffer that none wrote, or a slot is unused."""
        buffers, weights = tuple(self._buffers.values()), tuple(self._weights.values())
        return Graph(self.name, buffers, weights, tuple(self._ops))

    def _emit(
        self,
        kind: str,
        inputs: Sequence[Buffer],
        out: Buffer | None,
        weights: Sequence[Weight] = (),
        **attrs: Attr,
    ) -> Buffer:
        slots = tuple(weight.name for weight in weights)
        named_after = slots[0] if slots and not SIGNATURES[kind].optional else kind
        named_after = kind if len(slots) > 1 else named_after
        name = out.name if out is not None else self._unused_name(named_after)
        self._append(Op(kind, tuple(buffer.name for buffer in inputs), name, slots, attrs))
        return self._buffers[name]

    def _append(self, op: Op) -> None:
        """Check an op, declare the buffer that it writes unless it is there, and add it."""
        try:
            call = look_up(op, self._buffers, self._weights)
            width = SIGNATURES[op.kind].width(call)
            if op.output is not None and width is not None:
                self._buffers.setdefault(op.output, Buffer(op.output, width))
            check_outputs(call, width, self._buffers)
        except GraphError as error:
            raise GraphError(f"graph {self.name!r}: {error}") from None
        self._ops.append(op)

    def _unused_name(self, name: str) -> str:
        """`name`, or name.2, name.3... if a buffer has it."""
        names = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
        return next(n for n in names if n not in self._buffers)

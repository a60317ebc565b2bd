"""Products, norms, rotation, attention to all positions, and what works on each element."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Attr, Buffer, Op, Weight

__all__ = ["DenseOps"]


class DenseOps(OpEmitter):
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
        self, x: Buffer, weight: Weight | None, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """(x - mean) / sqrt(variance + eps) * weight over each row. weight: [width]; None: all 1"""
        return self._emit("layer_norm", [x], out, [] if weight is None else [weight], eps=eps)

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
        alibi: float = 0.0,
        sinks: Weight | None = None,
        out: Buffer | None = None,
    ) -> Buffer:
        """softmax(scale * q K^T) V over the KV cache, causal. -> [n_tokens, n_heads * value_dim]

        value_dim: of the heads of V; 0: as head_dim.

        window: positions that a token sees, its own included; 0: all before it.
        chunked: a token sees those of its own chunk of `window` positions, from the last multiple
        of window on.
        softcap: scores s become softcap * tanh(s / softcap); 0: they stay.
        alibi: above 0, scores fall with the distance (arXiv:2108.12409): by it times a slope of
        each head, which runs down from nearly 1 to 2^-alibi.
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
            alibi=alibi,
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
        """Each row of x times its factors. factors: [n_tokens, m], each for width / m columns"""
        return self._emit("scale_rows", [x, factors], out)

    def clamp(self, x: Buffer, low: float, high: float, *, out: Buffer | None = None) -> Buffer:
        """min(max(x, low), high)"""
        return self._emit("clamp", [x], out, low=low, high=high)

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

    def softplus(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """log(1 + exp(x))"""
        return self._emit("softplus", [x], out)

    def gelu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """By its tanh approximation."""
        return self._emit("gelu", [x], out)

    def gelu_erf(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """As it is defined, by erf."""
        return self._emit("gelu_erf", [x], out)

    def xielu(
        self,
        x: Buffer,
        *,
        positive: float,
        negative: float,
        beta: float,
        eps: float,
        out: Buffer | None = None,
    ) -> Buffer:
        """positive * x^2 + beta * x for x > 0, negative * (exp(min(x, eps)) - 1 - x) + beta * x for
        the others (arXiv:2411.13010)"""
        return self._emit(
            "xielu", [x], out, positive=positive, negative=negative, beta=beta, eps=eps
        )

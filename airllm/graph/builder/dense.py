"""Looking up, norms, and products with matrices."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Buffer, Weight

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

"""Columns, heads and rows of Q8_0 as parts of wider buffers."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Buffer, Weight

__all__ = ["SliceOps"]


class SliceOps(OpEmitter):
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

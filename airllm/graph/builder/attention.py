"""Rotation, keys and values, and attention to all positions that a token sees."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Attr, Buffer, Op, Weight

__all__ = ["AttentionOps"]


class AttentionOps(OpEmitter):
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

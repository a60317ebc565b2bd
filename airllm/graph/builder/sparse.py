"""Attention to positions, blocks and groups of positions that an index selects."""

from airllm.graph.builder.emitting import OpEmitter
from airllm.graph.vocabulary import Attr, Buffer, Op, Weight

__all__ = ["SparseOps"]


class SparseOps(OpEmitter):
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
        sinks: Weight | None = None,
        out: Buffer | None = None,
    ) -> Buffer:
        """As attention, over the positions of `selection`, [n_tokens, n_selected], see
        index_select. -> [n_tokens, n_heads * value_dim]"""
        return self._emit(
            "sparse_attention",
            [q, selection],
            out,
            [] if sinks is None else [sinks],
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

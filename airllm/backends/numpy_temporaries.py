"""The memory that NumPy's executor takes while an op runs, and gives back: for the plan.

Ops that compute each row of their buffers by itself run on a few rows at a time, see rows_at_once,
so that their float64 arrays stay small. The other ops are those of _WHOLE. One op runs at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airllm.graph.graph import Graph, Op
from airllm.numpy_ops.attention import scores_bytes
from airllm.numpy_ops.matrix import widened_bytes

__all__ = ["rows_at_once", "rows_of_a_piece", "temporary_bytes"]

# Of the float64 values of the widest buffer of an op that runs on a few rows at a time.
_PIECE_BYTES = 1 << 20
_PIECES = 6  # the most arrays of that size that such an op has at once


@dataclass(frozen=True, slots=True)
class _Use:
    """An op of a graph, in a batch of n tokens that ends at `positions`."""

    graph: Graph
    op: Op
    n: int
    positions: int

    def width(self, name: str) -> int:
        return next(buffer.width for buffer in self.graph.buffers if buffer.name == name)

    @property
    def inputs(self) -> list[int]:
        """The widths of the inputs."""
        return [self.width(name) for name in self.op.inputs]

    @property
    def out(self) -> int:
        """The width of the widest output."""
        return max(map(self.width, self.op.outputs), default=0)

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(n, k) of each weight."""
        shapes = {weight.name: weight.shape for weight in self.graph.weights}
        return [(shapes[name][-2], shapes[name][-1]) for name in self.op.weights]

    def count(self, attr: str) -> int:
        return int(self.op.attrs[attr])

    @property
    def recurrent_bytes(self) -> int:
        return 4 * self.graph.recurrent_floats(self.op)


def temporary_bytes(graph: Graph, max_tokens: int, positions: int) -> int:
    """The most bytes that a run of up to max_tokens takes beside the executor's buffers, of a
    sequence with up to `positions` positions."""
    uses = (_Use(graph, op, max_tokens, positions) for op in graph.ops)
    return max((_WHOLE.get(use.op.kind, _row_by_row)(use) for use in uses), default=0)


def rows_at_once(op: Op, widths: Mapping[str, int], n_tokens: int) -> int:
    """The rows on which an op runs at a time: all n_tokens of them, or a few. widths: of the
    buffers."""
    if op.kind in _WHOLE:
        return n_tokens
    widest = max(widths[name] for name in (*op.inputs, *op.outputs))
    return min(n_tokens, rows_of_a_piece(widest))


def rows_of_a_piece(width: int) -> int:
    """How many rows of `width` values an op may work on at a time."""
    return max(1, _PIECE_BYTES // (8 * max(width, 1)))


def _row_by_row(use: _Use) -> int:
    return _pieces(use, max([*use.inputs, use.out]))


def _pieces(use: _Use, width: int) -> int:
    return _PIECES * 8 * width * min(use.n, rows_of_a_piece(width))


# ---- products ------------------------------------------------------------------------------------


def _product(use: _Use) -> int:
    """A piece of a matrix, and its products."""
    return max(widened_bytes(*shape, use.n) for shape in use.matrices)


def _product_and_more(use: _Use) -> int:
    """What has no place in a buffer: the product that is added, or that a gate multiplies."""
    return 4 * use.n * use.out + max(_product(use), _pieces(use, use.out))


def _gathered_product(use: _Use) -> int:
    """The rows of an expert or a head: all tokens may have the same expert."""
    [(n_out, k)] = use.matrices
    return _product(use) + 4 * use.n * (k + n_out)


def _embed(use: _Use) -> int:
    return 3 * 4 * use.n * use.out


# ---- keys and values -----------------------------------------------------------------------------


def _append(use: _Use) -> int:
    """Rotated keys, and rows that are converted to the type of the pages."""
    return 6 * 4 * use.n * max(use.inputs)


def _attention(use: _Use) -> int:
    """The keys and values of a head, as they are and in float32, and its scores."""
    window, n_kv_heads = use.count("window"), use.count("n_kv_heads")
    seen = min(use.positions, window + use.n) if window else use.positions
    if use.op.attrs["chunked"]:
        seen = use.positions
    widths = use.count("head_dim") + use.count("value_dim")
    group = use.count("n_heads") // n_kv_heads
    return 6 * seen * widths + scores_bytes(use.n, group, seen, widths)


def _selected_attention(use: _Use) -> int:
    """Those of all heads, and the scores of tokens that see all positions."""
    n_kv_heads, widths = use.count("n_kv_heads"), use.count("head_dim") + use.count("value_dim")
    group = use.count("n_heads") // n_kv_heads
    copies = 2 * 4 * n_kv_heads * use.positions * widths + 4 * use.positions * widths
    return copies + scores_bytes(use.n, group, use.positions, widths)


def _index(use: _Use) -> int:
    """Keys of the index, and the scores of a token, sorted."""
    every = use.count("every") if "every" in use.op.attrs else 1
    n_keys, n_heads = use.positions // every, use.count("n_heads")
    return n_keys * (2 * 4 * (use.inputs[0] // n_heads) + 2 * 4 * n_heads + 4 * 8)


def _group_attention(use: _Use) -> int:
    """Keys of the window and of the groups, and the scores of a token."""
    n_heads, window = use.count("n_heads"), use.count("window")
    width, groups = use.out // n_heads, use.positions // use.count("every")
    n_keys = min(use.positions, window + use.n) + groups
    return n_keys * width * 4 * 4 + scores_bytes(1, n_heads, n_keys, 2 * width)


def _pool_groups(use: _Use) -> int:
    return 16 * 4 * use.count("every") * max(use.inputs)


# ---- recurrent memory ----------------------------------------------------------------------------


def _conv(use: _Use) -> int:
    return 4 * use.n * use.out + 3 * use.recurrent_bytes


def _recurrent(use: _Use) -> int:
    """Decays of all tokens, and products with the memory, for a token at a time."""
    scans = use.op.kind in ("ssm_scan", "selective_scan")
    smallest = min(use.inputs[1:], default=0) if scans else use.inputs[3]
    return 6 * 4 * use.n * smallest + 3 * use.recurrent_bytes


_WHOLE: Mapping[str, Callable[[_Use], int]] = {
    "embed": _embed,
    "linear": _product,
    "linear_many": _product,
    "linear_add": _product_and_more,
    "glu_linear": _product_and_more,
    "expert_linear": _gathered_product,
    "head_linear": _gathered_product,
    "kv_append": _append,
    "latent_append": _append,
    "rope_append": _append,
    "index_append": _append,
    "group_append": _append,
    "attention": _attention,
    "sparse_attention": _selected_attention,
    "block_attention": _selected_attention,
    "index_select": _index,
    "choose_blocks": _index,
    "group_attention": _group_attention,
    "sparse_group_attention": _group_attention,
    "pool_groups": _pool_groups,
    "block_mean": lambda use: 0,
    "conv": _conv,
    "delta_rule": _recurrent,
    "selective_scan": _recurrent,
    "ssm_scan": _recurrent,
}

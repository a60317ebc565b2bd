"""What a layer keeps of a sequence between tokens, as its graph says."""

from dataclasses import dataclass, replace
from itertools import accumulate

from airllm.graph.graph import Graph

__all__ = [
    "KeysArgument",
    "KeysValues",
    "LayerArgument",
    "LayerState",
    "first_seen",
    "recurrent_places",
    "state_of",
]


# What a backend is told of keys: (table, k_offset, v_offset, type, n_kv_heads, head_dim, value_dim)
KeysArgument = tuple[int, int, int, str, int, int, int]
# And of a layer's state: its keys, or None for a layer without them; the first of its recurrent
# floats, and their number; the keys of its index, or None; and, which may be left out, its groups,
# and what groups and keys of the index are made of.
LayerArgument = tuple[KeysArgument | None, int, int, *tuple[KeysArgument | None, ...]]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """A key and a value for each head and position.

    window: positions that a token sees; older ones are not needed. 0: all are.
    chunked: a token sees those from the last multiple of the window on.
    values_in_keys: a value is the first value_dim dimensions of the key (the latents of MLA).
    every: positions that have one key together, once all of them are there.
    exact: they are float32, whatever the type of the others.
    """

    n_kv_heads: int
    head_dim: int  # of a key
    value_dim: int
    window: int = 0
    values_in_keys: bool = False
    chunked: bool = False
    every: int = 1
    exact: bool = False


@dataclass(frozen=True, slots=True)
class LayerState:
    """keys: None if the layer has none of its own. keys_of: the layer whose keys and values it
    reads in their place. recurrent_floats: of memory that each token changes. index: keys beside
    the others, by which a token selects the positions that it sees. groups: keys that several
    positions have together. pending, index_pending: what pool_groups makes groups, and keys of the
    index, of: for each position its values as keys, and their scores as values."""

    keys: KeysValues | None = None
    keys_of: int | None = None
    recurrent_floats: int = 0
    index: KeysValues | None = None
    groups: KeysValues | None = None
    pending: KeysValues | None = None
    index_pending: KeysValues | None = None


def first_seen(window: int, chunked: bool, position: int) -> int:
    """The first position that a token at `position` sees; window, chunked: see KeysValues."""
    if not window:
        return 0
    return position - position % window if chunked else max(0, position + 1 - window)


def recurrent_places(graph: Graph) -> list[int]:
    """Where the recurrent memory of each op begins in that of the graph, in floats."""
    return [0, *accumulate(map(graph.recurrent_floats, graph.ops))][:-1]


def state_of(graph: Graph, keys_of: int | None = None) -> LayerState:
    """What the graph of a layer keeps."""
    keys, index, groups, window, chunked, values = None, None, None, 0, False, 0
    pending: dict[bool, KeysValues] = {}  # by whether it is of the index
    for op in graph.ops:
        call = graph.call(op)
        if op.kind in ("kv_append", "rope_append"):
            heads = call.count("n_kv_heads")
            keys = KeysValues(heads, call.count("head_dim"), call.inputs[1].width // heads)
        elif op.kind == "latent_append":
            keys = KeysValues(call.count("n_kv_heads"), call.count("head_dim"), 0, 0, True)
        elif op.kind == "attention":
            window, values = int(op.attrs["window"]), call.count("value_dim")
            chunked = bool(op.attrs["chunked"])
        elif op.kind in ("sparse_attention", "block_attention"):
            values = call.count("value_dim")
        elif op.kind in ("group_attention", "sparse_group_attention"):
            window, values = int(op.attrs["window"]), call.count("head_dim")
        elif op.kind == "pool_groups":
            parts, every = call.count("n_parts"), call.count("every")
            dim = call.inputs[0].width // parts
            pending[bool(op.attrs["of_index"])] = KeysValues(
                parts, dim, dim, window=parts * every, exact=True
            )
        elif op.kind in ("index_append", "group_append"):
            dim = call.count("head_dim")
            own = KeysValues(1, dim, dim, 0, True, every=call.count("every"))
            index, groups = (own, groups) if op.kind == "index_append" else (index, own)
    if keys is not None:
        keys = replace(keys, value_dim=values, window=window, chunked=chunked)
    floats = sum(map(graph.recurrent_floats, graph.ops))
    return LayerState(keys, keys_of, floats, index, groups, pending.get(False), pending.get(True))

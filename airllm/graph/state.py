"""What a layer keeps of a sequence between tokens, as its graph says."""

from dataclasses import dataclass

from airllm.graph.graph import Graph, look_up
from airllm.graph.ops import SIGNATURES

__all__ = ["KeysValues", "LayerArgument", "LayerState", "recurrent_places", "state_of"]


# What a backend is told of a layer's state: (table, k_offset, v_offset, type, n_kv_heads, head_dim,
# value_dim), or None for a layer without keys; then the first of its recurrent floats, and their
# number.
LayerArgument = tuple[tuple[int, int, int, str, int, int, int] | None, int, int]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """A key and a value for each head and position.

    window: positions that a token sees; older ones are not needed. 0: all are.
    values_in_keys: a value is the first value_dim dimensions of the key (the latents of MLA).
    """

    n_kv_heads: int
    head_dim: int  # of a key
    value_dim: int
    window: int = 0
    values_in_keys: bool = False


@dataclass(frozen=True, slots=True)
class LayerState:
    """keys: None if the layer has none of its own. keys_of: the layer whose keys and values it
    reads in their place. recurrent_floats: of memory that each token changes."""

    keys: KeysValues | None = None
    keys_of: int | None = None
    recurrent_floats: int = 0


def recurrent_places(graph: Graph) -> list[int]:
    """Where the recurrent memory of each op begins in that of the graph, in floats."""
    return [first for first, _ in _recurrent(graph)]


def _recurrent(graph: Graph) -> list[tuple[int, int]]:
    """The first float of each op's recurrent memory, and their number."""
    buffers = {buffer.name: buffer for buffer in graph.buffers}
    weights = {weight.name: weight for weight in graph.weights}
    found, first = [], 0
    for op in graph.ops:
        state = SIGNATURES[op.kind].state
        count = 0 if state is None else state(look_up(op, buffers, weights))
        found.append((first, count))
        first += count
    return found


def state_of(graph: Graph, keys_of: int | None = None) -> LayerState:
    """What the graph of a layer keeps."""
    buffers = {buffer.name: buffer for buffer in graph.buffers}
    weights = {weight.name: weight for weight in graph.weights}
    keys, window, values = None, 0, 0
    for op in graph.ops:
        call = look_up(op, buffers, weights)
        if op.kind in ("kv_append", "rope_append"):
            heads = call.count("n_kv_heads")
            keys = KeysValues(heads, call.count("head_dim"), call.inputs[1].width // heads)
        elif op.kind == "latent_append":
            keys = KeysValues(call.count("n_kv_heads"), call.count("head_dim"), 0, 0, True)
        elif op.kind == "attention":
            window, values = int(op.attrs["window"]), call.count("value_dim")
    if keys is not None:
        keys = KeysValues(keys.n_kv_heads, keys.head_dim, values, window, keys.values_in_keys)
    return LayerState(keys, keys_of, sum(count for _, count in _recurrent(graph)))

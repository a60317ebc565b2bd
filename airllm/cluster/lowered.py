"""The result of lowering: a node's program in the form that our executor takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from airllm.cluster.node_config import Sync
from airllm.cluster.rope import Angles
from airllm.graph.graph import Graph

WeightKey = tuple[str, int]  # an op's name and index


@dataclass(frozen=True, slots=True)
class Cache:
    """A layer's keys and values, [n_kv_heads, length, head_dim] each; k, v: their buffers."""

    k: int
    v: int
    n_kv_heads: int
    length: int
    head_dim: int

    @property
    def nbytes(self) -> int:
        return 2 * 4 * self.n_kv_heads * self.length * self.head_dim


@dataclass(frozen=True, slots=True)
class Segment:
    """The graph of a segment, with its weights, the number of its cache, and the syncs after it.

    The graph's external buffers are named "pipe.2", "buffer.0" (carried between segments),
    "angles.0", "tokens.1" (pipe 1 as int32).
    """

    graph: Graph
    weights: Mapping[str, WeightKey]  # by slot
    cache: int | None
    syncs: tuple[Sync, ...]


@dataclass(frozen=True, slots=True)
class Lowered:
    """carried: widths of the buffers that outlive a segment. positions: the sequence's length."""

    segments: tuple[Segment, ...]
    carried: Mapping[int, int]
    caches: tuple[Cache, ...]
    angles: tuple[Angles, ...]
    positions: int

"""A node's program as our executor takes it: what lowering gives."""

from collections.abc import Mapping
from dataclasses import dataclass

from airllm.cluster.node_config import Sync
from airllm.cluster.rope import Angles
from airllm.graph.graph import Graph

WeightKey = tuple[str, int]  # an op's name and index


@dataclass(frozen=True, slots=True)
class Cache:
    """A layer's keys and values, [n_kv_heads, length, head_dim] each; k, v: the root's buffers."""

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
    """External buffers of the graph: "pipe.2", "buffer.0" (carried between segments), "angles.0",
    "tokens.1" (pipe 1 as int32)."""

    graph: Graph
    weights: Mapping[str, WeightKey]  # by slot
    cache: int | None
    syncs: tuple[Sync, ...]


@dataclass(frozen=True, slots=True)
class Lowered:
    """carried: width of each buffer that outlives a segment. positions: the sequence's length."""

    segments: tuple[Segment, ...]
    carried: Mapping[int, int]
    caches: tuple[Cache, ...]
    angles: tuple[Angles, ...]
    positions: int

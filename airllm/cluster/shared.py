"""State that the segments of a program share: buffers, caches, tables of angles."""

from collections.abc import Mapping

from airllm.cluster.checks import Program
from airllm.cluster.lowered import Cache
from airllm.cluster.op_config import Rope
from airllm.cluster.rope import Angles
from airllm.cluster.wire import PointerType, ProtocolError

__all__ = ["Shared"]


class Shared:
    """uses: how the ops use each buffer. carried: buffers whose values pass from one segment to
    another."""

    def __init__(
        self, program: Program, uses: Mapping[int, PointerType], carried: frozenset[int]
    ) -> None:
        self.program, self.uses, self.carried = program, uses, carried
        self.caches: list[Cache] = []
        self.cache_of: dict[int, int] = {}  # by buffer
        self.angles: list[Angles] = []

    def width(self, index: int) -> int:
        """The number of values of a token in a buffer: all planes, and only this node's slice."""
        size = self.program.node.buffers[index].size
        sliced = self.uses[index] is PointerType.BATCHED_SLICE
        return size.z * (size.x // self.program.net.n_nodes if sliced else size.x)

    def cache(self, cache: Cache, where: str) -> int:
        """The number of a KV cache. ProtocolError if another cache has one of its buffers."""
        if cache.k not in self.cache_of and cache.v not in self.cache_of:
            self.cache_of[cache.k] = self.cache_of[cache.v] = len(self.caches)
            self.caches.append(cache)
        number = self.cache_of.get(cache.k)
        if number is None or self.caches[number] != cache:
            raise ProtocolError(f"{where}: its cache shares a buffer with another cache")
        return number

    def angles_of(self, config: Rope) -> str:
        """The external buffer with a rope's angles. Ropes with equal angles share it."""
        angles = Angles.of(config)
        if angles not in self.angles:
            self.angles.append(angles)
        return f"angles.{self.angles.index(angles)}"

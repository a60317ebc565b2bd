"""What each method of a GraphBuilder does: it checks an op, and appends it."""

import itertools
from collections.abc import Sequence

from airllm.graph.graph import Graph, check_outputs, look_up
from airllm.graph.ops import SIGNATURES
from airllm.graph.vocabulary import Activations, Attr, Buffer, DType, GraphError, Op, Weight

__all__ = ["OpEmitter"]


class OpEmitter:
    """Buffers, weight slots and ops as they are declared."""

    def __init__(self, name: str, *, activations: Activations = "auto") -> None:
        """activations: how the graph's matrix products round their inputs, see ops.SIGNATURES."""
        self.name = name
        self._activations = activations
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, Weight] = {}
        self._ops: list[Op] = []

    def external(self, name: str, width: int, dtype: DType = "float32") -> Buffer:
        """A buffer that the caller passes with each run: an input, an output, or both."""
        buffer = Buffer(name, width, external=True, dtype=dtype)
        if self._buffers.setdefault(name, buffer) != buffer:
            raise GraphError(f"graph {self.name!r}: there is already a buffer {name!r}")
        return buffer

    def weight(self, name: str, *shape: int) -> Weight:
        """A weight slot; (n) is a vector, (n, k) a matrix as checkpoints store it, (n_experts, n,
        k) a matrix for each expert, (n_experts, n) a vector for each in expert_bias, (n_heads, n,
        k) a matrix for each head in head_linear."""
        weight = Weight(name, shape)
        if self._weights.setdefault(name, weight) != weight:
            raise GraphError(f"graph {self.name!r}: weight {name!r} has two shapes")
        return weight

    def build(self) -> Graph:
        """The graph. GraphError if an op reads a buffer that none wrote, or a slot is unused."""
        buffers, weights = tuple(self._buffers.values()), tuple(self._weights.values())
        return Graph(self.name, buffers, weights, tuple(self._ops))

    def _emit(
        self,
        kind: str,
        inputs: Sequence[Buffer],
        out: Buffer | None,
        weights: Sequence[Weight] = (),
        **attrs: Attr,
    ) -> Buffer:
        slots = tuple(weight.name for weight in weights)
        named_after = slots[0] if slots and not SIGNATURES[kind].optional else kind
        named_after = kind if len(slots) > 1 else named_after
        name = out.name if out is not None else self._unused_name(named_after)
        self._append(Op(kind, tuple(buffer.name for buffer in inputs), name, slots, attrs))
        return self._buffers[name]

    def _append(self, op: Op) -> None:
        """Check an op, declare the buffer that it writes unless it is there, and add it."""
        try:
            call = look_up(op, self._buffers, self._weights)
            width = SIGNATURES[op.kind].width(call)
            if op.output is not None and width is not None:
                self._buffers.setdefault(op.output, Buffer(op.output, width))
            check_outputs(call, width, self._buffers)
        except GraphError as error:
            raise GraphError(f"graph {self.name!r}: {error}") from None
        self._ops.append(op)

    def _unused_name(self, name: str) -> str:
        """`name`, or name.2, name.3... if a buffer has it."""
        names = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
        return next(n for n in names if n not in self._buffers)

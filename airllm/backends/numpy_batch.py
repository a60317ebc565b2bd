"""What one run of NumPy's executor works on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_state import NumpyState
from airllm.graph.graph import Op

__all__ = ["Buffers", "TokenBatch", "TokenSequence", "arrays"]

Buffers = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    first: int  # row of the buffers
    n_tokens: int
    past: int = 0
    state: NumpyState | None = None
    layer: int = 0  # of the state

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.n_tokens)

    @property
    def kept(self) -> NumpyState:
        """ValueError for a run without a state."""
        if self.state is None:
            raise ValueError("this graph needs keys and values")
        return self.state

    @property
    def end(self) -> int:
        """Positions in the state after the batch."""
        return self.past + self.n_tokens

    def group_rows(self, every: int) -> range:
        """The rows of the buffers of tokens that are the last of a group of `every` positions."""
        first = self.first + every - 1 - self.past % every
        return range(first, self.rows.stop, every)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What one run works on."""

    buffers: Buffers  # each [n_tokens, width]
    weights: Mapping[str, Any]
    n_tokens: int
    sequences: Sequence[TokenSequence]
    layer: int = 0
    # The first float of an op's recurrent memory, by the op's id().
    recurrent_first: Mapping[int, int] = field(default_factory=dict)

    def part(self, op: Op, first: int, end: int) -> "TokenBatch":
        """The rows [first, end) of the buffers of an op that computes each row by itself."""
        names = (*op.inputs, *op.outputs)
        buffers = {name: self.buffers[name][first:end] for name in names}
        return TokenBatch(buffers, self.weights, end - first, (), self.layer)

    def multiply(self, x: NDArray[Any], weight: str, out: NDArray[Any]) -> None:
        """Multiplies each sequence separately, so that its sums round the same in any batch."""
        parts = [sequence.rows for sequence in self.sequences]
        numpy_ops.linear_apply(x, self.weights[weight], out, parts)


def arrays(op: Op, batch: TokenBatch) -> list[NDArray[Any]]:
    """An op's inputs, and its output."""
    assert op.output is not None
    return [batch.buffers[name] for name in (*op.inputs, op.output)]

"""What one sequence takes part with in a pass of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from airllm.engine.pieces import even_batches
from airllm.state.sequence import SequenceState

__all__ = ["Step", "Wanted"]

Wanted = Literal["nothing", "last", "all", "hidden"]


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens to append to a sequence.

    sizes: of their batches; even ones if it is empty. wanted: nothing; the logits of the last token
    or of all tokens; or the last hidden states of all tokens. one_by_one: each token has the
    numbers that it has in a batch by itself; all logits are wanted.
    """

    tokens: Sequence[int]
    state: SequenceState
    sizes: Sequence[int] = ()
    wanted: Wanted = "last"
    one_by_one: bool = False

    @property
    def n_logits(self) -> int:
        """Of how many of the last tokens the logits are wanted."""
        if self.one_by_one or self.wanted == "all":
            return len(self.tokens)
        return int(self.wanted == "last")

    def batches(self, most: int) -> list[tuple[int, int]]:
        """(start, stop) of each batch. most: tokens of an even batch."""
        if not self.sizes:
            return even_batches(len(self.tokens), most)
        stops = list(accumulate(self.sizes))
        return list(zip([0, *stops], stops, strict=False))

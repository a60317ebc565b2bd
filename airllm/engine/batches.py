"""Batches: tokens that run through a graph together, of one sequence or one of each of several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Executor
from airllm.engine.pieces import even_batches
from airllm.state.sequence import SequenceState

__all__ = [
    "Buffers",
    "DecoderBatch",
    "Logits",
    "cut_sequence",
    "cut_single_tokens",
    "tokens_by_state",
]

Logits: TypeAlias = NDArray[np.float32]
Buffers: TypeAlias = dict[str, NDArray[np.float32]]
SequencePart: TypeAlias = tuple[int, int, SequenceState]


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """tokens: int32 [n], those of the first sequence first. sequences: for each the number of its
    tokens, the number of tokens before them, and its state. logits: float32 [m, vocab], memory for
    the logits of the last m tokens; m = n if there are several sequences. hidden: float32
    [n, hidden_size], memory for the last hidden states, or None.
    """

    tokens: NDArray[np.int32]
    sequences: Sequence[SequencePart]
    logits: Logits
    hidden: NDArray[np.float32] | None = None

    @property
    def backings(self) -> list[tuple[int, int, Any]]:
        """(n_tokens, past, state) of each sequence, for Executor.run_layers."""
        return [(count, past, state.backing) for count, past, state in self.sequences]

    @property
    def positions(self) -> NDArray[np.int32]:
        """Of the tokens in their sequences: int32 [n]."""
        stretches = [np.arange(past, past + n, dtype=np.int32) for n, past, _ in self.sequences]
        return np.concatenate(stretches)

    def run_whole(
        self,
        executor: Executor,
        bound: Any,
        buffers: dict[str, NDArray[Any]],
        n_tokens: int,
        threads: int,
    ) -> None:
        """Runs a graph that is no layer's. Sequences of one token each stay apart: the numbers of
        each then do not depend on the others."""
        if len(self.sequences) > 1:
            executor.run_layers([bound], buffers, self.backings, threads=threads)
        else:
            executor.run(bound, buffers, n_tokens, threads=threads)


def cut_sequence(
    tokens: NDArray[np.int32],
    state: SequenceState,
    logits: Logits,
    batches: Iterable[tuple[int, int]],
) -> list[DecoderBatch]:
    """The tokens of one sequence in batches, (start, stop) of each. logits: of the last len(logits)
    tokens."""
    found, n = [], len(tokens)
    for start, stop in batches:
        # The batch's rows of the logits, which belong to the tokens from n - len(logits) on.
        own = logits[max(start + len(logits) - n, 0) : max(stop + len(logits) - n, 0)]
        sequence = stop - start, state.length + start, state
        found.append(DecoderBatch(tokens[start:stop], [sequence], own))
    return found


def cut_single_tokens(
    tokens: NDArray[np.int32], sequences: Sequence[SequencePart], logits: Logits, most: int
) -> list[DecoderBatch]:
    """Sequences of one token each in batches of up to `most`. logits: the first rows are used."""
    return [
        DecoderBatch(tokens[start:stop], sequences[start:stop], logits[start:stop])
        for start, stop in even_batches(len(sequences), most)
    ]


def tokens_by_state(batches: Iterable[DecoderBatch]) -> dict[int, tuple[SequenceState, list[int]]]:
    """By the id() of each sequence's state: the state and the tokens of all batches."""
    found: dict[int, tuple[SequenceState, list[int]]] = {}
    for batch in batches:
        ids, first = batch.tokens.tolist(), 0
        for count, _, state in batch.sequences:
            found.setdefault(id(state), (state, []))[1].extend(ids[first : first + count])
            first += count
    return found

"""How the tokens of a prompt are cut into batches, so that no bit depends on where the cuts are.

A token's numbers depend on the size of its batch: with activations="auto", up to 64 tokens are
rounded to 16 bits and more to 8 bits, and one token alone takes another way through the attention
than several. On the C++ backend nothing else matters: batches of one kind round alike, wherever
they begin. NumPy's BLAS sums in an order of its own for each shape, so that there each size is a
kind, and only the very same batches give the same bits.

A kind is called by the fewest tokens of its batches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROUNDED_TO_16_BITS", "KindRun", "Kinds", "even_batches"]

MOST_ROUNDED_TO_16_BITS = 64  # tokens of a batch, with activations="auto"


def even_batches(n: int, most: int) -> list[tuple[int, int]]:
    """(start, stop) of the fewest batches of at most `most` tokens, with sizes that differ by at
    most one: a small last batch would read all weights for a few tokens."""
    count = -(-n // most)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


@dataclass(frozen=True, slots=True)
class KindRun:
    """Tokens [start, stop) of an evaluation, in batches of one kind."""

    start: int
    stop: int
    kind: int


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of batches of a decoder.

    batch_size: the most tokens of a batch. any_batch: see Backend.any_batch. rounds: whether the
    number of tokens decides how activations are rounded (activations="auto").
    """

    batch_size: int
    any_batch: bool
    rounds: bool

    def of(self, n_tokens: int) -> int:
        """The kind of a batch of n_tokens."""
        if not self.any_batch or n_tokens == 1:
            return n_tokens
        most = MOST_ROUNDED_TO_16_BITS
        return most + 1 if self.rounds and n_tokens > most else 2

    def runs(self, n_tokens: int) -> list[KindRun]:
        """The batches of Decoder.evaluate for n_tokens tokens."""
        found: list[KindRun] = []
        for start, stop in even_batches(n_tokens, self.batch_size):
            kind = self.of(stop - start)
            if found and found[-1].kind == kind:
                start = found.pop().start
            found.append(KindRun(start, stop, kind))
        return found

    def by_token(self, n_tokens: int) -> NDArray[np.int64]:
        """The kind of each token's batch in Decoder.evaluate, int64 [n_tokens]."""
        runs = self.runs(n_tokens)
        return np.repeat([run.kind for run in runs], [run.stop - run.start for run in runs])

    def pieces(self, n_tokens: int, kind: int, most: int) -> list[int]:
        """Sizes of batches of one kind for n_tokens tokens, with up to `most` tokens each, or as
        few as the kind has. Empty if no batches of the kind have n_tokens together."""
        if not self.any_batch or kind == 1:  # the kind has one size
            return [kind] * (n_tokens // kind) if n_tokens % kind == 0 else []
        largest = self.batch_size
        if kind == 2 and self.rounds:
            largest = min(largest, MOST_ROUNDED_TO_16_BITS)
        fewest = -(-n_tokens // largest)
        count = min(max(fewest, -(-n_tokens // max(most, 1))), n_tokens // kind)
        if count == 0 or count < fewest:
            return []
        return [n_tokens * (i + 1) // count - n_tokens * i // count for i in range(count)]

    def pieces_after(self, length: int, n_tokens: int, most: int) -> list[int]:
        """Batches for tokens [length, n_tokens) with the bits that they have if all n_tokens are
        evaluated together. Empty if there are none."""
        sizes: list[int] = []
        for run in self.runs(n_tokens):
            if run.stop > length:
                of_run = self.pieces(run.stop - max(run.start, length), run.kind, most)
                if not of_run:
                    return []
                sizes += of_run
        return sizes

    def reusable(self, most: int, n_tokens: int) -> int:
        """The longest beginning of n_tokens tokens, up to `most`, after which the others can be
        evaluated with the bits that they have if all are evaluated together. The last token is
        always evaluated."""
        for run in reversed(self.runs(n_tokens)):
            for length in range(min(most, run.stop, n_tokens - 1), run.start, -1):
                left = run.stop - length
                if not left or self.pieces(left, run.kind, self.batch_size):
                    return length
        return 0

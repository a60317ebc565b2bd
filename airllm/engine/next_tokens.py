"""Guesses by a model's next-token head, see airllm.models.next_head.

The head keeps keys and values of its own, a row for each token of the model's sequence. The row of
a token is made of its embedding and the model's hidden state before it, in the pass that evaluates
the token (`follow`). Where that hidden state is not known, it is 0: before the first token, and
where the sequence was cut. The answer does not depend on these rows: they only decide which tokens
are guessed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.backends.profiling import Profile
from airllm.models import Model
from airllm.models.next_head import HeadSteps
from airllm.models.rope_rows import RopeRows
from airllm.state.layout import KVType, StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import SequenceState
from airllm.weights.buffers import NEXT_HEAD_ROWS, NEXT_HEAD_TOKENS
from airllm.weights.layer_weights import WeightSource

__all__ = ["NextTokens"]

Rows = NDArray[np.float32]
Buffers = dict[str, NDArray[Any]]


class NextTokens:
    """The next-token head of a model, beside one sequence of it. A Guesser; see lookahead.

    executors: of the head's graphs, to which the source of weights binds them before `use`.
    """

    def __init__(
        self, model: Model, backend: Backend, kv_type: KVType, context: int, threads: int
    ) -> None:
        """The constructor allocates everything but pages. threads: the most for a single token, 0
        for all."""
        head, most = model.next_head, NEXT_HEAD_ROWS
        assert head is not None
        sizes = zip(head.graphs, NEXT_HEAD_TOKENS, strict=True)
        self.executors: HeadSteps[Executor] = HeadSteps(
            *(backend.executor(graph, n) for graph, n in sizes)
        )
        layout = StateLayout([head.state], kv_type)
        pool = PagePool(backend.memory, layout.page_bytes)
        self._state = SequenceState(layout, pool, backend.sequence_state, context)
        self._threads, self._graphs, self._rotations = threads, head.graphs, head.rotations
        self._carried = {
            name: np.zeros((most, width), np.float32) for name, width in model.carried.items()
        }
        self._of_layer = [name for name in model.carried if head.graphs.layer.has(name)]
        width = model.config.hidden_size
        # Hidden states of the model: row i is that of position self._known.start + i.
        self._hidden = np.zeros((1 + most, width), np.float32)
        self._known = range(0)
        self._guessed = np.empty((1, width), np.float32)  # the head's own hidden state
        self._logits = np.empty((1, model.config.vocab_size), np.float32)
        self._first = 0  # the position of the first token that has a row
        self._weights: WeightSource
        self._rope: Mapping[str, RopeRows]

    def use(self, weights: WeightSource, rope: Mapping[int, RopeRows]) -> None:
        """To be called once. rope: by the id of the rotation."""
        self._weights = weights
        self._rope = {name: rope[id(each)] for name, each in self._rotations.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return self._state.nbytes

    @contextmanager
    def profile(self, profile: Profile) -> Iterator[None]:
        """Inside the `with`, record the time of each op."""
        before, pairs = self.executors, zip(self.executors, self._graphs, strict=True)
        self.executors = HeadSteps(*(profile.wrap(each, graph) for each, graph in pairs))
        try:
            yield
        finally:
            self.executors = before

    def follow(
        self, tokens: Sequence[int], parts: Iterable[tuple[NDArray[np.int32], int, Rows]]
    ) -> None:
        """Make the rows of tokens that the model evaluates. tokens: those of the sequence before.
        parts: for each batch its tokens, the position of the first, and the model's last residual,
        float32 [n, hidden], which stays as it is."""
        self._keep(tokens)
        with self._weights.next_head() as found:
            bound = HeadSteps(*found)
            for ids, past, residual in parts:
                if self._end != past:  # the sequence was read from a file
                    self._state.clear()
                    self._first = past
                for start in range(0, len(ids), NEXT_HEAD_ROWS):
                    chunk = slice(start, start + NEXT_HEAD_ROWS)
                    self._append(bound, ids[chunk], residual[chunk])

    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        """See Guesser. Empty unless all tokens but the last have their rows."""
        at, guesses = len(tokens) - 1, list[int]()
        self._keep(tokens[:-1])
        if self._end != at:
            return []
        token, hidden = tokens[-1], self._before(at)
        with self._weights.next_head() as found:
            bound = HeadSteps(*found)
            for position in range(at, at + n):
                self._join(bound, np.array([token], np.int32), hidden)
                self._run_layer(self.executors.layer, bound.layer, position, 1)
                hidden = self._guessed
                buffers: Buffers = {"residual": self._carried["residual"][:1]}
                buffers |= {"hidden": hidden, "logits": self._logits}
                self.executors.output.run(bound.output, buffers, 1, threads=self._threads)
                token = int(np.argmax(self._logits))
                guesses.append(token)
        return guesses

    def _append(self, bound: HeadSteps[Any], ids: NDArray[np.int32], residual: Rows) -> None:
        """Makes the next rows."""
        n, past = len(ids), self._end
        self._hidden[0] = self._before(past)
        buffers: Buffers = {"residual": residual, "hidden": self._hidden[1 : 1 + n]}
        self.executors.norm.run(bound.norm, buffers, n)
        self._known = range(past - 1, past + n)
        self._join(bound, ids, self._hidden[:n])
        self._run_layer(self.executors.append, bound.append, past, n)
        self._state.advance(ids.tolist())

    @property
    def _end(self) -> int:
        """The position after the last token that has a row."""
        return self._first + self._state.length

    def _keep(self, tokens: Sequence[int]) -> None:
        """Forget the rows from the first token on that differs from `tokens`."""
        own = self._state.tokens
        kept = _shared(own, tokens[self._first : self._first + len(own)])
        self._state.trim(kept)
        self._known = range(self._known.start, min(self._known.stop, self._first + kept))

    def _before(self, position: int) -> Rows:
        """The hidden state before a position, [1, hidden], or zeros."""
        if position - 1 in self._known:
            row = position - 1 - self._known.start
            return self._hidden[row : row + 1]
        return np.zeros((1, self._hidden.shape[1]), np.float32)

    def _join(self, bound: HeadSteps[Any], ids: NDArray[np.int32], hidden: Rows) -> None:
        """hidden: the states before the tokens. Writes the head's residual."""
        n = len(ids)
        buffers: Buffers = {"tokens": ids, "hidden": hidden}
        buffers["residual"] = self._carried["residual"][:n]
        self.executors.join.run(bound.join, buffers, n, threads=self._threads if n == 1 else 0)

    def _run_layer(self, executor: Executor, bound: Any, position: int, n: int) -> None:
        past = position - self._first
        buffers: Buffers = {name: self._carried[name][:n] for name in self._of_layer}
        buffers |= {name: table.rows([(past, n)]) for name, table in self._rope.items()}
        self._state.make_room(0, 1, past, n)
        sequence = n, past, self._state.backing
        threads = self._threads if n == 1 else 0
        executor.run_layers([bound], buffers, [sequence], threads=threads)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first tokens are equal. Most often they differ among the last few, if at all,
    and lists are compared a hundred times faster than their tokens one by one."""
    n = min(len(a), len(b))
    start = n if a[:n] == b[:n] else max(n - NEXT_HEAD_ROWS, 0)
    start = start if a[:start] == b[:start] else 0
    while start < n and a[start] == b[start]:
        start += 1
    return start

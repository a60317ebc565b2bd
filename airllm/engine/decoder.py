"""The forward pass: tokens through embedding, layers and head, one layer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from airllm.backends import MOST_THREADS, Executor
from airllm.backends.profiling import Profile
from airllm.models.rope_rows import RopeRows
from airllm.state.kv_cache import KVCache, KVType
from airllm.util.progress import OnProgress, part_of
from airllm.weights.open_weights import layer_executor, open_weights
from airllm.weights.plan_model import PlannedModel

Logits = NDArray[np.float32]


class Decoder:
    """A model ready to run: executors, weights, KV cache, and the buffers between the graphs.

    All of it is allocated once; an evaluation allocates nothing that grows with the model but, for
    a prompt of several batches and streamed layers, their residuals, which the plan counts.
    """

    def __init__(
        self,
        planned: PlannedModel,
        *,
        decode_threads: int = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """decode_threads: at most so many for one token at a time; 0 for all."""
        model, backend, plan = planned.model, planned.backend, planned.plan
        config, batch_size = model.config, plan.batch_size
        self._model, self.backend, self.plan, self._batch_size = model, backend, plan, batch_size
        self._decode_threads = min(int(decode_threads), MOST_THREADS)
        # Before the weights, which take their time: it may be refused.
        self._kv_type: KVType = planned.kv_type
        self.cache = self.new_cache(plan.context)
        kinds = [layer_executor(backend, kind.graph, batch_size, plan) for kind in model.kinds]
        self._layers: list[Executor] = [kinds[kind] for kind in model.kind_of_layer]
        self._embed: Executor = backend.executor(model.embed, batch_size)
        self._head: Executor = backend.executor(model.head, batch_size)
        self._residual = np.empty((batch_size, config.hidden_size), np.float32)
        self._last_logits = np.empty(config.vocab_size, np.float32)
        self._last_row = self._last_logits[np.newaxis]
        self._kv_layers: WeakKeyDictionary[KVCache, Any] = WeakKeyDictionary()
        self._rope = [RopeRows(kind.inv_freq, plan.context) for kind in model.kinds]
        self._closed = False
        self.weights = open_weights(
            planned.file,
            model,
            backend,
            plan,
            planned.parts,
            embed=self._embed,
            layers=self._layers,
            head=self._head,
            on_progress=on_progress,
        )

    def close(self) -> None:
        """End what reads ahead. An evaluation is a RuntimeError from now on."""
        self._closed = True
        self.weights.close()

    @property
    def streams(self) -> bool:
        """Whether each pass waits for the disk."""
        return self.weights.streams

    @property
    def buffer_bytes(self) -> int:
        """Bytes of what is between and inside the graphs."""
        return self.plan.buffer_bytes

    @property
    def batch_size(self) -> int:
        """Tokens that are evaluated at once, at most."""
        return self._batch_size

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Note what each op takes; see Profile."""
        profile = Profile(self.cache.row_bytes)
        before = (self._embed, self._layers, self._head)
        model = self._model
        self._embed = profile.wrap(self._embed, model.embed)
        self._layers = [
            profile.wrap(layer, model.kinds[kind].graph)
            for layer, kind in zip(self._layers, model.kind_of_layer, strict=True)
        ]
        self._head = profile.wrap(self._head, model.head)
        try:
            yield profile
        finally:
            self._embed, self._layers, self._head = before

    def new_cache(self, capacity: int) -> KVCache:
        """A cache for a sequence beside that of `cache`. MemoryError where there is no room."""
        c = self._model.config
        return KVCache(c.n_layers, c.n_kv_heads, c.head_dim, capacity, self._kv_type)

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        logits: Logits | None = None,
        on_progress: OnProgress | None = None,
        cache: KVCache | None = None,
    ) -> Logits:
        """Append tokens to a cache, a batch at a time, and compute logits.

        tokens: int32 [n], at least one, valid ids that fit the context: not checked here.
        logits: float32 [n, vocab], filled and returned; if None, only the last row is computed and
            returned, float32 [vocab], in a buffer that the next call overwrites.
        on_progress: called with (done, total) after each step: one layer for one batch of tokens.
        cache: `self.cache` unless given.

        Where layers are streamed, all batches go through a layer before the next one is read, so
        that a prompt takes one pass of the disk however long it is.

        An exception, Ctrl-C's too, leaves in the cache the batches that were complete.
        FormatError when the file has changed since it was opened.
        """
        cache = self.cache if cache is None else cache
        parts = self._batches(tokens, cache, self._last_row if logits is None else logits)
        passes = [parts] if self.streams else [[part] for part in parts]
        for index, together in enumerate(passes):
            n_layers = self._model.config.n_layers
            before, total = n_layers * index, n_layers * len(passes)
            self._pass(together, part_of(on_progress, before, n_layers, total))
        return self._last_logits if logits is None else logits

    def evaluate_batch(
        self,
        tokens: NDArray[np.int32],
        caches: Sequence[KVCache],
        logits: Logits,
        on_progress: OnProgress | None = None,
    ) -> Logits:
        """Append one token to each of several caches, reading the layers once for all of them.

        tokens: int32 [n], checked no more than by `evaluate`.
        logits: float32 [n, vocab], filled and returned.
        on_progress: called with (done, total) layers.
        """
        self._pass(self._singles(tokens, caches, logits), on_progress)
        return logits

    def evaluate_each(
        self,
        steps: Sequence[tuple[Sequence[int], KVCache]],
        logits: Logits,
        on_progress: OnProgress | None = None,
    ) -> list[Logits]:
        """Append tokens to each of several caches, in one pass: all go through a layer before the
        next is read. The single ones go together, as in evaluate_batch; the others are evaluated
        as by themselves, so that what stands beside a prompt does not change its numbers.

        steps: of each cache its tokens, at least one. logits: float32 [n_steps, vocab], room for
        what is returned: those of each one's last token, [vocab].
        on_progress: called with (done, total) layers.
        """
        singles = [index for index, (tokens, _) in enumerate(steps) if len(tokens) == 1]
        others = [index for index, (tokens, _) in enumerate(steps) if len(tokens) > 1]
        parts = []
        if singles:
            ids = np.array([steps[index][0][0] for index in singles], np.int32)
            parts += self._singles(ids, [steps[index][1] for index in singles], logits)
        for row, index in enumerate(others, len(singles)):
            tokens, cache = steps[index]
            parts += self._batches(np.array(tokens, np.int32), cache, logits[row : row + 1])
        self._pass(parts, on_progress)
        rows = {index: row for row, index in enumerate(singles + others)}
        return [logits[rows[index]] for index in range(len(steps))]

    def _batches(self, tokens: NDArray[np.int32], cache: KVCache, logits: Logits) -> list["_Part"]:
        """Some tokens, batch by batch. logits: of all of them, or of the last one alone."""
        parts, n = [], len(tokens)
        for start, stop in _even_shares(n, self._batch_size):
            # Those of the tokens from n - len(logits) on.
            own = logits[max(start + len(logits) - n, 0) : max(stop + len(logits) - n, 0)]
            sequence = stop - start, cache.length + start, cache
            parts.append(_Part(tokens[start:stop], [sequence], own))
        return parts

    def _singles(
        self, tokens: NDArray[np.int32], caches: Sequence[KVCache], logits: Logits
    ) -> list["_Part"]:
        """A token of each of some caches, batch by batch. logits: the first of them are theirs."""
        sequences = [(1, cache.length, cache) for cache in caches]
        return [
            _Part(tokens[start:stop], sequences[start:stop], logits[start:stop])
            for start, stop in _even_shares(len(caches), self._batch_size)
        ]

    def _pass(self, parts: Sequence["_Part"], on_layer: OnProgress | None) -> None:
        """All parts through a layer before the next: where layers come from the disk, one pass of
        it is enough for all, and each part's numbers are those that it has alone.

        on_layer: called with (done, total) layers, which are gone through one by one then.
        An exception leaves the caches as they were.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        n = sum(len(part.tokens) for part in parts)
        # What one pass for several batches costs is the residual of all tokens.
        few = n <= self._batch_size
        all_rows = self._residual if few else np.empty((n, self._residual.shape[1]), np.float32)
        residuals, first = [], 0  # of each part: [n_tokens, hidden_size]
        for part in parts:
            residuals.append(all_rows[first : first + len(part.tokens)])
            first += len(part.tokens)
        threads = self._decode_threads if n == 1 else 0
        with self.weights.embed() as bound:
            for part, residual in zip(parts, residuals, strict=True):
                buffers = {"tokens": part.tokens, "residual": residual}
                self._embed.run(bound, buffers, len(residual), threads=threads)
        self._run_layers(parts, residuals, threads, on_layer)
        if any(len(part.logits) for part in parts):
            with self.weights.head() as bound:
                for part, residual in zip(parts, residuals, strict=True):
                    self._run_head(bound, part, residual, threads)
        for part in parts:
            ids, first = part.tokens.tolist(), 0
            for count, _, cache in part.sequences:
                cache.tokens += ids[first : first + count]
                first += count

    def _run_layers(
        self,
        parts: Sequence["_Part"],
        residuals: Sequence[NDArray[np.float32]],
        threads: int,
        on_layer: OnProgress | None,
    ) -> None:
        """residuals: of each part, [n_tokens, hidden_size]; changed from layer to layer."""
        n_layers, kind_of_layer = self._model.config.n_layers, self._model.kind_of_layer
        runs = []
        for part, residual in zip(parts, residuals, strict=True):
            positions = [(past, count) for count, past, _ in part.sequences]
            buffers = [  # of each kind of layer; rope: [n, rope_dims]
                {"residual": residual, "rope": rope.rows(positions)} for rope in self._rope
            ]
            runs.append((buffers, self._with_caches(part)))
        # Many tokens take their time in each layer, and Ctrl-C waits for the end of a call.
        few = on_layer is None and sum(map(len, residuals)) <= 64
        at_once = self.weights.layers_at_once if few else 1
        for start, stop in _stretches(kind_of_layer, at_once):
            with self.weights.layers(start, stop) as bound:
                for buffers, sequences in runs:
                    self._layers[start].run_layers(
                        bound, buffers[kind_of_layer[start]], sequences, start, threads=threads
                    )
            if on_layer is not None:
                on_layer(stop, n_layers)

    def _run_head(
        self, bound: Any, part: "_Part", residual: NDArray[np.float32], threads: int
    ) -> None:
        n = len(part.logits)
        buffers = {"residual": residual[len(residual) - n :], "logits": part.logits}
        if len(part.sequences) > 1:  # of each one's only token
            self._head.run_layers([bound], buffers, self._with_caches(part), threads=threads)
        elif n:
            self._head.run(bound, buffers, n, threads=threads)

    def _with_caches(self, part: "_Part") -> list[tuple[int, int, Any]]:
        """The sequences of a part as the backend takes them."""
        return [(count, past, self._layers_of(cache)) for count, past, cache in part.sequences]

    def _layers_of(self, cache: KVCache) -> Any:
        """A cache as the backend takes it, as long as there is the cache."""
        if cache not in self._kv_layers:
            self._kv_layers[cache] = self.backend.kv_layers(cache.layers)
        return self._kv_layers[cache]


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens that run through a graph together.

    tokens: int32 [n], those of the first sequence first. sequences: how many each has, how many
    stand before them, and its cache. logits: float32 [m, vocab], where those of the last m go, of
    several sequences all.
    """

    tokens: NDArray[np.int32]
    sequences: Sequence[tuple[int, int, KVCache]]
    logits: Logits


def _even_shares(n: int, most: int) -> list[tuple[int, int]]:
    """Beginning and end of as few shares of up to `most` as n takes, all within one as large: a
    small last one would read all weights for a few tokens."""
    count = -(-n // most)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


@lru_cache
def _stretches(kind_of_layer: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """First layer and end of stretches of up to `most` layers of one kind."""
    stretches, start = [], 0
    for index in range(1, len(kind_of_layer) + 1):
        at_end = index == len(kind_of_layer)
        if at_end or kind_of_layer[index] != kind_of_layer[start] or index - start == most:
            stretches.append((start, index))
            start = index
    return stretches

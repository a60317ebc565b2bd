"""The forward pass: tokens through embedding, layers and head, one layer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.formats.model_file import ModelFile
from airllm.kv_cache import KVCache, KVType
from airllm.models import Model
from airllm.open_weights import layer_executor, open_weights, plan_weights
from airllm.plan import buffer_bytes
from airllm.profiling import Profile
from airllm.progress import OnProgress, part_of
from airllm.rope_rows import RopeRows

Logits = NDArray[np.float32]


class Decoder:
    """A model ready to run: executors, weights, KV cache, and the buffers between the graphs.

    All of it is allocated once; an evaluation allocates nothing that grows with the model.
    """

    def __init__(
        self,
        gguf: ModelFile,
        model: Model,
        backend: Backend,
        *,
        context: int,
        batch_size: int,
        kv_type: KVType,
        decode_threads: int = 0,
        budget: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """decode_threads: at most so many for one token at a time; 0 for all.
        budget: bytes for weights, cache and buffers, None for no limit; see airllm.plan.

        BudgetError where the model does not run in it."""
        config = model.config
        self._model, self.backend, self._batch_size = model, backend, batch_size
        self._decode_threads = decode_threads
        # Before the weights, which take their time: it may be refused.
        self._kv_type: KVType = kv_type
        self.cache = self.new_cache(context)
        self.plan, parts = plan_weights(
            gguf,
            model,
            backend,
            budget=budget,
            context=context,
            kv_cache_bytes=self.cache.nbytes,
            buffer_bytes=self.buffer_bytes,
        )
        kinds = [layer_executor(backend, kind.graph, batch_size, self.plan) for kind in model.kinds]
        self._layers: list[Executor] = [kinds[kind] for kind in model.kind_of_layer]
        self._embed: Executor = backend.executor(model.embed, batch_size)
        self._head: Executor = backend.executor(model.head, batch_size)
        self._residual = np.empty((batch_size, config.hidden_size), np.float32)
        self._last_logits = np.empty(config.vocab_size, np.float32)
        self._last_row = self._last_logits[np.newaxis]
        self.weights = open_weights(
            gguf,
            model,
            backend,
            self.plan,
            parts,
            embed=self._embed,
            layers=self._layers,
            head=self._head,
            on_progress=on_progress,
        )
        self._kv_layers: WeakKeyDictionary[KVCache, Any] = WeakKeyDictionary()
        self._rope = [RopeRows(kind.inv_freq, context) for kind in model.kinds]

    def close(self) -> None:
        """End what reads ahead."""
        self.weights.close()

    @property
    def streams(self) -> bool:
        """Whether each pass waits for the disk."""
        return self.weights.streams

    @property
    def buffer_bytes(self) -> int:
        """Bytes of what is between and inside the graphs."""
        return buffer_bytes(self._model, self._batch_size, self.cache.capacity)

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

        An exception, Ctrl-C's too, leaves in the cache the batches that were complete.
        FormatError when the file has changed since it was opened.
        """
        cache = self.cache if cache is None else cache
        if self.weights.streams and len(tokens) > self._batch_size:
            return self._evaluate_in_one_pass(tokens, logits, on_progress, cache)
        starts = range(0, len(tokens), self._batch_size)
        n_layers = self._model.config.n_layers
        steps = n_layers * len(starts)
        for index, start in enumerate(starts):
            batch = tokens[start : start + self._batch_size]
            residual = self._residual[: len(batch)]
            on_layer = part_of(on_progress, n_layers * index, n_layers, steps)
            threads = self._decode_threads if len(tokens) == 1 else 0
            self._run_layers(batch, [(len(batch), cache)], residual, threads, on_layer)
            if logits is not None:
                self._run_head(residual, logits[start : start + len(batch)], threads)
        if logits is not None:
            return logits
        self._run_head(residual[-1:], self._last_row, threads)
        return self._last_logits

    def _evaluate_in_one_pass(
        self,
        tokens: NDArray[np.int32],
        logits: Logits | None,
        on_progress: OnProgress | None,
        cache: KVCache,
    ) -> Logits:
        """`evaluate`, layer by layer instead of batch by batch: all tokens pass through a layer
        before the next is read, so that a prompt takes one pass of the disk however long it is. The
        batches are the same, and so is every bit. What it costs is the residual of all tokens.

        An exception leaves the cache as it was."""
        past, n_layers = cache.length, self._model.config.n_layers
        residual = np.empty((len(tokens), self._model.config.hidden_size), np.float32)
        starts = range(0, len(tokens), self._batch_size)
        batches = [slice(start, start + self._batch_size) for start in starts]
        with self.weights.embed() as bound:
            for batch in batches:
                buffers = {"tokens": tokens[batch], "residual": residual[batch]}
                self._embed.run(bound, buffers, len(tokens[batch]))
        ropes = [rope.rows([(past, len(tokens))]) for rope in self._rope]
        for index, kind in enumerate(self._model.kind_of_layer):
            keys, values = cache.layer(index)
            with self.weights.layer(index) as bound:
                for batch in batches:
                    buffers = {"residual": residual[batch], "rope": ropes[kind][batch]}
                    n, before = len(tokens[batch]), past + batch.start
                    self._layers[index].run(bound, buffers, n, before, keys, values)
            if on_progress is not None:
                on_progress(index + 1, n_layers)
        cache.tokens.extend(tokens.tolist())
        if logits is None:
            self._run_head(residual[-1:], self._last_row, 0)
            return self._last_logits
        with self.weights.head() as bound:
            for batch in batches:
                buffers = {"residual": residual[batch], "logits": logits[batch]}
                self._head.run(bound, buffers, len(tokens[batch]))
        return logits

    def evaluate_batch(
        self, tokens: NDArray[np.int32], caches: Sequence[KVCache], logits: Logits
    ) -> Logits:
        """Append one token to each of several caches, reading the weights once for all of them.

        tokens: int32 [n], n up to batch_size, checked no more than by `evaluate`.
        logits: float32 [n, vocab], filled and returned.
        """
        residual = self._residual[: len(tokens)]
        threads = self._decode_threads if len(tokens) == 1 else 0
        self._run_layers(tokens, [(1, cache) for cache in caches], residual, threads, None)
        self._run_head(residual, logits, threads)
        return logits

    def _run_layers(
        self,
        tokens: NDArray[np.int32],
        sequences: Sequence[tuple[int, KVCache]],
        residual: NDArray[np.float32],
        threads: int,
        on_layer: OnProgress | None,
    ) -> None:
        """tokens: [n], those of the first sequence first -> residual: [n, hidden_size]

        sequences: how many tokens each has, and its cache.
        on_layer: called with (done, total) layers, which are gone through one by one then.
        """
        n = len(tokens)
        with self.weights.embed() as bound:
            self._embed.run(bound, {"tokens": tokens, "residual": residual}, n, threads=threads)
        positions = [(cache.length, count) for count, cache in sequences]
        buffers = [  # of each kind of layer; rope: [n, rope_dims]
            {"residual": residual, "rope": rope.rows(positions)} for rope in self._rope
        ]
        n_layers = self._model.config.n_layers
        batch = [(count, cache.length, self._layers_of(cache)) for count, cache in sequences]
        # Many tokens take their time in each layer, and Ctrl-C waits for the end of a call.
        at_once = self.weights.layers_at_once if on_layer is None and n <= 64 else 1
        for start, stop in _stretches(self._model.kind_of_layer, at_once):
            with self.weights.layers(start, stop) as bound:
                self._layers[start].run_layers(
                    bound, buffers[self._model.kind_of_layer[start]], batch, start, threads=threads
                )
            if on_layer is not None:
                on_layer(stop, n_layers)
        ids, first = tokens.tolist(), 0
        for count, cache in sequences:
            cache.tokens += ids[first : first + count]
            first += count

    def _layers_of(self, cache: KVCache) -> Any:
        """A cache as the backend takes it, as long as there is the cache."""
        if cache not in self._kv_layers:
            self._kv_layers[cache] = self.backend.kv_layers(cache.layers)
        return self._kv_layers[cache]

    def _run_head(self, residual: NDArray[np.float32], logits: Logits, threads: int) -> None:
        """residual: [n, hidden_size] -> logits: [n, vocab]"""
        with self.weights.head() as bound:
            buffers = {"residual": residual, "logits": logits}
            self._head.run(bound, buffers, len(residual), threads=threads)


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

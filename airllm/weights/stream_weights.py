"""Weights of a model that is larger than its memory budget.

The plan keeps some layers in memory. The others are read from the disk in each pass, in order:
while a layer is computed, the next one is read and packed. At the end of a pass, the stream reads
the first layers of the next pass ahead.
"""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from airllm.backends import Backend, Executor
from airllm.backends.experts import Experts
from airllm.backends.routed import RoutedExecutor
from airllm.formats.model_file import Extent, ModelFile
from airllm.models import Model
from airllm.util.progress import OnProgress
from airllm.weights.expert_cache import ExpertCache
from airllm.weights.layer_weights import check_tensors, layers_at_once, next_places
from airllm.weights.plan import Part, Plan, next_head_part
from airllm.weights.ring import Ring, Section, rooms_in

_HEAD = -1  # in place of a layer's index


class StreamWeights:
    """A WeightSource that follows a Plan. For one thread at a time.

    The constructor allocates all memory. Asking for a layer raises OSError if the disk fails and
    FormatError if the file has changed; the next pass begins anew, and may succeed.
    """

    def __init__(
        self,
        gguf: ModelFile,
        model: Model,
        backend: Backend,
        plan: Plan,
        parts: Sequence[Part],
        *,
        embed: Executor,
        layers: Sequence[Executor],
        head: Executor,
        next_head: Sequence[Executor] = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        """parts: from model_parts. layers: the executor of each stored layer. next_head: of the
        next-token head's graphs, if the model has them; its weights stay in memory, and so do the
        head's.
        on_progress(done, total) is called after each kept part has been read."""
        check_tensors(gguf, model)
        self._gguf, self._backend, self.plan = gguf, backend, plan
        self._n_layers = model.config.n_stored_layers
        self._files = [(part.descriptor, str(part.path)) for part in gguf.parts]
        embedding, *layer_parts, head_part = parts
        by_index = {**dict(enumerate(layer_parts)), _HEAD: head_part}
        executors = {**dict(enumerate(layers)), _HEAD: head}

        self._experts: ExpertCache | None = None
        self._bound: dict[int, Any] = {}  # of the kept layers, and of the head if it is kept
        self._of_head: dict[str, Any] = {}  # its weights, by slot
        if plan.expert_places:
            self._keep_all_but_experts(layer_parts, layers)
            by_index = {_HEAD: head_part}
            streamed: list[int] = []
        else:
            head_is_streamed = plan.head == "streamed"
            streamed = [*plan.streamed_layers, *([_HEAD] if head_is_streamed else [])]
            streamed = [index for index in streamed if by_index[index].matrices]
        pinned = [index for index in by_index if index not in streamed]
        self._pin(
            [by_index[index] for index in pinned],
            [executors[i] for i in pinned],
            pinned,
            on_progress,
        )
        self._embedding = _Tables(gguf, backend, embedding, pinned=plan.embedding == "pinned")
        self._embed = embed.bind({**self._multiplied(embedding), **self._embedding.weights})
        self._next_tables = self._embedding
        self._next_head = self._bind_next_head(model, next_head)

        self._ring: Ring | None = None
        if streamed:
            largest = max(by_index[index].nbytes for index in streamed)
            self._ring = Ring(backend, self._files, plan.slots, largest)
            kept = {index: self._read_kept(by_index[index]) for index in streamed}
            for number in self._in_order(streamed, model.config.n_loops):
                index = self._stored(number)
                matrices = by_index[index].matrices
                self._ring.add(number, executors[index], kept[index], matrices)
            self._ring.start()
        self.streams = self._ring is not None or self._experts is not None
        at_once = layers_at_once(self._n_layers, plan.pinned_bytes)
        self.layers_at_once = 1 if self.streams else at_once
        try:
            gguf.check_unchanged()
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of the kept weights and of the ring."""
        return self.plan.pinned_bytes + self.plan.ring_bytes

    @contextmanager
    def embed(self) -> Iterator[Any]:
        with self._embedding.in_use():
            yield self._embed

    @contextmanager
    def next_head(self) -> Iterator[Sequence[Any]]:
        with self._next_tables.in_use():
            yield self._next_head

    def layer(self, index: int) -> AbstractContextManager[Any]:
        if self._ring is not None and index in self._ring:
            return self._streamed(self._ring, index)
        return nullcontext(self._bound[self._stored(index)])

    @contextmanager
    def layers(self, start: int, stop: int) -> Iterator[Sequence[Any]]:
        with ExitStack() as held:
            yield [held.enter_context(self.layer(index)) for index in range(start, stop)]

    def head(self) -> AbstractContextManager[Any]:
        return self.layer(_HEAD)

    def stream_stats(self) -> dict[str, Any] | None:
        if self._experts is not None:
            return self._experts.stats()
        return None if self._ring is None else self._ring.stats()

    def close(self) -> None:
        if self._experts is not None:
            self._experts.close()
        if self._ring is not None:
            self._ring.close()

    def _stored(self, number: int) -> int:
        return number if number == _HEAD else number % self._n_layers

    def _in_order(self, streamed: Sequence[int], n_loops: int) -> list[int]:
        """The numbers of a pass: of the layers in each loop, and of the head if it is streamed."""
        starts = range(0, n_loops * self._n_layers, self._n_layers)
        layers = [start + index for start in starts for index in streamed if index != _HEAD]
        return [*layers, *(index for index in streamed if index == _HEAD)]

    @contextmanager
    def _streamed(self, ring: Ring, index: int) -> Iterator[Any]:
        try:
            bound = ring.take(index)
        except BaseException:
            self._gguf.check_unchanged()  # a changed file explains the error better
            raise
        try:
            yield bound
        finally:
            ring.release()

    def _keep_all_but_experts(self, layers: Sequence[Part], executors: Sequence[Executor]) -> None:
        """Reads all of a mixture's layers but the experts, which are fetched when needed."""
        experts = [layer.experts() for layer in layers]
        place_bytes = max(
            sum(matrix.nbytes for matrix in expert) for layer in experts for expert in layer
        )
        cache = ExpertCache(self._backend, self._files, self.plan.expert_places, place_bytes)
        self._experts = cache

        gguf = self._gguf  # `fetch` must not refer to self: the cycle would keep it alive

        def fetch(layer: int, wanted: Sequence[int]) -> Mapping[str, Experts]:
            try:
                return cache.fetch(layer, experts[layer], wanted)
            except BaseException:
                gguf.check_unchanged()  # a changed file explains the error better
                raise

        sections = []
        for index, (part, executor) in enumerate(zip(layers, executors, strict=True)):
            others = part.without_experts()
            memory = self._backend.memory(others.nbytes)
            weights, section = rooms_in(self._backend, memory, others.matrices)
            sections.append(section)
            weights |= self._read_kept(part)
            if isinstance(executor, RoutedExecutor):
                self._bound[index] = executor.bind_routed(weights, partial(fetch, index))
            else:
                self._bound[index] = executor.bind(weights)
        self._read_once(sections)

    def _bind_next_head(self, model: Model, executors: Sequence[Executor]) -> list[Any]:
        """Reads what the next-token head has of its own, and binds its graphs to that and to the
        tensors that it shares with the model."""
        part = next_head_part(self._gguf, model, self._backend)
        if part is None:
            return []
        own = {**self._read_kept(part), **self._multiplied(part)}
        if part.rows().matrices:
            tables, pinned = replace(part.rows(), kept=()), self.plan.embedding == "pinned"
            self._next_tables = _Tables(self._gguf, self._backend, tables, pinned=pinned)
        rows = {**self._next_tables.weights, **own}  # a tied embedding is in both
        others = {**self._of_head, **own}
        bound = []
        for (graph, _), executor in zip(next_places(model), executors, strict=True):
            roles = graph.roles.items()
            weights = {slot: (rows if role == "rows" else others)[slot] for slot, role in roles}
            bound.append(executor.bind(weights))
        return bound

    def _multiplied(self, part: Part) -> dict[str, Any]:
        """Reads the matrices of a part that are no tables; they stay in memory."""
        matrices = [matrix for matrix in part.matrices if matrix.role != "rows"]
        memory = self._backend.memory(sum(matrix.nbytes for matrix in matrices))
        weights, section = rooms_in(self._backend, memory, matrices)
        self._read_once([section])
        return weights

    def _read_kept(self, part: Part) -> dict[str, Any]:
        """Reads the weights of a part that stay in memory, whether it is streamed or not."""
        weights = {}
        for slot, role, tensor in part.kept:
            memory = np.empty(tensor.nbytes, np.uint8)
            data = self._gguf.read(tensor.name, memory)
            weights[slot] = self._backend.weight(role, data, tensor.type, tensor.shape)
        return weights

    def _pin(
        self,
        parts: Sequence[Part],
        executors: Sequence[Executor],
        indices: Sequence[int],
        on_progress: OnProgress | None,
    ) -> None:
        """Read the kept parts and pack them piece by piece, so that none is in memory twice."""
        sections = []
        for part, executor, index in zip(parts, executors, indices, strict=True):
            memory = self._backend.memory(part.nbytes)
            weights, section = rooms_in(self._backend, memory, part.matrices)
            weights |= self._read_kept(part)
            self._bound[index] = executor.bind(weights)
            if index == _HEAD:
                self._of_head = weights
            # A target for both slots of the stream, so that the next part is read meanwhile: each
            # part has memory of its own.
            sections.append([(file, at, n, 2 * targets) for file, at, n, targets in section])
        self._read_once(sections, on_progress)

    def _read_once(
        self, sections: Sequence[Section], on_progress: OnProgress | None = None
    ) -> None:
        sections = [section for section in sections if section]
        if not sections:
            return
        stream = self._backend.stream(self._files, sections, endless=False)
        try:
            for done in range(1, len(sections) + 1):
                stream.take()
                stream.release()
                if on_progress is not None:
                    on_progress(done, len(sections))
        except BaseException:
            self._gguf.check_unchanged()
            raise
        finally:
            stream.close()


class _Tables:
    """Tables, by slot: in memory, or looked up in the file's memory map.

    After a look-up, its pages are dropped from the process (MADV_DONTNEED), or they would count as
    its memory; the page cache may still keep them.
    """

    def __init__(
        self,
        gguf: ModelFile,
        backend: Backend,
        part: Part,
        *,
        pinned: bool,
    ) -> None:
        """part: its tables, and what it has that is no matrix in one piece."""
        self._gguf = gguf
        self.weights: dict[str, Any] = {}
        self._looked_up: list[Extent] = []
        for slot, role, tensor in [
            *part.kept,
            *((m.slot, m.role, gguf.tensors[m.name]) for m in part.rows().matrices),
        ]:
            if pinned or not tensor.extents:
                data = gguf.read(tensor.name, np.empty(tensor.nbytes, np.uint8))
            else:
                data = gguf.data(tensor.name)
                self._looked_up += tensor.extents
            self.weights[slot] = backend.weight(role, data, tensor.type, tensor.shape)
        self._advise("MADV_RANDOM")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        if self._looked_up:
            self._gguf.check_unchanged()
        try:
            yield
        finally:
            self._advise("MADV_DONTNEED")

    def _advise(self, advice: str) -> None:
        """Calls madvise on the pages that lie wholly in the embedding, if the system has the
        advice."""
        option = getattr(mmap, advice, None)
        if option is None:
            return
        for extent in self._looked_up:
            first = -(-extent.offset // mmap.PAGESIZE) * mmap.PAGESIZE
            n_bytes = extent.offset + extent.nbytes - first
            if n_bytes > 0:
                self._gguf.parts[extent.part].map.madvise(option, first, n_bytes)

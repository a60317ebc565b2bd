"""Weights that memory has no room for: written to disk as they arrive, read for every step.

As many segments as fit are kept; the others are read and prepared by a thread, one segment ahead of
the one that computes, in the order in which every step needs them. What is computed is the same bit
for bit, as the same bytes are prepared in the same way.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node import roles
from airllm.cluster.spill import Spill
from airllm.cluster.weights import assemble, plane_role, prepare
from airllm.cluster.wire import Size

_AHEAD = 2  # segments in memory: the one that computes, and the next


def segment_bytes(lowered: Lowered, sizes: Mapping[WeightKey, Size]) -> list[int]:
    """Of each segment's weights."""
    return [
        sum(sizes[key].nbytes for key in segment.weights.values()) for segment in lowered.segments
    ]


def segments_to_keep(nbytes: Sequence[int], budget: int) -> int | None:
    """How many segments, from the first on, stay in memory when `budget` bytes are for weights;
    None where not even streaming fits."""
    kept = 0
    for count in range(len(nbytes) + 1):
        largest = max(nbytes[count:], default=0)
        kept_bytes = sum(nbytes[:count])
        if kept_bytes + _AHEAD * largest <= budget:
            kept = count + 1
    return kept - 1 if kept else None


class StreamedWeights:
    """Takes weights as ResidentWeights does. n_kept: segments, from the first on, that stay."""

    def __init__(
        self,
        lowered: Lowered,
        sizes: Mapping[WeightKey, Size],
        backend: Backend,
        spill: Spill,
        n_kept: int,
    ) -> None:
        self._lowered, self._sizes, self._backend, self._spill = lowered, sizes, backend, spill
        self._roles = roles(lowered)
        self._kept = {
            key for segment in lowered.segments[:n_kept] for key in segment.weights.values()
        }
        # What is kept, and the places of what is not, by plane.
        self._planes: dict[WeightKey, list[Any]] = {key: [None] * s.z for key, s in sizes.items()}
        largest = max((size.plane_bytes for size in sizes.values()), default=0)
        self._staging = np.empty(largest, np.uint8)
        self._executors: Sequence[Executor] = ()
        self._bound: dict[int, Any] = {}
        self._order = [
            index
            for index, segment in enumerate(lowered.segments)
            if index >= n_kept and segment.weights
        ]
        self._free = threading.Semaphore(_AHEAD)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._current: Any = None
        self._has_current = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self.read_bytes = 0
        self.waited_seconds = 0.0

    def memory(self, key: WeightKey) -> NDArray[np.uint8]:
        """Where the next plane of a weight is to be read to."""
        n = self._sizes[key].plane_bytes
        if key in self._kept and self._keeps_data(key):
            return np.empty(n, np.uint8)
        return self._staging[:n]

    def put(self, key: WeightKey, plane: int, data: NDArray[np.uint8]) -> None:
        if key in self._kept:
            value = prepare(self._backend, self._roles[key], data, self._sizes[key])
        else:
            value = self._spill.store(data)
        self._planes[key][plane] = value

    def finish(self, executors: Sequence[Executor]) -> None:
        """All planes are there: bind what is kept, and begin to read the rest."""
        self._executors = executors
        streamed = set(self._order)
        for index, segment in enumerate(self._lowered.segments):
            if index in streamed:
                continue
            weights = {
                slot: assemble(self._roles[key], self._planes[key])
                for slot, key in segment.weights.items()
            }
            self._bound[index] = executors[index].bind(weights)
        if self._order:
            self._thread = threading.Thread(target=self._read_ahead, name="weights", daemon=True)
            self._thread.start()

    def segment(self, index: int) -> Any:
        """A segment's bound weights, until the next call. OSError where they cannot be read."""
        if index in self._bound:
            return self._bound[index]
        self._release()
        began = time.perf_counter()
        found = self._ready.get()
        self.waited_seconds += time.perf_counter() - began
        if isinstance(found, BaseException):
            self._ready.put(found)  # for the next call, too
            raise found
        number, self._current = found
        self._has_current = True
        assert number == index, "every step needs the segments in the same order"
        return self._current

    def close(self) -> None:
        """Ends the thread; what it has on disk is given back."""
        self._closing = True
        self._current = None
        self._free.release(_AHEAD)
        if self._thread is not None:
            self._thread.join()
        self._bound.clear()
        self._planes.clear()
        self._spill.close()

    def _release(self) -> None:
        if self._has_current:
            self._current, self._has_current = None, False
            self._free.release()

    def _keeps_data(self, key: WeightKey) -> bool:
        return plane_role(self._roles[key]) in self._backend.keeps

    # ---- the thread ----

    def _read_ahead(self) -> None:
        try:
            while not self._closing:
                for index in self._order:
                    self._free.acquire()
                    if self._closing:
                        return
                    self._ready.put((index, self._read_segment(index)))
        except BaseException as error:
            self._ready.put(error)

    def _read_segment(self, index: int) -> Any:
        segment = self._lowered.segments[index]
        weights = {}
        for slot, key in segment.weights.items():
            planes = [self._read_plane(key, place) for place in self._planes[key]]
            weights[slot] = assemble(self._roles[key], planes)
        return self._executors[index].bind(weights)

    def _read_plane(self, key: WeightKey, place: object) -> Any:
        n = self._sizes[key].plane_bytes
        memory = np.empty(n, np.uint8) if self._keeps_data(key) else self._staging[:n]
        self._spill.read(place, memory)
        self.read_bytes += n
        return prepare(self._backend, self._roles[key], memory, self._sizes[key])

"""The sequences that a scheduler's answers run on, and the memory that they share with the tree of
what was evaluated."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from airllm.engine.decoder import Decoder
from airllm.engine.loaded_model import LoadedModel
from airllm.state.prefix_files import PrefixFolder
from airllm.state.prefix_tree import PrefixTree
from airllm.state.prefix_writer import PrefixWriter
from airllm.state.sequence import SequenceState, Snapshot

__all__ = ["Lanes"]

_log = logging.getLogger("airllm")

# The most bytes that the tree has by default.
CACHE_BYTES = 8 << 30


class Lanes:
    """Lanes come when they are needed, and their pages as their sequences grow. What is reserved is
    what the sequences that run may take in the end, so that none of them runs out of memory; the
    tree has the rest, within its own bound.

    tree: what was evaluated. pool: its pages and those of the lanes.
    """

    def __init__(
        self,
        model: LoadedModel,
        decoder: Decoder,
        most: int,
        *,
        capacity: int,
        cache_bytes: int | None,
        cache_dir: str | os.PathLike[str] | None,
        cache_save_seconds: float | None,
        within_budget: bool,
        wake: Callable[[], None],
    ) -> None:
        """See Scheduler. most: lanes. wake: called, in another thread, when `save` should be."""
        self._model, self._decoder = model, decoder
        self.most, self._capacity = most, capacity
        self.pool = decoder.new_pool()
        memory = decoder.memory_for_sequences()
        if cache_bytes is None:
            cache_bytes = CACHE_BYTES if memory is None else min(CACHE_BYTES, memory // 2)
        self._memory = memory if within_budget else None
        self._cache_bytes = cache_bytes
        self.tree = PrefixTree(decoder.layout, cache_bytes)
        self._free: list[SequenceState] = []
        self.n_in_use, self.reserved = 0, 0
        self._folder: PrefixFolder | None = None
        self._writer: PrefixWriter | None = None
        if cache_dir is not None:
            fingerprint = model.planned.file.fingerprint()
            self._folder = PrefixFolder(Path(cache_dir), decoder.layout, fingerprint)
            written = self._read(self._folder)
            if cache_save_seconds is not None and cache_bytes:
                self._writer = PrefixWriter(
                    self.tree,
                    self._folder,
                    self._new_state,
                    seconds=cache_save_seconds,
                    wake=wake,
                    written=written,
                )

    # ---- taking and giving back ----------------------------------------------------------------

    def take(self, n: int, n_tokens: int) -> tuple[list[SequenceState], int] | None:
        """n lanes for sequences of up to n_tokens, and the bytes that they have reserved. None if
        there are not as many lanes, or not as much memory, until others are given back.
        MemoryError if the system has none."""
        n_bytes = n * self._decoder.state_bytes(min(n_tokens, self._capacity))
        if self.n_in_use + n > self.most:
            return None
        if self._memory is not None and self.n_in_use and self.reserved + n_bytes > self._memory:
            return None
        self._limit_tree(self.reserved + n_bytes)
        while len(self._free) < n:
            self._free.append(self._decoder.new_state(self._capacity, self.pool))
        self.reserved += n_bytes
        self.n_in_use += n
        return [self._free.pop() for _ in range(n)], n_bytes

    def give_back(self, states: list[SequenceState]) -> None:
        for state in states:
            state.clear()
        self._free += states
        self.n_in_use -= len(states)

    def release(self, n_bytes: int) -> None:
        """The bytes of `take`, once all of its lanes are given back."""
        self.reserved -= n_bytes
        self._limit_tree(self.reserved)

    def shrink(self, *, tree: bool = False) -> None:
        """Give the system the memory that nobody uses. tree: also what the tree has."""
        if tree:
            self.tree.shrink(0)
        self.pool.shrink()

    def _limit_tree(self, reserved: int) -> None:
        """The tree makes way for lanes."""
        if self._memory is not None:
            self.tree.most_bytes = min(self._cache_bytes, max(0, self._memory - reserved))
            self.tree.shrink(self.tree.most_bytes)

    # ---- over restarts -------------------------------------------------------------------------

    def save(self, *, idle: bool) -> float | None:
        """Between two steps: see PrefixWriter.go_on."""
        return None if self._writer is None else self._writer.go_on(idle=idle)

    def close(self) -> None:
        """Write the tree to its folder, and forget it."""
        if self._writer is not None:
            self._writer.close()
        if self._folder is not None:
            self._write(self._folder)
        self._free.clear()
        self.tree.shrink(0)

    def _read(self, folder: PrefixFolder) -> dict[Snapshot, Path]:
        try:
            return folder.load(self.tree, self._new_state(), self._model.config.vocab_size)
        except (OSError, MemoryError) as error:
            _log.warning("what was evaluated before this start is not used: %s", error)
            return {}

    def _write(self, folder: PrefixFolder) -> None:
        try:
            folder.save(self.tree, self._new_state())
        except (OSError, MemoryError) as error:
            _log.warning("what was evaluated is not kept for the next start: %s", error)

    def _new_state(self) -> SequenceState:
        return self._decoder.new_state(self._model.context, self.pool)

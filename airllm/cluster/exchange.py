"""Syncs: nodes exchange rows of pipes between segments. A pipe lies in memory row after row."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from airllm.cluster.link import Link, Piece, transfer
from airllm.cluster.node_config import Sync
from airllm.cluster.peers import Meet
from airllm.cluster.protocol import NetConfig, SyncType


class Exchange:
    """links: to the other nodes, by node; node 0 is the root. spin: seconds of polling before a
    receive sleeps. meet: returns the missing links when the first slices are due."""

    def __init__(
        self,
        net: NetConfig,
        node: int,
        pipes: list[NDArray[np.uint8]],
        links: Mapping[int, Link],
        spin: float = 0.0,
        meet: Meet | None = None,
    ) -> None:
        self._meet = meet
        self._n_nodes, self._node, self._spin = net.n_nodes, node, spin
        self._pipes, self._links = pipes, dict(links)
        self._transfers: dict[tuple[Sync, int], Transfers | FirstTransfers] = {}

    def run(self, sync: Sync, rows: int) -> None:
        """One sync for the first `rows` rows of its pipe."""
        self.transfers(sync, rows).run()

    def transfers(self, sync: Sync, rows: int) -> "Transfers | FirstTransfers":
        """The sends and receives of a sync of `rows` rows: made once, run each time."""
        transfers = self._transfers.get((sync, rows))
        if transfers is None:
            transfers = self._transfers[sync, rows] = self._make(sync, rows)
        return transfers

    def meet(self, slice_bytes: int) -> None:
        if self._meet is not None:
            self._links |= self._meet(slice_bytes)
            self._meet = None

    def _make(self, sync: Sync, rows: int) -> "Transfers | FirstTransfers":
        if self._meet is not None and sync.type is SyncType.NODE_SLICES:
            width = self._pipes[sync.pipe].shape[1] // self._n_nodes
            return FirstTransfers(self, width, partial(self._make_now, sync, rows))
        return self._make_now(sync, rows)

    def _make_now(self, sync: Sync, rows: int) -> "Transfers":
        pipe, transfers = self._pipes[sync.pipe][:rows], Transfers(self._spin)
        if sync.type is SyncType.WITH_ROOT:
            transfers.receive(self._links[0], pipe)
            return transfers
        width = pipe.shape[1] // self._n_nodes
        slices = [pipe[:, k * width : (k + 1) * width] for k in range(self._n_nodes)]
        if sync.type is SyncType.NODE_SLICES_EXCEPT_ROOT:
            transfers.send([self._links[0]], slices[self._node])
            return transfers
        transfers.send(list(self._links.values()), slices[self._node])
        for node, link in self._links.items():
            transfers.receive(link, slices[node])
        return transfers


class FirstTransfers:
    """Transfers whose first run finds out first which connections are the other workers."""

    def __init__(
        self, exchange: Exchange, slice_bytes: int, make: Callable[[], "Transfers"]
    ) -> None:
        self._exchange, self._slice_bytes, self._make = exchange, slice_bytes, make
        self._made: Transfers | None = None

    def run(self) -> None:
        if self._made is None:
            self._exchange.meet(self._slice_bytes)
            self._made = self._make()
        self._made.run()


class Transfers:
    """The sends and receives of a sync. Slices of several rows pass through contiguous copies."""

    def __init__(self, spin: float) -> None:
        self._spin = spin
        self.sends: list[Piece] = []
        self.receives: list[Piece] = []
        self.gathers: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        self.scatters: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []

    def run(self) -> None:
        for whole, part in self.gathers:
            part[...] = whole
        transfer(self.sends, self.receives, self._spin)
        for whole, part in self.scatters:
            whole[...] = part

    def send(self, links: list[Link], rows: NDArray[np.uint8]) -> None:
        memory = rows if rows.flags.c_contiguous else np.empty(rows.shape, np.uint8)
        if memory is not rows:
            self.gathers.append((rows, memory))
        self.sends += [(link, memory.reshape(-1).data) for link in links]

    def receive(self, link: Link, rows: NDArray[np.uint8]) -> None:
        memory = rows if rows.flags.c_contiguous else np.empty(rows.shape, np.uint8)
        if memory is not rows:
            self.scatters.append((rows, memory))
        self.receives.append((link, memory.reshape(-1).data))

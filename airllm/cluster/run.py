"""A run: one root's visit, from its first byte to its last.

An error ends the run and nothing else: worker.py logs it and waits for the next root.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from airllm.backends import Backend
from airllm.cluster.checks import Program
from airllm.cluster.door import LOOPBACK, Door, Network, Visitor, is_allowed
from airllm.cluster.exchange import Exchange, FirstTransfers, Transfers
from airllm.cluster.link import DEFAULT_RATE, Link, LinkError
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.lowering import lower
from airllm.cluster.meter import Meter, WeightsProgress
from airllm.cluster.node import Node, buffer_bytes, cache_bytes, roles, weight_bytes
from airllm.cluster.node_config import read_node_config
from airllm.cluster.peers import Meet, likely, proved
from airllm.cluster.protocol import (
    Control,
    Handshake,
    encode_ack,
    parse_control,
    read_handshake,
    read_net_config,
    read_weight_header,
)
from airllm.cluster.report import Report, megabytes
from airllm.cluster.spill import Spill, file_bytes, open_spill, room_bytes
from airllm.cluster.streamed import StreamedWeights, plan_residency
from airllm.cluster.weights import (
    Arrivals,
    ResidentWeights,
    memory_bytes,
    plane_role,
    staging_bytes,
)
from airllm.cluster.wire import Fields, Size
from airllm.util import system
from airllm.util.errors import AirllmError
from airllm.weights.budget import BudgetError

_SLACK = 32 << 20  # bytes of the budget, for freed memory that the allocator keeps


class RefusedError(AirllmError):
    """The worker cannot serve the root's program."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits of a run.

    threads: of the backend, 0 for all. ram: bytes that the process may use; None: the available
    memory. networks: those from which roots and workers may connect, and to which this worker may
    connect. Timeouts, in seconds: handshake, until the program has come; silence, within a message;
    idle, between two steps. min_rate: the least bytes a second within a message (link.Patience).
    spin: seconds of polling before a receive sleeps. cache: the folder that keeps weights which do
    not fit in `ram` from run to run; None: they are not kept.
    """

    threads: int = 0
    ram: int | None = None
    networks: Sequence[Network] = LOOPBACK
    handshake_timeout: float = 60.0
    silence_timeout: float = 300.0
    idle_timeout: float = 3600.0
    min_rate: float = DEFAULT_RATE
    spin: float = 5e-3
    cache: Path | None = None


@dataclass
class Run:
    backend: Backend
    settings: Settings
    door: Door
    report: Report
    links: list[Link] = field(default_factory=list)  # stop() shuts them down
    _spill: Spill | None = None

    def serve(self, visitor: Visitor) -> None:
        """Serves the root until its stop packet. LinkError, ProtocolError, RefusedError,
        MemoryError or OSError if the run ends in another way."""
        with contextlib.ExitStack() as stack:
            try:
                self._serve(visitor, stack)
            finally:
                self.door.reopen()  # before the root sees its connection close

    def _serve(self, visitor: Visitor, stack: contextlib.ExitStack) -> None:
        root = self._link(visitor[0], "the root", stack)
        deadline = time.monotonic() + self.settings.handshake_timeout
        root.set_deadline(deadline)
        handshake = read_handshake(root.take)
        self.report.event(
            "root",
            f"root {visitor[1]}: this is worker {handshake.index} of {handshake.n_workers}",
            {
                "root": visitor[1],
                "worker": handshake.index,
                "n_workers": handshake.n_workers,
            },
        )
        self.report.update(state="handshake", root=visitor[1])
        self.door.expect(handshake.index)
        root.send(encode_ack())
        Fields(root.take, "everybody is there").ack()
        higher = self._mesh(handshake, root, deadline, stack)

        net = read_net_config(root.take, handshake)
        root.send(encode_ack())
        program = Program(net, read_node_config(root.take, handshake, net))
        root.set_deadline(None)
        root.set_timeout(self.settings.silence_timeout)
        root.be_patient(True)
        lowered = lower(program)
        self._describe(program, lowered)
        weights = self._weights(program, lowered)
        stack.callback(weights.close)
        node = Node(lowered, program, self.backend, self.settings.threads)
        root.send(encode_ack())

        self.report.update(state="weights")
        self._receive_weights(root, program, weights)
        root.be_patient(False)
        weights.finish(node.executors)
        node.weights = weights
        callers = self._callers(handshake.index, stack)
        root.send(encode_ack())  # from now on other workers may send

        self.report.update(state="running")
        links = {0: root} | higher
        meet: Meet | None = None
        if len(callers) == handshake.index:
            links |= dict(enumerate(callers, 1))
        else:
            meet = partial(self._meet, callers, handshake.index)
        exchange = Exchange(net, program.node.node, node.pipes, links, self.settings.spin, meet)
        self._steps(root, node, exchange)

    def stop(self) -> None:
        """End the run soon, from any thread."""
        for link in list(self.links):
            link.shutdown()

    def _link(self, sock: socket.socket, name: str, stack: contextlib.ExitStack) -> Link:
        stack.callback(sock.close)
        link = Link(sock, name, self.settings.handshake_timeout, self.settings.min_rate)
        self.links.append(link)
        if self.door.stopped:
            raise LinkError("the worker is stopping")
        return link

    # ---- before the first step ----

    def _mesh(
        self, handshake: Handshake, root: Link, deadline: float, stack: contextlib.ExitStack
    ) -> dict[int, Link]:
        """Connects to the workers with a higher index; returns the links by node. The workers with
        a lower index connect to us, in unknown order; the door keeps them until _callers."""
        self.door.wait_workers(handshake.index, deadline - time.monotonic(), root)
        links = {}
        for other in range(handshake.index + 1, handshake.n_workers):
            host, port = handshake.others[other - 1]
            sock = self._connect(host, port, other, deadline)
            links[other + 1] = self._link(sock, f"worker {other} ({host}:{port})", stack)
            links[other + 1].set_timeout(self.settings.silence_timeout)
        return links

    def _callers(self, n: int, stack: contextlib.ExitStack) -> list[Link]:
        """At least n links. The workers with a lower index are among them."""
        links = []
        for sock, name in self.door.workers():
            links.append(self._link(sock, f"another worker ({name})", stack))
            links[-1].set_timeout(self.settings.silence_timeout)
        return likely(links, n)

    def _meet(self, links: list[Link], n: int, slice_bytes: int) -> dict[int, Link]:
        found = proved(links, n, slice_bytes, self.settings.silence_timeout)
        return dict(enumerate(found, 1))

    def _connect(self, host: str, port: int, other: int, deadline: float) -> socket.socket:
        """Connects only to allowed networks: a root must not send us to other services."""
        where = f"worker {other} at {host}:{port}"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise LinkError(f"{where}: {error.strerror}") from None
        allowed = [entry for entry in found if is_allowed(str(entry[4][0]), self.settings.networks)]
        if not allowed:
            raise LinkError(f"{where}: its network is not allowed (--allow)")
        try:
            left = max(deadline - time.monotonic(), 0.001)
            return socket.create_connection((str(allowed[0][4][0]), port), left)
        except OSError as error:
            raise LinkError(f"{where}: {error.strerror or error}") from None

    def _describe(self, program: Program, lowered: Lowered) -> None:
        net = program.net
        shape = {
            "nodes": net.n_nodes,
            "segments": len(lowered.segments),
            "layers": len(lowered.caches),
            "positions": lowered.positions,
            "rows": net.rows,
            "weights": len(program.weights),
        }
        self.report.event(
            "model",
            f"model: {shape['layers']} layers on {net.n_nodes} nodes, {lowered.positions} "
            f"positions, steps of up to {net.rows} rows, {len(program.weights)} weights here",
            shape,
        )
        self.report.update(model=shape)

    def _weights(self, program: Program, lowered: Lowered) -> ResidentWeights | StreamedWeights:
        """Prepares memory, or memory and disk, for the weights. RefusedError if both are too small;
        nothing has been allocated then."""
        sizes = program.weights
        weights = memory_bytes(lowered, sizes, self.backend)
        cache, buffers = cache_bytes(lowered, program), buffer_bytes(lowered, program, self.backend)
        staging = staging_bytes(lowered, sizes, self.backend)
        buffers += staging
        needed = weights + cache + buffers
        granted = system.available_memory()
        if self.settings.ram is not None:
            granted = max(self.settings.ram - system.resident_bytes(), 0)
        text = (
            f"memory: {megabytes(needed)} needed (weights {megabytes(weights)}, "
            f"cache {megabytes(cache)}, buffers {megabytes(buffers)})"
        )
        if granted is not None:
            text += f", {megabytes(granted)} {'granted' if self.settings.ram else 'available'}"
        memory = {
            "needed_bytes": needed,
            "weight_bytes": weights,
            "cache_bytes": cache,
            "buffer_bytes": buffers,
            "granted_bytes": granted,
        }
        self.report.update(memory=memory)
        if granted is None or needed <= granted:
            self.report.event("memory", text, memory)
            return ResidentWeights(lowered, sizes, self.backend)
        if self.settings.ram is None:
            raise RefusedError(f"{text}: too little; with --ram, weights are read from disk")
        largest = staging_bytes(lowered, sizes, self.backend, sizes)  # any of them may be streamed
        others = cache + buffers - staging + largest + _SLACK
        try:
            residency = plan_residency(lowered, sizes, self.backend, granted - others)
        except BudgetError as error:
            least = megabytes(others + error.minimum)
            raise RefusedError(f"{text}: too little; streaming needs {least}") from None
        streamed = residency.streamed_bytes
        stored = _stored_bytes(lowered, sizes, residency.pinned)
        room = room_bytes(self.settings.cache)
        if stored > room:
            raise RefusedError(
                f"{text}: too little; streaming needs {megabytes(stored)} on the disk, which has "
                f"room for {megabytes(room)}"
            )
        text += f": {megabytes(streamed)} of the weights are read from disk for every step"
        self.report.event("memory", text, memory | {"streamed_bytes": streamed})
        spill = self._spill = open_spill(self.settings.cache, stored)
        try:
            return StreamedWeights(lowered, sizes, self.backend, spill, residency)
        except BaseException:
            spill.close()  # which frees the lock on the cache for the next run
            raise

    def _receive_weights(
        self, root: Link, program: Program, weights: ResidentWeights | StreamedWeights
    ) -> None:
        arrivals = Arrivals(program.weights)
        progress = WeightsProgress(weight_bytes(program.weights), self.report)
        while (header := read_weight_header(root.take)) is not None:
            key = header.name, header.index
            for plane in arrivals.expect(header):
                memory = weights.memory(key)
                root.read_into(memory.data)
                weights.put(key, plane, memory)
                progress.add(len(memory))
        arrivals.finish()
        progress.finish()
        if self._spill is not None and self.settings.cache is not None:
            stored, reused = self._spill.stored_bytes, self._spill.reused_bytes
            self.report.event(
                "cache",
                f"cache: {megabytes(reused)} of {megabytes(stored)} were already in "
                f"{self._spill.name}",
                {"stored_bytes": stored, "reused_bytes": reused},
            )

    # ---- steps ----

    def _steps(self, root: Link, node: Node, exchange: Exchange) -> None:
        weights = node.weights
        spin, idle = self.settings.spin, self.settings.idle_timeout
        packet = memoryview(bytearray(8))
        filled = 0

        transfers: dict[int, list[list[Transfers | FirstTransfers]]] = {}  # by rows

        def work(
            step: Control,
        ) -> list[tuple[Callable[[], None], list[Transfers | FirstTransfers]]]:
            """For each segment the function that computes it, and the transfers that follow."""
            calls = node.step(step.position, step.rows)
            if step.rows not in transfers:
                transfers[step.rows] = [
                    [exchange.transfers(s, step.rows) for s in syncs] for _, syncs in calls
                ]
            return [
                (run, after) for (run, _), after in zip(calls, transfers[step.rows], strict=True)
            ]

        expected = Control(0, 1)
        segments = work(expected)
        meter = Meter(self.report)
        clock = time.perf_counter
        try:
            while True:
                root.read_soon(packet, spin, idle)
                control = parse_control(bytes(packet), node.rows, node.positions, filled)
                if control.rows == 0:
                    return
                compute = sync = 0.0
                disk, read = weights.waited_seconds, weights.read_bytes
                began = before = clock()
                if control != expected:
                    segments = work(control)
                for run, exchanges in segments:
                    run()
                    now = clock()
                    compute += now - before
                    for transfer in exchanges:
                        transfer.run()
                    before = clock()
                    sync += before - now
                expected = Control(control.position + control.rows, control.rows)
                segments = work(expected)  # while the root works
                filled = max(filled, expected.position)
                disk = weights.waited_seconds - disk
                read = weights.read_bytes - read
                meter.step(control.rows, before - began, compute - disk, sync, disk, read)
        finally:
            meter.finish()


def _stored_bytes(lowered: Lowered, sizes: Mapping[WeightKey, Size], kept: Set[int]) -> int:
    """Bytes on the disk of the planes that do not stay in memory."""
    role = roles(lowered)
    return sum(
        sizes[key].z * file_bytes(sizes[key].plane_bytes)
        for number, segment in enumerate(lowered.segments)
        if number not in kept
        for key in segment.weights.values()
        if plane_role(role[key]) == "matrix"
    )

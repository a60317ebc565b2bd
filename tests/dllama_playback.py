"""A recorded run played to our node in memory, and its answers compared with the stock worker's."""

from dataclasses import dataclass

import numpy as np
from dllama_recording import Run

from airllm.cluster.checks import Program
from airllm.cluster.lowering import lower
from airllm.cluster.node import Node
from airllm.cluster.node_config import read_node_config
from airllm.cluster.protocol import (
    Handshake,
    SyncType,
    parse_control,
    read_handshake,
    read_net_config,
    read_weight_header,
)
from airllm.cluster.weights import Arrivals, ResidentWeights
from airllm.cluster.wire import Fields, FloatType
from airllm.numpy_ops import dequantize


@dataclass
class Differences:
    """The largest absolute difference of a value, and the largest value, by float type; bytes that
    differ."""

    error: dict[FloatType, float]
    value: dict[FloatType, float]
    bytes_compared: int = 0
    bytes_different: int = 0
    sent: bytes = b""  # what the node would have sent


def open_run(take, backend, threads=0, hold=ResidentWeights):
    """Everything before the first step: (handshake, program, node). hold: makes what takes the
    weights."""
    handshake = read_handshake(take)
    Fields(take, "everybody is there").ack()
    net = read_net_config(take, handshake)
    program = Program(net, read_node_config(take, handshake, net))
    lowered = lower(program)
    node = Node(lowered, program, backend, threads)
    arrivals = Arrivals(program.weights)
    weights = hold(lowered, program.weights, backend)
    while (header := read_weight_header(take)) is not None:
        key = header.name, header.index
        for plane in arrivals.expect(header):
            memory = weights.memory(key)
            memory[...] = np.frombuffer(take(len(memory)), np.uint8)
            weights.put(key, plane, memory)
    arrivals.finish()
    weights.finish(node.executors)
    node.weights = weights
    return handshake, program, node


def play(run: Run, worker: int, backend, threads: int = 0, hold=ResidentWeights) -> Differences:
    """Feeds the run's bytes to a node, and compares what it would send."""
    root = run[worker, 0]
    data = bytes(root.to_worker)
    at = 0

    def take(n):
        nonlocal at
        if at + n > len(data):
            raise EOFError
        at += n
        return data[at - n : at]

    handshake, program, node = open_run(take, backend, threads, hold)
    peers = _peers(run, worker, handshake)
    answers = bytes(root.from_worker)[4 * 4 :]  # after the acknowledgements
    result = Differences({}, {})
    filled = answered = 0
    peer_at = 0
    try:
        while True:
            control = parse_control(take(8), node.rows, node.positions, filled)
            if control.rows == 0:
                break
            n = control.rows
            for compute, syncs in node.step(control.position, n):
                compute()
                for sync in syncs:
                    pipe, size = node.pipes[sync.pipe], program.net.pipes[sync.pipe].size
                    if sync.type is SyncType.WITH_ROOT:
                        pipe[:n] = np.frombuffer(take(n * size.row_bytes), np.uint8).reshape(n, -1)
                        continue
                    share = size.row_bytes // program.net.n_nodes
                    k = handshake.index + 1
                    mine = pipe[:n, k * share : (k + 1) * share]
                    expected = answers[answered : answered + n * share]
                    answered += n * share
                    _compare(size.type, expected, mine.tobytes(), result)
                    # What follows is computed from what the stock worker sent.
                    if len(expected) == n * share:
                        mine[...] = np.frombuffer(expected, np.uint8).reshape(n, -1)
                    if sync.type is SyncType.NODE_SLICES:
                        sources = {0: np.frombuffer(take(n * share), np.uint8)}
                        for other, received in peers.items():
                            piece = received[peer_at : peer_at + n * share]
                            sources[other + 1] = np.frombuffer(piece, np.uint8)
                        peer_at += n * share
                        for source, values in sources.items():
                            pipe[:n, source * share : (source + 1) * share] = values.reshape(n, -1)
            filled = max(filled, control.position + n)
    except EOFError:
        pass  # the root was killed there
    node.weights.close()
    return result


def _peers(run: Run, worker: int, handshake: Handshake) -> dict[int, bytes]:
    """What every other worker sent to this one: lower ones connect to it in index order."""
    peers = {}
    for other in range(handshake.n_workers):
        if other < worker:
            peers[other] = bytes(run[worker, other + 1].to_worker)
        elif other > worker:
            peers[other] = bytes(run[other, worker + 1].from_worker)
    return peers


def _compare(kind: FloatType, expected: bytes, actual: bytes, result: Differences) -> None:
    result.sent += actual
    actual = actual[: len(expected)]
    result.bytes_compared += len(expected)
    result.bytes_different += sum(a != b for a, b in zip(expected, actual, strict=True))
    a, b = _values(kind, expected), _values(kind, actual)
    if not a.size:
        return
    result.error[kind] = max(result.error.get(kind, 0.0), float(np.abs(a - b).max()))
    result.value[kind] = max(result.value.get(kind, 0.0), float(np.abs(a).max()))


def _values(kind: FloatType, data: bytes):
    if kind is FloatType.F32:
        return np.frombuffer(data[: len(data) // 4 * 4], np.float32).astype(np.float64)
    whole = np.frombuffer(data[: len(data) // 34 * 34], np.uint8)
    return dequantize(whole, "q8_0").astype(np.float64)

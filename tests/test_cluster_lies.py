"""Roots that lie about what a recorded root said: refused by name, or served as they say.

What passes the checks is run, with weights and slices of random bytes, at the first, a middle and
the last position: the interpreter lives, and nothing but a refusal comes out of it.
"""

import contextlib
import random
import socket

import dllama_recording
import numpy as np
import pytest
from dllama_lies import encoded, lie, recorded
from extension import require_cpp
from worker_threads import workers

from airllm.backends import load_backend
from airllm.cluster.checks import Program
from airllm.cluster.lowering import lower
from airllm.cluster.node import Node, buffer_bytes, cache_bytes, weight_bytes
from airllm.cluster.node_config import read_node_config
from airllm.cluster.protocol import read_handshake, read_net_config
from airllm.cluster.weights import ResidentWeights
from airllm.cluster.wire import ProtocolError, take_from

LINKS = [
    (name, worker)
    for name in dllama_recording.NAMES
    for worker, order in dllama_recording.read_recording(name)[0]
    if order == 0
]
ALONE = [link for link in LINKS if recorded(*link)[0].n_workers == 1]
LARGEST = 60_000_000  # bytes; a worker refuses what it has no room for


def read(data):
    """(program, lowered); ProtocolError."""
    take = take_from(data)
    handshake = read_handshake(take)
    take(4)
    net = read_net_config(take, handshake)
    program = Program(net, read_node_config(take, handshake, net))
    return program, lower(program)


def compute(program, lowered, backend, seed):
    random_bytes = np.random.default_rng(seed)
    node = Node(lowered, program, backend, 1)
    weights = ResidentWeights(lowered, program.weights, backend)
    for key, size in program.weights.items():
        for plane in range(size.z):
            memory = weights.memory(key)
            memory[...] = random_bytes.integers(0, 256, memory.size)
            weights.put(key, plane, memory)
    weights.finish(node.executors)
    node.weights = weights
    for position in (0, 1, node.positions - 1):
        rows = min(node.rows, node.positions - position)
        for run, _ in node.step(position, rows):
            for pipe in node.pipes[1:]:
                pipe[...] = random_bytes.integers(0, 256, pipe.shape)
            run()


@pytest.mark.parametrize("block", range(4))
def test_a_lie_is_refused_or_served_as_it_is_told(block):
    require_cpp()
    backend, outcomes = load_backend("cpp"), set()
    for seed in range(block * 25, block * 25 + 25):
        draws = random.Random(seed)
        data = lie(draws, *draws.choice(LINKS), draws.choice([1, 1, 2, 3]))
        try:
            program, lowered = read(data)
            needed = buffer_bytes(lowered, program, backend) + cache_bytes(lowered, program)
        except ProtocolError:
            outcomes.add("refused")
            continue
        if needed + weight_bytes(program.weights) <= LARGEST:
            compute(program, lowered, backend, seed)
            outcomes.add("served")
    assert outcomes == {"refused", "served"}


def test_a_worker_serves_on_after_lies():
    with workers(1, handshake_timeout=5.0, silence_timeout=5.0) as made:
        for seed in range(20):
            draws = random.Random(seed)
            with (
                socket.create_connection(made[0].address, 10) as sock,
                contextlib.suppress(OSError),
            ):
                sock.sendall(lie(draws, *draws.choice(ALONE)))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
        with socket.create_connection(made[0].address, 10) as sock:
            sock.sendall(encoded(*recorded(*ALONE[0])))
            made[0].report.wait_for("memory")
        made[0].report.wait_until_idle()
        assert not any("should not" in text for _, text in made[0].report.events)

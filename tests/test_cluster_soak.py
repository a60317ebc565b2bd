"""Session after session: memory, descriptors and threads of a worker stay where they were.

AIRLLM_SOAK_SESSIONS says how many (40): 1500 are thousands of tokens, and minutes. With -s it tells
what it measured.
"""

import contextlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_root import Root
from extension import require_cpp
from worker_process import Process
from worker_threads import addresses, workers

from airllm.cluster.link import LinkError
from airllm.util.system import resident_bytes

SESSIONS = int(os.environ.get("AIRLLM_SOAK_SESSIONS", "40"))
STAGES = ["everybody", "net", "node", "weights"]

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc"),
]


class DiedError(Exception):
    pass


@pytest.fixture(scope="module")
def models():
    shapes = [
        Shape("llama", True, dim=128, hidden=128, heads=4, kv_heads=4),
        Shape("qwen3", False, heads=16, theta=1e6),
        Shape("qwen3moe", True, experts=5, active=2),
    ]
    return [Model(shape) for shape in shapes]


def test_a_process_is_after_many_sessions_what_it_was(models):
    """Of every kind: complete, broken off in a step, dead at each stage, a port scan, nonsense; and
    a slice that the budget has no room for."""
    require_cpp()
    large = Model(Shape("llama", False, dim=1024, hidden=2048, layers=4, heads=8, head_dim=128))
    worker = Process("--ram", "150M")
    measured, tokens = [], 0
    try:
        for number in range(SESSIONS):
            if number % 20 == 10:
                tokens += session(worker, large, number)
            elif number % 7 == 6:
                strange_visit(worker, number)
            else:
                tokens += session(worker, models[number % 3], number)
            if number % (SESSIONS // 4) == SESSIONS // 4 - 1:
                measured.append(measure(worker))
    finally:
        worker.stop()
    print(f"\n{SESSIONS} sessions, {tokens} tokens; after each quarter: {measured}")
    _, (memory, descriptors, threads), *rest = measured
    for later in rest:
        assert later[0] <= memory + 12_000
        assert later[1:] == (descriptors, threads)


def session(worker, model, number):
    """A root's visit; the number of tokens that the worker has computed."""

    def stage(name):
        if number % 5 == 3 and name == STAGES[number // 5 % 4]:
            raise DiedError

    tokens = model.tokens[: 8 + number % 40]
    try:
        root = connect(model, [worker.address], stage)
    except DiedError:
        worker.wait_for("run_failed")
        return 0
    logits = root.run(tokens, batch=1 + number % 16)
    assert np.isfinite(logits).all()
    if number % 5 == 1:
        root.links[1].send(bytes(3))  # of a control packet
        root.close()
        worker.wait_for("run_failed")
    else:
        root.stop()
        worker.wait_for("run_over")
    return len(tokens)


def strange_visit(worker, number):
    with socket.create_connection(worker.address) as visitor:
        if number % 2:
            visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
    worker.wait_for("turned_away", "run_failed")


def connect(model, where, stage=lambda name: None):
    """A root; where the worker takes it for one more worker of a run that is just ending, it tries
    again, as roots do."""
    for _ in range(20):
        with contextlib.suppress(LinkError):
            return Root(model, where, backend="cpp", stage=stage)
    return Root(model, where, backend="cpp", stage=stage)


def measure(worker):
    """KiB of resident memory, descriptors, threads."""
    return worker.status("VmRSS"), worker.descriptors(), worker.status("Threads")


def test_a_mesh_is_after_many_sessions_what_it_was(models):
    model = models[0]

    def sessions(count):
        for number in range(count):
            root = connect(model, addresses(made))
            root.run(model.tokens[:8], batch=1 + number % 8)
            root.stop() if number % 3 else root.close()
        for worker in made:
            worker.report.wait_until_idle()

    with workers(3) as made:
        sessions(SESSIONS // 4)
        descriptors, memory = open_descriptors(), resident_bytes()
        sessions(SESSIONS // 2)  # of three workers each
        assert open_descriptors() <= descriptors
        assert resident_bytes() <= memory + 30e6


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())

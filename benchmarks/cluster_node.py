"""Times the work of one cluster worker for a token, and compares it with the read bandwidth.

    python benchmarks/cluster_node.py --threads 1            one half of a random 1.1B Llama
    python benchmarks/cluster_node.py --quick --json         a test that everything works

The slice is that of node 1 of two, with Q40 weights and Q80 sync (dim 2048, hidden 8192, 16 layers,
32 / 8 heads, 100 positions in the cache). The node sends over loopback to a process that, like a
stock root, waits without sleeping. Data from other nodes are there at once. Tokens and probes of
the read bandwidth take turns. The result uses the best time of each segment and the best probe. It
also shows the time of a token outside the executor: sends, and Python's share.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, native, options, table
from common.extension import cpp
from common.limits import Limits

from airllm.backends import load_backend
from airllm.cluster.checks import Program
from airllm.cluster.exchange import Exchange
from airllm.cluster.link import Link
from airllm.cluster.lowering import lower
from airllm.cluster.node import Node
from airllm.cluster.weights import ResidentWeights
from airllm.cluster.wire import FloatType, Size

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import dllama_root
from dllama_model import Shape

N_NODES, NODE, POSITION = 2, 1, 100
QUICK = Shape("llama", True, layers=2, length=128)
LLAMA_1B = Shape(
    "llama", True, dim=2048, hidden=8192, layers=16, heads=32, kv_heads=8, head_dim=64,
    vocab=32000, length=512,
)  # fmt: skip


DROP_ALL = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setblocking(False)
while True:
    try:
        if not connection.recv(1 << 20):
            break
    except BlockingIOError:
        pass
"""


class OneWayLink(Link):
    """A link to a process that receives everything and sends nothing. Reads return at once."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
            self._process = subprocess.Popen([sys.executable, "-c", DROP_ALL, port])
            super().__init__(server.accept()[0], "nobody", 60.0)
        self.seconds = 0.0  # in sends

    def send_some(self, view: memoryview) -> int:
        began = time.perf_counter()
        n = super().send_some(view)
        self.seconds += time.perf_counter() - began
        return n

    def read_soon(self, view: memoryview, seconds: float, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        super().close()
        self._process.wait()


class Watch:
    """Counts the seconds inside the executor's calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, run: Callable[..., None], *arguments: Any) -> None:
        began = time.perf_counter()
        run(*arguments)
        self.seconds += time.perf_counter() - began


def random_bytes(random: np.random.Generator, size: Size) -> np.ndarray:
    """The bytes of a plane: ones, or blocks with scales that keep activations in range."""
    if size.type is FloatType.F32:
        return np.ones(size.plane_bytes // 4, np.float32).view(np.uint8)
    blocks = random.integers(0, 256, (size.plane_bytes // 18, 18), np.uint8)
    blocks[:, :2] = np.float16(1 / (4.6 * size.y**0.5)).reshape(1).view(np.uint8)
    return blocks.reshape(-1)


def make_node(shape: Shape, threads: int) -> tuple[Node, Program, Watch]:
    net = dllama_root.net_config(shape, N_NODES)
    program = Program(net, dllama_root.node_config(shape, N_NODES, NODE))
    lowered, backend, watch = lower(program), load_backend("cpp", threads), Watch()
    node = Node(lowered, program, backend, threads)
    random = np.random.default_rng(0)
    weights = ResidentWeights(lowered, program.weights, backend)
    for key, size in program.weights.items():
        memory = weights.memory(key)
        memory[...] = random_bytes(random, size)
        weights.put(key, 0, memory)
    weights.finish(node.executors)
    node.weights = weights
    for executor in {id(e): e for e in node.executors}.values():
        executor.run = partial(watch.timed, executor.run)  # type: ignore[method-assign]
    node.pipes[dllama_root.X].view(np.float32)[:] = random.standard_normal((1, shape.dim))
    return node, program, watch


def measure(shape: Shape, threads: int, rounds: int, limits: Limits | None) -> dict[str, Any]:
    node, program, watch = make_node(shape, threads)
    link = OneWayLink()
    exchange = Exchange(program.net, NODE, node.pipes, {0: link})
    nbytes = sum(size.nbytes for size in program.weights.values())
    best: dict[int, float] = {}
    outside, sends, tokens = [], [], []
    for _ in range(rounds):
        began, watch.seconds, link.seconds = time.perf_counter(), 0.0, 0.0
        for index, (run, syncs) in enumerate(node.step(POSITION, 1)):
            before = watch.seconds
            run()
            for sync in syncs:
                exchange.run(sync, 1)
            best[index] = min(best.get(index, np.inf), watch.seconds - before)
        tokens.append(time.perf_counter() - began)
        sends.append(link.seconds)
        outside.append(tokens[-1] - watch.seconds - link.seconds)
        if limits is not None:
            limits.rate("read")
    link.close()
    if not np.isfinite(node.pipes[dllama_root.LG].view(np.float32)[0]).all():
        sys.exit("the logits are not finite: something is wrong")
    computed = sum(best.values())
    own = computed + min(outside) + min(sends)
    read = limits.best["read"] if limits is not None else None
    return {
        "threads": threads,
        "slice_bytes": nbytes,
        "token_seconds_best": min(tokens),
        "compute_seconds_best": computed,
        "python_seconds_best": min(outside),
        "sends_seconds_best": min(sends),
        "python_share": min(outside) / own,
        "read_bytes_per_second": read,
        "share_of_read": read and nbytes / own / read,
    }


def main() -> int:
    args = _parser().parse_args()
    rounds = min(args.rounds, 20) if args.quick else args.rounds
    try:
        limits = Limits(cpp.simd_level, args.threads, 1 << 20 if args.quick else None)
    except (native.BuildError, ValueError) as error:
        print(f"no limits are probed: {error}", file=sys.stderr)
        limits = None
    result = measure(QUICK if args.quick else LLAMA_1B, args.threads, rounds, limits)
    if args.json:
        options.write_json(args.json, {"machine": machine.describe(), **result})
    if args.json != "-":
        in_words(result)
    return 0


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    parser.add_argument("--threads", type=options.count, default=1, metavar="N", help="default: 1")
    parser.add_argument("--rounds", type=options.count, default=200, metavar="N", help="tokens")
    parser.add_argument("--quick", action="store_true", help="use a tiny model")
    options.add_json(parser)
    return parser


def in_words(result: dict[str, Any]) -> None:
    lines = {
        "slice": f"{result['slice_bytes'] / 1e6:.1f} MB, {table.in_threads(result['threads'])}",
        "a token": f"{table.duration(result['compute_seconds_best'])} in the executor, "
        f"{table.duration(result['sends_seconds_best'])} in sends, "
        f"{table.duration(result['python_seconds_best'])} in Python ({result['python_share']:.1%})",
    }
    if result["share_of_read"] is not None:
        rate = result["read_bytes_per_second"] / 1e9
        lines["of read bandwidth"] = f"{result['share_of_read']:.0%} of {rate:.1f} GB/s"
    for name, value in lines.items():
        print(f"{name + ':':<19}{value}")


if __name__ == "__main__":
    sys.exit(main())

"""Measures a model that is larger than its memory, and compares it with the speed of the disk.

    python benchmarks/make_model.py model.gguf --type f16
    python benchmarks/compare_streaming.py --model model.gguf --ram 1GiB
    python benchmarks/compare_streaming.py --model model.gguf --repeating smollm2.gguf

Each part runs in a separate process. Before anything is timed, its answers are compared, bit for
bit, with those of the model in memory. The disk is probed with direct reads of the same file, with
the fastest of a few sizes and numbers of reads at a time. Probes take turns with passes of the
model and read as many bytes.
"""

import argparse
import mmap
import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import machine, options, process, table
from common.extension import cpp

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import parse_bytes

MIB = 1 << 20
CONTEXT = 1024
SHORT, LONG = 60, 700  # tokens of prompts; a long one fills the buffers, which hold 512 tokens

# Ways to read directly, like dd: bytes of a read, and reads at a time.
PROBES = ((1 * MIB, 8), (4 * MIB, 4), (8 * MIB, 2), (8 * MIB, 4), (16 * MIB, 1))
PROBE_BYTES = 256 * MIB  # of each probe that finds the best way

REPEATING = """Repeat this list of settings twice, word for word:
server.address = 10.0.0.1, server.port = 8080, server.timeout = 30, server.name = alpha,
client.address = 10.0.0.2, client.port = 8081, client.timeout = 60, client.name = beta."""

COLUMNS = table.Columns(**{"what": -54, "measured": 12, "bar": 10, "verdict": -8})


@dataclass(frozen=True)
class Row:
    """A figure and its bar: the least value that passes, or the greatest if `most` is True."""

    what: str
    value: float
    unit: str  # "x", "%", "MiB", "GB/s"
    bar: float | None = None
    most: bool = False

    @property
    def passed(self) -> bool:
        if self.bar is None:
            return True
        return self.value <= self.bar if self.most else self.value >= self.bar

    def cells(self) -> list[str]:
        bar = "" if self.bar is None else f"{'<=' if self.most else '>='} {self.bar:.4g}"
        verdict = "" if self.bar is None else "ok" if self.passed else "MISSED"
        return [self.what, f"{self.value:.4g} {self.unit}", bar, verdict]


@dataclass(frozen=True)
class Run:
    model: str
    ram: int
    tokens: int
    rounds: int
    batch: int
    batch_tokens: int


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    run = Run(args.model, args.ram, args.tokens, args.rounds, args.batch, args.batch_tokens)
    threads = args.threads or cpp.cpu_budget()["chosen"]
    rows: list[Row] = []
    quiet = args.json == "-"

    def show(row: Row) -> None:
        rows.append(row)
        if not quiet:
            print(COLUMNS.line(row.cells()), flush=True)

    if not quiet:
        print(COLUMNS.line(COLUMNS.head), flush=True)
    expected = _first(in_memory, run, threads)
    for part in (streamed, memory, fits):
        for row in process.iterate(part, run, expected, threads=threads):
            show(row)
    for row in process.iterate(batches, run, threads=threads):
        show(row)
    if args.repeating:
        repeating = replace(run, model=args.repeating)
        for row in process.iterate(lookahead, repeating, threads=threads):
            show(row)
    if args.json:
        results = [{**asdict(row), "passed": row.passed} for row in rows]
        document = {"machine": machine.describe(), **asdict(run), "results": results}
        options.write_json(args.json, document)
    return int(not all(row.passed for row in rows))


def in_memory(run: Run) -> Iterator[list[bytes]]:
    """The logits of the model in memory, which every budget must reproduce."""
    with _engine(run, None) as engine:
        yield _logits(engine)


def streamed(run: Run, expected: list[bytes]) -> Iterator[Row]:
    """Throughput and tokens a second. Rounds take turns with probes of the disk."""
    with _engine(run, run.ram) as engine, Disk(run.model) as disk:
        plan = engine.plan()
        if not plan.streams:
            raise process.FailedError(f"{run.model} fits {run.ram} bytes; expected a larger model")
        _verify(engine, expected, "streamed")
        way = disk.best_way()
        streamed, probed = [], []
        for _ in range(run.rounds):
            _wait_until_full(engine)
            read, start = _bytes_read(engine), time.perf_counter()
            for _ in range(run.tokens):
                engine.forward([5])
            seconds = time.perf_counter() - start
            streamed.append(((_bytes_read(engine) - read) / seconds, run.tokens / seconds))
            _wait_until_full(engine)
            probed.append(disk.rate(way, run.tokens * plan.streamed_bytes_per_pass))
    speed, throughput = (statistics.median(each) for each in (probed, [s[0] for s in streamed]))
    tokens = statistics.median([s[1] for s in streamed])
    yield Row(f"direct reads of {way[0] // MIB} MiB, {way[1]} at a time", speed / 1e9, "GB/s")
    yield Row("... best of all", disk.best / 1e9, "GB/s")
    yield Row("streamed", throughput / 1e9, "GB/s")
    yield Row("... best of all", max(s[0] for s in streamed) / 1e9, "GB/s")
    yield Row("streamed, of direct reads in turn with it", 100 * throughput / speed, "%", 90)
    what = "tokens/s, of disk throughput / bytes per token"
    yield Row(what, 100 * tokens * plan.streamed_bytes_per_pass / speed, "%", 90)


def memory(run: Run, expected: list[bytes]) -> Iterator[Row]:
    """The peak memory of a process that only runs the model."""
    with _engine(run, run.ram) as engine:
        for n, has_bar in ((SHORT, True), (LONG, False)):
            engine.reset()
            engine.forward([token % engine.config.vocab_size for token in range(n)])
            for token in range(3, 6):
                engine.forward([token])
            plan = engine.plan()
            known = plan.kv_cache_bytes * engine.position // engine.context
            known += plan.pinned_bytes + 4 * engine.config.vocab_size
            beyond = 1024 * _number("/proc/self/status", "VmHWM") - known
            bar = 2 * _largest_layer(engine) / MIB + 64 if has_bar else None
            what = f"beyond KV cache, pinned layers and logits, prompt of {n}"
            yield Row(what, beyond / MIB, "MiB", bar, most=True)


def fits(run: Run, expected: list[bytes]) -> Iterator[Row]:
    """Compares a budget that just suffices with no budget."""
    with _engine(run, None) as resident:
        enough = resident.plan().total_bytes
        with _engine(run, enough) as engine:
            _verify(engine, expected, "budget above the model's size")
            _verify(resident, expected, "no budget")
            read = _number("/proc/self/io", "read_bytes")
            ratios = []
            for _ in range(4 * run.rounds):
                seconds = [_decode_seconds(each, 4 * run.tokens) for each in (engine, resident)]
                ratios.append(100 * seconds[1] / seconds[0])
            read = _number("/proc/self/io", "read_bytes") - read
    yield Row(
        "budget above the model's size: read after the first pass", read / MIB, "MiB", 0, True
    )
    yield Row("... tokens/s, relative to no budget", statistics.median(ratios), "%", 97)


def batches(run: Run) -> Iterator[Row]:
    """The tokens in a pass of the disk with several prompts in a batch; alone, a prompt has 1."""
    prompts = [f"{'ab ' * (index % 5 + 3)}{index}" for index in range(run.batch)]
    settings: dict[str, Any] = {"temperature": 0, "max_new_tokens": run.batch_tokens}
    with _engine(run, None) as engine:
        expected = [a.tokens for a in engine.generate_batch(prompts, batch=run.batch, **settings)]
        engine.reset()
        if engine.generate(prompts[1], lookahead=0, **settings).tokens != expected[1]:
            raise process.FailedError("a prompt has another answer in a batch than alone")
    with _engine(run, run.ram) as engine:
        per_pass = engine.plan().streamed_bytes_per_pass
        before = _taken(engine)
        found = engine.generate_batch(prompts, batch=run.batch, **settings)
        passes = (_taken(engine) - before) / per_pass
        if [answer.tokens for answer in found] != expected:
            raise process.FailedError("streamed answers of a batch differ from those in memory")
    n_tokens = sum(answer.passes for answer in found)  # a pass for each token, the end token too
    what = f"batch of {run.batch}, {run.batch_tokens} tokens each: tokens a pass of the disk"
    yield Row(what, n_tokens / passes, "x", 0.75 * run.batch)


def lookahead(run: Run) -> Iterator[Row]:
    """Compares lookahead with none on text that repeats, from a model that can follow a prompt."""
    prompt = [{"role": "user", "content": REPEATING}]
    settings: dict[str, Any] = {"temperature": 0, "max_new_tokens": 200}
    with _engine(run, None) as engine:
        ram = engine.plan().total_bytes - Path(run.model).stat().st_size // 2
    with _engine(run, ram) as engine:
        start = time.perf_counter()
        plain = engine.generate(prompt, lookahead=0, **settings)
        middle = time.perf_counter()
        engine.reset()
        ahead = engine.generate(prompt, **settings)
        end = time.perf_counter()
    if ahead.tokens != plain.tokens:
        raise process.FailedError("the answers with and without lookahead differ")
    yield Row("text that repeats: tokens a pass", ahead.tokens_per_pass, "x", 1.8)
    yield Row("... tokens/s, relative to no lookahead", (middle - start) / (end - middle), "x")


class Disk:
    """Direct reads of a file, like dd with iflag=direct, but several at a time."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._size = Path(path).stat().st_size // MIB * MIB
        self._next = 0
        self.best = 0.0

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def best_way(self) -> tuple[int, int]:
        """The fastest of PROBES: bytes of a read, and reads at a time."""
        rates = {way: [] for way in PROBES}
        for _ in range(3):
            for way, taken in rates.items():
                taken.append(self.rate(way, PROBE_BYTES))
        return max(rates, key=lambda way: statistics.median(rates[way]))

    def rate(self, way: tuple[int, int], n_bytes: int) -> float:
        """Reads n_bytes, from where the last call ended. Returns bytes a second."""
        each, at_once = way
        total = min(n_bytes, self._size)
        start = self._next if self._next + total <= self._size else 0
        self._next = (start + total) // MIB * MIB
        step = at_once * each
        offsets = [range(start + i * each, start + total, step) for i in range(at_once)]
        buffers = [mmap.mmap(-1, each) for _ in range(at_once)]
        with ThreadPoolExecutor(at_once) as pool:
            begun = time.perf_counter()
            read = sum(pool.map(self._read, offsets, buffers))
            rate = read / (time.perf_counter() - begun)
        self.best = max(self.best, rate)
        return rate

    def _read(self, offsets: range, buffer: mmap.mmap) -> int:
        return sum(os.preadv(self._file, [buffer], offset) for offset in offsets)


def _engine(run: Run, ram: int | None) -> LayerWiseInferenceEngine:
    budget = 1 << 60 if ram is None else ram
    return LayerWiseInferenceEngine(run.model, ram_budget=budget, context=CONTEXT)


def _first(part: Any, run: Run, threads: int) -> Any:
    [value] = process.iterate(part, run, threads=threads)
    return value


def _logits(engine: LayerWiseInferenceEngine) -> list[bytes]:
    engine.reset()
    steps: list[list[int]] = [[1, 5, 9, 2], [7], [8]]
    return [engine.forward(step).tobytes() for step in steps]


def _verify(engine: LayerWiseInferenceEngine, expected: list[bytes], what: str) -> None:
    if _logits(engine) != expected:
        raise process.FailedError(f"{what}: the logits differ from those of the model in memory")


def _decode_seconds(engine: LayerWiseInferenceEngine, n: int) -> float:
    engine.reset()
    engine.forward([5])
    start = time.perf_counter()
    for _ in range(n):
        engine.forward([5])
    return time.perf_counter() - start


def _stats(engine: LayerWiseInferenceEngine) -> dict[str, Any]:
    stats = engine.stream_stats()
    assert stats is not None
    return stats


def _bytes_read(engine: LayerWiseInferenceEngine) -> int:
    return int(_stats(engine)["bytes_read"])


def _taken(engine: LayerWiseInferenceEngine) -> int:
    return int(_stats(engine)["bytes_taken"])


def _wait_until_full(engine: LayerWiseInferenceEngine) -> None:
    """Wait until the stream has read as far ahead as it may."""
    before = -1
    while before != (before := _bytes_read(engine)):
        time.sleep(0.1)


def _largest_layer(engine: LayerWiseInferenceEngine) -> int:
    """Bytes of the largest layer in memory. The ring has one for each slot, and read buffers."""
    plan = engine.plan()
    return (plan.ring_bytes - int(_stats(engine)["buffer_bytes"])) // plan.slots


def _number(file: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", Path(file).read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    parser.add_argument("--model", required=True, metavar="FILE.gguf", help="larger than --ram")
    parser.add_argument(
        "--ram", type=parse_bytes, default="1GiB", metavar="SIZE", help="default: 1GiB"
    )
    parser.add_argument(
        "--repeating",
        metavar="FILE.gguf",
        help="a model that can chat, for the text that repeats (default: leave out that row)",
    )
    parser.add_argument(
        "--threads", type=options.count, metavar="N", help="default: the number in `airllm info`"
    )
    for flag, default, what in (
        ("--tokens", 4, "tokens in a round"),
        ("--rounds", 5, "rounds of tokens and probes"),
        ("--batch", 16, "prompts in a batch"),
        ("--batch-tokens", 32, "tokens of each answer in a batch"),
    ):
        parser.add_argument(
            flag,
            type=options.count,
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    options.add_json(parser)
    return parser


if __name__ == "__main__":
    process.run_script(main)

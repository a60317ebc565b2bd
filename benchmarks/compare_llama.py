"""Compares prefill and decode of the engine with llama.cpp, on the same GGUF file.

    python benchmarks/make_model.py model.gguf
    python benchmarks/compare_llama.py --model model.gguf
    python benchmarks/compare_llama.py --model model.gguf --llama-bench build/bin/llama-bench

llama.cpp runs through llama-cpp-python, if it is installed, or through a llama-bench binary.
ik_llama.cpp has such a binary, too; it needs --llama-bench-options "-rtr 1". Engine and llama.cpp
take turns. Both start with an empty cache, or with --depth tokens in it, and run only the model: no
tokeniser, no sampling. Both keep keys and values in float16, and llama.cpp uses flash attention.
The logits of llama-cpp-python are compared with ours before anything is timed.
"""

import argparse
import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from common import limits, machine, native, options, process, table, timing
from common.extension import cpp
from common.verify import WrongResultError, check
from numpy.typing import NDArray

from airllm.formats.gguf import GGUFFile
from airllm.graph.graph import Activations
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.tools import benchmark

# llama.cpp rounds the activations of each matrix product to 8 bits.
LOGITS_TOLERANCE = 0.1
VERIFIED_TOKENS = 16

COLUMNS = table.Columns(
    **{"test": -8, "threads": 7, "airllm median": 14, "best": 9, "llama.cpp median": 17},
    **{"best ": 9, "ratio": 7, "weights read at": -30},
)


@dataclass(frozen=True)
class Run:
    model: str
    threads: int
    prompt: int
    generated: int
    depth: int  # tokens in the cache before those generated
    rounds: int
    activations: Activations
    llama_bench: str | None
    llama_bench_options: str


@dataclass(frozen=True)
class Row:
    """Tokens a second."""

    test: str
    threads: int
    airllm: tuple[float, ...]
    llama_cpp: tuple[float, ...]
    share_of_read: float | None  # decode: bytes of weights a second / the read bandwidth

    @property
    def ratio(self) -> float:
        """The engine's speed relative to llama.cpp, by the best rounds."""
        return max(self.airllm) / max(self.llama_cpp)

    def cells(self) -> list[str]:
        share = self.share_of_read
        return [
            *(self.test, str(self.threads)),
            *(f"{statistics.median(self.airllm):.1f} t/s", f"{max(self.airllm):.1f}"),
            *(f"{statistics.median(self.llama_cpp):.1f} t/s", f"{max(self.llama_cpp):.1f}"),
            f"{self.ratio:.2f}x",
            "" if share is None else f"{100 * share:.0f}% of read bandwidth",
        ]

    def as_json(self) -> dict[str, Any]:
        median = statistics.median(a / b for a, b in zip(self.airllm, self.llama_cpp, strict=True))
        return {**asdict(self), "ratio": self.ratio, "ratio_median": median}


class Contestant(Protocol):
    def rate(self, test: benchmark.Test, context: list[int]) -> float:
        """Tokens a second of one run of the test, after `context`, which is not timed."""

    def logits(self, tokens: list[int]) -> NDArray[np.float32] | None:
        """The logits of the last token, [vocab]; None if there is no access to them."""


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if not args.llama_bench and importlib.util.find_spec("llama_cpp") is None:
        print(
            "llama.cpp is missing: pip install llama-cpp-python (it compiles for ten minutes), or "
            "name a binary with --llama-bench",
            file=sys.stderr,
        )
        return 1
    rows = []
    quiet = args.json == "-"
    if not quiet:
        print(COLUMNS.line(COLUMNS.head), flush=True)
    for threads in args.threads or sorted({1, cpp.cpu_budget()["chosen"]}):
        run = Run(
            *(args.model, threads, args.prompt_tokens, args.generated_tokens, args.depth),
            *(args.rounds, args.activations, args.llama_bench, args.llama_bench_options),
        )
        for row in process.iterate(measure, run, threads=threads):
            rows.append(row)
            if not quiet:
                print(COLUMNS.line(row.cells()), flush=True)
    if args.json:
        results = [row.as_json() for row in rows]
        document = {"machine": machine.describe(), "model": args.model, "results": results}
        options.write_json(args.json, document)
    return 0


def measure(run: Run) -> Iterator[Row]:
    """Runs in a separate process, whose environment sets the number of threads."""
    context = max(run.prompt, run.depth + run.generated, VERIFIED_TOKENS)
    try:
        step_bytes = _bytes_of_a_step(run.model)
        engine = LayerWiseInferenceEngine(
            run.model, threads=run.threads, context=context, activations=run.activations
        )
    except (ValueError, OSError) as error:
        raise process.FailedError(str(error)) from None
    with engine:
        ours = Airllm(engine)
        theirs: Contestant = LlamaBench(run) if run.llama_bench else LlamaCppPython(run, context)
        vocab = engine.config.vocab_size
        _verify(ours, theirs, vocab)
        read = _read_bandwidth(run)
        for test, before in _tests(run, vocab):
            rates = _in_turn([ours, theirs], test, before, run.rounds)
            share = None
            if read and test.name.startswith("tg"):
                share = max(rates[0]) * step_bytes / read
            name = f"{test.name}@{len(before)}" if before else test.name
            yield Row(name, run.threads, tuple(rates[0]), tuple(rates[1]), share)


def _bytes_of_a_step(path: str) -> float:
    """The bytes that decoding a token must read: all weights, and of each layer's experts those
    that a token uses. The embedding, of which it reads a row, counts only if it is also the output
    matrix."""
    with GGUFFile.open(path) as gguf:
        share = load_model(gguf).config.share_of_experts
        tied = "output.weight" not in gguf.tensors
        return sum(
            tensor.nbytes * (share if "_exps." in name else 1.0)
            for name, tensor in gguf.tensors.items()
            if tied or name != "token_embd.weight"
        )


def _tests(run: Run, vocab: int) -> Iterator[tuple[benchmark.Test, list[int]]]:
    """The tests, each with the tokens that are in the cache before it."""
    if run.prompt:
        yield benchmark.prefill(run.prompt, vocab), []
    if run.generated:
        before = benchmark.prefill(run.depth, vocab).timed[0] if run.depth else []
        yield benchmark.decode(run.generated, vocab), before


def _in_turn(
    contestants: list[Contestant], test: benchmark.Test, before: list[int], rounds: int
) -> list[list[float]]:
    """The rates of `rounds` rounds, after one more round that warms up."""
    rates: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds + 1):
        for contestant, taken in zip(contestants, rates, strict=True):
            timing.wait_until_idle()
            taken.append(contestant.rate(test, before))
    return [taken[1:] for taken in rates]


def _verify(ours: Contestant, theirs: Contestant, vocab: int) -> None:
    tokens = benchmark.prefill(VERIFIED_TOKENS, vocab).timed[0]
    expected, actual = theirs.logits(tokens), ours.logits(tokens)
    if expected is None or actual is None:
        return
    try:
        check(
            "the engine's logits against llama.cpp's",
            actual,
            expected.astype(np.float64),
            LOGITS_TOLERANCE,
        )
    except WrongResultError as error:
        raise process.FailedError(str(error)) from None


class Airllm:
    def __init__(self, engine: LayerWiseInferenceEngine) -> None:
        self._engine = engine

    def rate(self, test: benchmark.Test, context: list[int]) -> float:
        self._engine.reset()
        return _rate(self._engine.forward, test, context)

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        self._engine.reset()
        return self._engine.forward(tokens)


class LlamaCppPython:
    def __init__(self, run: Run, context: int) -> None:
        self._module = importlib.import_module("llama_cpp")
        self._model = self._module.Llama(
            run.model,
            n_ctx=context,
            n_batch=512,
            n_threads=run.threads,
            n_threads_batch=run.threads,
            flash_attn=True,
            verbose=False,
        )

    def rate(self, test: benchmark.Test, context: list[int]) -> float:
        self._model.reset()
        return _rate(self._model.eval, test, context)

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        self._model.reset()
        self._model.eval(tokens)
        pointer = self._module.llama_get_logits_ith(self._model.ctx, -1)
        shape = (self._model.n_vocab(),)
        return np.ctypeslib.as_array(pointer, shape=shape).copy()


class LlamaBench:
    """The llama-bench binary. It loads the model for each run and does its own warm-up."""

    def __init__(self, run: Run) -> None:
        assert run.llama_bench
        self._command = [run.llama_bench, "-m", run.model, "-t", str(run.threads), "-r", "1"]
        self._command += ["-ngl", "0", "-fa", "1", "-o", "json"]
        self._command += shlex.split(run.llama_bench_options)

    def rate(self, test: benchmark.Test, context: list[int]) -> float:
        n = sum(map(len, test.timed))
        lengths = ["-p", str(n), "-n", "0"]
        if test.name.startswith("tg"):
            lengths = ["-p", "0", "-n", str(n)]
        if context:
            lengths += ["-d", str(len(context))]
        command = [*self._command, *lengths]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise process.FailedError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
        return float(json.loads(result.stdout)[0]["avg_ts"])

    def logits(self, tokens: list[int]) -> None:
        return None


def _rate(
    forward: Callable[[list[int]], object], test: benchmark.Test, context: list[int]
) -> float:
    if context:
        forward(context)
    start = time.perf_counter()
    for tokens in test.timed:
        forward(tokens)
    return sum(map(len, test.timed)) / (time.perf_counter() - start)


def _read_bandwidth(run: Run) -> float | None:
    try:
        probes = limits.Limits(cpp.simd_level, run.threads)
    except native.BuildError:
        return None
    return probes.best["read"]


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    parser.add_argument("--model", required=True, metavar="FILE.gguf")
    parser.add_argument("--llama-bench", metavar="PATH", help="run it in place of llama-cpp-python")
    parser.add_argument(
        "--llama-bench-options",
        default="",
        metavar="OPTIONS",
        help='more options for that binary, as one argument: "-rtr 1"',
    )
    parser.add_argument(
        "--threads", type=options.counts, metavar="N,...", help="default: 1 and all"
    )
    parser.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="default: 512")
    parser.add_argument("--generated-tokens", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument(
        "--depth",
        type=int,
        default=0,
        metavar="N",
        help="tokens in the cache before those generated (default: 0)",
    )
    parser.add_argument(
        "--rounds", type=options.count, default=5, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--activations",
        choices=("auto", "q8", "q16", "f32"),
        default="auto",
        help="of the engine (default: auto); llama.cpp always uses 8 bits",
    )
    options.add_json(parser)
    return parser


if __name__ == "__main__":
    process.run_script(main)

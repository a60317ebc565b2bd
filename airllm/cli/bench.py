"""airllm bench: how many tokens a second."""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from airllm.cli import console, model, options, profile

if TYPE_CHECKING:
    from airllm.cli.engine import Engine
    from airllm.tools import benchmark


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "bench",
        run,
        help="measure tokens a second",
        description="Measures tokens a second as llama-bench does. The test pp512 evaluates a "
        "prompt of 512 tokens, and tg128 generates 128 tokens one by one. Each test begins with "
        "an empty cache after a warm-up. With --batch 8, the test tg128x8 generates 128 tokens "
        "of each of 8 sequences together. The output has the mean and the standard deviation of "
        "the repetitions. Where options are lists, every combination is measured.",
        examples=[
            "airllm bench -m smollm2-135m",
            "airllm bench -m model.gguf -p 128,512 -n 0 -t 1,2,4 -r 5 --json",
            "airllm bench -m model.gguf -p 0 -n 64 --batch 2,8",
            "airllm bench -m model.gguf -p 0 -n 64 --profile --plot profile.png",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "-p",
        "--prompt-tokens",
        type=options.counts,
        default=[512],
        metavar="N,...",
        help="lengths of the prompt in tokens; 0 leaves the test out (default: 512)",
    )
    parser.add_argument(
        "-n",
        "--generated-tokens",
        type=options.counts,
        default=[128],
        metavar="N,...",
        help="numbers of tokens to generate; 0 leaves the test out (default: 128)",
    )
    parser.add_argument(
        "--batch",
        type=options.positives,
        default=[],
        metavar="N,...",
        help="also generate tokens of N sequences together, and show the tokens/s of all "
        "sequences and the ratio to the tokens/s of one sequence",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="run each test once more, and show the time, bytes and FLOPs of each operation and "
        "the time outside of the operations",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE.png",
        help="draw the profiles to a file (implies --profile; needs matplotlib)",
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=options.positives,
        default=[None],
        metavar="N,...",
        help="numbers of threads (default: the number that `airllm info` shows)",
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=options.positive,
        default=3,
        metavar="N",
        help="number of times that each test is timed (default: %(default)s)",
    )
    options.add_engine(parser, context=False)
    options.add_output(
        parser,
        json="results: a list of test, threads, tokens_per_second, stddev, ratio_to_single, "
        "stream (statistics of the disk reads so far, null where the whole model is in memory), "
        "and "
        "profile (ops, each with calls, seconds, nbytes, flops; python_share)",
    )


def run(args: argparse.Namespace) -> int:
    context = max(args.prompt_tokens + args.generated_tokens)
    if context == 0:
        raise options.UsageError("-p 0 -n 0 leaves nothing to measure")
    if args.plot:
        profile.require_matplotlib()  # before minutes of measuring
    rows, profiles = [], []
    for row, profiled in _measure(args, context):
        rows.append(row)
        if profiled is not None:
            profiles.append(profiled)
        if not args.json:
            if len(rows) == 1:
                print(f"{'backend':<8} {'isa':<12} {'threads':>7}  {'test':<8} {'tokens/s':>18}")
            speed = f"{row['tokens_per_second']:.2f} ± {row['stddev']:.2f}"
            ratio = row["ratio_to_single"]
            print(
                f"{row['backend']:<8} {row['isa']:<12} {row['threads']:>7}  {row['test']:<8} "
                f"{speed:>18}" + ("" if ratio is None else f"   {ratio:.2f} times one sequence's"),
                flush=True,
            )
    if args.plot:
        profile.draw(args.plot, profiles, f"{args.model}, {rows[-1]['isa']}")
    if args.json:
        console.write_json({"model": args.model, "results": rows})
    else:
        for profiled in profiles:
            print("\n" + "\n".join(profiled.lines()))
    return 0


def _measure(
    args: argparse.Namespace, context: int
) -> Iterator[tuple[dict[str, object], profile.Profiled | None]]:
    """A row for each number of threads and test. Each number of threads has its own engine."""
    from airllm.tools import benchmark

    for threads in args.threads:
        with model.open_engine(args, context=context, threads=threads) as engine:
            bench = _Bench(args, engine)
            vocab_size = engine.config.vocab_size
            for n in filter(None, args.prompt_tokens):
                yield bench.row(engine, benchmark.prefill(n, vocab_size))
            for n in filter(None, args.generated_tokens):
                yield bench.row(engine, benchmark.decode(n, vocab_size))
                single = bench.last
                for batch in args.batch:
                    test = benchmark.decode_batch(n, batch, vocab_size)
                    with engine.sequences(batch, n) as sequences:
                        yield bench.row(benchmark.Batch(sequences), test, single)


class _Bench:
    """Measures tests with one engine."""

    def __init__(self, args: argparse.Namespace, engine: "Engine") -> None:
        self._args, self._engine, self._runtime = args, engine, model.runtime(engine)
        self.last: float = 0.0  # tokens a second

    def row(
        self, subject: "benchmark.Evaluator", test: "benchmark.Test", single: float | None = None
    ) -> tuple[dict[str, object], profile.Profiled | None]:
        """Measures a test: its row of --json, and its profile. single: tokens/s for the ratio."""
        from airllm.tools import benchmark

        label = f"{test.name}, {model.in_words(self._runtime)}"
        with console.progress(label, "tokens") as progress:
            result = benchmark.measure(
                subject, test, self._args.repetitions, on_progress=progress.update
            )
        self.last = result.tokens_per_second
        ratio = self.last / single if single else None
        streamed = self._engine.stream_stats()
        row = {**asdict(result), "ratio_to_single": ratio, "stream": streamed, **self._runtime}
        if not (self._args.profile or self._args.plot):
            return row, None
        profiled = self._profile(subject, test)
        return {**row, "profile": profiled.as_json()}, profiled

    def _profile(self, subject: "benchmark.Evaluator", test: "benchmark.Test") -> profile.Profiled:
        subject.reset()
        with self._engine.profile() as found:
            start = time.perf_counter()
            for tokens in test.timed:
                subject.forward(tokens)
            seconds = time.perf_counter() - start
        return profile.Profiled(
            test.name, len(test.timed), seconds, found.call_seconds, found.ops()
        )

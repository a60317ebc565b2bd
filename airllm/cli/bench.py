"""airllm bench: how many tokens a second."""

import argparse
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from airllm.cli import console, model, options, profile, values
from airllm.util.version import __version__

if TYPE_CHECKING:
    from airllm.cli.engine import Engine
    from airllm.tools import benchmark
    from airllm.tools.ceilings import Ceilings
    from airllm.tools.speeds import Speed

PICTURES = (".png", ".svg", ".pdf")


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
            "airllm bench -m model.gguf -p 0 -n 64 -d 0,1024,4096",
            "airllm bench -m model.gguf -t 1,2,4 --batch 2,4,8 --plot speed.png",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "-p",
        "--prompt-tokens",
        type=values.counts,
        default=[512],
        metavar="N,...",
        help="lengths of the prompt in tokens; 0 leaves the test out (default: 512)",
    )
    parser.add_argument(
        "-n",
        "--generated-tokens",
        type=values.counts,
        default=[128],
        metavar="N,...",
        help="numbers of tokens to generate; 0 leaves the test out (default: 128)",
    )
    parser.add_argument(
        "--batch",
        type=values.positives,
        default=[],
        metavar="N,...",
        help="also generate tokens of N sequences together, and show the tokens/s of all "
        "sequences and the ratio to the tokens/s of one sequence",
    )
    parser.add_argument(
        "-d",
        "--depth",
        type=values.counts,
        default=[0],
        metavar="N,...",
        help="numbers of tokens that are in the context before each test, as in llama-bench; the "
        "test tg128@4096 generates 128 tokens after 4096 (default: 0)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="run each test once more, and show the time, bytes and FLOPs of each operation and "
        "the time outside of the operations",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw pictures (implies --profile; needs matplotlib): FILE-operations.png and "
        "FILE-roofline.png, and FILE-threads.png, FILE-context.png and FILE-batch.png where "
        "several were measured; the ending may be .svg or .pdf, too",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.json",
        help="with --plot: show these measurements in the same pictures, of `llama-bench -o json` "
        "or of another `airllm bench --json`; the option may be given more than once",
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=values.positives,
        default=[None],
        metavar="N,...",
        help="numbers of threads (default: the number that `airllm info` shows)",
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=values.positive,
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
    context += max(args.depth)
    beside = _beside(args)  # before minutes of measuring
    rows, profiles, ceilings = [], [], None
    for row, profiled, measured in _measure(args, context):
        ceilings = measured
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
    if args.json:
        console.write_json({"model": args.model, "results": rows})
    else:
        for profiled in profiles:
            print("\n" + "\n".join(profiled.lines()))
    if args.plot:
        _draw(args, rows, beside, profiles, ceilings)
    return 0


def _beside(args: argparse.Namespace) -> "list[Speed]":
    """The measurements of --beside. Refuses what --plot could not draw or write."""
    if args.plot is None:
        if args.beside:
            raise options.UsageError("--beside is for pictures: add --plot FILE.png")
        return []
    if args.plot.suffix not in PICTURES:
        raise options.UsageError(f"--plot {args.plot}: expected the ending {' or '.join(PICTURES)}")
    if not args.plot.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(args.plot.parent))
    from airllm.tools import picture_style, speeds

    picture_style.matplotlib_pyplot()
    return [speed for path in args.beside for speed in speeds.read(path)]


def _draw(
    args: argparse.Namespace,
    rows: Sequence[Mapping[str, object]],
    beside: "Sequence[Speed]",
    profiles: Sequence[profile.Profiled],
    ceilings: "Ceilings | None",
) -> None:
    from airllm.tools import picture_style, pictures, speeds
    from airllm.util import system

    most = max(int(str(row["threads"])) for row in rows)
    title = Path(args.model).name.removesuffix(".gguf")
    subtitle = (
        f"airllm {__version__}, {rows[-1]['backend']}, {rows[-1]['isa']}, "
        f"{most} thread{'s' if most > 1 else ''} unless it says otherwise; {system.cpu_model()}"
    )
    own = speeds.from_rows(rows)
    works = [each.work(speed) for each, speed in zip(profiles, own, strict=True)]
    figures = pictures.draw_all(own, beside, works, ceilings, title, subtitle)
    for name, figure in figures.items():
        path = args.plot.with_name(f"{args.plot.stem}-{name}{args.plot.suffix}")
        figure.savefig(path, dpi=picture_style.DPI)
        console.log.info("%s", path)
    picture_style.close(figures.values())


def _measure(
    args: argparse.Namespace, context: int
) -> "Iterator[tuple[dict[str, object], profile.Profiled | None, Ceilings | None]]":
    """A row for each number of threads and test. Each number of threads has its own engine, and
    its own ceilings if there is a plot."""
    from airllm.tools import benchmark

    for threads in args.threads:
        with model.open_engine(args, context=context, threads=threads) as engine:
            bench = _Bench(args, engine)
            ceilings = None
            if args.plot:
                from airllm.tools.ceilings import measure

                ceilings = measure(model.operations(engine))
            vocab_size = engine.config.vocab_size
            for n, depth in product(filter(None, args.prompt_tokens), args.depth):
                test = benchmark.prefill(n, vocab_size).after(depth, vocab_size)
                yield *bench.row(engine, test), ceilings
            for n in filter(None, args.generated_tokens):
                single = None
                for depth in args.depth:
                    test = benchmark.decode(n, vocab_size).after(depth, vocab_size)
                    yield *bench.row(engine, test), ceilings
                    single = bench.last if single is None else single
                for batch in args.batch:
                    test = benchmark.decode_batch(n, batch, vocab_size)
                    with engine.sequences(batch, n) as sequences:
                        yield *bench.row(benchmark.Batch(sequences), test, single), ceilings


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
        if test.before:
            subject.forward(test.before)
        with self._engine.profile() as found:
            start = time.perf_counter()
            for tokens in test.timed:
                subject.forward(tokens)
            seconds = time.perf_counter() - start
        return profile.Profiled(
            test.name, len(test.timed), seconds, found.call_seconds, found.ops()
        )

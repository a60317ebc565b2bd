"""airllm bench: how many tokens a second."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict

from airllm.cli import console, model, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "bench",
        run,
        help="measure tokens a second",
        description="Measures as llama-bench does: pp512 evaluates a prompt of 512 tokens, tg128 "
        "then makes 128 tokens one by one, each from an empty cache, after a warm-up; with "
        "--batch 8, tg128x8 makes 128 tokens of each of 8 sequences together. Shows the mean and "
        "the spread (standard deviation) of the repetitions. Lists measure every combination.",
        examples=[
            "airllm bench -m smollm2-135m",
            "airllm bench -m model.gguf -p 128,512 -n 0 -t 1,2,4 -r 5 --json",
            "airllm bench -m model.gguf -p 0 -n 64 --batch 2,8",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "-p",
        "--prompt-tokens",
        type=options.counts,
        default=[512],
        metavar="N,...",
        help="lengths of the prompt; 0: none (default: 512)",
    )
    parser.add_argument(
        "-n",
        "--generated-tokens",
        type=options.counts,
        default=[128],
        metavar="N,...",
        help="numbers of tokens to generate; 0: none (default: 128)",
    )
    parser.add_argument(
        "--batch",
        type=options.positives,
        default=[],
        metavar="N,...",
        help="also generate for N sequences together: tokens/s of all of them, and how many times "
        "one sequence's that is",
    )
    parser.add_argument(
        "-t",
        "--threads",
        type=options.positives,
        default=[None],
        metavar="N,...",
        help="threads to compute with (default: what `airllm info` says)",
    )
    parser.add_argument(
        "-r",
        "--repetitions",
        type=options.positive,
        default=3,
        metavar="N",
        help="how often each test is timed (default: %(default)s)",
    )
    options.add_engine(parser, context=False)
    options.add_output(
        parser,
        json="results: a list of test, threads, tokens_per_second, stddev, ratio_to_single",
    )


def run(args: argparse.Namespace) -> int:
    context = max(args.prompt_tokens + args.generated_tokens)
    if context == 0:
        raise options.UsageError("-p 0 -n 0 leaves nothing to measure")
    rows = []
    for row in _measure(args, context):
        rows.append(row)
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
    return 0


def _measure(args: argparse.Namespace, context: int) -> Iterator[dict[str, object]]:
    """One row for each test and number of threads; an engine for each number of threads."""
    from airllm import benchmark

    for threads in args.threads:
        with model.open_engine(args, context=context, threads=threads) as engine:
            runtime = model.runtime(engine)
            vocab_size = engine.config.vocab_size

            def measure(subject: benchmark.Model, test: benchmark.Test) -> benchmark.Result:
                label = f"{test.name}, {model.in_words(runtime)}"  # noqa: B023
                with console.progress(label, "tokens") as progress:
                    return benchmark.measure(
                        subject, test, args.repetitions, on_progress=progress.update
                    )

            def row(result: benchmark.Result, ratio: float | None = None) -> dict[str, object]:
                return {**asdict(result), "ratio_to_single": ratio, **runtime}  # noqa: B023

            for n in filter(None, args.prompt_tokens):
                yield row(measure(engine, benchmark.prefill(n, vocab_size)))
            for n in filter(None, args.generated_tokens):
                single = measure(engine, benchmark.decode(n, vocab_size))
                yield row(single)
                for batch in args.batch:
                    with engine.sequences(batch, n) as sequences:
                        test = benchmark.decode_batch(n, batch, vocab_size)
                        result = measure(benchmark.Batch(sequences), test)
                    yield row(result, result.tokens_per_second / single.tokens_per_second)

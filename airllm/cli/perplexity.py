"""airllm perplexity: how well a model predicts a text."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from airllm.cli import console, model, options, values


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "perplexity",
        run,
        help="measure how well a model predicts a text",
        description="Measures the perplexity of a model on a text as llama.cpp's "
        "llama-perplexity does. The text is divided into chunks of --context tokens, and the "
        "second half of each chunk counts. A lower perplexity is better. Compare only results "
        "for the same text and the same context.",
        examples=[
            "airllm perplexity -m smollm2-135m --file /usr/share/common-licenses/GPL-3",
            "airllm perplexity -m model.gguf --file wiki.test.raw --context 2048 --json",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "-f", "--file", required=True, metavar="F", help="a file with UTF-8 text; - reads stdin"
    )
    parser.add_argument(
        "--context",
        type=values.positive,
        default=512,
        metavar="N",
        help="number of tokens in a chunk (default: %(default)s)",
    )
    options.add_threads(parser, decode=False)
    options.add_engine(parser, context=False)
    options.add_output(
        parser,
        json="perplexity, stderr, chunks, tokens (the number of predicted tokens), context, "
        "stream (statistics of the disk reads, null where the whole model is in memory)",
    )


def run(args: argparse.Namespace) -> int:
    text = _read_text(args.file)
    from airllm.tools.perplexity import perplexity

    with model.open_engine(args, context=args.context, threads=args.threads) as engine:
        tokenizer = engine.tokenizer
        tokens = tokenizer.encode(text)
        with console.progress("scoring", "tokens") as progress:
            result = perplexity(
                engine,
                tokens,
                args.context,
                bos_id=tokenizer.bos_id if tokenizer.add_bos else None,
                on_progress=lambda done, total, so_far: progress.update(
                    done, total, "" if so_far is None else f"perplexity {so_far:.2f}"
                ),
            )
        streamed = engine.stream_stats()
    if args.json:
        console.write_json({**asdict(result), "context": args.context, "stream": streamed})
    else:
        print(
            f"perplexity {result.perplexity:.4f} ± {result.stderr:.4f} "
            f"({result.tokens} tokens in {result.chunks} chunks of {args.context})"
        )
    return 0


def _read_text(name: str) -> str:
    """The text without the newline that ends it, which llama.cpp leaves out too."""
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8: {error}") from None

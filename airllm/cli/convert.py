"""airllm convert: a model as a GGUF file of another type."""

import argparse
from pathlib import Path

from airllm.cli import console, model, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "convert",
        run,
        help="convert a model to a GGUF file of another type",
        description="Writes a GGUF file from a Hugging Face folder or another GGUF file. The "
        "matrices get the type that you choose. Vectors stay F32, and the matrix that makes the "
        "logits keeps at least 8 bits. The conversion takes some 20 MB of memory, however large "
        "the model is. The file appears under its name when it is complete. Until then its name "
        "is FILE.partial.",
        examples=[
            "airllm convert -m Qwen3-0.6B/ --out qwen3-0.6b.gguf --type q8_0",
            "airllm convert -m model-f16.gguf --out model-q4.gguf --type q4_0",
            "airllm convert -m gpt-oss-20b/ --out gpt-oss.gguf --type q8_0 --keep-quantized",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="FILE", help="the GGUF file to write"
    )
    parser.add_argument(
        "--type",
        required=True,
        choices=[
            *("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4"),
            *("f16", "bf16", "f32"),
        ],
        metavar="TYPE",
        help="type of the matrices in the new file: %(choices)s",
    )
    parser.add_argument(
        "--keep-quantized",
        action="store_true",
        help="matrices that are quantised already keep their type; --type is that of the others",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    options.add_output(parser, json="path, tensors, bytes, type, requantized_from")


def run(args: argparse.Namespace) -> int:
    if args.out.is_file() and not args.force:
        raise ValueError(f"{args.out}: the file exists; --force replaces it")
    from airllm.formats.convert import convert
    from airllm.models import load_model
    from airllm.models.opening import open_model
    from airllm.weights.layer_weights import check_tensors

    with open_model(model.find(args.model), exact=not args.keep_quantized) as source:
        check_tensors(source, load_model(source))  # refuse a model that could not run
        with console.progress("converting", "bytes") as progress:
            done = convert(
                source,
                args.out,
                args.type,
                keep_quantized=args.keep_quantized,
                on_progress=progress.update,
            )
    if done.requantized is not None:
        console.log.warning(
            "%s was quantised already (%s), and converting it does not bring back the precision "
            "that it has lost; converting a float model gives a better %s file",
            args.model,
            done.requantized,
            args.type,
        )
    if args.json:
        console.write_json(
            {
                "path": str(done.path),
                "tensors": done.n_tensors,
                "bytes": done.nbytes,
                "type": args.type,
                "requantized_from": done.requantized,
            }
        )
    else:
        print(done.path)
        size = console.format_bytes(done.nbytes)
        console.log.info("%d tensors, %s", done.n_tensors, size)
    return 0

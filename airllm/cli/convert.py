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
        "logits keeps at least 8 bits (6 in the types with k). The conversion takes some 20 MB of "
        "memory, however large the model is. The file appears under its name when it is complete. "
        "Until then its name is FILE.partial.",
        examples=[
            "airllm convert -m Qwen3-0.6B/ --out qwen3-0.6b.gguf --type q8_0",
            "airllm convert -m model-f16.gguf --out model-q4.gguf --type q4_k_m",
            "airllm convert -m model-f16.gguf -o q3.gguf --type q3_k_m --imatrix imatrix.gguf",
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
        type=str.lower,
        choices=[*options.QUANTIZED_TYPES, "f16", "bf16", "f32"],
        metavar="TYPE",
        help="type of the matrices in the new file: %(choices)s; those with k are the mixes of "
        "llama-quantize, which give some matrices more bits",
    )
    parser.add_argument(
        "--imatrix",
        type=Path,
        metavar="FILE",
        help="an importance file of llama.cpp (GGUF or .dat), which says how much each column of "
        "each matrix matters; for types of 2 to 6 bits",
    )
    parser.add_argument(
        "--keep-quantized",
        action="store_true",
        help="matrices that are quantised already keep their type; --type is that of the others",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    options.add_output(
        parser, json="path, tensors, bytes, type, requantized_from, fallbacks, not_weighted"
    )


def run(args: argparse.Namespace) -> int:
    if args.out.is_file() and not args.force:
        raise ValueError(f"{args.out}: the file exists; --force replaces it")
    from airllm.formats.convert import convert
    from airllm.formats.importance import Importance
    from airllm.models import load_model
    from airllm.models.opening import open_model
    from airllm.weights.layer_weights import check_tensors

    importance = None if args.imatrix is None else Importance.read(args.imatrix)
    with open_model(model.find(args), exact=not args.keep_quantized) as source:
        check_tensors(source, load_model(source))  # refuse a model that could not run
        with console.progress("converting", "bytes") as progress:
            done = convert(
                source,
                args.out,
                args.type,
                keep_quantized=args.keep_quantized,
                importance=importance,
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
    if done.fallbacks:
        name, *others = done.fallbacks
        console.log.warning(
            "%s%s: rows are no whole blocks of %s; written as %s",
            name,
            f" and {len(others):,} more" if others else "",
            ", ".join(sorted({each[0] for each in done.fallbacks.values()})),
            ", ".join(sorted({each[1] for each in done.fallbacks.values()})),
        )
    if done.not_weighted:
        console.log.warning(
            "%s has nothing on %s; these are quantised without importance",
            args.imatrix,
            ", ".join(done.not_weighted),
        )
    if args.json:
        console.write_json(
            {
                "path": str(done.path),
                "tensors": done.n_tensors,
                "bytes": done.nbytes,
                "type": args.type,
                "requantized_from": done.requantized,
                "fallbacks": {name: found for name, (_, found) in done.fallbacks.items()},
                "not_weighted": list(done.not_weighted),
            }
        )
    else:
        print(done.path)
        size = console.format_bytes(done.nbytes)
        console.log.info("%d tensors, %s", done.n_tensors, size)
    return 0

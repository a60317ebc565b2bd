"""airllm list, show and rm: the models that are on this machine."""

import argparse
import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from airllm.cli import console, model, options
from airllm.util.printable import printable

if TYPE_CHECKING:
    from airllm.formats.model_file import ModelFile


def add(subparsers: options.Subparsers) -> None:
    """Adds the three commands."""
    parser = options.add_command(
        subparsers,
        "list",
        _list,
        help="list the models that are here",
        description="Lists the models in the folder of the models (AIRLLM_HOME, or "
        "~/.cache/airllm): those that were fetched, and those that you have put there as "
        "NAME.gguf or as a folder. -m takes their names.",
        examples=["airllm list", "airllm list --json"],
    )
    options.add_output(
        parser, json="directory and models: a list of name, path, bytes, modified, fetched"
    )
    parser = options.add_command(
        subparsers,
        "show",
        _show,
        help="show what a model is",
        description="Shows a model's architecture, size, types and limits, from its header; "
        "the weights are not read.",
        examples=["airllm show smollm2-135m", "airllm show model.gguf --template"],
    )
    options.add_model(parser, positional=True)
    parser.add_argument(
        "--template", action="store_true", help="show the model's chat template, and no more"
    )
    options.add_output(parser, json="the same values")
    parser = options.add_command(
        subparsers,
        "rm",
        _remove,
        help="delete models that were fetched",
        description="Deletes models that `airllm pull` has fetched. A file that you have put "
        "into the folder of the models is not deleted.",
        examples=["airllm rm smollm2-135m", "airllm rm hf.co/unsloth/Qwen3-0.6B-GGUF:Q4_K_M"],
    )
    parser.add_argument("name", nargs="+", metavar="NAME", help="as `airllm list` shows it")
    options.add_output(parser, json="removed: a list of names; bytes")


def _list(args: argparse.Namespace) -> int:
    from airllm import hub

    found = hub.local_models()
    if args.json:
        console.write_json(
            {
                "directory": str(hub.models_dir()),
                "models": [
                    {
                        "name": each.name,
                        "path": str(each.path),
                        "bytes": each.n_bytes,
                        "modified": each.modified,
                        "fetched": each.fetched,
                    }
                    for each in found
                ],
            }
        )
        return 0
    if not found:
        console.log.info(
            "no models are in %s; airllm pull %s fetches a small one",
            hub.models_dir(),
            next(iter(hub.KNOWN_MODELS)),
        )
        return 0
    width = max(len(printable(each.name)) for each in found)
    print(f"{'name':<{width}}  {'size':>10}  modified")
    for each in found:
        day = time.strftime("%Y-%m-%d", time.localtime(each.modified))
        size = console.format_bytes(each.n_bytes)
        print(f"{printable(each.name):<{width}}  {size:>10}  {day}")
    return 0


def _remove(args: argparse.Namespace) -> int:
    from airllm import hub

    removed = [hub.remove(name) for name in args.name]
    n_bytes = sum(each.n_bytes for each in removed)
    if args.json:
        console.write_json({"removed": [each.name for each in removed], "bytes": n_bytes})
    else:
        names = ", ".join(each.name for each in removed)
        console.log.info("deleted %s (%s)", names, console.format_bytes(n_bytes))
    return 0


def _show(args: argparse.Namespace) -> int:
    path = model.find(args)
    from airllm.models.opening import open_model

    with open_model(path) as file:
        if args.template:
            template = file.metadata.text("tokenizer.chat_template", "")
            if not template:
                raise ValueError(f"{path}: has no chat template")
            if args.json:
                console.write_json({"template": template})
            else:
                console.write(template + "\n")
            return 0
        values = _values(file)
    if args.json:
        console.write_json({"model": args.model, "path": str(path), **values})
        return 0
    for name, value in {"path": str(path), **values}.items():
        if value is not None:
            print(f"{name.replace('_', ' '):<16} {printable(_words(name, value))}")
    return 0


def _values(file: "ModelFile") -> dict[str, Any]:
    """What a model is: values of --json; None where the file does not say."""
    from airllm.models import load_model

    found = load_model(file).config
    metadata = file.metadata
    bytes_of, parameters = sizes(file)
    n_bytes = bytes_of.total()
    return {
        "name": metadata.text("general.name", "") or None,
        "architecture": metadata.text("general.architecture"),
        "parameters": parameters,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / parameters if parameters else None,
        "types": dict(bytes_of.most_common()),
        "context_length": found.context_length,
        "layers": found.n_layers,
        "vocabulary": found.vocab_size,
        "chat_template": bool(metadata.text("tokenizer.chat_template", "")),
        "license": metadata.text("general.license", "") or None,
    }


def sizes(file: "ModelFile") -> tuple[Counter[str], int]:
    """The bytes of each type, and the number of all weights."""
    bytes_of, parameters = Counter[str](), 0
    for tensor in file.tensors.values():
        bytes_of[tensor.type.upper()] += tensor.nbytes
        parameters += math.prod(tensor.shape)
    return bytes_of, parameters


def _words(name: str, value: Any) -> str:
    if name == "bytes":
        return console.format_bytes(value)
    if name == "bits_per_weight":
        return f"{value:.2f}"
    if name == "types":
        total = sum(value.values())
        return ", ".join(f"{kind} {n / total:.0%}" for kind, n in value.items())
    if name == "parameters":
        return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.0f} M"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)

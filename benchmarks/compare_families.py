"""Opens tiny random models of every family as llama.cpp's own converter writes them.

    python benchmarks/compare_families.py --llama-cpp llama.cpp
    python benchmarks/compare_families.py --llama-cpp llama.cpp --only Qwen --markdown

--llama-cpp: a checkout of llama.cpp, or vendor/llama.cpp in the source distribution of
llama-cpp-python; its converter runs in this process. Needs `pip install -e '.[test-hf]'`, and
llama-cpp-python for the comparison with llama.cpp's logits.

For each model of tests/hf_cases.py: transformers saves a folder; the converter writes a GGUF file
of it; both are opened here, and their logits compared with each other, with those of transformers,
and, if llama-cpp-python is installed, with those that llama.cpp has of that file, and of the file
that `airllm convert` writes of the folder.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import options
from numpy.typing import NDArray

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

# Norm of the logits' difference over the norm of the logits.
FOLDER_TOLERANCE = 1e-5
# llama.cpp may round what it multiplies to 8 bits or to 16.
LLAMA_TOLERANCE = 5e-3
# What llama.cpp does not compute of a model.
LEFT_OUT = {
    "DeepSeek-V2": "the groups of its router",
    "GLM-4.7 Flash": "the sigmoid of its router, which its converter does not write",
    "HunyuanOCR": "the fourth of a text token's positions",
    "Phi-3": "its window",
    "Phi-3.5-MoE": "how its router chooses and weighs experts",
    "EXAONE 4.0 with windows": "the windows of models that have not 64 layers",
    "EXAONE 4.5": "the windows of models that have not 64 layers",
}
NAMED_ONLY = ("gptj",)  # architectures that llama.cpp has a name for, and no code
TOKENS = np.random.default_rng(3).integers(0, 160, 90).tolist()

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """Differences of the logits from the converted file; None: not measured. refused: why there is
    no converted file, or why it does not open here."""

    name: str
    architecture: str
    folder: float | None = None
    transformers: float | None = None
    llama: float | None = None
    written: float | None = None  # of llama.cpp's logits of the file that we write
    refused: str = ""
    lost: str = ""  # what the converter does not write

    @property
    def passes(self) -> bool:
        if self.refused:
            return False
        exact = max(self.folder or 0.0, self.transformers or 0.0) <= FOLDER_TOLERANCE
        if self.name not in LEFT_OUT and (self.llama or 0.0) > LLAMA_TOLERANCE:
            return False
        if self.lost:
            return True  # our file says more than llama.cpp's
        # What llama.cpp makes of its own file, it makes of ours.
        bound = max(LLAMA_TOLERANCE, 1.1 * (self.llama or 0.0))
        return exact and self.taken and (self.written or 0.0) <= bound

    @property
    def taken(self) -> bool:
        """Whether llama.cpp opens our file, if it opens its own."""
        return self.llama is None or self.written is not None

    @property
    def verdict(self) -> str:
        parts = ["ok" if self.passes else self.refused or "differs"]
        if self.llama is not None and self.written is None:
            parts.append("llama.cpp does not open our file")
        if self.name in LEFT_OUT:
            parts.append(f"llama.cpp leaves out {LEFT_OUT[self.name]}")
        if self.lost:
            parts.append(f"the converter does not write {self.lost}")
        return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if not (args.llama_cpp / "conversion").is_dir():
        print(f"{args.llama_cpp}: no checkout of llama.cpp with a converter", file=sys.stderr)
        return 2
    os.environ["TQDM_DISABLE"] = "1"
    hf_models = importlib.import_module("hf_models")
    logging.disable(logging.WARNING)  # the converter names every tensor
    results = []
    for name, case in importlib.import_module("hf_cases").CASES.items():
        if case.arch in NAMED_ONLY:
            continue
        if not args.only or any(word.lower() in name.lower() for word in args.only):
            with tempfile.TemporaryDirectory() as folder:
                results.append(_compare(args.llama_cpp, Path(folder), name, case, hf_models))
            if not args.markdown:
                print(_row(results[-1]), flush=True)
    if args.markdown:
        print("| model | architecture | folder | transformers | llama.cpp | our file | |")
        print("|---|---|---:|---:|---:|---:|---|")
        print("\n".join(map(_row, results)))
    return 0 if results and all(result.passes for result in results) else 1


def _compare(checkout: Path, folder: Path, name: str, case: Any, hf_models: Any) -> Result:
    of_v4 = importlib.import_module("hf_deepseek4") if case.arch == "deepseek4" else None
    case = of_v4.with_published_groups(case) if of_v4 else case
    model = hf_models.build(case)
    source = hf_models.write_folder(folder / "hf", case, model)
    file, ours = folder / "converted.gguf", folder / "ours.gguf"
    if of_v4:  # the converter takes folders as they are published, and experts in MXFP4 only
        source = of_v4.write_published(folder / "published", source, model, fp8=False)
    with open_model(source) as opened:
        convert(opened, ours, "f32")
    try:
        _convert(checkout, source, file, case)
        converted = _logits(file)
    except Exception as error:  # whatever the converter finds wrong: the other families go on
        return Result(name, case.arch, refused=f"{type(error).__name__}: {error}")
    theirs = written = None
    from_folder = _logits(source)
    if importlib.util.find_spec("llama_cpp") is not None:
        written = _llama_difference(ours, from_folder, case)
        # llama.cpp rounds what it multiplies by MXFP4 to 8 bits
        theirs = written if of_v4 else _llama_difference(file, converted, case)
    return Result(
        name,
        case.arch,
        _difference(from_folder, converted),
        _difference(hf_models.logits(model, TOKENS), converted),
        theirs,
        written,
        lost=case.lost,
    )


def _row(result: Result) -> str:
    cells = [
        "" if value is None else f"{value:.1e}"
        for value in (result.folder, result.transformers, result.llama, result.written)
    ]
    return f"| {' | '.join([result.name, result.architecture, *cells, result.verdict])} |"


def _difference(actual: Logits, expected: Logits) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _llama_difference(path: Path, expected: Logits, case: Any) -> float | None:
    """Of llama.cpp's logits of a file. None if it does not open the file.

    An index has nearly equal scores for some token, of which 16 bits select another position:
    that of the median token, then. With an index of Qwen's llama.cpp shows a token as many
    positions as budget and block have together, also parts of further blocks: that of the tokens
    that see no more than these."""
    actual = _llama_logits(path, case)
    if actual is None:
        return None
    if "indexer_budget" in case.config:
        n = case.config["indexer_budget"] + case.config["indexer_compress_ratio"] - 1
        return _difference(actual[:n], expected[:n])
    if "index_topk" not in case.config:
        return _difference(actual, expected)
    return float(np.median([_difference(*each) for each in zip(actual, expected, strict=True)]))


def _logits(path: Path) -> Logits:
    exact: dict[str, Any] = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(path, context=128, **exact) as engine:
        return engine.forward(TOKENS, last_only=False)


def _llama_logits(path: Path, case: Any) -> Logits | None:
    """None if llama.cpp does not open the file: some sizes of a few families are fixed there. It
    runs in a process of its own, which it may abort."""
    found = path.with_suffix(".npy")
    process = multiprocessing.get_context("spawn").Process(
        target=_write_llama_logits, args=(path, case, found)
    )
    process.start()
    process.join()
    return np.load(found) if found.exists() else None


def _write_llama_logits(path: Path, case: Any, found: Path) -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    llama_cpp = importlib.import_module("llama_cpp")
    f32 = llama_cpp.GGML_TYPE_F32  # of keys and values; F16's rounding changes a token's experts
    own = {"type_k": f32, "type_v": f32}
    own["flash_attn"] = "index_topk_blocks" in case.config  # without it llama.cpp sees all blocks
    with contextlib.suppress(ValueError):
        model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, **own)
        model.eval(TOKENS)
        np.save(found, np.array(model.scores[: len(TOKENS)], np.float32))


def _convert(checkout: Path, folder: Path, file: Path, case: Any) -> None:
    """What convert_hf_to_gguf.py does, but for the vocabulary: it knows only real tokenisers.

    transformers adds its defaults to config.json, and the converter takes a few of them for
    something that the model has. It gets the file as it is if real models lack such keys."""
    for path in (checkout, checkout / "gguf-py"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    gguf, conversion = importlib.import_module("gguf"), importlib.import_module("conversion")
    # Names of an architecture's tensors would stay for the next one.
    names = gguf.TensorNameMap
    original = getattr(names, "airllm_original", dict(names.block_mappings_cfg))
    names.airllm_original, names.block_mappings_cfg = original, dict(original)
    base = conversion.ModelBase
    config = base.load_hparams(folder, False)
    architecture = conversion.get_model_architecture(config, conversion.ModelType.TEXT)
    kind = conversion.get_model_class(architecture)
    kind.no_mtp = True  # these models have no layers that guess further tokens
    said = {}
    if None in case.extra.values():
        said["hparams"] = json.loads((folder / "config.json").read_text())
    model = kind(folder, gguf.LlamaFileType.ALL_F32, file, eager=True, **said)
    for each in (model, getattr(model, "impl", model)):
        each.set_vocab = lambda each=each: _write_vocabulary(gguf, each)
    model.write()


def _write_vocabulary(gguf: Any, model: Any) -> None:
    n = model.hparams["vocab_size"]
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{id}" for id in range(n)])
    writer.add_token_types([gguf.TokenType.NORMAL] * n)
    writer.add_token_merges(["t 0"])


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a checkout of llama.cpp")
    parser.add_argument(
        "--only",
        type=options.words,
        default=(),
        metavar="WORD,...",
        help="only models with one of these words in their name",
    )
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    return parser


if __name__ == "__main__":
    sys.exit(main())

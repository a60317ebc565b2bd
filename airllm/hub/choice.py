"""Which files of a repository make a model: a GGUF file, the parts of one, or a folder of
safetensors."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from airllm.hub.places import HubError

__all__ = ["PART", "ModelFiles", "choose", "models_in"]

# What llama.cpp and Ollama take without a wish, too: 4.8 bits a weight, of which little is lost.
USUAL = "Q4_K_M"
MOST_SHOWN = 40  # of the choices in an error

# The end of a GGUF file's name that says the type of its weights: "Q4_K_M", "UD-IQ2_XXS", "bf16".
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE,
)
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
# A vision tower and an importance matrix are GGUF files that are no language models.
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
# Of a folder of safetensors; the weights come beside these.
_FOLDER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"),
    *("generation_config.json", "config.json"),
)
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFiles:
    """label: "Q4_K_M", or the file's name where that says no type; "safetensors" for a folder.
    files: paths within the repository, in an order in which the last one makes the model complete.
    main: the path to open: the (first) GGUF file, or "" for the folder itself.
    """

    label: str
    files: tuple[str, ...]
    main: str


def models_in(paths: Iterable[str]) -> list[ModelFiles]:
    """The models among the files of a repository. HubError for a split model that lacks a part."""
    paths = sorted(paths)
    found = [*_gguf(paths), *_folder(set(paths))]
    labels = [model.label for model in found]
    return [
        model if labels.count(model.label) == 1 else ModelFiles(model.main, model.files, model.main)
        for model in found
    ]


def choose(models: Sequence[ModelFiles], quant: str | None, name: str) -> ModelFiles:
    """The model that `quant` names: a type, in any case, or a file. Without a wish: the only one,
    else USUAL. HubError, which lists what there is, if that is not clear."""
    if not models:
        raise HubError(
            f"{name} has no model that airllm opens: neither a GGUF file, nor config.json beside "
            f"{_WEIGHTS}"
        )
    if quant is None:
        fitting = models if len(models) == 1 else [m for m in models if m.label == USUAL]
        fitting = fitting or [m for m in models if m.label.upper() == USUAL]
    else:
        fitting = _named(models, quant)
    if len(fitting) == 1:
        return fitting[0]
    labels = [model.label for model in fitting or models]
    choices = ", ".join(labels[:MOST_SHOWN]) + (", ..." if len(labels) > MOST_SHOWN else "")
    if quant is None:
        raise HubError(f"{name} has {len(models)} models; name one as {name}:CHOICE of {choices}")
    what = f"{len(fitting)} models" if fitting else "no model"
    base = name.partition(":")[0]
    raise HubError(f"{base} has {what} of the name {quant}; name one as {base}:CHOICE of {choices}")


def _named(models: Sequence[ModelFiles], quant: str) -> list[ModelFiles]:
    """The models that the label, the file or the type fits, the first of these that fits any."""
    wanted = quant.lower()
    ways = [
        [model.label, model.main, model.main.rpartition("/")[2], _type_of(model.main)]
        for model in models
    ]
    ways = [[*names, names[3].removeprefix("UD-")] for names in ways]
    for way in range(len(ways[0])):
        fitting = [
            model
            for model, names in zip(models, ways, strict=True)
            if names[way].lower().removesuffix(".gguf") == wanted.removesuffix(".gguf")
        ]
        if fitting:
            return fitting
    return []


def _gguf(paths: Sequence[str]) -> list[ModelFiles]:
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        if not path.lower().endswith(".gguf") or _NO_MODEL.search(name):
            continue
        split = PART.fullmatch(path[: -len(".gguf")])
        key = (split[1], int(split[3])) if split else (path[: -len(".gguf")], 1)
        parts.setdefault(key, {})[int(split[2]) if split else 1] = path
    found = []
    for (_, count), files in parts.items():
        missing = next((n for n in range(1, count + 1) if n not in files), None)
        if missing is not None or len(files) != count:
            some = next(iter(files.values()))
            raise HubError(f"{some}: of this split model of {count} files, some are missing")
        first = files[1]
        # The first file comes last: until it is there, nobody takes the others for a model.
        others = tuple(files[number] for number in range(2, count + 1))
        found.append(ModelFiles(_type_of(first) or first, (*others, first), first))
    return found


def _type_of(path: str) -> str:
    """The type of the weights that a GGUF file's name or folder says, or ""."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", path, flags=re.IGNORECASE)
    folder, _, name = stem.rpartition("/")
    found = _QUANT.search(name) or _QUANT.search(folder.rpartition("/")[2])
    return found[1].upper() if found else ""


def _folder(paths: set[str]) -> list[ModelFiles]:
    if _CONFIG not in paths:
        return []
    weights = {path for path in paths if path.endswith(".safetensors") and "/" not in path}
    if _INDEX in paths:
        shards = {path for path in weights if PART.fullmatch(path.removesuffix(".safetensors"))}
        weights = {*(shards or weights), _INDEX}
    elif _WEIGHTS in weights:
        weights = {_WEIGHTS}
    else:
        return []
    known = (path for path in _FOLDER_FILES if path in paths)
    return [ModelFiles("safetensors", (*sorted(weights), *known), "")]

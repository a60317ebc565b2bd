"""Opens a model, whatever its format."""

import os
from pathlib import Path

from airllm.formats.gguf import GGUFFile
from airllm.formats.hf_config import HFConfig
from airllm.formats.model_file import ModelFile, ModelParts
from airllm.models import FAMILIES
from airllm.util.metadata import FormatError, Metadata

__all__ = ["open_model", "translate"]


# Values of model_type of models that see pictures, around another family's language model.
_WRAPPERS = ("mistral3",)


def open_model(
    path: str | os.PathLike[str], quantize: str | None = None, *, exact: bool = False
) -> ModelFile:
    """Open a GGUF file, the first file of a split model, or a Hugging Face folder.

    quantize: the type, for instance "q8_0", to which float matrices are quantised as they are read.
    exact: FP8 matrices of a folder become F32, for a conversion, and not the type that they run in.
    With `quantize` they always do.

    FormatError if the model is damaged or not supported, OSError if it cannot be read, ValueError
    if `quantize` is an unknown type or the model has no float matrices.
    """
    file = _open(Path(path), exact or quantize is not None)
    if quantize is None:
        return file
    from airllm.formats.retype import RetypedModel

    try:
        return RetypedModel(file, quantize)
    except BaseException:
        file.close()
        raise


def _open(path: Path, exact: bool) -> ModelFile:
    if not path.is_dir():
        return _renewed(GGUFFile.open(path))
    if not (path / "config.json").exists():
        files = sorted(file.name for file in path.glob("*.gguf"))
        raise FormatError(
            f"{path}: is a directory without config.json, so no Hugging Face model; "
            + (
                f"give the .gguf file in it: {files[0]}"
                if files
                else "there is no .gguf file either"
            )
        )
    from airllm.formats.hf_folder import HFFolder  # loads json, hashlib and re

    return HFFolder.open(path, translate, exact=exact)


def _renewed(file: ModelParts) -> ModelParts:
    """A GGUF file as a converter of today would have written it."""
    family = FAMILIES.get(str(file.metadata.get("general.architecture")))
    try:
        return family.renewed(file) if family else file
    except BaseException:
        file.close()
        raise


def translate(config: Metadata) -> HFConfig:
    """config.json, as the family of its model_type translates it. FormatError for a model_type
    that no family has."""
    kind, inner = config.text("model_type"), config.get("text_config")
    known = {hf.model_type: hf for family in FAMILIES.values() for hf in family.hugging_face}
    with_pictures = {hf.pictures: hf for hf in known.values() if hf.pictures}
    if isinstance(inner, dict):  # the vision tower is left out
        of_both = ("tie_word_embeddings", "quantization_config")
        outer = {key: config[key] for key in of_both if key in config}
        inner_config = Metadata(config.source, {**outer, **inner})
        if kind in with_pictures:
            return with_pictures[kind].translate(inner_config)
        if kind in _WRAPPERS:  # around language models of several families
            return translate(inner_config)
    elif kind in with_pictures:  # older files have the keys of both side by side
        return with_pictures[kind].translate(config)
    if kind not in known:
        raise config.fault(
            f"model_type {kind[:80]!r} is not supported; supported: {', '.join(sorted(known))}"
        )
    return known[kind].translate(config)

"""Opens a model, whatever its format."""

import os
from pathlib import Path

from airllm.formats.gguf import GGUFFile
from airllm.formats.model_file import ModelFile
from airllm.util.metadata import FormatError

__all__ = ["open_model"]


def open_model(path: str | os.PathLike[str], quantize: str | None = None) -> ModelFile:
    """Open a GGUF file, the first file of a split model, or a Hugging Face folder.

    quantize: the type, for instance "q8_0", to which float matrices are quantised as they are read.

    FormatError if the model is damaged or not supported, OSError if it cannot be read, ValueError
    if `quantize` is an unknown type or the model has no float matrices.
    """
    file = _open(Path(path))
    if quantize is None:
        return file
    from airllm.formats.retype import RetypedModel

    try:
        return RetypedModel(file, quantize)
    except BaseException:
        file.close()
        raise


def _open(path: Path) -> ModelFile:
    if not path.is_dir():
        return GGUFFile.open(path)
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

    return HFFolder.open(path)

"""Opens a model, whatever its format."""

import os
from pathlib import Path

from airllm.formats.gguf import GGUFFile
from airllm.formats.model_file import ModelFile
from airllm.util.metadata import FormatError

__all__ = ["open_model"]


def open_model(path: str | os.PathLike[str], quantize: str | None = None) -> ModelFile:
    """A GGUF file, the first of a split model's, or a Hugging Face folder.

    quantize: what float matrices are turned into while they are read, "q8_0" say.

    FormatError for what is damaged or not supported, OSError where it cannot be read, ValueError
    for a `quantize` that is no type, or finds nothing to quantise.
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
    from airllm.formats.hf_folder import HFFolder  # with json, hashlib and re's patterns

    return HFFolder.open(path)

"""Opens a model, whatever its format."""

import os
from pathlib import Path

from airllm.formats.gguf import GGUFFile
from airllm.formats.metadata import FormatError
from airllm.formats.model_file import ModelFile

__all__ = ["open_model"]


def open_model(path: str | os.PathLike[str]) -> ModelFile:
    """A GGUF file, the first of a split model's, or a Hugging Face folder.

    FormatError for what is damaged or not supported, OSError where it cannot be read.
    """
    path = Path(path)
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

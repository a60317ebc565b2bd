"""Opens a model, whatever its format."""

import os
from pathlib import Path

from airllm.formats.gguf import GGUFFile
from airllm.formats.model_file import ModelFile

__all__ = ["open_model"]


def open_model(path: str | os.PathLike[str]) -> ModelFile:
    """A GGUF file, or the first of a split model's.

    FormatError for what is damaged or not supported, OSError where it cannot be read.
    """
    return GGUFFile.open(Path(path))

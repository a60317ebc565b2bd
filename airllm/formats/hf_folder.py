"""Opens a Hugging Face folder: config.json, tokenizer.json, and weights as safetensors.

    config.json                     the model's configuration
    model.safetensors               its weights, or
    model.safetensors.index.json    the file of each tensor, if there are several files
    tokenizer.json                  the tokeniser
    tokenizer_config.json, chat_template.jinja, generation_config.json    optional

Float weights are not copied, and quantised weights are repacked as they are read (hf_blocks.py).
Metadata, names and the few tensors that differ in GGUF are translated, so that the rest of the
package sees no difference.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Self

from airllm.formats.hf_config import HFConfig, Translate
from airllm.formats.hf_names import Shard, translate_tensors
from airllm.formats.hf_tokenizer import translate_tokenizer
from airllm.formats.json_file import read_object
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import ModelParts, Tensor
from airllm.formats.safetensors import read_table
from airllm.util.durable import naming
from airllm.util.metadata import FormatError, Metadata

__all__ = ["HFFolder"]

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_MAX_JSON = 4 * 2**20
_MAX_INDEX = 64 * 2**20
_MAX_TOKENIZER = 128 * 2**20  # Gemma's 262,000 tokens and their merges take 33 MB
_MAX_TEMPLATE = 2**20


class HFFolder(ModelParts):
    """An open folder: see ModelFile. path: the folder."""

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], translate: Translate, *, exact: bool = False
    ) -> Self:
        """Read the JSON files, map the weights and check everything.

        translate: config.json to GGUF's metadata and names, as the model's family has them.
        exact: see Quantization.

        Raises FormatError for anything that is not a model this package can run, and OSError if a
        file cannot be opened.
        """
        folder = Path(folder)
        config = translate(_read(folder / CONFIG, required="a model's folder has one"))
        if config.quantization is not None:
            config = replace(config, quantization=replace(config.quantization, exact=exact))
        shards: list[Shard] = []
        try:
            _open_weights(folder, shards)
            translated = translate_tensors(str(folder), shards, config)
            tensors = translated.tensors
            _check_head(folder, config, tensors)
            metadata = {
                "general.name": folder.resolve().name,
                **config.with_heads(translated.n_heads),
                **translated.numbers,
                **_sampling(_read(folder / "generation_config.json")),
                **_tokenizer(folder, tensors),
            }
            said = _digest_of_descriptions(folder)
            said += b"".join(numbers.tobytes() for numbers in translated.numbers.values())
        except BaseException:
            for shard in shards:
                shard.file.close()
            raise
        files = [shard.file for shard in shards]
        source = Metadata(str(folder), metadata)
        return cls(folder, source, tensors, files, made=translated.made, said=said)


def _open_weights(folder: Path, shards: list[Shard]) -> None:
    """Open the files of the weights, check each against the index if there is one, and append
    them to `shards`."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).exists():
            raise FormatError(
                f"{folder}: has neither {WEIGHTS} nor {INDEX}; weights in another format (.bin, "
                ".pth) can be saved as safetensors with transformers' save_pretrained"
            )
        file = MappedFile.open(folder / WEIGHTS, hint="it should be a file")
        shards.append(Shard(file, ()))
        shards[-1] = Shard(file, read_table(file))
        return
    places = read_object(index, _MAX_INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{index}: weight_map does not say which file has which tensor")
    for name in sorted(set(map(str, places.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FormatError(f"{index}: {quote(name)} is no .safetensors file of this folder")
        try:
            file = MappedFile.open(folder / name, hint="it should be a file")
        except FileNotFoundError:
            raise FormatError(f"{folder}: {name} is missing, which {INDEX} names") from None
        shards.append(Shard(file, ()))
        shards[-1] = Shard(file, read_table(file))
        expected = {tensor for tensor, place in places.items() if place == name}
        there = {stored.name for stored in shards[-1].table}
        if expected != there:
            odd = min(expected ^ there)
            raise FormatError(
                f"{folder / name}: tensor {quote(odd)} "
                + ("is missing" if odd in expected else f"is not what {INDEX} has there")
                + "; the file belongs to another model, or was replaced"
            )


def _check_head(folder: Path, config: HFConfig, tensors: list[Tensor]) -> None:
    """FormatError if the output matrix is missing and the model's embedding is not tied."""
    if not config.tied and all(tensor.name != "output.weight" for tensor in tensors):
        raise FormatError(
            f"{folder}: tensor lm_head.weight is missing, and tie_word_embeddings is not true"
        )


def _tokenizer(folder: Path, tensors: list[Tensor]) -> dict[str, object]:
    """The tokeniser and the chat template as GGUF's metadata."""
    tokenizer = _read(
        folder / TOKENIZER,
        limit=_MAX_TOKENIZER,
        required="transformers' AutoTokenizer writes one with save_pretrained",
    )
    settings = _read(folder / "tokenizer_config.json")
    generation = {**_read(folder / CONFIG), **_read(folder / "generation_config.json")}
    embedding = next(tensor for tensor in tensors if tensor.name == "token_embd.weight")
    keys = translate_tokenizer(
        tokenizer, settings, Metadata(str(folder), generation), embedding.shape[0]
    )
    template = _chat_template(folder, settings)
    return keys if template is None else {**keys, "tokenizer.chat_template": template}


# Keys of generation_config.json, and of GGUF files for the same numbers.
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def _sampling(generation: Metadata) -> dict[str, object]:
    """How answers are to be sampled, as llama.cpp's converter writes it."""
    found = {key: generation.get(name) for name, key in _SAMPLING.items()}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _chat_template(folder: Path, settings: Metadata) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        if not path.is_file() or path.stat().st_size > _MAX_TEMPLATE:
            raise FormatError(f"{path}: no file of at most {_MAX_TEMPLATE:,} bytes")
        try:
            with naming(path):
                return path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: is not UTF-8: {error}") from None
    template = settings.get(
        "chat_template", _read(folder / "chat_template.json").get("chat_template")
    )
    if isinstance(template, list):  # several templates, by name
        named = {each.get("name"): each.get("template") for each in template if type(each) is dict}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read(path: Path, *, limit: int = _MAX_JSON, required: str | None = None) -> Metadata:
    """The object in a JSON file; an empty one if the file is missing and not required."""
    try:
        return Metadata(str(path), read_object(path, limit))
    except FileNotFoundError:
        if required is not None:
            raise FormatError(f"{path.parent}: has no {path.name}; {required}") from None
        return Metadata(str(path), {})


def _digest_of_descriptions(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for name in (CONFIG, TOKENIZER):
        with naming(folder / name), (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()

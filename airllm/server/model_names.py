"""The names under which clients may ask for a model: its own, ways to write it, and aliases."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from airllm.server.model_errors import models_in_words

__all__ = ["MOST_NAME", "ModelNames", "Named", "check_aliases", "read_aliases", "split_alias"]

MOST_NAME = 1000  # characters of a name that is looked for


class Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...


_Model = TypeVar("_Model", bound=Named)


class ModelNames:
    """The models by their names. A model's own names go before aliases, and an alias before one
    that ends in *, of which the longest counts."""

    def __init__(self, models: Iterable[_Model], aliases: Mapping[str, str]) -> None:
        """aliases: names of models by further names; "claude-*" stands for all names that begin so.
        An alias whose model is not here leads nowhere, and so does an alias that a model has as
        its own name."""
        models = list(models)
        self._ids = {model.id for model in models}
        self._keys: dict[str, str | None] = {}  # None for a key that several models have
        for model in models:
            for key in {_key(name) for name in (model.id, *model.aliases)}:
                self._keys[key] = None if key in self._keys else model.id
        leading = {name: self.own(model) for name, model in aliases.items() if not self.own(name)}
        self._aliases = {name: id for name, id in leading.items() if id is not None}
        self._exact = {_key(name): id for name, id in self._aliases.items() if name[-1] != "*"}
        begins = {_key(name[:-1]): id for name, id in self._aliases.items() if name[-1] == "*"}
        self._begins = sorted(begins.items(), key=lambda pair: -len(pair[0]))

    def own(self, name: str) -> str | None:
        """The id of the model with this name; aliases do not count."""
        if len(name) > MOST_NAME:
            return None
        return name if name in self._ids else self._keys.get(_key(name))

    def id_of(self, name: str) -> str | None:
        """The id of the model that a client means by a name."""
        found = self.own(name)
        if found is not None or len(name) > MOST_NAME:
            return found
        key = _key(name)
        return self._exact.get(key) or next(
            (id for begin, id in self._begins if key.startswith(begin)), None
        )

    def aliases_of(self, id: str) -> tuple[str, ...]:
        """The aliases that stand for a model."""
        return tuple(name for name, model in self._aliases.items() if model == id)


def check_aliases(models: Sequence[_Model], aliases: Mapping[str, str]) -> None:
    """ValueError for an alias that nobody could use: its model is not here, or a model has that
    name itself."""
    names = ModelNames(models, {})
    for alias, model in aliases.items():
        if names.own(model) is None:
            ids = [model.id for model in models]
            raise ValueError(f"{alias!r} is to stand for {model!r}; {models_in_words(ids)}")
        if (own := names.own(alias)) is not None:
            raise ValueError(f"{alias!r} is to stand for {model!r}, and is the name of {own!r}")


def read_aliases(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names of models by alias: those of the environment, in AIRLLM_ALIASES as "a=b,c=d", and those
    that are given, which go before them. ValueError."""
    found: dict[str, str] = {}
    for text in filter(str.strip, os.environ.get("AIRLLM_ALIASES", "").split(",")):
        try:
            alias, model = split_alias(text.strip())
        except ValueError as error:
            raise ValueError(f"AIRLLM_ALIASES: {error}") from None
        found[alias] = model
    return {**found, **dict(given)}


def split_alias(text: str) -> tuple[str, str]:
    """ "gpt-5=qwen3" -> ("gpt-5", "qwen3"). ValueError."""
    alias, _, model = text.partition("=")
    if not (alias.strip() and model.strip()) or "*" in alias[:-1]:
        raise ValueError(f"{text[:200]!r} is no NAME=MODEL, as gpt-5=qwen3 or claude-*=qwen3 are")
    return alias.strip(), model.strip()


def _key(name: str) -> str:
    """What names have in common that clients write differently: Ollama's name:tag is a file's
    name-tag.gguf, and name:latest its name.gguf."""
    key = name.casefold().removesuffix(":latest").removesuffix(".gguf")
    return key.replace(":", "-").replace(".", "-")

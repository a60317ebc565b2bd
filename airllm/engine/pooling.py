"""The embedding of a text, from the last hidden states of its tokens."""

from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from airllm.engine.decoder import Step
from airllm.engine.loaded_model import LoadedModel
from airllm.util.arguments import check_choice

__all__ = ["Pooler", "Pooling", "embed", "pooling_of"]

Pooling = Literal["mean", "last", "cls"]

# What a file's key "pooling_type" says, as llama.cpp numbers it. 0 is none; 4 ranks two texts.
_BY_NUMBER: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}


def pooling_of(model: LoadedModel, asked: str) -> Pooling:
    """asked: "model" for what the model's file says, which is "last" if it says nothing: the last
    token has seen all others. ValueError for a file that asks for a pooling that there is not."""
    if asked != "model":
        check_choice("pooling", asked, get_args(Pooling))
        return cast(Pooling, asked)
    metadata = model.planned.file.metadata
    key = f"{model.config.architecture}.pooling_type"
    if key not in metadata:
        return "last"
    number = metadata.integer(key)
    if number not in _BY_NUMBER:
        raise ValueError(
            f"the model's file asks for the pooling of type {number}; expected 1 (mean), 2 (cls) "
            "or 3 (last): name one"
        )
    return _BY_NUMBER[number]


class Pooler:
    """Takes the hidden states of a text in pieces."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._found: NDArray[np.float64] | None = None
        self._n = 0

    def add(self, hidden: NDArray[np.float32]) -> None:
        """hidden: of the next tokens, float32 [n, hidden_size]."""
        if self._pooling == "mean":
            total = hidden.sum(axis=0, dtype=np.float64)
            self._found = total if self._found is None else self._found + total
        elif self._pooling == "last" or self._found is None:
            self._found = hidden[-1 if self._pooling == "last" else 0].astype(np.float64)
        self._n += len(hidden)

    def embedding(self) -> NDArray[np.float32]:
        """float32 [hidden_size]. ValueError if it has numbers that are not finite."""
        assert self._found is not None
        count = self._n if self._pooling == "mean" else 1
        embedding: NDArray[np.float32] = (self._found / count).astype(np.float32)
        if not np.isfinite(embedding).all():
            raise ValueError("the embedding is not finite; the model's file may be damaged")
        return embedding


def embed(model: LoadedModel, prompt: list[int], pooling: Pooling) -> NDArray[np.float32]:
    """The embedding of tokens, float32 [hidden_size], not normalised."""
    pooler, done = Pooler(pooling), 0
    with model.exclusive() as decoder:
        state = decoder.new_state(len(prompt), decoder.new_pool())
        sizes = decoder.kinds.pieces_after(0, len(prompt), decoder.batch_size)
        nothing = np.empty((0, model.config.vocab_size), np.float32)
        for together in [sizes] if decoder.streams else [[size] for size in sizes]:
            tokens = prompt[done : done + sum(together)]
            (hidden,) = decoder.evaluate_each(
                [Step(tokens, state, together, wanted="hidden")], nothing
            )
            pooler.add(hidden)
            done += len(tokens)
    return pooler.embedding()

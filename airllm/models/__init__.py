"""Model families: one file each, which reads like the model's definition.

A family gives three graphs: `embed` (token ids to the residual stream), `layer` (the residual
stream to itself, run once for each layer) and `head` (the residual stream to logits).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.formats.gguf import GGUFFile
from airllm.graph import Activations, Graph
from airllm.models import llama
from airllm.models.config import ModelConfig, inverse_frequencies

__all__ = ["FAMILIES", "Model", "ModelConfig", "load_model"]


class Family(Protocol):
    """What a family's file defines."""

    def embed(self, c: ModelConfig) -> Graph: ...
    def layer(self, c: ModelConfig, activations: Activations) -> Graph: ...
    def head(self, c: ModelConfig, activations: Activations) -> Graph: ...


# By the name that GGUF's general.architecture has.
FAMILIES: dict[str, Family] = {"llama": llama}


@dataclass(frozen=True)
class Model:
    """A model without its weights."""

    config: ModelConfig
    embed: Graph
    layer: Graph
    head: Graph
    inv_freq: NDArray[np.float64]  # [rope_dims / 2], radians per position


def load_model(gguf: GGUFFile, activations: Activations = "auto") -> Model:
    """The model that a file describes. FormatError for an architecture that has no family here."""
    architecture = gguf.metadata.text("general.architecture")
    if architecture not in FAMILIES:
        raise gguf.metadata.fault(
            f"the architecture {architecture[:80]!r} is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family, config = FAMILIES[architecture], ModelConfig.from_gguf(gguf)
    return Model(
        config,
        family.embed(config),
        family.layer(config, activations),
        family.head(config, activations),
        inverse_frequencies(gguf, config),
    )

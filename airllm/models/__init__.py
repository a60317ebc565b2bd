"""Model families: one file each, which reads like the model's definition.

A family gives three kinds of graphs: `embed` (token ids to the residual stream), `layer` (the
residual stream to itself, run once for each layer; layers that differ in their attention's window
have a graph each) and `head` (the residual stream to logits). Weight slots are named as GGUF names
the tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.formats.model_file import ModelFile
from airllm.graph.graph import Activations, Graph
from airllm.graph.rewrite import fuse
from airllm.models import gemma2, gemma3, llama, qwen2, qwen3, qwen3moe
from airllm.models.config import ModelConfig
from airllm.models.rope import inverse_frequencies

__all__ = ["FAMILIES", "LayerKind", "Model", "ModelConfig", "load_model"]


class Family(Protocol):
    """What a family's file defines."""

    def embed(self, c: ModelConfig) -> Graph: ...
    def layer(self, c: ModelConfig, activations: Activations, window: int) -> Graph: ...
    def head(self, c: ModelConfig, activations: Activations) -> Graph: ...


# Keys are the values of GGUF's general.architecture.
FAMILIES: dict[str, Family] = {
    "gemma2": gemma2,
    "gemma3": gemma3,
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
}


@dataclass(frozen=True)
class LayerKind:
    """What layers of the same window have in common."""

    graph: Graph
    inv_freq: NDArray[np.float64]  # [rope_dims / 2], radians per position


@dataclass(frozen=True)
class Model:
    """A model without its weights."""

    config: ModelConfig
    embed: Graph
    kinds: tuple[LayerKind, ...]
    kind_of_layer: tuple[int, ...]  # for each layer an index into `kinds`
    head: Graph


def load_model(
    gguf: ModelFile, activations: Activations = "auto", *, fusion: bool = False
) -> Model:
    """The model that a file describes. fusion: rewrite its graphs with graph.rewrite.fuse.
    FormatError for an architecture that has no family here."""
    architecture = gguf.metadata.text("general.architecture")
    if architecture not in FAMILIES:
        raise gguf.metadata.fault(
            f"the architecture {architecture[:80]!r} is not supported; supported: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family, config = FAMILIES[architecture], ModelConfig.from_gguf(gguf)
    windows = sorted(set(config.windows))
    finish: Callable[[Graph], Graph] = fuse if fusion else lambda graph: graph
    return Model(
        config,
        family.embed(config),
        tuple(
            LayerKind(
                finish(family.layer(config, activations, window)),
                inverse_frequencies(gguf, config, window),
            )
            for window in windows
        ),
        tuple(windows.index(window) for window in config.windows),
        finish(family.head(config, activations)),
    )

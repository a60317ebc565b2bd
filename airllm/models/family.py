"""What a family's file says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airllm.formats.model_file import ModelParts
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.hugging_face import HuggingFace
from airllm.models.rope import Rotation, read_rotation

__all__ = ["Family"]


def _rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> Mapping[str, Rotation]:
    attends = layer.mixer in ("attention", "attention and mamba2")
    return {"rope": read_rotation(r, c)} if layer.rotates and attends else {}


@dataclass(frozen=True)
class Family:
    """A family of models: how its files are read, and its graphs.

    architectures: its values of GGUF's general.architecture.
    hugging_face: its values of config.json's model_type, and what is particular to such folders.
    configure: reads the metadata of a GGUF file, or what was translated to it.
    layer: the graph of a layer, from the residual to itself.
    embed: token ids to the residual, and to further buffers that layers read. head: the residual to
    logits.
    rotations: of a layer's queries and keys, by the external buffer of its graph that has the
    cosines and sines.
    renewed: a GGUF file as today's converters write it; those of older ones differ.
    next_layer: the layer of a next-token head; None if the family's heads are not used.
    next_reads_normed: whether such a head reads hidden states behind the norms, see next_head.
    """

    architectures: tuple[str, ...]
    hugging_face: tuple[HuggingFace, ...]
    configure: Callable[[ConfigReader], ModelConfig]
    layer: Callable[[ModelConfig, Activations, LayerConfig], Graph] = blocks.layer
    embed: Callable[[ModelConfig, Activations], Graph] = blocks.embed
    head: Callable[[ModelConfig, Activations], Graph] = blocks.head
    rotations: Callable[[ConfigReader, ModelConfig, LayerConfig], Mapping[str, Rotation]] = (
        _rotations
    )
    renewed: Callable[[ModelParts], ModelParts] = lambda file: file
    next_layer: Callable[[ModelConfig], LayerConfig] | None = None
    next_reads_normed: bool = True

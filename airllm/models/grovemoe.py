"""GroveMoE (arXiv:2508.07785): Qwen3-MoE with a small network for each group of experts. It sees
what its experts see, and counts as much as those of them that a token is sent to, times a constant.

A file has the small networks once for each group. Here each expert has that of its group, which is
read from the same place, so that they take a few percent more memory.
"""

from dataclasses import replace

from airllm.formats.model_file import Extent, ModelParts, Tensor
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family

_GROUPS = "_chexps.weight"  # how the names of the small networks' tensors end


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("experts_per_group")  # see renewed
    c = r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        group_scale=r.positive("expert_group_scale", 0.05),
        **r.experts(),
    )
    size = r.integer("expert_chunk_feed_forward_length", c.head_dim, low=1)
    return replace(c, group_expert_size=size)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(c, activations, layer, normed="heads", feed_forward=_feed_forward)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    route, of_groups = blocks.route(g, c, h), replace(c, expert_size=c.group_expert_size)
    y = blocks.routed_experts(g, c, h, route)
    small = blocks.routed_experts(g, of_groups, h, route, suffix="_chexps")
    return g.add(y, g.scale(small, c.group_scale, out=small), out=y)


def renewed(file: ModelParts) -> ModelParts:
    """With the network of its group for each expert."""
    said = file.metadata
    n_experts = said.integer("grovemoe.expert_count", low=1, high=2**12)
    of_group = said.integer("grovemoe.experts_per_group", low=1, high=n_experts)
    if n_experts % of_group:
        wanted = f"expected a divisor of {n_experts}, the experts"
        raise said.fault(f"grovemoe.experts_per_group is {of_group}; {wanted}")
    tensors = [
        _of_experts(tensor, n_experts, of_group)
        if name.endswith(_GROUPS) and tensor.shape[0] == n_experts // of_group
        else tensor
        for name, tensor in file.tensors.items()
    ]
    return file.remade(said, tensors, {})


def _of_experts(tensor: Tensor, n_experts: int, of_group: int) -> Tensor:
    (place,), size = tensor.extents, tensor.nbytes // tensor.shape[0]
    extents = (
        Extent(place.part, place.offset + expert // of_group * size, size)
        for expert in range(n_experts)
    )
    shape = (n_experts, *tensor.shape[1:])
    return replace(tensor, shape=shape, nbytes=n_experts * size, extents=tuple(extents))


FAMILY = Family(("grovemoe",), (), configure, layer, renewed=renewed)

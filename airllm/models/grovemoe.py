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

# How the names of the small networks' tensors end, and those of the experts'.
_OF_GROUPS, _OF_EXPERTS = "_chexps.weight", "_exps.weight"


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
    """With the network of its group for each expert, where the file has the experts that this
    makes it for."""
    said = file.metadata
    n_experts = said.integer("grovemoe.expert_count", low=1, high=2**12)
    of_group = said.integer("grovemoe.experts_per_group", low=1, high=n_experts)
    if n_experts % of_group:
        wanted = f"expected a divisor of {n_experts}, the experts"
        raise said.fault(f"grovemoe.experts_per_group is {of_group}; {wanted}")
    n_groups = n_experts // of_group

    def of_experts(tensor: Tensor) -> Tensor:
        if not tensor.name.endswith(_OF_GROUPS) or tensor.shape[:1] != (n_groups,):
            return tensor
        experts = file.tensors.get(tensor.name.replace(_OF_GROUPS, _OF_EXPERTS))
        whole = experts is not None and experts.shape[:1] == (n_experts,) and experts.nbytes
        return _repeated(tensor, of_group) if whole and len(tensor.extents) == 1 else tensor

    return file.remade(said, [of_experts(tensor) for tensor in file.tensors.values()], {})


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """Each matrix of the stack so often, from the same place in the file."""
    (place,), n = tensor.extents, tensor.shape[0]
    size = tensor.nbytes // n
    matrices = [Extent(place.part, place.offset + i * size, size) for i in range(n)]
    return replace(
        tensor,
        shape=(n * times, *tensor.shape[1:]),
        nbytes=n * times * size,
        extents=tuple(matrix for matrix in matrices for _ in range(times)),
    )


FAMILY = Family(("grovemoe",), (), configure, layer, renewed=renewed)

"""Scales of whole matrices, as models in NVFP4 have them.

The scales of NVFP4's blocks have one byte, which is too coarse for the size of a whole matrix. So
the matrix has a float32 besides, and an expert's matrix one of its own. GGUF files have it beside
the matrix: blk.3.attn_q.scale is [1], and blk.3.ffn_up_exps.scale [n_experts]. A product with the
matrix is multiplied by it, before a bias is added.

A product is scaled and not the blocks, because a block's scale of four bits of precision does not
hold its product with a float32.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from airllm.formats.model_file import ModelFile
from airllm.graph.graph import Graph, Op, Weight

__all__ = ["scaled", "scaled_slots"]

_SCALED_BY = {"linear": "scale", "head_linear": "scale", "expert_linear": "expert_scale"}
_OF_THE_MODEL = "output"  # a next-token head may use it
_ROWS = "token_embd"  # its rows are read, too, by an op without a scale


def scaled_slots(file: ModelFile, graph: Graph, layer: int | None = None) -> frozenset[str]:
    """The slots of a graph's matrices that have a scale in the file. layer: of the graph's tensors.

    FormatError for a scale of another type or shape, and for one that is not finite and above 0.
    """
    matrices = {weight.name: weight for weight in graph.weights}
    slots = {op.weights[0] for op in graph.ops if op.kind in _SCALED_BY} - {_ROWS}
    found = set()
    for slot in slots:
        beside = f"{slot}.scale"
        name = beside if layer is None or slot == _OF_THE_MODEL else f"blk.{layer}.{beside}"
        # Gemma 4 has a slot of this name, which scales shares.
        if name in file.tensors and beside not in matrices:
            _check(file, name, _shape(matrices[slot], graph))
            found.add(slot)
    return frozenset(found)


def scaled(graph: Graph, slots: Collection[str]) -> Graph:
    """The graph, which is not fused, with each product with a matrix of these slots scaled."""
    ops: list[Op] = []
    scales: dict[str, Weight] = {}
    matrices = {weight.name: weight for weight in graph.weights}
    for op in graph.ops:
        ops.append(op)
        if op.kind not in _SCALED_BY or op.weights[0] not in slots:
            continue
        assert op.output is not None
        slot = op.weights[0]
        scale = Weight(f"{slot}.scale", _shape(matrices[slot], graph))
        scales[slot] = scale
        of_expert = op.kind == "expert_linear"
        inputs = (op.output, op.inputs[1]) if of_expert else (op.output,)
        attrs = {"n_used": op.attrs["n_used"]} if of_expert else {"factor": 1.0}
        ops.append(Op(_SCALED_BY[op.kind], inputs, op.output, (scale.name,), attrs))
    if not scales:
        return graph
    return replace(graph, weights=(*graph.weights, *scales.values()), ops=tuple(ops))


def _shape(matrix: Weight, graph: Graph) -> tuple[int]:
    """Of a slot's scale: one for each expert, or one."""
    return (matrix.shape[0] if graph.roles[matrix.name] == "experts" else 1,)


def _check(file: ModelFile, name: str, shape: tuple[int]) -> None:
    tensor = file.tensors[name]
    if (tensor.type, tensor.shape) != ("f32", shape):
        raise file.metadata.fault(
            f"tensor {name} is {tensor.type} {list(tensor.shape)}; expected f32 {list(shape)}, "
            f"what a matrix is multiplied by"
        )
    values = file.read(name, np.empty(tensor.nbytes, np.uint8)).view("<f4")
    wrong = values[~(np.isfinite(values) & (values > 0))]
    if wrong.size:
        raise file.metadata.fault(
            f"tensor {name} has the scale {wrong[0]:g}; expected a finite number above 0"
        )

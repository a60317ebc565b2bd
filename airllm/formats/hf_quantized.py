"""Finds the quantised matrices of a Hugging Face folder, each stored as several tensors.

    fp8                 NAME.weight (F8_E4M3), NAME.weight_scale_inv or NAME.weight_scale; in
                        DeepSeek V4 NAME.scale, also of NAME.weight (I8) for MXFP4
    mxfp4               NAME_blocks, NAME_scales
    compressed-tensors  FP8 as above, or NAME.weight_packed, NAME.weight_scale, NAME.weight_shape;
                        for NVFP4 NAME.weight_packed, NAME.weight_scale, NAME.weight_global_scale
    modelopt            NAME.weight (U8), NAME.weight_scale, NAME.weight_scale_2
    awq                 NAME.qweight, NAME.qzeros, NAME.scales
    gptq                NAME.qweight, NAME.qzeros, NAME.scales, NAME.g_idx

All other tensors are floats. A module that is not quantised has only these.
"""

from collections.abc import Callable, Iterator

from airllm.formats.hf_blocks import check_order
from airllm.formats.hf_columns import Strips, awq, gptq
from airllm.formats.hf_fp8 import fp8
from airllm.formats.hf_packed import int4, mxfp4, nvfp4
from airllm.formats.hf_quantization import Quantization
from airllm.formats.hf_sources import RowSource, Stored
from airllm.formats.mapped_file import quote

__all__ = ["quantised"]

# Scales of activations and of the KV cache. They are left out: nothing here is rounded by them.
_OF_ACTIVATIONS = (
    *(".input_scale", ".input_global_scale", ".activation_scale", ".output_scale"),
    *(".q_scale", ".k_scale", ".v_scale"),
)


class _Group:
    """The tensors of a folder by name, and the names of the tensors that belong to a quantised
    matrix, or that are left out."""

    def __init__(self, tensors: dict[str, Stored]) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()
        self.strips = Strips()

    def take(self, *names: str, of: Stored) -> Stored:
        """The first of the tensors that is there. FormatError if the tensor `of` has none."""
        found = self.take_optional(*names)
        if found is None:
            raise of.fault(f"needs tensor {quote(names[0])}, which is missing")
        return found

    def take_optional(self, *names: str) -> Stored | None:
        for name in names:
            if name in self.tensors:
                self.taken.add(name)
                return self.tensors[name]
        return None


def quantised(
    tensors: dict[str, Stored], quantization: Quantization
) -> tuple[list[RowSource], list[Stored]]:
    """The quantised matrices, by the names of float matrices, and all other tensors. FormatError
    names a tensor that is missing or does not fit."""
    group = _Group(tensors)
    find = _METHODS[quantization.method]
    sources = list(find(group, quantization))
    left = [stored for name, stored in tensors.items() if name not in group.taken]
    return sources, left


def _find_fp8(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    for name, stored in group.tensors.items():
        if name.endswith(_OF_ACTIVATIONS):
            group.taken.add(name)
        elif stored.dtype == "F8_E4M3" and not name.endswith(".weight_scale"):  # of NVFP4
            group.taken.add(name)
            own = f"{_stem(name)}.scale"
            scale = group.take(f"{name}_scale_inv", f"{name}_scale", own, of=stored)
            yield fp8(stored, scale, quantization)
        elif stored.dtype == "I8" and name.endswith(".weight"):
            group.taken.add(name)
            yield mxfp4(stored, group.take(f"{_stem(name)}.scale", of=stored), name)


def _find_mxfp4(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    for name, stored in group.tensors.items():
        if name.endswith("_blocks"):
            group.taken.add(name)
            stem = name.removesuffix("_blocks")
            yield mxfp4(stored, group.take(f"{stem}_scales", of=stored), stem)


def _find_compressed(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    yield from _find_fp8(group, quantization)
    for name, stored in group.tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        group.taken.add(name)
        weight = name.removesuffix("_packed")
        scale = group.take(f"{weight}_scale", of=stored)
        zero = group.take_optional(f"{weight}_zero_point")
        if zero is not None:
            raise zero.fault("has zero points, which are not supported; expected symmetric weights")
        if scale.dtype == "F8_E4M3":
            whole = group.take(f"{weight}_global_scale", of=stored)
            yield nvfp4(stored, scale, whole, weight, divides=True)
            continue
        if stored.dtype == "U8":
            yield mxfp4(stored, scale, weight)
            continue
        shape = group.take_optional(f"{weight}_shape")
        found = int4(stored, scale, shape, quantization.group_sizes)
        order = group.take_optional(f"{weight}_g_idx")
        check_order(order, stored, found.shape[1], quantization)
        yield found


def _find_modelopt(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    yield from _find_fp8(group, quantization)
    for name, stored in group.tensors.items():
        if stored.dtype == "U8" and name.endswith(".weight"):
            group.taken.add(name)
            scale = group.take(f"{name}_scale", of=stored)
            whole = group.take(f"{name}_scale_2", of=stored)
            yield nvfp4(stored, scale, whole, name, divides=False)


def _find_awq(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    for stored, zeros, scales in _with_qweight(group):
        yield awq(stored, zeros, scales, quantization, group.strips)


def _find_gptq(group: _Group, quantization: Quantization) -> Iterator[RowSource]:
    for stored, zeros, scales in _with_qweight(group):
        found = gptq(stored, zeros, scales, quantization, group.strips)
        stem = _stem(stored.name)
        order = group.take_optional(f"{stem}.g_idx")
        check_order(order, stored, found.shape[1], quantization)
        bias = group.tensors.get(f"{stem}.bias")
        if bias is not None and _is_zero(bias):  # some writers give each matrix a bias of zeros
            group.taken.add(bias.name)
        yield found


def _with_qweight(group: _Group) -> Iterator[tuple[Stored, Stored, Stored]]:
    for name, stored in group.tensors.items():
        if name.endswith(".qweight"):
            group.taken.add(name)
            stem = _stem(name)
            zeros = group.take(f"{stem}.qzeros", of=stored)
            yield stored, zeros, group.take(f"{stem}.scales", of=stored)


def _is_zero(bias: Stored) -> bool:
    return len(bias.shape) == 1 and not bias.read(0, 1).any()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


_METHODS: dict[str, Callable[[_Group, Quantization], Iterator[RowSource]]] = {
    "fp8": _find_fp8,
    "mxfp4": _find_mxfp4,
    "compressed-tensors": _find_compressed,
    "modelopt": _find_modelopt,
    "awq": _find_awq,
    "gptq": _find_gptq,
}

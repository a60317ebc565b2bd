"""Packs matrices as quantised Hugging Face folders store them, from the formats' descriptions.

Each packer returns a module's tensors, and what they stand for. Nothing of airllm is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hf_folder import Arrays, hf_values, safetensors_bytes, stored, write_folder, write_shards
from reference_blocks import E2M1
from tiny_model import TinyModel


class Packed(NamedTuple):
    """tensors: by their suffix. values: float64 [n, k]. offsets: of a format with zero points,
    -scale * zero of each value, float64 [n, k]. scale: of products with the matrix; the blocks have
    the values without it."""

    tensors: dict[str, tuple[str, np.ndarray]]
    values: np.ndarray
    offsets: np.ndarray | None = None
    scale: float = 1.0


def e4m3_value(code: int) -> float:
    """Sign, four bits of exponent biased by 7, three bits of fraction; the last code is NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, fraction = code >> 3 & 15, (code & 7) / 8
    if code & 0x7F == 0x7F:
        return float("nan")
    return sign * (2.0**-6 * fraction if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction))


E4M3 = np.array([e4m3_value(code) for code in range(256)])
_FINITE = np.flatnonzero(np.isfinite(E4M3))
_IN_ORDER = _FINITE[np.argsort(E4M3[_FINITE], kind="stable")]


def nearest_e4m3(values: np.ndarray) -> np.ndarray:
    """The codes of the nearest values: uint8 of the same shape."""
    known = E4M3[_IN_ORDER]
    above = np.clip(np.searchsorted(known, values), 1, len(known) - 1)
    below = above - 1
    nearer = np.where(values - known[below] <= known[above] - values, below, above)
    return _IN_ORDER[nearer].astype(np.uint8)


def fp8(values: np.ndarray, scales: str) -> Packed:
    """scales: "block" of 128 x 128, "powers" of two of such blocks, "row", "tensor", or "one": of a
    tensor, too, as compressed-tensors writes it."""
    n, k = values.shape
    blocks = {"block": (128, 128), "powers": (128, 128), "row": (1, k)}
    height, width = blocks.get(scales, (n, k))
    down, across = -(-n // height), -(-k // width)
    scale = np.empty((down, across), np.float32)
    codes, found = np.empty((n, k), np.uint8), np.empty((n, k))
    for i in range(down):
        for j in range(across):
            place = np.s_[i * height : (i + 1) * height, j * width : (j + 1) * width]
            scale[i, j] = np.abs(values[place]).max() / 448
            if scales == "powers":
                scale[i, j] = 2.0 ** np.ceil(np.log2(scale[i, j]))
            codes[place] = nearest_e4m3(values[place] / float(scale[i, j]))
            found[place] = E4M3[codes[place]] * float(scale[i, j])
    if scales == "powers":
        exponents = (np.log2(scale) + 127).astype(np.uint8)
        own = {".weight": ("F8_E4M3", codes), ".scale": ("F8_E8M0", exponents)}
        return Packed(own, found)
    name = ".weight_scale_inv" if scales in ("block", "tensor") else ".weight_scale"
    if scales in ("tensor", "one"):
        scale = scale.reshape(() if scales == "tensor" else (1,))
    return Packed({".weight": ("F8_E4M3", codes), name: ("F32", scale)}, found)


def int4(values: np.ndarray, group: int, dtype: str) -> Packed:
    """compressed-tensors: codes -8 to 7 plus 8, eight in an int32, the first in its lowest bits."""
    n, k = values.shape
    by_group = values.reshape(n, k // group, group)
    raw, scale = rounded_to(np.abs(by_group).max(axis=2) / 7.5, dtype)
    codes = np.clip(np.rint(by_group / scale[..., None]), -8, 7).astype(np.int64)
    found = (codes * scale[..., None]).reshape(n, k)
    words = along_rows(codes.reshape(n, k) + 8)
    tensors = {
        ".weight_packed": ("I32", words),
        ".weight_scale": (dtype, raw),
        ".weight_shape": ("I64", np.array([n, k], np.int64)),
    }
    return Packed(tensors, found)


def awq(values: np.ndarray, group: int) -> Packed:
    """[in, out / 8]; the nibbles of a word, from the lowest on, are columns 0, 2, 4, 6, 1, 3, 5,
    7."""
    codes, zeros, scale, found = _asymmetric(values, group)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        ".qweight": ("I32", along_rows(codes.T, order)),
        ".qzeros": ("I32", along_rows(zeros.T, order)),
        ".scales": ("F16", scale.T.astype("<f2")),
    }
    return Packed(tensors, found, np.repeat(-scale * zeros, group, axis=1))


def gptq(
    values: np.ndarray,
    group: int,
    *,
    symmetric: bool = False,
    version: int = 1,
) -> Packed:
    """[in / 8, out]; the first version stores each zero point less 1."""
    codes, zeros, scale, found = _asymmetric(values, group, symmetric=symmetric)
    less = zeros - (1 if version == 1 else 0)
    tensors = {
        ".qweight": ("I32", along_rows(codes).T.copy()),
        ".qzeros": ("I32", along_rows(less.T)),
        ".scales": ("F16", scale.T.astype("<f2")),
        ".g_idx": ("I32", np.repeat(np.arange(scale.shape[1]), group).astype("<i4")),
    }
    offsets = None if symmetric else np.repeat(-scale * zeros, group, axis=1)
    return Packed(tensors, found, offsets)


def _asymmetric(
    values: np.ndarray, group: int, *, symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """codes int [n, k], zeros int [n, groups] from 1 to 15, scales float64 [n, groups] that F16
    holds, and scale * (code - zero)."""
    n, k = values.shape
    by_group = values.reshape(n, k // group, group)
    low, high = by_group.min(axis=2), by_group.max(axis=2)
    if symmetric:
        scale = (np.abs(by_group).max(axis=2) / 7.5).astype("<f2").astype(np.float64)
        zeros = np.full(scale.shape, 8)
    else:
        scale = ((high - low) / 15).astype("<f2").astype(np.float64)
        zeros = np.clip(np.rint(-low / scale), 1, 15).astype(np.int64)
    codes = np.clip(np.rint(by_group / scale[..., None]) + zeros[..., None], 0, 15)
    found = (codes - zeros[..., None]) * scale[..., None]
    return codes.reshape(n, k).astype(np.int64), zeros, scale, found.reshape(n, k)


def mxfp4(values: np.ndarray) -> Packed:
    """[..., n, k] as blocks of 32 with a power of two: gpt-oss's, neighbours in a byte, the first
    in its low bits."""
    by_block = values.reshape(*values.shape[:-1], values.shape[-1] // 32, 32)
    exponent = np.floor(np.log2(np.abs(by_block).max(axis=-1))) - 2
    scaled = by_block / 2.0 ** exponent[..., None]
    codes = np.abs(scaled[..., None] - np.array(E2M1)).argmin(axis=-1)
    found = (np.array(E2M1)[codes] * 2.0 ** exponent[..., None]).reshape(values.shape)
    packed = (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)
    scales = (exponent + 127).astype(np.uint8)
    return Packed({"_blocks": ("U8", packed), "_scales": ("U8", scales)}, found)


def mxfp4_packed(values: np.ndarray) -> Packed:
    """[n, k] as compressed-tensors stores the same blocks."""
    tensors, found, *_ = mxfp4(values)
    packed = tensors["_blocks"][1].reshape(values.shape[0], -1)
    return Packed({".weight_packed": ("U8", packed), ".weight_scale": tensors["_scales"]}, found)


def mxfp4_beside(values: np.ndarray) -> Packed:
    """[n, k] as DeepSeek V4 stores the same blocks."""
    tensors, found, *_ = mxfp4(values)
    packed = tensors["_blocks"][1].reshape(values.shape[0], -1).view(np.int8)
    own = {".weight": ("I8", packed), ".scale": ("F8_E8M0", tensors["_scales"][1])}
    return Packed(own, found)


def nvfp4(values: np.ndarray, by: str) -> Packed:
    """[n, k], neighbours in a byte, the first in its low bits; 16 columns have a scale in E4M3, and
    all have one in float32, which ModelOpt multiplies by, and compressed-tensors divides by."""
    n, k = values.shape
    whole = np.float32(np.abs(values).max() / (448 * 6))
    if by == "compressed-tensors":
        whole = np.float32(1 / whole)
    factor = 1 / float(whole) if by == "compressed-tensors" else float(whole)
    by_group = values.reshape(n, k // 16, 16)
    scales = nearest_e4m3(np.abs(by_group).max(axis=-1) / 6 / factor)
    step = E4M3[scales] * factor
    codes = np.abs((by_group / step[..., None])[..., None] - np.array(E2M1)).argmin(axis=-1)
    found = (np.array(E2M1)[codes] * step[..., None]).reshape(n, k)
    packed = (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8).reshape(n, k // 2)
    if by == "compressed-tensors":
        own = {".weight_packed": ("U8", packed), ".weight_scale": ("F8_E4M3", scales)} | {
            ".weight_global_scale": ("F32", np.array([whole])),
            ".input_global_scale": ("F32", np.array([3.0], np.float32)),
        }
        return Packed(own, found, scale=1 / float(whole))
    own = {".weight": ("U8", packed), ".weight_scale": ("F8_E4M3", scales)} | {
        ".weight_scale_2": ("F32", np.array(whole)),
        ".input_scale": ("F32", np.array(0.25, np.float32)),
    }
    return Packed(own, found, scale=float(whole))


def along_rows(codes: np.ndarray, order: list[int] | None = None) -> np.ndarray:
    """Eight neighbours of a row in an int32. order: the column of each nibble of the word."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint64)
    for nibble, column in enumerate(order or range(8)):
        words |= codes[:, column::8].astype(np.uint64) << np.uint64(4 * nibble)
    return words.astype("<u4").view("<i4")


def rounded_to(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """As `dtype` stores them, and what that means in float64."""
    raw = stored(values, dtype)
    wide = (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw
    return raw, wide.astype(np.float64)


COMPRESSED = {"quant_method": "compressed-tensors", "quantization_status": "compressed"}


def compressed(format: str, **weights: object) -> dict[str, object]:
    """quantization_config of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False} | weights}
    return COMPRESSED | {"format": format, "config_groups": {"group_0": group}}


_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False}
_AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
_FLOAT8 = {"num_bits": 8, "type": "float"}


@dataclass(frozen=True)
class Format:
    """pack: a matrix. config: quantization_config. type: what the matrices become here."""

    pack: Callable[..., Packed]
    config: Mapping[str, object]
    type: str
    options: Mapping[str, object] = field(default_factory=dict)

    def module(self, values: np.ndarray) -> Packed:
        return self.pack(values, **self.options)


FORMATS = {
    "FP8 in blocks": Format(
        fp8, _FP8 | {"weight_block_size": [128, 128]}, "q8_0", {"scales": "block"}
    ),
    "FP8 in blocks, scales powers of two": Format(
        fp8, _FP8 | {"weight_block_size": [128, 128]}, "q8_0", {"scales": "powers"}
    ),
    "MXFP4 beside FP8": Format(mxfp4_beside, _FP8 | {"weight_block_size": [128, 128]}, "mxfp4"),
    "FP8 by tensor": Format(fp8, _FP8 | {"weight_block_size": None}, "q8_0", {"scales": "tensor"}),
    "FP8 by tensor, of compressed-tensors": Format(
        fp8,
        compressed("float-quantized", strategy="tensor", **_FLOAT8),
        "q8_0",
        {"scales": "one"},
    ),
    "FP8 by row": Format(
        fp8,
        compressed("float-quantized", strategy="channel", **_FLOAT8),
        "q8_0",
        {"scales": "row"},
    ),
    "int4 in groups of 32": Format(
        int4,
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
        "q4_0",
        {"group": 32, "dtype": "BF16"},
    ),
    "int4 in groups of 128": Format(
        int4,
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=128),
        "q4_0",
        {"group": 128, "dtype": "F16"},
    ),
    "MXFP4 of compressed-tensors": Format(
        mxfp4_packed,
        compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32),
        "mxfp4",
    ),
    "NVFP4 of ModelOpt": Format(
        nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", {"by": "modelopt"}
    ),
    "NVFP4 of compressed-tensors": Format(
        nvfp4,
        compressed(
            "nvfp4-pack-quantized",
            **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        ),
        "nvfp4",
        {"by": "compressed-tensors"},
    ),
    "AWQ": Format(awq, _AWQ | {"group_size": 128}, "q4_1", {"group": 128}),
    "GPTQ": Format(gptq, _GPTQ | {"group_size": 64, "sym": False}, "q4_1", {"group": 64}),
    "GPTQ, version 2": Format(
        gptq,
        _GPTQ | {"group_size": 64, "sym": False, "checkpoint_format": "gptq_v2"},
        "q4_1",
        {"group": 64, "version": 2},
    ),
    "GPTQ, symmetric": Format(
        gptq, _GPTQ | {"group_size": 128, "sym": True}, "q4_0", {"group": 128, "symmetric": True}
    ),
}


def write_quantised(
    folder: Path,
    model: TinyModel,
    format: Format,
    *,
    plain: str = "",
    n_shards: int = 1,
) -> dict[str, Packed]:
    """Write the folder. All matrices of its layers are quantised, routers aside, and those whose
    name has `plain` in it. Returns them by their name in a float folder."""
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    found: dict[str, Packed] = {}
    for name, values in hf_values(model).items():
        if name.endswith("_proj.weight") and not (plain and plain in name):
            found[name] = format.module(values)
            stem = name.removesuffix(".weight")
            arrays |= {f"{stem}{suffix}": each for suffix, each in found[name].tensors.items()}
        else:
            arrays[name] = "F32", stored(values, "F32")
    write_folder(folder, model, config={"quantization_config": dict(format.config)})
    if n_shards == 1:
        rewrite(folder, arrays)
    else:
        (folder / "model.safetensors").unlink()
        write_shards(folder, arrays, n_shards)
    return found


def rewrite(folder: Path, arrays: Arrays) -> None:
    """Other weights for a folder of one file."""
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))


def write_floats(folder: Path, model: TinyModel, values: Mapping[str, np.ndarray]) -> Path:
    """A plain F32 folder. values: float64, in place of the model's, by name."""
    write_folder(folder, model)
    arrays = {name: ("F32", stored(v, "F32")) for name, v in (hf_values(model) | values).items()}
    rewrite(folder, arrays)
    return folder

"""Writes small GGUF files for the tests, straight from the format's description.

It shares no code with `airllm.formats`, so that a mistake in one shows against the other, and it
writes whatever it is told, faults included: the tests of hostile files depend on that.

    write_gguf(path, {"general.architecture": "llama"}, [("w", "f32", (2, 32), data)])
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

TENSOR_TYPES = {
    **{"f32": 0, "f16": 1, "bf16": 30, "i32": 26},
    **{"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8},
    **{"q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14},
    **{"iq4_nl": 20, "iq4_xs": 23, "mxfp4": 39},
    **{"iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq3_s": 21, "iq2_s": 22},
    **{"iq1_m": 29, "tq1_0": 34, "tq2_0": 35, "nvfp4": 40},
}

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    "uint8": (0, "<B"),
    "int8": (1, "<b"),
    "uint16": (2, "<H"),
    "int16": (3, "<h"),
    "uint32": (4, "<I"),
    "int32": (5, "<i"),
    "float32": (6, "<f"),
    "uint64": (10, "<Q"),
    "int64": (11, "<q"),
    "float64": (12, "<d"),
}

TensorSpec = tuple[str, str | int, tuple[int, ...], np.ndarray]


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, object],
    tensors: Iterable[TensorSpec] = (),
    *,
    alignment: int = 32,
    version: int = 3,
) -> Path:
    """Write a GGUF file and return its path.

    metadata: str, bool, int (uint32 where it fits), float (float32), NumPy scalars and 1-D arrays
        (their own type), lists of one of these; `bytes` are written as a string, unchecked.
    tensors: (name, type, shape, data) with the type's name ("q4_1") or its number, the shape row
        by row, (n, k) or (k,), and an array whose raw bytes are the tensor's data.
    alignment: where each tensor's data starts; other than 32 it is also written as the
        `general.alignment` that readers need.
    """
    if alignment != 32 and "general.alignment" not in metadata:
        metadata = {**metadata, "general.alignment": alignment}
    path = Path(path)
    path.write_bytes(gguf_bytes(metadata, tensors, alignment=alignment, version=version))
    return path


def gguf_bytes(
    metadata: Mapping[str, object],
    tensors: Iterable[TensorSpec] = (),
    *,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """The same as bytes; `general.alignment` is written only if `metadata` has it."""
    tensors = list(tensors)
    head = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key) + _typed(value)

    data = bytearray()
    for name, kind, shape, array in tensors:
        data += bytes(-len(data) % alignment)
        number = TENSOR_TYPES[kind] if isinstance(kind, str) else kind
        dims = tuple(reversed(shape))  # the file counts the fastest axis first
        head += _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", number, len(data))
        data += np.ascontiguousarray(array).tobytes()

    head += bytes(-len(head) % alignment)
    return bytes(head + data)


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: object) -> bytes:
    """A value with its type in front of it, as metadata values are written."""
    kind, raw = _value(value)
    return struct.pack("<I", kind) + raw


def _value(value: object) -> tuple[int, bytes]:
    if isinstance(value, (bool, np.bool_)):
        return _BOOL, bytes([value])
    if isinstance(value, (str, bytes)):
        return _STRING, _string(value)
    if isinstance(value, np.generic):
        number, layout = _NUMBERS[value.dtype.name]
        return number, struct.pack(layout, value.item())
    if isinstance(value, int):
        return _value(np.array(value, _integer_type(value))[()])
    if isinstance(value, float):
        return _value(np.float32(value))
    if isinstance(value, np.ndarray):
        kind = _BOOL if value.dtype == bool else _NUMBERS[value.dtype.name][0]
        return _ARRAY, struct.pack("<IQ", kind, value.size) + value.tobytes()
    if isinstance(value, (list, tuple)):
        if value and all(type(item) is int for item in value):
            return _value(np.array(value, "int32" if min(value) < 0 else "uint32"))
        items = [_value(item) for item in value]
        kind = items[0][0] if items else _STRING
        return _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(raw for _, raw in items)
    raise TypeError(f"no GGUF type for {value!r}")


def _integer_type(value: int) -> str:
    for name in ("uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(name)
        if limits.min <= value <= limits.max:
            return name
    raise OverflowError(f"{value} needs more than 64 bits")

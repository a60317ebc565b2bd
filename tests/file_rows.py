"""Random weight matrices as a model file has them: bytes, and the values that these stand for."""

import functools
from typing import NamedTuple

import numpy as np
import reference
import reference_blocks
from arrays import normal

QUANTIZED = list(reference_blocks.LAYOUTS)
# The types whose blocks have more than 32 values.
LARGE_BLOCKS = [type for type in QUANTIZED if reference_blocks.block_size(type) > 32]
TYPES = ["f32", "f16", "bf16", *QUANTIZED]


def columns(type, n_blocks):
    """How many columns make n_blocks blocks; of floats, as many as make blocks of 32."""
    return n_blocks * (reference_blocks.block_size(type) if type in QUANTIZED else 32)


class FileRows(NamedTuple):
    data: np.ndarray  # uint8 [n, row_bytes]
    values: np.ndarray  # float64 [n, k], exact
    magnitudes: np.ndarray  # float64 [n, k]: |d q| + |m| where a value is d * q + m, else |value|


def file_rows(n, k, type, seed=0):
    """A matrix [n, k] of any type; k is a multiple of the type's block."""
    if type in QUANTIZED:
        return drawn_rows(n, k, type, _random_blocks(type), seed)
    w = normal((n, k), seed=seed)
    if type == "f32":
        data, values = w, w.astype(np.float64)
    else:
        encode, decode = {
            "f16": (reference.encode_float16, reference.decode_float16),
            "bf16": (reference.encode_bfloat16, reference.decode_bfloat16),
        }[type]
        data = np.array([encode(float(v)) for v in w.reshape(-1)], np.uint16).reshape(n, k)
        values = reference.each(lambda bits: decode(int(bits)), data)
    return FileRows(data.view(np.uint8).reshape(n, -1), values, np.abs(values))


def drawn_rows(n, k, type, blocks, seed=0):
    """A matrix whose blocks are taken at random from `blocks`, FileRows of one block each.

    Decoding in Python takes a microsecond for each value: a large matrix has to repeat itself.
    """
    shape = (n, k // reference_blocks.block_size(type))
    drawn = np.random.default_rng(seed).integers(len(blocks.data), size=shape)
    return FileRows(*(part[drawn].reshape(n, -1) for part in blocks))


def decoded(blocks, type):
    """FileRows of one block each from uint8 [n_blocks, bytes of a block]."""
    return FileRows(blocks, *reference_blocks.dequantize_and_measure(blocks, type))


@functools.cache
def _random_blocks(type):
    """Random bytes, so that every code occurs, with scales and offsets of either sign."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (64, reference_blocks.block_bytes(type)), dtype=np.uint8)
    reference_blocks.set_scales(blocks, type, random.normal(0.0, 0.1, (64, 2)))
    return decoded(blocks, type)

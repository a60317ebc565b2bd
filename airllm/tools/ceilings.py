"""What this machine's memory and arithmetic give at most to this program: the roofs of a roofline.

Each is measured with the operation that comes nearest to it: the product of a large matrix with one
row waits for memory alone, and the product of two large matrices for arithmetic alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import ModuleType

import numpy as np

__all__ = ["Ceilings", "measure"]

READ_BYTES = 256 << 20  # more than caches hold
WIDTH = 1024  # of the matrices whose product is timed
ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    gbytes_per_second: float  # read from memory
    float_gflops: float  # of products in float32
    byte_gops: float  # of products of 8-bit weights and activations


def measure(ops: ModuleType) -> Ceilings:
    """ops: the operations of a backend, which run on as many threads as it has now. Takes about a
    second, and 300 MB."""
    random = np.random.default_rng(0)
    row = random.standard_normal((1, 1 << 12)).astype(np.float32)
    large = np.ones((READ_BYTES // 4 // row.size, row.size), np.float32)
    read = _best(lambda: ops.linear(row, large))
    a, b = (random.standard_normal((WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    floats = _best(lambda: ops.matmul(a, b))
    packed = ops.PackedMatrix(ops.quantize(b, "q8_0"), "q8_0", b.shape)
    codes = _best(lambda: ops.linear(a, packed, activations="q8"))
    flops = 2 * WIDTH**3
    return Ceilings(large.nbytes / read / 1e9, flops / floats / 1e9, flops / codes / 1e9)


def _best(call: Callable[[], object]) -> float:
    """The seconds of the quickest of some calls."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return min(seconds[1:])

"""The operations to compare, each in our implementation, NumPy, PyTorch and float64.

Our implementation is called through `tensor_ops_cpp`, as users call it. The code for NumPy reuses
its buffers. PyTorch is tried with and without out=, and the faster form competes.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from common.contest import Contender, Form
from common.extension import cpp
from common.limits import beyond_caches

SEED = 1
FLOAT_TOLERANCE = 2e-6  # elementwise operations in float32


@dataclass(frozen=True)
class Participants:
    """The contenders: the extension on these ISAs, NumPy, and PyTorch if its module is given.

    cycle_bytes: calls cycle through this many bytes of matrices and KV caches, so that each call
    reads them from memory, as in a model.
    """

    isas: tuple[str, ...]
    torch: Any = None
    numpy: bool = True
    cycle_bytes: int = field(default_factory=beyond_caches)

    def cpp(self, form: Callable[[], Form], tolerance: float) -> tuple[Contender, ...]:
        """A contender for each ISA; `form` is called with that ISA in use."""
        contenders = []
        for isa in self.isas:
            cpp.set_isa(isa)
            prepare = partial(cpp.set_isa, isa)
            contenders.append(Contender(isa, (form(),), tolerance, prepare))
        return tuple(contenders)

    def cycles(self, nbytes: int) -> int:
        """The number of objects of `nbytes` that together exceed the CPU's caches."""
        return max(1, -(-self.cycle_bytes // nbytes))


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def load_torch(threads: int) -> Any:
    """PyTorch with that many threads, or None if it is not installed."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch

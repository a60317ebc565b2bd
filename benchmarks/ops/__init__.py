"""The operations that are compared: ours, NumPy's and PyTorch's way to do each, and in float64.

Ours are called through `tensor_ops_cpp`, as any user calls them. NumPy's ways reuse their buffers;
PyTorch's are tried with and without out=, and the faster one competes.
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
    """Who takes part: the extension on these ISAs, NumPy, and PyTorch where its module is given.

    cycle_bytes: matrices and caches of a model are read from memory; so many bytes of them are
    cycled through.
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
        """How many objects of that size exceed the caches."""
        return max(1, -(-self.cycle_bytes // nbytes))


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def load_torch(threads: int) -> Any:
    """PyTorch with that many threads, None where it is not installed."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch

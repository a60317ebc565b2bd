"""How much memory Python code takes, whatever traced memory before."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Traced:
    peak: int = 0
    """Bytes that were allocated at once in the block, beyond those that were allocated before."""


@contextmanager
def traced_memory() -> Iterator[Traced]:
    traced = Traced()
    was_tracing = tracemalloc.is_tracing()  # starting costs: a fixture may do it for many blocks
    if not was_tracing:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        yield traced
        _, peak = tracemalloc.get_traced_memory()
        traced.peak = peak - before
    finally:
        if not was_tracing:
            tracemalloc.stop()

"""How much memory Python code takes, whatever traced memory before; and a limit of it."""

import resource
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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


@contextmanager
def limited_memory(n_bytes: int) -> Iterator[None]:
    """MemoryError where the block would take that many bytes of address space more. It costs
    nothing, where tracing makes code that builds many small objects five times as slow. Linux only:
    elsewhere there is no limit."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

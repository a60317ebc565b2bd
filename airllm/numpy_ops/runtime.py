"""What runs the NumPy operations: the BLAS library's threads, and no SIMD of our own."""

import os
import platform
from typing import Any

import numpy as np

from airllm import __version__
from airllm.numpy_ops import checks
from airllm.util.system import cpu_quota

has_simd = False
simd_level = "numpy"

# OpenBLAS, which NumPy's wheels carry, reads these in this order when it is loaded.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


def available_isas() -> list[str]:
    """The instruction sets that can be chosen: none, NumPy picks its own."""
    return []


def get_num_threads() -> int:
    """The threads of NumPy's BLAS: one for each CPU this process may use, or as the environment
    said before NumPy was imported (OPENBLAS_NUM_THREADS, OMP_NUM_THREADS)."""
    return int(cpu_budget()["chosen"])


def set_num_threads(n: int) -> None:
    """Checks n, and otherwise does nothing: BLAS has started its threads by now.

    Set OPENBLAS_NUM_THREADS before Python starts instead.
    """
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"set_num_threads: n is {checks.kind(n)}; expected an integer.")
    if not 1 <= n <= 1024:
        raise ValueError(f"set_num_threads: n is {n}; expected at least 1, at most 1024.")


def cpu_budget() -> dict[str, Any]:
    """How many threads run, and why.

    affinity: CPUs that this process may use; cgroup_quota: CPUs' worth of time that its control
    group grants, None if unlimited; env: the threads that the environment asks for, None if it
    does not; chosen: the threads that run; reason: why that many, a sentence for people.
    """
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    requested: int | None = None
    reason = "one for each CPU that this process may use (NumPy's BLAS decides)"
    for name in _THREAD_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal() and float(value) > 0:
            requested = int(min(float(value), 2.0**31))
            reason = f"{name}={value[:20]}, limited to the CPUs that this process may use"
            break
    quota = cpu_quota()
    return {
        "affinity": affinity,
        "cgroup_quota": quota.cpus if quota else None,
        "env": requested,
        "chosen": min(requested or affinity, affinity),
        "reason": reason,
    }


def get_optimization_info() -> dict[str, Any]:
    """What runs here: isa, threads, compiler, flags, version, numpy's version."""
    return {
        "isa": simd_level,
        "available_isas": available_isas(),
        "threads": get_num_threads(),
        "compiler": platform.python_compiler(),
        "flags": "",
        "version": __version__,
        "numpy": np.__version__,
    }

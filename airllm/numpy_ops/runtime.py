"""The threads of NumPy's BLAS library, and build information. There is no SIMD of our own."""

import os
import platform
from typing import Any

import numpy as np

from airllm.numpy_ops import checks
from airllm.util.system import cpu_quota
from airllm.util.version import __version__

has_simd = False
simd_level = "numpy"

# OpenBLAS, which is part of NumPy's wheels, reads these in this order when it is loaded.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


def available_isas() -> list[str]:
    """The instruction sets to choose from: none, because NumPy picks its own."""
    return []


def get_num_threads() -> int:
    """The threads of NumPy's BLAS: one for each CPU that this process may use, or fewer if the
    environment said so before NumPy was imported (OPENBLAS_NUM_THREADS, GOTO_NUM_THREADS,
    OMP_NUM_THREADS)."""
    return int(cpu_budget()["chosen"])


def set_num_threads(n: int) -> None:
    """Only checks n, because BLAS has started its threads already.

    Set OPENBLAS_NUM_THREADS before Python starts instead.
    """
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"set_num_threads: n is {checks.kind(n)}; expected an integer.")
    if not 1 <= n <= 1024:
        raise ValueError(f"set_num_threads: n is {n}; expected at least 1, at most 1024.")


def cpu_budget() -> dict[str, Any]:
    """The number of threads, and the reason for it.

    affinity: CPUs that this process may use; cgroup_quota: CPUs' worth of time that its control
    group grants, None if unlimited; env: the threads that the environment asks for, or
    None; chosen: the threads that run; reason: why that many, in words.
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
    """Describes the build: isa, available_isas, threads, compiler, flags, version, numpy."""
    return {
        "isa": simd_level,
        "available_isas": available_isas(),
        "threads": get_num_threads(),
        "compiler": platform.python_compiler(),
        "flags": "",
        "version": __version__,
        "numpy": np.__version__,
    }

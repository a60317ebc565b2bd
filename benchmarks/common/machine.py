"""Describes the machine and the software of a measurement, without which numbers mean nothing."""

import platform
from importlib import metadata

import numpy as np

from airllm.util import system
from common.extension import cpp


def describe() -> dict[str, object]:
    """The machine and the programs on it, as JSON values."""

    info = cpp.get_optimization_info()
    memory = system.total_memory()
    return {
        "cpu": system.cpu_model(),
        "cores": cpp.cpu_budget()["cores"],
        "isas": cpp.available_isas(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": _blas(),
        "torch": _version("torch"),
        "extension": info["version"],
        "extension_file": cpp.__file__,
        "compiler": info["compiler"],
    }


def in_words(machine: dict[str, object]) -> str:
    """The description in one sentence."""
    memory = machine["memory_bytes"]
    gigabytes = f", {memory / 2**30:.0f} GB" if isinstance(memory, int) else ""
    torch = f", PyTorch {machine['torch']}" if machine["torch"] else ", no PyTorch"
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gigabytes}, {machine['system']}; "
        f"airllm-cpp {machine['extension']} ({machine['compiler']}), Python {machine['python']}, "
        f"NumPy {machine['numpy']} ({machine['blas']}){torch}."
    )


def _blas() -> str:
    build = np.show_config(mode="dicts")
    found = build["Build Dependencies"]["blas"]
    return f"{found['name']} {found['version']}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

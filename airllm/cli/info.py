"""airllm info: what this machine has, what airllm uses of it, and why."""

import argparse
import os
import platform
from collections.abc import Mapping
from typing import Any

from airllm.cli import console, options
from airllm.util.printable import printable
from airllm.util.version import __version__

# Every variable that changes what airllm does, and what it is for.
VARIABLES = {
    "AIRLLM_BACKEND": "the backend: auto, cpp or numpy",
    "AIRLLM_FUSION": "0 runs each operation by itself, for comparisons and profiles",
    "AIRLLM_MTP": "1 lets a model's next-token head guess tokens, where it has one",
    "TENSOR_OPS_ISA": "instruction set of the cpp backend, one of the available ones",
    "TENSOR_OPS_NUM_THREADS": "number of threads of the cpp backend",
    "OPENBLAS_NUM_THREADS": "number of threads of NumPy's matrix products, for the numpy backend",
    "OMP_NUM_THREADS": "the same, if OPENBLAS_NUM_THREADS is not set",
    "AIRLLM_RAM": "memory that a model may take, for instance 2GiB",
    "AIRLLM_STREAM_IO": "auto or threads: how layers that do not fit are read from the disk",
    "AIRLLM_STREAM_DIRECT": "0 reads these layers through the page cache",
    "AIRLLM_HOME": "folder of the models",
    "XDG_CACHE_HOME": "if AIRLLM_HOME is not set, models are in airllm/ in this folder",
    "AIRLLM_HISTORY": "file of your messages for the arrow keys of a chat; empty: none",
    "XDG_STATE_HOME": "if AIRLLM_HISTORY is not set, the messages are in airllm/ in this folder",
    "AIRLLM_ALIASES": "further names of models for `airllm serve`, as gpt-5=qwen3,claude-*=qwen3",
    "HF_ENDPOINT": "hub from which models are pulled, in place of https://huggingface.co",
    "TMPDIR": "folder in which a worker with --ram keeps weights that do not fit",
    "XDG_RUNTIME_DIR": "folder of the socket through which `airllm worker --status` asks a worker",
    "AIRLLM_ATTENTION_LIBRARY": "library of airllm.flash_attention, if not the built-in one",
    "AIRLLM_DEBUG": "1 logs details and shows where an error came from",
}


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "info",
        run,
        help="show CPU, threads, memory, build, backend and models",
        description="Shows what this machine has (CPU, instruction sets, limits of its control "
        "group), what airllm uses of that and why, how airllm was built, which models have been "
        "fetched, and the environment variables that airllm reads.",
        examples=["airllm info", "airllm info --json", "TENSOR_OPS_ISA=avx2 airllm info"],
    )
    options.add_output(parser, json="the same values, grouped by section")


def run(args: argparse.Namespace) -> int:
    sections = collect()
    if args.json:
        console.write_json(sections)
    else:
        print("\n".join(_lines(sections)))
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """Sections of names and values; bytes and seconds as plain numbers, None where unknown."""
    from airllm.util import system

    quota, limit = system.cpu_quota(), system.memory_limit()
    return {
        "airllm": {
            "version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "cpu": {
            "model": system.cpu_model(),
            "logical_cpus": os.cpu_count(),
            "cgroup_quota": quota and quota.cpus,
            "cgroup_quota_source": quota and str(quota.source),
        },
        "memory": {
            "total_bytes": system.total_memory(),
            "available_bytes": system.available_memory(),
            "for_a_model_bytes": _granted(),
            "cgroup_limit_bytes": limit and limit.limit,
            "cgroup_used_bytes": limit and limit.used,
            "cgroup_limit_source": limit and str(limit.source),
        },
        **_backend(),
        "models": _models(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _granted() -> int | None:
    """The default of --ram."""
    from airllm.weights.budget import granted_bytes

    try:
        return granted_bytes(None)
    except ValueError:  # AIRLLM_RAM is no size; the section "environment" shows it
        return None


def _backend() -> dict[str, dict[str, Any]]:
    """Sections backend, threads and build; they also report a backend that does not start."""
    try:
        from airllm import tensor_ops_hybrid
    except (ImportError, ValueError) as error:
        return {"backend": {"backend": None, "error": str(error)}, "threads": {}, "build": {}}
    found = tensor_ops_hybrid.get_backend_info()
    return {
        "backend": {
            "backend": found["backend"],
            "requested": found["requested"],
            "fallback_reason": found["fallback_reason"],
            "isa": found["simd_level"],
            "available_isas": found["available_isas"],
        },
        "threads": {"in_use": found["threads"], **found["cpu_budget"]},
        "build": {**found["optimization"], "numpy": found["numpy"]},
    }


def _models() -> dict[str, Any]:
    from airllm import hub
    from airllm.weights.plan import DEFAULT_CONTEXT

    found = {name: hub.find_model(name) for name in hub.KNOWN_MODELS}
    return {
        "directory": str(hub.models_dir()),
        "found": {each.name: str(each.path) for each in hub.local_models()},
        "default_context": DEFAULT_CONTEXT,
        "not_fetched": [name for name, path in found.items() if path is None],
    }


def _lines(sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for section, values in sections.items():
        lines.append(section)
        width = max(map(len, values), default=0)
        for name, value in values.items():
            words = printable(_words(name, value))
            lines.append(f"  {printable(name):<{width}}  {words}".rstrip())
            if section == "environment":
                lines[-1] += f"   ({VARIABLES[name]})"
    return lines


def _words(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_bytes") and isinstance(value, int):
        return console.format_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value)

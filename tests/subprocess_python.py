"""Runs Python code in a process of its own: for what is decided once, at import."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# What the operations' modules read; a test starts without them.
_VARIABLES = ("AIRLLM_BACKEND", "TENSOR_OPS_ISA", "TENSOR_OPS_NUM_THREADS")


def run_python(code, *, path=(), timeout=60, **variables):
    """Runs `code` with the environment `variables`, importing from the folders in `path` first."""
    environment = {name: v for name, v in os.environ.items() if name not in _VARIABLES}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), **variables}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],  # -P: the folder it runs in is not searched
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )

"""Output for the operator of a worker: a line or JSON object for each event, and its status."""

import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

_log = logging.getLogger("airllm")


class Report:
    """Events as plain lines of the "airllm" logger, or as JSON lines on stdout.

    state: JSON values by name, which --status shows.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._lock = threading.Lock()
        self.state: dict[str, Any] = {"pid": os.getpid(), "state": "starting", "runs": 0}

    def event(
        self,
        name: str,
        text: str,
        fields: Mapping[str, Any] = MappingProxyType({}),
        *,
        fault: bool = False,
    ) -> None:
        """text: the line for people; fields: the same for machines."""
        if not self._as_json:
            _log.log(logging.WARNING if fault else logging.INFO, "%s", text)
            return
        entry = {"time": round(time.time(), 3), "event": name, "text": text, **fields}
        with self._lock:
            print(json.dumps(entry), file=sys.stdout, flush=True)

    def update(self, **state: Any) -> None:
        self.state |= state

    def status(self) -> bytes:
        return json.dumps(self.state).encode() + b"\n"


def status_path(port: int) -> Path:
    """Where the worker on that port answers `airllm worker --status`: a Unix socket of the user, in
    a folder that must be the user's alone (util.private)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(tempfile.gettempdir(), f"airllm-{os.getuid()}")
    return folder / f"airllm-worker-{port}.sock"


def megabytes(n: float) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"

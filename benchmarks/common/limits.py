"""The limits of this machine, probed in the same run as the results to compare with them.

The probes are C++ (cpp/peaks.h, cpp/machine_limits.cpp) and are built on first use.
"""

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from common import native

Name = Literal["read", "copy", "multiply_add", "dot"]
NAMES: tuple[Name, ...] = get_args(Name)
UNITS: dict[Name, str] = {
    "read": "GB/s",
    "copy": "GB/s",
    "multiply_add": "GFLOP/s",
    "dot": "GOP/s",
}
# The names in tables.
TITLES: dict[Name, str] = {
    "read": "read bandwidth",
    "copy": "memcpy",
    "multiply_add": "FMA peak",
    "dot": "dot-product peak",
}

COPY_BYTES = 32 << 20  # 2048 x 4096 floats
STREAMS = (1, 2, 4)
PROBE_SECONDS = 2e-3
PROBES = 10


class Limits:
    """Probes with `threads` threads; multiply-adds and dot products use the instructions of `isa`.

    memory_bytes: the memory to read; the default exceeds the caches.
    Raises native.BuildError without a compiler.
    """

    def __init__(self, isa: str, threads: int, memory_bytes: int | None = None) -> None:
        self.isa = isa
        self.threads = threads
        self._library = _load(native.limits_library())
        available = self._library.limits_available_isas().decode().split(",")
        if isa not in available:
            raise ValueError(f"ISA {isa!r} cannot run here; possible: {', '.join(available)}")
        self._widest = available[-1]  # for reading, which is not bound to `isa`
        self._memory = np.ones(memory_bytes or beyond_caches(), np.uint8)
        self._rounds: dict[Name, int] = {}
        self._best: dict[Name, float] = {}
        self._streams = max(STREAMS, key=lambda n: max(self._read(n) for _ in range(3)))
        for name in NAMES:
            for _ in range(PROBES):
                self.rate(name)

    def rate(self, name: Name) -> float:
        """One probe of a few milliseconds: bytes a second (for copy, bytes read and written) or
        operations a second (a multiplication and an addition are two)."""
        if name == "read":
            rate = self._read(self._streams)
        elif name == "copy":
            rate = self._copy()
        else:
            rate = self._operations(name)
        self._best[name] = max(rate, self._best.get(name, 0.0))
        return rate

    @property
    def best(self) -> Mapping[Name, float]:
        """The best of all probes so far."""
        return self._best

    def _read(self, streams: int) -> float:
        seconds = self._library.limits_read_seconds(
            self._widest.encode(),
            self._memory.ctypes.data,
            self._memory.nbytes,
            streams,
            self.threads,
        )
        return float(self._memory.nbytes / seconds)

    def _copy(self) -> float:
        half = self._memory.nbytes // 2
        nbytes = min(COPY_BYTES, half)
        start = self._memory.ctypes.data
        seconds = self._library.limits_copy_seconds(start + half, start, nbytes, self.threads)
        return float(2 * nbytes / seconds)

    def _operations(self, name: Name) -> float:
        function = getattr(self._library, f"limits_{_FUNCTIONS[name]}_rate")
        if name not in self._rounds:
            rounds, started = 1000, time.perf_counter()
            function(self.isa.encode(), rounds, self.threads)
            seconds = max(time.perf_counter() - started, 1e-7)
            self._rounds[name] = max(rounds, int(rounds * PROBE_SECONDS / seconds))
        return float(function(self.isa.encode(), self._rounds[name], self.threads))


def in_words(rates: Mapping[Name, float]) -> str:
    """For instance "read bandwidth 36.1 GB/s, memcpy ..."."""
    return ", ".join(f"{TITLES[name]} {rates[name] / 1e9:.1f} {UNITS[name]}" for name in rates)


_FUNCTIONS = {"multiply_add": "multiply_add", "dot": "dot_int8"}


def beyond_caches() -> int:
    """Bytes that no cache holds: four times the largest cache, from 128 MiB to 1 GiB."""
    return min(max(4 * _largest_cache(), 128 << 20), 1 << 30)


def _largest_cache() -> int:
    """The largest cache of the first core, in bytes; 0 if the system does not report it."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    text, size, pointer = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p
    library.limits_available_isas.restype = text
    signatures = {
        "limits_read_seconds": [text, pointer, size, size, size],
        "limits_copy_seconds": [pointer, pointer, size, size],
        "limits_multiply_add_rate": [text, size, size],
        "limits_dot_int8_rate": [text, size, size],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_double
    return library

"""Measured speeds in one form, from airllm's own measurements and from files of its peers."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airllm.util.durable import naming
from airllm.util.errors import AirllmError

__all__ = ["Speed", "SpeedsError", "from_rows", "read"]

MAX_BYTES = 64 << 20
_TEST = re.compile(r"(pp|tg)(\d{1,9})(?:x(\d{1,9}))?(?:@(\d{1,9}))?")


class SpeedsError(AirllmError, ValueError):
    """A file is not one of the known files of measurements."""


@dataclass(frozen=True)
class Speed:
    """who: "airllm", "llama.cpp" or the file's name. kind: "pp", a prompt, or "tg", generated."""

    who: str
    kind: str
    tokens: int
    sequences: int  # decoded together
    depth: int  # tokens in the context before
    threads: int
    tokens_per_second: float  # of all sequences together
    stddev: float


def from_rows(rows: Iterable[Mapping[str, Any]], who: str = "airllm") -> list[Speed]:
    """From the results of `airllm bench --json`."""
    found = []
    for row in rows:
        name = _TEST.fullmatch(str(row["test"]))
        if name is None:
            raise ValueError(f"{row['test']!r} is no test")
        found.append(
            Speed(
                who,
                name[1],
                int(name[2]),
                int(name[3] or 1),
                int(name[4] or 0),
                int(row["threads"]),
                float(row["tokens_per_second"]),
                float(row.get("stddev") or 0.0),
            )
        )
    return found


def read(path: Path) -> list[Speed]:
    """From a file: of `llama-bench -o json`, of `airllm bench --json`, or of
    benchmarks/compare_llama.py, of which llama.cpp's speeds are taken. SpeedsError, OSError."""
    with naming(path), path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        found = json.loads(text)
        if isinstance(found, list):
            return [_of_llama_bench(entry) for entry in found]
        rows = found["results"]
        if rows and "llama_cpp" in rows[0]:
            return from_rows((_of_comparison(row) for row in rows), "llama.cpp")
        return from_rows(rows, path.stem)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise SpeedsError(
            f"{path}: expected the JSON of llama-bench -o json, airllm bench --json or "
            "benchmarks/compare_llama.py"
        ) from None


def _of_llama_bench(entry: Mapping[str, Any]) -> Speed:
    prompt, generated = int(entry["n_prompt"]), int(entry["n_gen"])
    if bool(prompt) == bool(generated):
        raise ValueError("a test of both")
    return Speed(
        "llama.cpp",
        "pp" if prompt else "tg",
        prompt or generated,
        1,
        int(entry.get("n_depth", 0)),
        int(entry["n_threads"]),
        float(entry["avg_ts"]),
        float(entry.get("stddev_ts", 0.0)),
    )


def _of_comparison(row: Mapping[str, Any]) -> dict[str, Any]:
    rates = [float(rate) for rate in row["llama_cpp"]]
    spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
    return {**row, "tokens_per_second": statistics.median(rates), "stddev": spread}

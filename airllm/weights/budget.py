"""How much memory a model may take: the user's budget, or a default from the available memory."""

import os
import re

from airllm.util import system
from airllm.util.arguments import check_count
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

VARIABLE = "AIRLLM_RAM"

# The default budget leaves the larger of these free, for this program itself (Python, NumPy and the
# tokeniser: about 60 MB) and for other programs.
ROOM_BYTES = 256 << 20
ROOM_SHARE = 0.1

MOST_BYTES = 1 << 62  # caps every budget: more than any machine has, and exact as a float

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


class BudgetError(AirllmError, ValueError):
    """A model does not run within its budget. minimum: the smallest budget that would do, bytes."""

    def __init__(self, message: str, minimum: int) -> None:
        super().__init__(message)
        self.minimum = minimum


def parse_bytes(text: str) -> int:
    """ "2GiB" (1024^3), "2GB" (1000^3), "1.5G", "500 MB", "1073741824" -> bytes. ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip(), re.IGNORECASE)
    unit = _UNITS.get(found[2].lower()) if found else None
    n_bytes = float(found[1]) * unit if found and unit else 0.0
    if n_bytes < 1:
        raise ValueError(
            f"{shown(text)} is no size; expected a number and a unit, as in 2GiB or 500MB"
        )
    return int(min(n_bytes, MOST_BYTES))


def granted_bytes(ram_budget: int | str | None) -> int | None:
    """The budget in bytes: `ram_budget`, else AIRLLM_RAM, else default_bytes of the available
    memory, which may be 0. None if the system does not tell the available memory.

    ValueError if a given budget is not a size.
    """
    if ram_budget is None:
        text = os.environ.get("AIRLLM_RAM", "")
        if not text:
            return default_bytes(system.available_memory())
        try:
            return parse_bytes(text)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}: {error}") from None
    if isinstance(ram_budget, str):
        return parse_bytes(ram_budget)
    try:
        return min(check_count("ram_budget", ram_budget), MOST_BYTES)
    except (TypeError, ValueError):
        raise ValueError(
            f"ram_budget is {shown(ram_budget)}; expected bytes, or a text like '2GiB'"
        ) from None


def default_bytes(available: int | None) -> int | None:
    """The default budget for `available` bytes of memory; None if that is unknown."""
    if available is None:
        return None
    return max(0, available - max(ROOM_BYTES, int(ROOM_SHARE * available)))


def in_words(budget: int) -> str:
    """The budget for an error message: "500 MiB"; for 0, the reason why no memory is left."""
    if budget:
        return format_bytes(budget)
    limit, available = system.memory_limit(), system.available_memory() or 0
    if limit is not None and limit.free <= available:
        used = f"{format_bytes(limit.used)} of the {format_bytes(limit.limit)} that {limit.source}"
        why, way_out = f"{used} allows are used", "raise that limit, end other programs within it"
    else:
        why, way_out = f"{format_bytes(available)} are available", "end other programs"
    return (
        f"what is left of the memory ({why}, and {format_bytes(ROOM_BYTES)} stay free for other "
        f"programs; {way_out}, or grant memory with --ram, ram_budget= or {VARIABLE})"
    )


def format_bytes(n: int) -> str:
    """1536 -> "1.5 KiB"."""
    if n < 1024:
        return f"{n} bytes"
    power = min((n.bit_length() - 1) // 10, 4)
    size = n / 1024**power
    return f"{size:.{0 if size >= 100 else 1}f} {'KMGT'[power - 1]}iB"

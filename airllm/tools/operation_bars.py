"""A test's profile, and the picture of it: where the time goes, a bar for each operation."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airllm.tools.picture_style import BLUE, GREEN, GREY, INK, ORANGE, matplotlib_pyplot, short
from airllm.tools.speeds import Speed

__all__ = ["COLOURS", "Bar", "Work", "kind_of", "operations"]

MOST_BARS = 14  # of a panel; the others are one bar
LEAST_SHARE = 0.004  # of an operation that has a bar of its own


@dataclass(frozen=True)
class Bar:
    """A part of a test's time: an operation, or (is_op False) what lies between operations."""

    name: str  # "linear ffn_up"
    seconds: float
    nbytes: int = 0
    flops: int = 0
    is_op: bool = True


@dataclass(frozen=True)
class Work:
    """A test's profile: its speed, the number of passes, and the parts of its time."""

    speed: Speed
    passes: int
    parts: Sequence[Bar]

    @property
    def name(self) -> str:
        speed = self.speed
        after = f" after {speed.depth:,}" if speed.depth else ""
        if speed.kind == "pp":
            return f"prompt of {speed.tokens:,} tokens{after}"
        together = f", {speed.sequences} sequences together" if speed.sequences > 1 else ""
        return f"generated tokens{after}{together}"

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


_KINDS = {
    "matrix products": ("linear", "experts", "matmul", "embed"),
    "attention and state": ("attention", "append", "rope", "index", "scan", "delta", "conv"),
}
COLOURS = {
    "matrix products": BLUE,
    "attention and state": ORANGE,
    "other operations": GREEN,
    "outside of operations": GREY,
}


def kind_of(part: Bar) -> str:
    """A key of COLOURS."""
    if not part.is_op:
        return "outside of operations"
    for kind, words in _KINDS.items():
        if any(word in part.name.split()[0] for word in words):
            return kind
    return "other operations"


def operations(works: Sequence[Work]) -> Any:
    bars = [_bars_of(work) for work in works]
    columns = min(2, len(works))
    rows = math.ceil(len(works) / columns)
    height = 0.36 * max(map(len, bars)) + 1.0
    figure, axes = matplotlib_pyplot().subplots(
        rows, columns, figsize=(8.2 * columns, height * rows + 1.3), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    panels = [panel for row in axes for panel in row]
    for panel, work, parts in zip(panels, works, bars, strict=False):
        ms = [1e3 * part.seconds / work.passes for part in parts]
        panel.barh(range(len(parts)), ms, 0.72, color=[COLOURS[kind_of(part)] for part in parts])
        for row, (part, length) in enumerate(zip(parts, ms, strict=True)):
            panel.annotate(
                _bar_label(part, part.seconds / work.seconds), (max(length, 0.0), row),
                xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK,
            )  # fmt: skip
        panel.set_yticks(range(len(parts)), [part.name for part in parts], fontsize=10)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.75 * max(ms))
        panel.set_xlabel("milliseconds a pass")
        panel.set_title(f"{work.name}: {short(1e3 * work.seconds / work.passes)} ms a pass")
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    for panel in panels[len(works) :]:
        panel.set_axis_off()
    kinds = list(dict.fromkeys(kind_of(part) for parts in bars for part in parts))
    patch = importlib.import_module("matplotlib.patches").Patch
    handles = [patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in kinds]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), fontsize=10)
    return figure


def _bars_of(work: Work) -> list[Bar]:
    """The parts, the longest first; operations that hardly count are one part."""
    parts = sorted(work.parts, key=lambda part: -part.seconds)
    least = LEAST_SHARE * work.seconds
    shown = [part for part in parts if part.seconds >= least or not part.is_op][:MOST_BARS]
    others = [part for part in parts if part not in shown]
    if sum(part.seconds for part in others) > 0.0005 * work.seconds:
        name = f"{len(others)} others"
        shown.append(
            Bar(
                name,
                sum(part.seconds for part in others),
                sum(part.nbytes for part in others),
                sum(part.flops for part in others),
            )
        )
    return shown


def _bar_label(part: Bar, share: float) -> str:
    words = [f"{share:.1%}" if share < 0.1 else f"{share:.0%}"]
    if part.nbytes and part.seconds > 0:
        words.append(f"{short(part.nbytes / part.seconds / 1e9)} GB/s")
    if part.flops and part.seconds > 0:
        words.append(f"{short(part.flops / part.seconds / 1e9)} GFLOP/s")
    return "   ".join(words)

"""Draws a profile: bars by operation, and a roofline with the probed limits."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.limits import TITLES, Name


@dataclass(frozen=True)
class Measured:
    """Seconds a call."""

    best: float
    median: float


@dataclass(frozen=True)
class Profiled:
    """One operation. flops, nbytes: the least that a call needs."""

    name: str
    shape: str
    type: str
    flops: float
    nbytes: float
    by_contender: Mapping[str, Measured]  # "numpy" and ISAs
    limit: Name | None
    limit_seconds: float | None  # the time of a call at that limit

    @property
    def label(self) -> str:
        return f"{self.name} {self.shape} {self.type}"

    def share(self, contender: str) -> str:
        """The share of the limit: "93% of read bandwidth"; "" without a limit."""
        if self.limit is None or self.limit_seconds is None:
            return ""
        share = self.limit_seconds / self.by_contender[contender].best
        return f"{100 * share:.0f}% of {TITLES[self.limit]}"

    def as_json(self) -> dict[str, Any]:
        rates = {
            name: {
                **asdict(measured),
                "gflops": self.flops / measured.best / 1e9,
                "gbytes": self.nbytes / measured.best / 1e9,
            }
            for name, measured in self.by_contender.items()
        }
        return {**asdict(self), "by_contender": rates}


def require_matplotlib() -> Any:
    """matplotlib.pyplot, set up to draw to files. Without it the program ends with a hint."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        sys.exit("--plot needs matplotlib: python -m pip install matplotlib")
    matplotlib.use("agg")
    return importlib.import_module("matplotlib.pyplot")


def draw(path: str, profiled: Sequence[Profiled], rates: Mapping[Name, float], title: str) -> None:
    pyplot = require_matplotlib()
    height = 2 + 0.34 * len(profiled)
    figure, (bars, roofline) = pyplot.subplots(
        1, 2, figsize=(17, max(7.0, height)), layout="constrained"
    )
    names = dict.fromkeys(name for item in profiled for name in item.by_contender)
    isas = [name for name in names if name != "numpy"]
    colours = {"numpy": "0.6", **{name: f"C{index}" for index, name in enumerate(isas)}}
    _draw_bars(bars, profiled, colours)
    _draw_roofline(roofline, profiled, rates, colours)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_bars(axes: Any, profiled: Sequence[Profiled], colours: Mapping[str, str]) -> None:
    """Time by operation. The axis is logarithmic, because times span five decades."""
    thickness = 0.8 / len(colours)
    for index, (contender, colour) in enumerate(colours.items()):
        at = [row for row, item in enumerate(profiled) if contender in item.by_contender]
        seconds = [profiled[row].by_contender[contender].best for row in at]
        positions = [row + (index - (len(colours) - 1) / 2) * thickness for row in at]
        microseconds = [1e6 * s for s in seconds]
        axes.barh(positions, microseconds, thickness, color=colour, label=contender)
    axes.set_yticks(range(len(profiled)), [item.label for item in profiled], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("microseconds a call (best)")
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.legend()


def _draw_roofline(
    axes: Any,
    profiled: Sequence[Profiled],
    rates: Mapping[Name, float],
    colours: Mapping[str, str],
) -> None:
    """The bound of an operation: read bandwidth times its operations a byte, or the peak."""
    intensities = [item.flops / item.nbytes for item in profiled]
    low, high = min(intensities) / 2, max(intensities) * 2
    peaks: tuple[tuple[Name, str], ...] = (("multiply_add", "-"), ("dot", "--"))
    for peak, style in peaks:
        if peak in rates and "read" in rates:
            top, bandwidth = rates[peak] / 1e9, rates["read"] / 1e9
            ridge = min(max(top / bandwidth, low), high)
            heights = [min(top, bandwidth * low), min(top, bandwidth * ridge), top]
            label = f"{TITLES['read']} and {TITLES[peak]}"
            axes.plot([low, ridge, high], heights, "k" + style, label=label, linewidth=1)
    for contender, colour in colours.items():
        points = [
            (intensity, item.flops / item.by_contender[contender].best / 1e9)
            for item, intensity in zip(profiled, intensities, strict=True)
            if contender in item.by_contender
            # NumPy has float32 weights instead of quantised ones, so it reads other bytes.
            and not (contender == "numpy" and item.type not in ("f32", "f16"))
        ]
        axes.scatter(*zip(*points, strict=True), s=22, color=colour, alpha=0.8, label=contender)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)

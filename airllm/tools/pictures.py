"""Pictures of measurements: speed against threads, context and batch; time by operation; a
roofline. Needs matplotlib.

Each function returns a figure, or None where there is nothing to compare.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airllm.tools.ceilings import Ceilings
from airllm.tools.speeds import Speed

__all__ = ["Bar", "Work", "draw_all", "matplotlib_pyplot"]

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, INK = "#8A8A8A", "#222222"
OF_PEERS = (ORANGE, GREEN, PURPLE, RED)
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
DPI = 150
BEHIND = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
MOST_BARS = 14  # of a panel; the others are one bar
LEAST_SHARE = 0.004  # of an operation that has a bar of its own
NAMED_SHARE = 0.02  # of an operation that is in the roofline
ROOFLINE_SIZE = (12.0, 7.2)  # inches


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


def draw_all(
    speeds: Sequence[Speed],
    peers: Sequence[Speed],
    works: Sequence[Work],
    ceilings: Ceilings | None,
    title: str,
    subtitle: str,
) -> dict[str, Any]:
    """The figures by name, without those that would show nothing."""
    pyplot, shown = matplotlib_pyplot(), _telling(works)
    with pyplot.rc_context(STYLE):
        figures = {
            "threads": _threads([*speeds, *peers]),
            "context": _context([*speeds, *peers]),
            "batch": _batch([*speeds, *peers]),
            "operations": _operations(shown) if shown else None,
            "roofline": _roofline(shown[:2], ceilings) if shown and ceilings else None,
        }
        for name, figure in figures.items():
            if figure is not None:
                figure.suptitle(
                    f"{title}: {_TITLES[name]}",
                    x=0.012, ha="left", fontsize=15, fontweight="bold", color=INK,
                )  # fmt: skip
                figure.text(0.012, 0.012, subtitle, ha="left", va="bottom", fontsize=9, color=GREY)
                figure.get_layout_engine().set(rect=(0.005, 0.05, 0.99, 0.94), hspace=0.06)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _telling(works: Sequence[Work]) -> list[Work]:
    """Of many tests the few that differ most, on the most threads: the longest prompt, a token, a
    token after the longest context, and the most sequences together."""
    most = max((work.speed.threads for work in works), default=0)
    works = [work for work in works if work.speed.threads == most]
    prompts = [work for work in works if work.speed.kind == "pp" and not work.speed.depth]
    tokens = [work for work in works if work.speed.kind == "tg"]
    found = [
        *sorted(prompts, key=lambda work: -work.speed.tokens)[:1],
        *sorted(tokens, key=lambda work: (work.speed.sequences, work.speed.depth))[:1],
        *sorted(tokens, key=lambda work: -work.speed.depth)[:1],
        *sorted(tokens, key=lambda work: -work.speed.sequences)[:1],
    ]
    return [work for index, work in enumerate(found) if work not in found[:index]] or works[:1]


_TITLES = {
    "threads": "speed with each number of threads",
    "context": "speed as the context grows",
    "batch": "speed of several sequences together",
    "operations": "where the time goes",
    "roofline": "how near each operation is to the machine's limits",
}


# ---- speeds --------------------------------------------------------------------------------------


def _threads(speeds: Sequence[Speed]) -> Any:
    single = [speed for speed in speeds if speed.sequences == 1 and not speed.depth]
    return _panels(
        {
            "Prompt": _longest([speed for speed in single if speed.kind == "pp"]),
            "Generated text": _longest([speed for speed in single if speed.kind == "tg"]),
        },
        x=lambda speed: speed.threads,
        x_labels=("threads", "threads"),
    )


def _longest(speeds: Sequence[Speed]) -> list[Speed]:
    """Of each who, the speeds of the test with the most tokens."""
    most: dict[str, int] = {}
    for speed in speeds:
        most[speed.who] = max(most.get(speed.who, 0), speed.tokens)
    return [speed for speed in speeds if speed.tokens == most[speed.who]]


def _context(speeds: Sequence[Speed]) -> Any:
    single = [speed for speed in speeds if speed.sequences == 1]
    single = [speed for speed in single if speed.threads == _most_threads(single)]
    return _panels(
        {
            "Prompt": [speed for speed in single if speed.kind == "pp" and not speed.depth],
            "Generated text": _longest([speed for speed in single if speed.kind == "tg"]),
        },
        x=lambda speed: speed.tokens if speed.kind == "pp" else speed.depth,
        x_labels=("tokens of the prompt", "tokens in the context before"),
    )


def _batch(speeds: Sequence[Speed]) -> Any:
    generated = [speed for speed in speeds if speed.kind == "tg" and not speed.depth]
    generated = [speed for speed in generated if speed.threads == _most_threads(generated)]
    return _panels(
        {"All sequences together": _longest(generated)},
        x=lambda speed: speed.sequences,
        x_labels=("sequences",),
        ratios=True,
    )


def _most_threads(speeds: Sequence[Speed]) -> int:
    return max((speed.threads for speed in speeds), default=0)


def _panels(
    panels: Mapping[str, Sequence[Speed]],
    *,
    x: Callable[[Speed], int],
    x_labels: Sequence[str],
    ratios: bool = False,
) -> Any:
    """A panel for each title, with a line for each who, of the panels that have two points in a
    line. x: the place of a speed on its line."""
    shown = [
        (title, speeds, label)
        for (title, speeds), label in zip(panels.items(), x_labels, strict=True)
        if len({x(speed) for speed in speeds}) > 1
    ]
    if not shown:
        return None
    figure, axes = matplotlib_pyplot().subplots(
        1, len(shown), figsize=(2.4 + 4.8 * len(shown), 4.8), layout="constrained", squeeze=False
    )
    for panel, (title, speeds, label) in zip(axes[0], shown, strict=True):
        _lines(panel, speeds, x, ratios=ratios)
        panel.set_title(f"{title}, tokens a second")
        panel.set_xlabel(label)
    handles, whos = axes[0][0].get_legend_handles_labels()
    if len(whos) > 1:
        figure.legend(handles, whos, loc="outside lower right", ncols=len(whos), fontsize=11)
    return figure


def _lines(panel: Any, speeds: Sequence[Speed], x: Callable[[Speed], int], *, ratios: bool) -> None:
    whos = list(dict.fromkeys(speed.who for speed in speeds))
    colours = dict(zip(whos, (BLUE, *OF_PEERS, *[GREY] * len(whos)), strict=False))
    for who in whos:
        points = sorted(
            (x(speed), speed.tokens_per_second, speed.stddev)
            for speed in speeds
            if speed.who == who
        )
        at, heights, errors = zip(*points, strict=True)
        panel.errorbar(
            at, heights, errors, color=colours[who], marker="o", markersize=7, linewidth=2.4,
            elinewidth=1.2, capsize=3, label=who,
        )  # fmt: skip
        sign = 1 if who == whos[0] else -1  # above the line, or below
        for place, height, error in points:
            ratio = f" ({height / heights[0]:.1f}x)" if ratios and place > at[0] else ""
            panel.annotate(
                f"{_short(height)}{ratio}", (place, height + sign * error), color=colours[who],
                xytext=(0, 8 * sign), textcoords="offset points", fontsize=10.5, ha="center",
                va="bottom" if sign > 0 else "top", fontweight="bold", bbox=BEHIND, zorder=5,
            )  # fmt: skip
    ticks = sorted({x(speed) for speed in speeds})
    if ticks[-1] > 8 * max(ticks[0], 1):
        panel.set_xscale("symlog", base=2, linthresh=next(tick for tick in ticks if tick))
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.minorticks_off()
    panel.margins(x=0.14)
    panel.set_ylim(0, 1.25 * max(speed.tokens_per_second + speed.stddev for speed in speeds))
    panel.grid(axis="x", visible=False)


# ---- profiles ------------------------------------------------------------------------------------

_KINDS = {
    "matrix products": ("linear", "experts", "matmul", "embed"),
    "attention and state": ("attention", "append", "rope", "index", "scan", "delta", "conv"),
}
_COLOURS = {
    "matrix products": BLUE,
    "attention and state": ORANGE,
    "other operations": GREEN,
    "outside of operations": GREY,
}


def _kind(part: Bar) -> str:
    if not part.is_op:
        return "outside of operations"
    for kind, words in _KINDS.items():
        if any(word in part.name.split()[0] for word in words):
            return kind
    return "other operations"


def _operations(works: Sequence[Work]) -> Any:
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
        panel.barh(range(len(parts)), ms, 0.72, color=[_COLOURS[_kind(part)] for part in parts])
        for row, (part, length) in enumerate(zip(parts, ms, strict=True)):
            panel.annotate(
                _bar_label(part, part.seconds / work.seconds), (max(length, 0.0), row),
                xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK,
            )  # fmt: skip
        panel.set_yticks(range(len(parts)), [part.name for part in parts], fontsize=10)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.75 * max(ms))
        panel.set_xlabel("milliseconds a pass")
        panel.set_title(f"{work.name}: {_short(1e3 * work.seconds / work.passes)} ms a pass")
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
    for panel in panels[len(works) :]:
        panel.set_axis_off()
    kinds = list(dict.fromkeys(_kind(part) for parts in bars for part in parts))
    patch = importlib.import_module("matplotlib.patches").Patch
    handles = [patch(color=_COLOURS[kind], label=kind) for kind in _COLOURS if kind in kinds]
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
        words.append(f"{_short(part.nbytes / part.seconds / 1e9)} GB/s")
    if part.flops and part.seconds > 0:
        words.append(f"{_short(part.flops / part.seconds / 1e9)} GFLOP/s")
    return "   ".join(words)


def _roofline(works: Sequence[Work], ceilings: Ceilings) -> Any:
    points = [
        (work, part, part.flops / part.nbytes, part.flops / part.seconds / 1e9)
        for work in works
        for part in work.parts
        if part.is_op and part.flops and part.nbytes and part.seconds >= NAMED_SHARE * work.seconds
    ]
    if not points:
        return None
    figure, panel = matplotlib_pyplot().subplots(figsize=ROOFLINE_SIZE, layout="constrained")
    intensities = [point[2] for point in points]
    low, high = min(*intensities, 1.0) / 4, max(*intensities, 100.0) * 6
    top = max(ceilings.float_gflops, ceilings.byte_gops, *(point[3] for point in points))
    floor = min(point[3] for point in points) / 4
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(low, high)
    panel.set_ylim(floor, 3 * top)
    _draw_roofs(panel, ceilings, low, high)
    markers = dict(zip([work.name for work in works], "os", strict=False))
    places = _apart(
        [(x, y, _op_name(part)) for _, part, x, y in points],
        (_memory_label_at(low), ceilings.gbytes_per_second * _memory_label_at(low)),
        [ceilings.float_gflops, ceilings.byte_gops],
        (low, high),
        (floor, 3 * top),
    )
    for (work, part, x, y), (dx, dy) in zip(points, places, strict=True):
        panel.scatter(
            x, y, 45 + 1100 * part.seconds / work.seconds, color=_COLOURS[_kind(part)],
            marker=markers[work.name], alpha=0.8, edgecolor="white", linewidth=1, zorder=3,
        )  # fmt: skip
        panel.annotate(
            _op_name(part), (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=9.5,
            va="center", ha="left" if dx > 0 else "right", color=INK, zorder=4, bbox=BEHIND,
            arrowprops={"arrowstyle": "-", "color": "#AAAAAA", "linewidth": 0.8},
        )  # fmt: skip
    panel.set_xlabel("operations for each byte that must be moved")
    panel.set_ylabel("GFLOP/s")
    lines = importlib.import_module("matplotlib.lines").Line2D
    handles = [
        lines([], [], marker=marker, linestyle="", color=GREY, markersize=10, label=name)
        for name, marker in markers.items()
    ]
    kinds = [kind for kind in _COLOURS if any(_kind(point[1]) == kind for point in points)]
    patch = importlib.import_module("matplotlib.patches").Patch
    handles += [patch(color=_COLOURS[kind], label=kind) for kind in kinds]
    panel.legend(
        handles=handles, loc="lower right", fontsize=10, alignment="left",
        title="the larger, the more of the time",
    )  # fmt: skip
    return figure


def _draw_roofs(panel: Any, ceilings: Ceilings, low: float, high: float) -> None:
    bandwidth = ceilings.gbytes_per_second
    for top, name in (
        (ceilings.float_gflops, "float32 products"),
        (ceilings.byte_gops, "8-bit products"),
    ):
        ridge = min(max(top / bandwidth, low), high)
        xs = [low, ridge, high]
        panel.plot(xs, [min(top, bandwidth * at) for at in xs], color=GREY, linewidth=1.8, zorder=1)
        panel.annotate(
            f"{name}: {_short(top)} GFLOP/s", (high, top), xytext=(-6, 6),
            textcoords="offset points", ha="right", fontsize=10.5, color=GREY,
        )  # fmt: skip
    panel.annotate(
        f"memory: {_short(bandwidth)} GB/s",
        (_memory_label_at(low), bandwidth * _memory_label_at(low)), xytext=(12, -4),
        textcoords="offset points", fontsize=10.5, color=GREY, va="top",
    )  # fmt: skip


def _memory_label_at(low: float) -> float:
    return 2 * low


def _op_name(part: Bar) -> str:
    """ "linear_many attn_q attn_k attn_v" -> "linear_many attn_q ..." """
    kind, *weights = part.name.split()
    return " ".join([kind, *weights[:1]]) + (" ..." if len(weights) > 1 else "")


def _apart(
    points: Sequence[tuple[float, float, str]],
    memory_label: tuple[float, float],
    roofs: Sequence[float],
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> list[tuple[float, float]]:
    """Where each name stands beside its point, in typographic points: right or left of it, and as
    near as no other name or point, no label and no legend is in the way. memory_label: its upper
    left corner. roofs: the heights above which labels stand, at the right."""
    width, height = 72 * ROOFLINE_SIZE[0] - 90, 72 * ROOFLINE_SIZE[1] - 110

    def place(value: float, limits: tuple[float, float], size: float) -> float:
        low, high = map(math.log, limits)
        return (math.log(value) - low) / (high - low) * size

    spots = [(place(x, xs, width), place(y, ys, height)) for x, y, _ in points]
    taken = [(x - 9, x + 9, y - 9, y + 9) for x, y in spots]
    taken.append((width - 240, width, 0, 170))  # the legend
    x, y = place(memory_label[0], xs, width), place(memory_label[1], ys, height)
    taken.append((x + 8, x + 130, y - 24, y))
    for roof in (place(roof, ys, height) for roof in roofs):
        taken.append((width - 215, width, roof + 2, roof + 24))
    offsets: dict[int, tuple[float, float]] = {}
    for index in sorted(range(len(points)), key=lambda i: spots[i][1]):
        (x, y), length = spots[index], 5.4 * len(points[index][2])
        candidates = sorted(
            ((dx, dy) for dy in range(-240, 241, 6) for dx in (16.0, -16.0, 60.0, -60.0)),
            key=lambda offset: abs(offset[1]) + abs(offset[0]) + (offset[0] < 0),
        )
        for dx, dy in candidates:
            left = x + dx if dx > 0 else x + dx - length
            box = (left, left + length, y + dy - 7, y + dy + 7)
            inside = box[0] > 0 and box[1] < width and box[2] > 0 and box[3] < height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                offsets[index] = (dx, float(dy))
                break
        else:
            offsets[index] = (16.0, 0.0)
    return [offsets[index] for index in range(len(points))]


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _short(value: float) -> str:
    """Three digits: 1,234 or 56.7 or 0.89."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def matplotlib_pyplot() -> Any:
    """matplotlib.pyplot, which draws to files. ImportError, with the remedy, if it is missing."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "--plot needs matplotlib; install it with: python -m pip install matplotlib"
        ) from error
    matplotlib.use("agg")
    return importlib.import_module("matplotlib.pyplot")


def close(figures: Iterable[Any]) -> None:
    for figure in figures:
        matplotlib_pyplot().close(figure)

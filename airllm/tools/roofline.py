"""The picture that shows how near each operation is to the machine's limits."""

import importlib
import math
from collections.abc import Sequence
from typing import Any

from airllm.tools.ceilings import Ceilings
from airllm.tools.operation_bars import COLOURS, Bar, Work, kind_of
from airllm.tools.picture_style import BEHIND, GREY, INK, matplotlib_pyplot, short

__all__ = ["roofline"]

NAMED_SHARE = 0.02  # of an operation that is in the roofline
ROOFLINE_SIZE = (12.0, 7.2)  # inches


def roofline(works: Sequence[Work], ceilings: Ceilings) -> Any:
    """A figure, or None where no operation is long enough to be named."""
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
            x, y, 45 + 1100 * part.seconds / work.seconds, color=COLOURS[kind_of(part)],
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
    kinds = [kind for kind in COLOURS if any(kind_of(point[1]) == kind for point in points)]
    patch = importlib.import_module("matplotlib.patches").Patch
    handles += [patch(color=COLOURS[kind], label=kind) for kind in kinds]
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
            f"{name}: {short(top)} GFLOP/s", (high, top), xytext=(-6, 6),
            textcoords="offset points", ha="right", fontsize=10.5, color=GREY,
        )  # fmt: skip
    panel.annotate(
        f"memory: {short(bandwidth)} GB/s",
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

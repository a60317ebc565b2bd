"""Pictures of speeds: against threads, the context and the number of sequences.

Each function returns a figure, or None where there is nothing to compare.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airllm.tools.picture_style import BEHIND, BLUE, GREY, OF_PEERS, matplotlib_pyplot, short
from airllm.tools.speeds import Speed

__all__ = ["by_context", "by_sequences", "by_threads"]


def by_threads(speeds: Sequence[Speed]) -> Any:
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


def by_context(speeds: Sequence[Speed]) -> Any:
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


def by_sequences(speeds: Sequence[Speed]) -> Any:
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
                f"{short(height)}{ratio}", (place, height + sign * error), color=colours[who],
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

"""All pictures of a benchmark, which `airllm bench --plot` draws. Needs matplotlib."""

from collections.abc import Sequence
from typing import Any

from airllm.tools.ceilings import Ceilings
from airllm.tools.operation_bars import Work, operations
from airllm.tools.picture_style import GREY, INK, STYLE, matplotlib_pyplot
from airllm.tools.roofline import roofline
from airllm.tools.speed_lines import by_context, by_sequences, by_threads
from airllm.tools.speeds import Speed

__all__ = ["draw_all"]


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
            "threads": by_threads([*speeds, *peers]),
            "context": by_context([*speeds, *peers]),
            "batch": by_sequences([*speeds, *peers]),
            "operations": operations(shown) if shown else None,
            "roofline": roofline(shown[:2], ceilings) if shown and ceilings else None,
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

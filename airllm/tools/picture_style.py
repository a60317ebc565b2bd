"""How pictures look: colours, fonts, numbers; and matplotlib, which draws them."""

import importlib
from collections.abc import Iterable
from typing import Any

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


def short(value: float) -> str:
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

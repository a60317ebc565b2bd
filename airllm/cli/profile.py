"""A profile as bench shows it: a table, a picture, and JSON."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airllm.backends.profiling import OpProfile

# Names for the time outside of ops: within the executor's calls, and around the calls.
CALLS, PYTHON = "(arguments and threads)", "(Python)"


@dataclass(frozen=True)
class Profiled:
    """A test's profile, of one repetition. Shares are of all its seconds, Python's included."""

    test: str  # "tg128"
    passes: int  # forward calls: a token, or a prompt
    seconds: float  # of all passes, while profiled
    call_seconds: float  # of the executor's calls
    ops: "Sequence[OpProfile]"

    def parts(self) -> list[tuple[str, float]]:
        """Names and seconds of the parts of `seconds`."""
        in_ops = sum(op.seconds for op in self.ops)
        parts = [(op.name, op.seconds) for op in self.ops]
        return [
            *parts,
            (CALLS, self.call_seconds - in_ops),
            (PYTHON, self.seconds - self.call_seconds),
        ]

    def as_json(self) -> dict[str, Any]:
        shares = dict(self.parts())
        return {
            "test": self.test,
            "passes": self.passes,
            "seconds": self.seconds,
            "ops": [
                {
                    **asdict(op),
                    "gbytes_per_second": op.gbytes_per_second,
                    "gflops_per_second": op.gflops_per_second,
                }
                for op in self.ops
            ],
            "arguments_and_threads_seconds": shares[CALLS],
            "python_seconds": shares[PYTHON],
            "python_share": shares[PYTHON] / self.seconds,
        }

    def lines(self) -> list[str]:
        """A table; calls and milliseconds are those of one pass."""
        ops = {op.name: op for op in self.ops}
        width = max(len(name) for name, _ in self.parts())
        head = f"{'op':<{width}} {'calls':>6} {'ms':>9} {'share':>7} {'GB/s':>7} {'GFLOP/s':>8}"
        rows = [f"{self.test}: {1e3 * self.seconds / self.passes:.3f} ms a pass", head]
        for name, seconds in self.parts():
            row = f"{name:<{width}}"
            row += f" {ops[name].calls // self.passes:>6}" if name in ops else " " * 7
            row += f" {1e3 * seconds / self.passes:>9.3f} {seconds / self.seconds:>7.1%}"
            if name in ops:
                op = ops[name]
                row += f" {op.gbytes_per_second:>7.1f} {op.gflops_per_second:>8.1f}"
            rows.append(row)
        return rows


def draw(path: str, profiles: Sequence[Profiled], title: str) -> None:
    """Bars of time for each op, a panel for each test. ImportError if matplotlib is missing."""
    pyplot = require_matplotlib()
    rows = max(len(profile.parts()) for profile in profiles)
    figure, panels = pyplot.subplots(
        1,
        len(profiles),
        figsize=(9 * len(profiles), 1.5 + 0.3 * rows),
        layout="constrained",
        squeeze=False,
    )
    for axes, profile in zip(panels[0], profiles, strict=True):
        ops = {op.name: op for op in profile.ops}
        parts = profile.parts()
        ms = [1e3 * seconds / profile.passes for _, seconds in parts]
        colours = ["C0" if name in ops else "C3" for name, _ in parts]
        bars = axes.barh(range(len(parts)), ms, color=colours)
        labels = []
        for name, seconds in parts:
            label = f" {seconds / profile.seconds:.1%}"
            if name in ops:
                op = ops[name]
                label += f", {op.gbytes_per_second:.1f} GB/s, {op.gflops_per_second:.0f} GFLOP/s"
            labels.append(label)
        axes.bar_label(bars, labels, fontsize=8)
        axes.set_yticks(range(len(parts)), [name for name, _ in parts], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.35)
        axes.set_xlabel("milliseconds a pass")
        axes.set_title(f"{profile.test}: {1e3 * profile.seconds / profile.passes:.3f} ms a pass")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def require_matplotlib() -> Any:
    """matplotlib.pyplot, which draws to files. ImportError, with the remedy, if it is missing."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "--plot needs matplotlib; install it with: python -m pip install matplotlib"
        ) from error
    matplotlib.use("agg")
    return importlib.import_module("matplotlib.pyplot")

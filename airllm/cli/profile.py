"""A profile as bench shows it: a table, parts of a picture, and JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airllm.backends.profiling import OpProfile
    from airllm.tools.operation_bars import Work
    from airllm.tools.speeds import Speed

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

    def work(self, speed: "Speed") -> "Work":
        """The same for a picture. speed: of the test."""
        from airllm.tools.operation_bars import Bar, Work

        ops = {op.name: op for op in self.ops}
        parts = [
            Bar(name, seconds, ops[name].nbytes, ops[name].flops)
            if name in ops
            else Bar(name, seconds, is_op=False)
            for name, seconds in self.parts()
        ]
        return Work(speed, self.passes, parts)

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

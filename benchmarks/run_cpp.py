"""Builds and runs the C++ benchmarks of the kernels, on every ISA that this CPU has.

    python benchmarks/run_cpp.py --list
    python benchmarks/run_cpp.py --filter 'linear_q4_0/1x.*avx512'
    python benchmarks/run_cpp.py --filter limit --json limits.json

Needs a C++ compiler and Google Benchmark (Debian: libbenchmark-dev). It repeats each benchmark,
with all repetitions in random order, and prints the median and the best. For the best it also
prints the share of the machine's limit, which is probed in the same run. --json keeps Google
Benchmark's own file.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import native, options
from common.table import Columns, duration

from airllm.util.progress import Progress

COLUMNS = Columns(
    **{"benchmark": -32, "ISA": -12, "threads": 7, "median": 8, "best": 8, "operations": 12},
    **{"limit": -16},
)


@dataclass(frozen=True)
class Result:
    """name: "silu/128x4096/avx512/threads:2/real_time"."""

    name: str
    seconds: list[float]  # for each repetition
    operations: float  # a second, in the best repetition, like `share`
    limit: str  # "read"; "" without a limit
    share: float

    def cells(self) -> list[str]:
        operation, isa, threads = self.name.removesuffix("/real_time").rsplit("/", 2)
        return [
            *(operation, isa, threads.removeprefix("threads:")),
            *(duration(statistics.median(self.seconds)), duration(min(self.seconds))),
            f"{self.operations / 1e9:.1f} G/s",
            f"{100 * self.share:.0f}% of {self.limit}" if self.limit else "",
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        program = native.kernels_program()
    except native.BuildError as error:
        print(f"the benchmarks were not built: {error}", file=sys.stderr)
        return 1
    names = _names(program, args.filter)
    if args.list or not names:
        print("\n".join(names) or f"no benchmark matches {args.filter!r}")
        return 0 if names else 1
    with tempfile.TemporaryDirectory() as folder:
        output = Path(args.json or Path(folder) / "results.json")
        flags = [
            f"--benchmark_repetitions={args.repetitions}",
            f"--benchmark_min_time={args.min_time}",
            "--benchmark_enable_random_interleaving=true",
        ]
        status = _run(program, args.filter, output, flags, len(names))
        if status == 0:
            _print(output)
    return status


def _names(program: Path, pattern: str) -> list[str]:
    command = [str(program), "--benchmark_list_tests=true", f"--benchmark_filter={pattern}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in result.stdout.splitlines() if "/" in line]


def _run(program: Path, pattern: str, output: Path, flags: list[str], total: int) -> int:
    command = [str(program), f"--benchmark_filter={pattern}", *flags]
    command += ["--benchmark_report_aggregates_only=false", "--benchmark_out_format=json"]
    command.append(f"--benchmark_out={output}")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    done = set[str]()
    with process, Progress("benchmarks", "benchmarks") as progress:
        for line in process.stdout:
            if "/" in line and line[0] not in "-R":
                done.add(line.split()[0].rsplit("_", 1)[0])
                progress.update(min(len(done), total), total, line.split()[0])
    return process.returncode


def _print(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    entries = sorted(document["benchmarks"], key=lambda entry: int(entry["family_index"]))
    print(COLUMNS.line(COLUMNS.head))
    for result in _results(entries):
        print(COLUMNS.line(result.cells()))
    for entry in entries:
        if "rate" in entry:
            _, name, isa, threads, *_ = entry["name"].split("/")
            print(f"{name} at most, {isa}, {threads}: {entry['rate'] / 1e9:.1f} G/s")


def _results(entries: list[dict[str, object]]) -> Iterator[Result]:
    """A result for each benchmark, from its repetitions."""
    by_name: dict[str, list[dict[str, object]]] = {}
    for entry in entries:
        if entry["run_type"] == "iteration" and "rate" not in entry:
            by_name.setdefault(str(entry["name"]), []).append(entry)
    for name, repetitions in by_name.items():
        best = min(repetitions, key=lambda entry: _number(entry["real_time"]))
        limit = next((key for key in best if key.startswith("of_")), "")
        yield Result(
            name,
            [_number(entry["real_time"]) * 1e-9 for entry in repetitions],
            _number(best["operations"]),
            limit.removeprefix("of_").replace("_", " "),
            _number(best[limit]) if limit else 0.0,
        )


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    parser.add_argument("--filter", metavar="REGEX", default=".", help="only these benchmarks")
    parser.add_argument("--list", action="store_true", help="print only the names")
    parser.add_argument(
        "--repetitions", type=options.count, default=5, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--min-time",
        type=float,
        default=0.1,
        metavar="SECONDS",
        help="seconds of each repetition (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=options.output, metavar="FILE", help="also write the results there"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Compares the operations with NumPy, with PyTorch where installed, and with the machine's limits.

    python benchmarks/compare_ops.py                          everything, on 1 and on all threads
    python benchmarks/compare_ops.py --only attention,Q4_0 --threads 2 --json ops.json
    python benchmarks/compare_ops.py --markdown               the table of docs/pages/performance.md

Each result is checked against float64 before it is timed. See benchmarks/README.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import contest, machine, native, options, process, table
from common.extension import cpp
from common.limits import Limits, Name, in_words
from common.rows import WRONG, Check, Row, ratios_of, value_of
from common.verify import WrongResultError
from ops import Participants, load_torch
from ops.contests import QUICK, Contest, Sizes, contests

PERFORMANCE_PAGE = Path(__file__).parent.parent / "docs/pages/performance.md"
QUICK_BYTES = 1 << 20
COLUMNS = table.Columns(
    **{"operation": -14, "shape": -20, "ISA": -8, "threads": 7, "median": 8, "best": 8},
    **{"NumPy": 8, "PyTorch": 8, "limit": -24, "at least": -34, "verdict": -1},
)


@dataclass(frozen=True)
class Run:
    """The measurements of one process."""

    isa: str
    threads: int
    only: tuple[str, ...]  # contests with one of these words in their name take part
    seconds: float  # for each contest
    quick: bool


@dataclass(frozen=True)
class Probed:
    """The limits: the best probes of the whole run."""

    isa: str
    threads: int
    rates: dict[Name, float]

    def in_words(self) -> str:
        return f"{self.isa}, {table.in_threads(self.threads)}: {in_words(self.rates)}"


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)

    isas = args.isa or (cpp.available_isas()[-1],)
    threads = args.threads or sorted({1, cpp.cpu_budget()["chosen"]})
    show: Callable[[str], None] = partial(print, flush=True)
    if args.json == "-":
        show = _nothing
    description = machine.describe()
    show(f"{machine.in_words(description)}\n\n{COLUMNS.line(COLUMNS.head)}")
    rows, probed = list[Row](), list[Probed]()
    for run in _runs(args, isas, threads):
        for item in process.iterate(measure, run, threads=run.threads):
            if isinstance(item, Row):
                rows.append(item)
                show(COLUMNS.line(item.cells()))
            else:
                probed.append(item)
    for one in probed:
        show(f"limits, {one.in_words()}")
    if args.json:
        options.write_json(args.json, _document(description, probed, rows))
    if args.markdown:
        table.replace_marked(args.markdown, as_markdown(description, probed, rows))
    if not rows:
        print(f"nothing is named like {' or '.join(args.only)}", file=sys.stderr)
    return 1 if any(row.is_wrong for row in rows) or not rows else 0


def measure(run: Run) -> Iterator[Row | Probed]:
    """Runs in a separate process, whose environment sets the number of threads."""

    cpp.set_isa(run.isa)
    limits = _limits(run)
    participants = Participants((run.isa,), load_torch(run.threads))
    if run.quick:
        participants = Participants((run.isa,), participants.torch, cycle_bytes=QUICK_BYTES)
    for item in contests(QUICK if run.quick else Sizes(), run.isa):
        if not run.only or any(word.lower() in item.name.lower() for word in run.only):
            yield hold(item, participants, limits, run)
    if limits is not None:
        yield Probed(run.isa, run.threads, dict(limits.best))


def hold(item: Contest, participants: Participants, limits: Limits | None, run: Run) -> Row:
    """The row of one contest. A wrong result or an unsupported type is a failure in the row."""
    place = (item.group, item.op, item.shape, run.isa, run.threads)
    try:
        case = item.make(participants)
    except ValueError as error:
        return Row(*place, failure=f"not supported: {error}")
    try:
        outcome = contest.run(case, limits, seconds=run.seconds, settle=run.threads > 1)
    except WrongResultError as error:
        return Row(*place, failure=f"{WRONG}: {error}")
    ours = outcome.timings[run.isa]
    ratios = ratios_of(outcome, run.isa)
    return Row(
        *place,
        seconds_best=ours.best,
        seconds_median=ours.median,
        gflops=outcome.work.flops / ours.best / 1e9,
        gbytes=outcome.work.nbytes / ours.best / 1e9,
        ratios=ratios,
        errors=outcome.errors,
        checks=tuple(
            Check(target.of, target.least, target.aim, value_of(target.of, ours, ratios))
            for target in item.targets
        ),
    )


def as_markdown(description: dict[str, object], probed: list[Probed], rows: list[Row]) -> str:
    head = ["operation", "shape", "threads", "time", "NumPy", "PyTorch", "limit"]
    lines = []
    for row in rows:
        op, shape, _, threads, _, best, numpy, torch, limit, *_ = row.cells()
        lines.append([op, shape, threads, row.failure or best, numpy, torch, limit])
    limits = "".join(f"- {one.in_words()}\n" for one in probed)
    return (
        f"Measured on: {machine.in_words(description)}\n\n{limits}\n"
        "Times are the best of interleaved samples; NumPy and PyTorch: how many times as fast; "
        "limit: the share of what the machine can do.\n\n"
        f"{table.markdown(head, lines)}"
    )


def _runs(args: argparse.Namespace, isas: Sequence[str], threads: Sequence[int]) -> Iterator[Run]:
    for isa in isas:
        for count in threads:
            yield Run(isa, count, args.only, args.seconds, args.quick)


def _limits(run: Run) -> Limits | None:
    try:
        return Limits(run.isa, run.threads, QUICK_BYTES if run.quick else None)
    except native.BuildError as error:
        print(f"no limits are probed: {error}", file=sys.stderr)
        return None


def _document(
    description: dict[str, object], probed: list[Probed], rows: list[Row]
) -> dict[str, object]:
    limits = [{"isa": one.isa, "threads": one.threads, **one.rates} for one in probed]
    return {
        "machine": description,
        "limits": limits,
        "results": [row.as_json() for row in rows],
    }


def _nothing(text: str) -> None:
    pass


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    options.add_common(parser, seconds=1.0)
    parser.add_argument(
        "--threads", type=options.counts, metavar="N,...", help="default: 1 and all"
    )
    parser.add_argument(
        "--markdown",
        type=options.marked,
        nargs="?",
        const=str(PERFORMANCE_PAGE),
        metavar="FILE",
        help="put the table between the two performance markers of FILE; without FILE, of "
        "docs/pages/performance.md",
    )
    return parser


if __name__ == "__main__":
    process.run_script(main)

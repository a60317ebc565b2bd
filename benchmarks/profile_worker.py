"""Profiles a worker's operations, in the shapes of Llama 7B or 8B, on NumPy and on each ISA.

    python benchmarks/profile_worker.py                      the table
    python benchmarks/profile_worker.py --plot profile.png   bars by operation, and a roofline
    python benchmarks/profile_worker.py --quick --json       a test that everything works

NumPy always multiplies by float32 weights, the extension also by quantised weights. Each result is
checked against float64 before it is timed. Plots need
matplotlib (python -m pip install matplotlib).
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from common import contest, limits, machine, native, options, process, profile_plot, table
from common.extension import cpp
from common.limits import Limits
from common.profile_plot import Measured, Profiled
from common.table import duration
from ops import Participants
from ops.llama_layer import QUICK, Operation, Sizes, operations

from airllm.util.progress import Progress

QUICK_BYTES = 1 << 20
# Larger operations would take seconds a call on the scalar ISA.
MOST_SCALAR_FLOPS = 1e9


@dataclass(frozen=True)
class Run:
    isas: tuple[str, ...]
    threads: int
    only: tuple[str, ...]
    seconds: float  # for each operation
    quick: bool

    def operations(self) -> list[Operation]:
        words = [word.lower() for word in self.only]
        everything = operations(QUICK if self.quick else Sizes())
        return [
            operation
            for operation in everything
            if not words or any(word in operation.label.lower() for word in words)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.plot:
        profile_plot.require_matplotlib()
    isas = args.isa or tuple(cpp.available_isas())
    threads = args.threads or cpp.cpu_budget()["chosen"]
    run = Run(isas, threads, args.only, args.seconds, args.quick)
    total = len(run.operations())
    if total == 0:
        print(f"no operation is named like {' or '.join(args.only)}", file=sys.stderr)
        return 1
    profiled, rates = list[Profiled](), dict[limits.Name, float]()
    with Progress("profiling", "operations") as progress:
        for item in process.iterate(profile, run, threads=threads):
            if isinstance(item, Profiled):
                profiled.append(item)
                progress.update(len(profiled), total, item.label)
            else:
                rates = item
    description = machine.describe()
    if args.json:
        document = {"machine": description, "threads": threads, "limits": rates}
        results = [item.as_json() for item in profiled]
        options.write_json(args.json, {**document, "results": results})
    if args.json != "-":
        print(f"{machine.in_words(description)}\n")
        _print(profiled, isas, threads, rates)
    if args.plot:
        profile_plot.draw(
            args.plot, profiled, rates, f"{description['cpu']}, {table.in_threads(threads)}"
        )
    return 0


def profile(run: Run) -> Iterator[Profiled | dict[limits.Name, float]]:
    """Runs in a separate process, whose environment sets the number of threads."""
    cycle_bytes = QUICK_BYTES if run.quick else limits.beyond_caches()
    probes = _limits(run)
    for operation in run.operations():
        isas = tuple(
            isa
            for isa in run.isas
            if isa != "scalar" or operation.flops <= MOST_SCALAR_FLOPS or len(run.isas) == 1
        )
        case = operation.make(Participants(isas, cycle_bytes=cycle_bytes))
        outcome = contest.run(case, probes, seconds=run.seconds, settle=run.threads > 1)
        work = outcome.work
        yield Profiled(
            operation.name,
            operation.shape,
            operation.type,
            work.flops,
            work.nbytes,
            {
                name: Measured(timing.best, timing.median)
                for name, timing in outcome.timings.items()
                if name not in limits.NAMES
            },
            work.limit,
            outcome.limit_seconds,
        )
    if probes is not None:
        yield dict(probes.best)


def _limits(run: Run) -> Limits | None:
    try:
        return Limits(run.isas[-1], run.threads, QUICK_BYTES if run.quick else None)
    except native.BuildError as error:
        print(f"no limits are probed: {error}", file=sys.stderr)
        return None


def _print(
    profiled: list[Profiled],
    isas: Sequence[str],
    threads: int,
    rates: Mapping[limits.Name, float],
) -> None:
    """Prints a line for each operation: the times of NumPy and of each ISA, and their ratios."""
    widths = {"operation": -18, "shape": -18, "type": -5, "NumPy": 8}
    columns = table.Columns(**widths, **dict.fromkeys(isas, 16), limit=-24)
    print(columns.line(columns.head))
    for item in profiled:
        numpy = item.by_contender.get("numpy")
        cells = [item.name, item.shape, item.type, duration(numpy.best) if numpy else ""]
        for isa in isas:
            ours = item.by_contender.get(isa)
            speedup = f" {numpy.best / ours.best:6.2f}x" if numpy and ours else " " * 8
            cells.append(f"{duration(ours.best)}{speedup}" if ours else "")
        print(columns.line([*cells, item.share(isas[-1])]))
    if rates:
        print(f"\nlimits, {isas[-1]}, {table.in_threads(threads)}: {limits.in_words(rates)}")


def _parser() -> argparse.ArgumentParser:
    parser = options.parser(__doc__)
    options.add_common(parser, seconds=0.5)
    parser.add_argument("--threads", type=options.count, metavar="N", help="default: all")
    parser.add_argument("--plot", type=options.output, metavar="FILE.png", help="draw it, too")
    return parser


if __name__ == "__main__":
    process.run_script(main)

"""Builds the C++ parts of the benchmarks with the flags that the kernels themselves are built with.

Everything lands in build/benchmarks of the checkout, and only what has changed is compiled again.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ROOT

sys.path.insert(0, str(ROOT / "cpp_ext"))
from isas import isas_for

import build
from build import BuildError as BuildError

SOURCES = ROOT / "benchmarks" / "cpp"
FOLDER = ROOT / "build" / "benchmarks"
LIMITS_SOURCES = ("machine_limits.cpp", "machine_limits_library.cpp")
PROGRAM_SOURCES = (
    *("machine_limits.cpp", "bench.cpp", "bench_elementwise.cpp", "bench_products.cpp"),
    "bench_attention.cpp",
)


def limits_library() -> Path:
    """The shared library of the limits that common/limits.py calls. Raises BuildError."""
    output = FOLDER / "limits.so"
    with _locked():
        toolchain = build.Toolchain.native()
        units = [*peaks_units(toolchain), *_own_units(toolchain, LIMITS_SOURCES)]
        units += build.units_of(["cpu_features.cpp"], FOLDER, _includes())
        if _link_needed(build.compile_all(toolchain, units), output):
            build.link(toolchain, [unit.object for unit in units], output, ("-shared",))
    return output


def kernels_program() -> Path:
    """The Google Benchmark program (cpp/bench*.cpp). Raises BuildError."""
    output = FOLDER / "kernels"
    with _locked():
        toolchain = build.Toolchain.native()
        _require_google_benchmark(toolchain)
        units = build.core_units(toolchain, isas_for(toolchain.machine), FOLDER)
        units += [*peaks_units(toolchain), *_own_units(toolchain, PROGRAM_SOURCES)]
        objects = build.compile_all(toolchain, units)
        if _link_needed(objects, output):
            build.link(toolchain, objects, output, ("-lbenchmark",))
    return output


def _require_google_benchmark(toolchain: build.Toolchain) -> None:
    """Its lack would show as a page of compiler messages."""
    include = "#include <benchmark/benchmark.h>\n"
    command = [*toolchain.compiler, "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(command, input=include, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(
            "Google Benchmark is not installed (Debian, Ubuntu: apt install libbenchmark-dev; "
            "Fedora: dnf install google-benchmark-devel)"
        )


def peaks_units(toolchain: build.Toolchain) -> list[build.Unit]:
    """peaks/<isa>.cpp for each ISA, compiled exactly as isa/<isa>.cpp is."""
    kernels = build.core_units(toolchain, isas_for(toolchain.machine), FOLDER)
    return [
        dataclasses.replace(
            unit,
            source=SOURCES / "peaks" / unit.source.name,
            object=FOLDER / "peaks" / unit.object.name,
            flags=(*unit.flags, f"-I{SOURCES}"),
        )
        for unit in kernels
        if unit.source.parent.name == "isa"
    ]


def _own_units(toolchain: build.Toolchain, names: tuple[str, ...]) -> list[build.Unit]:
    flags = (*build.COMMON_FLAGS, *build.WARNINGS, *_includes(), *toolchain.flags)
    return [
        build.Unit(SOURCES / name, FOLDER / Path(name).with_suffix(".o"), flags) for name in names
    ]


def _includes() -> tuple[str, ...]:
    return (f"-I{build.ROOT}", f"-I{FOLDER}", f"-I{SOURCES}")


def _link_needed(objects: list[Path], output: Path) -> bool:
    """Linking again would replace a library that another process may be starting to load."""
    if not output.exists():
        return True
    made = output.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > made for path in objects)


@contextmanager
def _locked() -> Iterator[None]:
    """One build at a time: several benchmarks may start at once."""
    import fcntl

    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

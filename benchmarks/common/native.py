"""Builds the C++ parts of the benchmarks, with the flags of the kernels.

The build folder is build/benchmarks in the checkout; only changed sources are compiled again.
Objects of the kernels come from the extension's in-place build if they are up to date there.
TENSOR_OPS_ISA restricts the ISAs, as for setup.py; each choice has its own folder.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common import ROOT

sys.path.insert(0, str(ROOT / "cpp_ext"))
import build
from build import BuildError as BuildError
from isas import Isa, isas_for

SOURCES = ROOT / "benchmarks" / "cpp"
LIMITS_SOURCES = ("machine_limits.cpp", "machine_limits_library.cpp")
PROGRAM_SOURCES = (
    *("machine_limits.cpp", "bench.cpp", "bench_elementwise.cpp", "bench_products.cpp"),
    "bench_attention.cpp",
)


def limits_library() -> Path:
    """The shared library of the limits that common/limits.py calls. Raises BuildError."""
    with _building() as (toolchain, isas, folder):
        units = [*peaks_units(toolchain, isas, folder)]
        units += _own_units(LIMITS_SOURCES, isas, folder)
        units += build.units_of({"cpu_features": ("cpu_features",)}, folder, ())
        return _linked(toolchain, units, folder / "limits.so", "-shared")


def kernels_program() -> Path:
    """The Google Benchmark program (cpp/bench*.cpp). Raises BuildError."""
    with _building() as (toolchain, isas, folder):
        _require_google_benchmark(toolchain)
        core = build.core_units(toolchain, isas, folder)
        units = build.reused(toolchain, core, folder, build.EXTENSION_OBJECTS)
        units += peaks_units(toolchain, isas, folder)
        units += _own_units(PROGRAM_SOURCES, isas, folder)
        return _linked(toolchain, units, folder / "kernels", "-lbenchmark")


def peaks_units(toolchain: build.Toolchain, isas: Sequence[Isa], folder: Path) -> list[build.Unit]:
    """peaks/<isa>.cpp for each ISA, compiled exactly as its kernels are."""
    return [
        build.Unit(
            (SOURCES / "peaks" / f"{isa.name}.cpp",),
            folder / "peaks" / f"{isa.name}.o",
            (*build.kernel_flags(toolchain, isa), *build.own_xsimd(isa.name), f"-I{SOURCES}"),
            (build.xsimd_headers(build.XSIMD_CACHE),),
        )
        for isa in isas
    ]


def _own_units(names: Sequence[str], isas: Sequence[Isa], folder: Path) -> list[build.Unit]:
    includes = (build.INCLUDE, f"-I{SOURCES}", build.compiled_isas(isas))
    flags = (*build.COMMON_FLAGS, *build.WARNINGS, *includes)
    return [
        build.Unit((SOURCES / name,), folder / Path(name).with_suffix(".o"), flags)
        for name in names
    ]


def _linked(
    toolchain: build.Toolchain, units: Sequence[build.Unit], output: Path, flag: str
) -> Path:
    """Compiles and links what has changed. An unchanged output stays, because another process may
    use it."""
    objects = build.compile_all(toolchain, units)
    newest = max(path.stat().st_mtime_ns for path in objects)
    if not output.exists() or output.stat().st_mtime_ns < newest:
        build.link(toolchain, objects, output, (flag,))
    return output


def _require_google_benchmark(toolchain: build.Toolchain) -> None:
    """Raises BuildError in place of a page of compiler messages."""
    include = "#include <benchmark/benchmark.h>\n"
    command = [*toolchain.compiler, "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(command, input=include, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(
            "Google Benchmark is not installed (Debian, Ubuntu: apt install libbenchmark-dev; "
            "Fedora: dnf install google-benchmark-devel)"
        )


@contextmanager
def _building() -> Iterator[tuple[build.Toolchain, tuple[Isa, ...], Path]]:
    """The compiler, the ISAs and the folder of a build. A lock admits one build at a time."""
    import fcntl

    only = os.environ.get("TENSOR_OPS_ISA", "")
    toolchain = build.Toolchain.native()
    folder = ROOT / "build" / "-".join(["benchmarks", *only.split(",")]).rstrip("-")
    try:
        isas = isas_for(toolchain.machine, only)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except (ValueError, OSError) as error:
        raise BuildError(str(error)) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield toolchain, isas, folder

"""How the C++ sources are compiled: one description for the extension, its tests and benchmarks.

Each ISA of `isas.py` is one object with its own flags; everything else is compiled for the
machine's baseline, so that the binary starts on any CPU and dispatches from there.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for setup.py, which runs from the folder above
from headers import BuildError as BuildError
from headers import Headers, pybind11_headers, python_headers, xsimd_headers
from isas import Isa, isas_for

ROOT = Path(__file__).parent
XSIMD_CACHE = ROOT.parent / "build/xsimd"

# What one compilation may take (measured: 630 MB for an ISA, 500 MB for a binding), rounded up.
COMPILER_BYTES = 700 << 20

COMMON_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    "-DNDEBUG",  # xsimd asserts the alignment of every load, pybind11 the GIL at every reference
)
# Kernels throw nothing. They write FMA where they want it: a compiler that contracts a * b + c
# where it can gives a tail or a narrower tile other bits than the body. IEEE 754 stays.
KERNEL_FLAGS = (*("-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-fno-math-errno"),)
# GCC collects its garbage the later the more memory the machine has. With these an object takes at
# most 630 MB wherever it is compiled, and 10% more time. Clang ignores them.
THRIFT = ("--param=ggc-min-expand=20", "--param=ggc-min-heapsize=32768")
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion")
# GCC bug 105593: _mm512_undefined_ps() in its own headers; Clang has one of the two, and says so.
# GCC on ARM tells of every vector in a struct that its calls changed in version 10.
KERNEL_WARNINGS = (
    *WARNINGS,
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-psabi",
    "-Wno-unused-command-line-argument",
    "-Wno-unknown-warning-option",
)

CORE_SOURCES = (
    "cpu_features.cpp",
    "dispatch.cpp",
    "threads/cpu_budget.cpp",
    "threads/crew.cpp",
    "threads/team.cpp",
    "ops/attention.cpp",
    "ops/matrix.cpp",
    "ops/experts.cpp",
    "ops/fused.cpp",
    "ops/ops.cpp",
    "ops/q80.cpp",
    "ops/sampling.cpp",
    "ops/slices.cpp",
    "graph/graph.cpp",
    "graph/executor.cpp",
    "graph/plan.cpp",
    "stream/file.cpp",
    "stream/requests.cpp",
    "stream/uring.cpp",
    "stream/schedule.cpp",
    "stream/reader.cpp",
    "stream/stream.cpp",
)
BINDING_SOURCES = tuple(
    f"bindings/{name}.cpp"
    for name in (
        *("module", "arrays", "elementwise", "matrix", "formats", "attention", "executor"),
        *("runtime", "sampling", "stream"),
    )
)


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler and the machine it compiles for, as `platform.machine()` names it."""

    compiler: tuple[str, ...]
    machine: str
    flags: tuple[str, ...] = ()  # for every object, for instance a sanitizer's

    @classmethod
    def native(cls, flags: Sequence[str] = ()) -> "Toolchain":
        """$CXX, else g++ or clang++. Raises BuildError when there is none."""
        import platform

        named = os.environ.get("CXX", "").split()
        found = named or next(([name] for name in ("g++", "clang++") if shutil.which(name)), [])
        if not found or not shutil.which(found[0]):
            raise BuildError(
                f"no C++ compiler: {named[0] if named else 'g++ or clang++'} is not on the PATH. "
                "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), name "
                "it in CXX, or install without the extension: AIRLLM_NO_EXTENSION=1"
            )
        return cls(tuple(found), platform.machine(), tuple(flags))

    def version(self) -> str:
        result = subprocess.run(
            [*self.compiler, "--version"], capture_output=True, text=True, check=False
        )
        return result.stdout.splitlines()[0] if result.stdout else self.compiler[0]


@dataclass(frozen=True)
class Unit:
    """One source, compiled to one object."""

    source: Path
    object: Path
    flags: tuple[str, ...]
    headers: tuple[Headers, ...] = ()


def write_isa_list(isas: Sequence[Isa], folder: Path) -> None:
    """compiled_isas.inc for dispatch.cpp: which ISAs there are and what they need of the CPU."""
    lines = [
        f"TENSOR_OPS_ISA({isa.name}, {' && '.join(f'cpu.{need}' for need in isa.needs) or 'true'})"
        for isa in isas
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compiled_isas.inc"
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def core_units(toolchain: Toolchain, isas: Sequence[Isa], folder: Path) -> list[Unit]:
    """Everything below the bindings: the kernels of each ISA, and what runs them."""
    write_isa_list(isas, folder)
    include = (f"-I{ROOT}", f"-I{folder}", *toolchain.flags)
    xsimd = xsimd_headers(XSIMD_CACHE)
    kernels = [
        Unit(
            ROOT / "isa" / f"{isa.name}.cpp",
            folder / "isa" / f"{isa.name}.o",
            (
                *(*COMMON_FLAGS, *KERNEL_FLAGS, *THRIFT, *KERNEL_WARNINGS, *include, *isa.flags),
                # A namespace of each object's own: xsimd has plain inline functions (NEON's), and
                # the linker would keep one ISA's copy of them for all.
                f"-Dxsimd=xsimd_{isa.name}",
            ),
            (xsimd,),
        )
        for isa in isas
    ]
    return kernels + units_of(CORE_SOURCES, folder, include)


def units_of(
    sources: Iterable[str], folder: Path, flags: Sequence[str], headers: tuple[Headers, ...] = ()
) -> list[Unit]:
    return [
        Unit(
            ROOT / name,
            folder / Path(name).with_suffix(".o"),
            (*COMMON_FLAGS, *WARNINGS, *flags),
            headers,
        )
        for name in sources
    ]


def compile_all(toolchain: Toolchain, units: Sequence[Unit]) -> list[Path]:
    """Compile what has changed since last time, as many at once as cores and memory allow.

    Returns the objects. Raises BuildError with the compiler's own words.
    """
    stale = [unit for unit in units if not _is_fresh(toolchain, unit)]
    with ThreadPoolExecutor(max_workers=jobs()) as pool:
        list(pool.map(lambda unit: _compile(toolchain, unit), stale))
    return [unit.object for unit in units]


def jobs() -> int:
    """Compilers to run at once: one for each core, but no more than memory has room for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
        available = int(re.findall(r"MemAvailable:\s+(\d+)", lines)[0]) * 1024
    except (OSError, IndexError):
        available = 4 * COMPILER_BYTES
    return max(1, min(cores or 1, available // COMPILER_BYTES))


def _command(toolchain: Toolchain, unit: Unit) -> list[str]:
    dependencies = ["-MMD", "-MF", str(unit.object.with_suffix(".d"))]
    files = ["-c", str(unit.source), "-o", str(unit.object)]
    headers = [flag for library in unit.headers for flag in library.flags]
    return [*toolchain.compiler, *unit.flags, *headers, *dependencies, *files]


def _fingerprint(toolchain: Toolchain, unit: Unit) -> str:
    """What an object is made with, files aside. Libraries by their versions: pip unpacks them
    somewhere else for each build."""
    libraries = [library.name for library in unit.headers]
    return "\n".join([*toolchain.compiler, toolchain.version(), *unit.flags, *libraries])


def _is_fresh(toolchain: Toolchain, unit: Unit) -> bool:
    """Whether the object was made in the same way from files that have not changed since."""
    made_with, dependencies = unit.object.with_suffix(".made_with"), unit.object.with_suffix(".d")
    try:
        if made_with.read_text(encoding="utf-8") != _fingerprint(toolchain, unit):
            return False
        made = unit.object.stat().st_mtime_ns
        words = dependencies.read_text(encoding="utf-8").replace("\\\n", " ").split()
        return all(Path(word).stat().st_mtime_ns <= made for word in words[1:])
    except OSError:
        return False


def _compile(toolchain: Toolchain, unit: Unit) -> None:
    unit.object.parent.mkdir(parents=True, exist_ok=True)
    command = _command(toolchain, unit)
    print(f"compiling {os.path.relpath(unit.source, ROOT.parent)}", file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        unit.object.unlink(missing_ok=True)
        killed = " (the compiler was killed: out of memory?)" if result.returncode < 0 else ""
        raise BuildError(f"{' '.join(command)}\n{result.stderr}{killed}")
    if result.stderr:
        print(result.stderr, file=sys.stderr)
    made_with = unit.object.with_suffix(".made_with")
    made_with.write_text(_fingerprint(toolchain, unit), encoding="utf-8")


def link(toolchain: Toolchain, objects: Sequence[Path], output: Path, flags: Sequence[str]) -> None:
    """Link objects to `output`; it appears whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    flags = [*toolchain.flags, *flags, "-pthread", "-o", str(partial)]
    command = [*toolchain.compiler, *map(str, objects), *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{result.stderr}")
    partial.replace(output)


def build_program(
    toolchain: Toolchain,
    isas: Sequence[Isa],
    sources: Iterable[Path],
    folder: Path,
    output: Path,
    flags: Sequence[str] = (),
) -> None:
    """Compile `sources`, with flags of their own, and everything below the bindings; link them."""
    own_flags = (*COMMON_FLAGS, *WARNINGS, f"-I{ROOT}", *toolchain.flags, *flags)
    own = [Unit(path, folder / "program" / f"{path.stem}.o", own_flags) for path in sources]
    objects = compile_all(toolchain, [*core_units(toolchain, isas, folder), *own])
    link(toolchain, objects, output, ())


def build_extension(folder: Path, output: Path, version: str) -> None:
    """Compile and link tensor_ops_cpp for the running Python. TENSOR_OPS_ISA restricts the ISAs."""
    toolchain = Toolchain.native()
    libraries = (python_headers(), pybind11_headers())
    xsimd = xsimd_headers(XSIMD_CACHE)
    try:
        isas = isas_for(toolchain.machine, os.environ.get("TENSOR_OPS_ISA"))
    except ValueError as error:
        raise BuildError(str(error)) from None
    names = {
        "COMPILER": toolchain.version(),
        "FLAGS": " ".join(COMMON_FLAGS[:2] + KERNEL_FLAGS),
        "VERSION": version,
        "XSIMD": xsimd.name.removeprefix("xsimd "),
    }
    defines = tuple(f'-DTENSOR_OPS_{key}="{value}"' for key, value in names.items())
    flags = (f"-I{ROOT}", f"-I{folder}", *defines, "-Os")
    bindings = units_of(BINDING_SOURCES, folder, flags, libraries)
    objects = compile_all(toolchain, [*core_units(toolchain, isas, folder), *bindings])
    link(toolchain, objects, output, shared_library_flags())


def shared_library_flags() -> tuple[str, ...]:
    if sys.platform == "darwin":
        return ("-bundle", "-undefined", "dynamic_lookup")
    return ("-shared", "-Wl,--exclude-libs,ALL")

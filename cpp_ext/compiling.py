"""Compiling and linking: what has changed since last time, as many at once as the machine can hold.

Beside each object lies what it was made of and what that took (`Record`). Whether an object is
fresh hangs on contents alone, not on dates or on where the checkout lies: a copy of the checkout
with its build/ compiles nothing.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from headers import BuildError, Headers

CHECKOUT = Path(__file__).parent.parent

# What one compilation may take (measured: 610 MB for bindings, 470 MB for a kernel), rounded up.
COMPILER_BYTES = 700 << 20

# Runs the compiler and prints its exit status, its seconds of CPU and its peak memory, in a small
# process: on Linux, the peak of a process begins with the memory of its parent at its start, which
# is 1 GB for a test run.
_MEASURING = """
import json, os, sys
compiler = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(compiler, 0)
seconds = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss]))
"""

# The usual variables of C builds, which are not for this one.
UNUSED_VARIABLES = ("CPPFLAGS", "CFLAGS", "CXXFLAGS", "LDFLAGS")


@dataclass(frozen=True)
class Toolchain:
    """A C++ compiler and the machine it compiles for, as `platform.machine()` names it."""

    compiler: tuple[str, ...]
    machine: str
    flags: tuple[str, ...] = ()  # for every object, for instance a sanitizer's
    zig: bool = False  # Zig's Clang, which sees none of this machine's headers

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

    def machine_flags(self, flags: Sequence[str]) -> tuple[str, ...]:
        """An ISA's flags as this compiler spells them: Zig has ARM's architectures as features."""
        if not self.zig:
            return tuple(flags)
        arm = re.compile(r"-march=armv(\d)\.(\d)-a")
        return tuple(arm.sub(r"-mcpu=generic+v\1_\2a", flag) for flag in flags)

    def version(self) -> str:
        return _version(self.compiler)


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    command = [*compiler, "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0] if result.stdout else compiler[0]


@dataclass(frozen=True)
class Unit:
    """Sources that are compiled as one, to one object."""

    sources: tuple[Path, ...]
    object: Path
    flags: tuple[str, ...]
    headers: tuple[Headers, ...] = ()


@dataclass(frozen=True)
class Record:
    """How an object was made: its flags and compiler; what it was made of, as hashes by paths
    relative to the object's folder; and what that took, the compiler's warnings among it."""

    made_with: list[str]
    files: dict[str, str]
    cpu_seconds: float
    peak_bytes: int
    warnings: str

    @classmethod
    def of(cls, object_file: Path) -> "Record | None":
        """None where there is none, or one of another version."""
        try:
            return cls(**json.loads(_record_path(object_file).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _record_path(object_file: Path) -> Path:
    return object_file.with_suffix(".json")


def unused_variables() -> str:
    """What to say of the environment's flags, which are not used; empty where there are none."""
    found = [name for name in UNUSED_VARIABLES if os.environ.get(name, "").strip()]
    if not found:
        return ""
    verb = "is" if len(found) == 1 else "are"
    return (
        f"note: {', '.join(found)} of the environment {verb} not used: "
        "the bounds of the kernels' errors, and the CPUs that they run on, depend on the flags in "
        "cpp_ext/build.py. A flag for every object can follow the compiler's name in CXX "
        '(CXX="g++ -g")'
    )


def compile_all(toolchain: Toolchain, units: Sequence[Unit]) -> list[Path]:
    """Compile what has changed since last time, as many at once as cores and memory allow.

    Returns the objects. Raises BuildError with the compiler's own words.
    """
    stale = [unit for unit in units if not is_fresh(toolchain, unit)]
    with ThreadPoolExecutor(max_workers=jobs()) as pool:
        seconds = list(pool.map(lambda unit: _compile(toolchain, unit), stale))
    if stale:
        _say(f"compiled {len(stale)} of {len(units)} objects in {sum(seconds):.0f} s of CPU")
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_checkout(path: Path) -> str:
    """A path as the compiler is told it, which runs in the checkout: relative if it is there."""
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path.absolute())


def _command(toolchain: Toolchain, unit: Unit) -> list[str]:
    *first, last = map(in_checkout, unit.sources)
    sources = [*(word for source in first for word in ("-include", source)), "-c", last]
    dependencies = ["-MMD", "-MT", "object", "-MF", in_checkout(unit.object.with_suffix(".d"))]
    headers = [flag for library in unit.headers for flag in library.flags]
    output = ["-o", in_checkout(unit.object)]
    return [*toolchain.compiler, *unit.flags, *headers, *dependencies, *sources, *output]


def _made_with(toolchain: Toolchain, unit: Unit) -> list[str]:
    """What an object is made with, files aside. Libraries, and the compiler's program, by their
    versions: pip unpacks them somewhere else for each build."""
    program, *options = toolchain.compiler
    compiler = [Path(program).name, *options, toolchain.version()]
    libraries = [library.name for library in unit.headers]
    sources = [source.name for source in unit.sources]
    return [*compiler, *unit.flags, *libraries, *sources]


def is_fresh(toolchain: Toolchain, unit: Unit) -> bool:
    """Whether the object was made in the same way from files that have not changed since."""
    record = Record.of(unit.object)
    if record is None or not unit.object.exists():
        return False
    folder = unit.object.parent
    return record.made_with == _made_with(toolchain, unit) and all(
        _hash(folder / name) == known for name, known in record.files.items()
    )


def _hash(path: Path) -> str | None:
    try:
        status = path.stat()
        return _hash_of_content(os.path.realpath(path), status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@functools.cache
def _hash_of_content(path: str, _modified: int, _size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]


def dependencies(text: str) -> list[str]:
    """The files that a .d file names: words of a makefile's rule, after its target."""
    words = re.findall(r"(?:\\.|[^\s\\])+", text.replace("\\\n", " "))
    return [re.sub(r"\\(.)", r"\1", word).replace("$$", "$") for word in words[1:]]


def _compile(toolchain: Toolchain, unit: Unit) -> float:
    """Returns the seconds of CPU that it took."""
    unit.object.parent.mkdir(parents=True, exist_ok=True)
    _record_path(unit.object).unlink(missing_ok=True)
    command = _command(toolchain, unit)
    _say(f"compiling {' '.join(map(in_checkout, unit.sources))}")
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _MEASURING, *command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    messages = result.stderr
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{messages}")
    status, cpu_seconds, peak = json.loads(result.stdout.splitlines()[-1])
    if status != 0:
        unit.object.unlink(missing_ok=True)
        killed = " (the compiler was killed: out of memory?)" if status < 0 else ""
        raise BuildError(f"{' '.join(command)}\n{messages}{killed}")
    if messages:
        _say(messages)
    files = {
        os.path.relpath(CHECKOUT / name, unit.object.parent): _hash(CHECKOUT / name) or ""
        for name in dependencies(unit.object.with_suffix(".d").read_text(encoding="utf-8"))
    }
    record = Record(
        made_with=_made_with(toolchain, unit),
        files=files,
        cpu_seconds=round(cpu_seconds, 2),
        peak_bytes=peak * (1 if sys.platform == "darwin" else 1024),
        warnings=messages,
    )
    _record_path(unit.object).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    return record.cpu_seconds


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

"""The C++ tests (tests/cpp) as a program: built once for each toolchain, run group by group.

For this machine the program is linked to the objects of the extension, as it was built in place;
only the tests' own sources are compiled. Other toolchains compile everything. Builds are kept in
build/tests-cpp (a temporary folder where that cannot be written), and only what has changed is
compiled again. AIRLLM_REQUIRE_CROSS=1, as in CI, turns the skipping of tests that need a cross
compiler or an emulator into failures.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "cpp_ext"))
import build  # noqa: E402
import isas  # noqa: E402

SOURCES = sorted((ROOT / "tests/cpp").glob("*.cpp"))
GROUPS = [path.stem.removeprefix("test_") for path in SOURCES if path.stem != "main"]

# The reference means each float32 operation that it writes down, so no FMA in place of two.
FLAGS = ("-O1", "-ffp-contract=off")
STRICT = (*FLAGS, "-Werror")


@functools.cache
def folder(name):
    """Where the build of that name lies."""
    try:
        path = ROOT / "build/tests-cpp" / name
        path.mkdir(parents=True, exist_ok=True)
        (path / ".lock").touch()
    except OSError:
        path = Path(tempfile.mkdtemp(prefix=f"tests-cpp-{name}-"))
    return path


@contextlib.contextmanager
def locked(path):
    """The folder for this process alone: two runs of pytest may be under way."""
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def built(name, toolchain, isa_list, groups=tuple(GROUPS), flags=STRICT):
    """The program of these groups, built in the folder of that name."""
    sources = [path for path in SOURCES if path.stem.removeprefix("test_") in ("main", *groups)]
    return linked(name, toolchain, isa_list, sources, flags=flags)


def linked(name, toolchain, isa_list, sources, output="tests", flags=STRICT):
    """The program of these sources in the folder of that name; flags: of the sources alone."""
    program = folder(name) / output
    failure = ""
    with locked(folder(name)):
        try:
            build.build_program(toolchain, isa_list, sources, folder(name), program, flags)
        except build.BuildError as error:
            failure = f"the C++ tests do not compile:\n{error}"
    if failure:
        pytest.fail(failure, pytrace=False)
    return program


def native_isas():
    """The ISAs of the extension that was built in place; where there is none, this machine's."""
    made = build.Record.of(build.EXTENSION_OBJECTS / "dispatch.o")
    names = re.findall(r"ISA\((\w+)", " ".join(made.made_with)) if made else []
    return isas.isas_for(build.Toolchain.native().machine, ",".join(names))


def with_stand_ins():
    """The same ISAs, where the CPU lacks instructions that others stand in for, so that everything
    else of the kernels is tested: for AVX-VNNI's, AVX-512VL's of another name; for AMX's, plain
    C++. Returns the names of these ISAs, and all."""
    flags, given = cpu_flags(), {isa.name: isa for isa in native_isas()}
    header = str(ROOT / "tests/cpp/avxvnni_by_avx512.h")
    own = {
        "avxvnni": ("avx_vnni", ("-include", header), ("-mavxvnni",)),
        "amx": ("amx_int8", ("-DTENSOR_OPS_PLAIN_TILES",), ("-mamx-tile", "-mamx-int8")),
    }
    replaced = []
    if {"avx512_vnni", "avx512vl"} <= flags:
        replaced = [name for name in own if name in given and own[name][0] not in flags]
    for name in replaced:
        _, instead, without = own[name]
        isa = given[name]
        given[name] = dataclasses.replace(
            isa,
            flags=(*(flag for flag in isa.flags if flag not in without), *instead),
            needs=given["avx512"].needs,
        )
    return replaced, tuple(given.values())


def native():
    """The program for this machine."""
    return built(*native_build())


def native_build():
    """The name of its build, the compiler and the ISAs."""
    return "native", build.Toolchain.native(), native_isas()


def aarch64():
    """The program for 64-bit ARM."""
    return built(*aarch64_build())


def aarch64_build():
    """The same of a static program, so that an emulator needs no libraries."""
    cross = build.Toolchain(("aarch64-linux-gnu-g++",), "aarch64", ("-Werror", "-static"))
    return "aarch64", cross, isas.isas_for("aarch64")


def core_objects(name, toolchain, isa_list):
    """The objects of a build that are the ISAs', and those of everything else."""
    units = build.core_units(toolchain, isa_list, folder(name))
    units = build.reused(toolchain, units, folder(name), build.EXTENSION_OBJECTS)
    with locked(folder(name)):
        objects = build.compile_all(toolchain, units)
    of_isas = [path for path in objects if path.parent.name == "isa"]
    return of_isas, [path for path in objects if path not in of_isas]


def memory_taken(objects):
    """Bytes that the compiler took for each object, by its name."""
    return {f"{path.parent.name}/{path.stem}": build.Record.of(path).peak_bytes for path in objects}


def cpu_flags():
    """The CPU's features by the Linux kernel's names, empty where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return set(" ".join(re.findall(r"^(?:flags|Features)\s*: (.*)", text, re.M)).split())


def require(*tools):
    """Skips (or fails, see above) the test unless all tools are on the PATH."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        skip_or_fail(f"no {' and no '.join(missing)} on the PATH")


def skip_or_fail(reason):
    if os.environ.get("AIRLLM_REQUIRE_CROSS") == "1":
        pytest.fail(f"AIRLLM_REQUIRE_CROSS=1, but {reason}")
    pytest.skip(reason)


def run(program, *groups, emulator=(), timeout=600, **variables):
    """The names of the ISAs that the groups' tests ran on; fails the test with those that failed.

    emulator: the command that runs it; variables: of the environment.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TENSOR_OPS_")}
    result = subprocess.run(
        [*emulator, str(program), *groups],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    first, *records = re.split(r"\n(?=\w+: )", result.stdout.rstrip("\n"))
    failed = [record for record in records if not record.endswith("... ok")]
    if result.returncode != 0 or failed or not records:
        end = f"exit status {result.returncode}"
        if result.returncode < 0:
            end = f"killed by signal {-result.returncode}, in the last test above"
        errors = result.stderr[-8000:]
        pytest.fail("\n".join([first, *failed, end, errors]), pytrace=False)
    return first.removeprefix("isas:").split()

"""The C++ tests (tests/cpp) as a program: built once for each toolchain, run group by group.

Builds are kept in build/tests-cpp (a temporary folder where that cannot be written) and only what
has changed is compiled again. AIRLLM_REQUIRE_CROSS=1, as in CI, turns the skipping of tests that
need a cross compiler or an emulator into failures.
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
MEASURED = (sys.executable, str(ROOT / "tests/measured_compiler.py"))


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
def built(name, toolchain, isa_list, groups=tuple(GROUPS)):
    """The program of these groups, built in the folder of that name."""
    sources = [path for path in SOURCES if path.stem.removeprefix("test_") in ("main", *groups)]
    program = folder(name) / "tests"
    failure = ""
    with locked(folder(name)):
        try:
            build.build_program(toolchain, isa_list, sources, folder(name), program, FLAGS)
        except build.BuildError as error:
            failure = f"the C++ tests do not compile:\n{error}"
    if failure:
        pytest.fail(failure, pytrace=False)
    return program


def toolchain(flags=("-Werror",)):
    """This machine's compiler; what it takes is measured."""
    native = build.Toolchain.native(flags)
    return dataclasses.replace(native, compiler=(*MEASURED, *native.compiler))


def native_isas():
    """The ISAs of this machine.

    AVX-VNNI's one instruction exists under another name in AVX-512VL: where the CPU has only that,
    the AVX-VNNI kernels run with it instead, so that everything else of theirs is tested.
    """
    flags = cpu_flags()
    stand_in = {"avx512_vnni", "avx512vl"} <= flags and "avx_vnni" not in flags
    header = str(ROOT / "tests/cpp/avxvnni_by_avx512.h")
    return tuple(
        dataclasses.replace(
            isa,
            flags=(*isa.flags[:-1], "-include", header),
            needs=(*isa.needs[:-1], "avx512vnni"),
        )
        if isa.name == "avxvnni" and stand_in
        else isa
        for isa in isas.isas_for(build.Toolchain.native().machine)
    )


def native():
    """The program for this machine."""
    return built("native", toolchain(), native_isas())


def aarch64():
    """The program for 64-bit ARM, static, so that an emulator needs no libraries."""
    compiler = (*MEASURED, "aarch64-linux-gnu-g++")
    cross = build.Toolchain(compiler, "aarch64", ("-Werror", "-static"))
    return built("aarch64", cross, isas.isas_for("aarch64"))


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
    if missing and os.environ.get("AIRLLM_REQUIRE_CROSS") == "1":
        pytest.fail(f"AIRLLM_REQUIRE_CROSS=1, but there is no {' and no '.join(missing)}")
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on the PATH")


def run(program, *groups, emulator=(), timeout=300, **variables):
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

"""The headers that the C++ sources include: Python's, pybind11's, and those of xsimd 14 or later.

xsimd comes inside the package pythran, a build requirement. On Python 3.11 it cannot be required:
pythran 0.19 asks there for a setuptools from before pyproject.toml. So pip fetches its wheel alone,
without what it requires, and the headers are taken out.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

XSIMD_MINIMUM = (14, 0, 0)
PYTHRAN = "pythran>=0.19"
"""The releases that carry xsimd 14."""

# The compiler searches these by itself; naming them would put them before its own headers.
SYSTEM_FOLDERS = ("/usr/local/include", "/usr/include")


class BuildError(Exception):
    """What cannot be built, why, and what to do about it."""


@dataclass(frozen=True)
class Headers:
    """A library's headers; `name` says which version, `folder` is where they happen to be."""

    name: str
    folder: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return () if str(self.folder) in SYSTEM_FOLDERS else ("-isystem", str(self.folder))


def python_headers() -> Headers:
    """Those of the running Python. Raises BuildError where they are not installed."""
    folder = Path(sysconfig.get_path("include"))
    if not (folder / "Python.h").exists():
        raise BuildError(
            f"no Python headers: there is no Python.h in {folder}. Install them (Debian, Ubuntu: "
            "apt install python3-dev; Fedora: dnf install python3-devel)"
        )
    return Headers(f"Python {sys.version}", folder)


def multiarch_headers(machine: str, cache: Path) -> Headers:
    """What Debian's pyconfig.h includes on another machine: the pyconfig.h of this one, in `cache`.

    Both have the same types, of the same sizes, and the public headers ask for nothing else."""
    include, own = Path(sysconfig.get_path("include")), sysconfig.get_config_var("MULTIARCH") or ""
    original = include.parent / own / include.name / "pyconfig.h"
    copy = cache / f"{machine}-linux-gnu" / include.name / "pyconfig.h"
    if original.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return Headers("pyconfig.h", cache)


def pybind11_headers() -> Headers:
    """Raises BuildError where pybind11 is not installed."""
    try:
        import pybind11
    except ImportError:
        raise BuildError(
            "pybind11 is not installed; install the build requirements: "
            f"pip install pybind11 '{PYTHRAN}'"
        ) from None
    return Headers(f"pybind11 {pybind11.__version__}", Path(pybind11.get_include()))


def xsimd_headers(cache: Path, system: bool = True) -> Headers:
    """xsimd's headers: XSIMD_INCLUDE_DIR, or those of pythran, the system, or `cache`, which is
    filled from PyPI where it is empty. Raises BuildError.

    system: whether the compiler looks in SYSTEM_FOLDERS."""
    if named := os.environ.get("XSIMD_INCLUDE_DIR"):
        return _named(Path(named))
    spec = importlib.util.find_spec("pythran")
    packaged = list(spec.submodule_search_locations or []) if spec else []
    too_old = []
    searched = SYSTEM_FOLDERS if system else ()
    for folder in (*map(Path, (*packaged, *searched)), cache):
        version = _xsimd_version(folder)
        if version is not None and version >= XSIMD_MINIMUM:
            return Headers(f"xsimd {_dotted(version)}", folder)
        if version is not None:
            too_old.append(f"{folder} has {_dotted(version)}")
    try:
        _fetch(cache)
    except BuildError as error:
        raise BuildError(
            f"no xsimd headers of version {_dotted(XSIMD_MINIMUM)} or later"
            + (f" ({'; '.join(too_old)})" if too_old else "")
            + f". Install the build requirements (pip install pybind11 '{PYTHRAN}'), or set "
            f"XSIMD_INCLUDE_DIR to the folder that holds xsimd/xsimd.hpp. {error}"
        ) from None
    return Headers(f"xsimd {_dotted(_xsimd_version(cache) or ())}", cache)


def _named(folder: Path) -> Headers:
    version = _xsimd_version(folder)
    if version is None:
        raise BuildError(f"XSIMD_INCLUDE_DIR is {folder}, which has no xsimd/xsimd.hpp")
    if version < XSIMD_MINIMUM:
        raise BuildError(
            f"XSIMD_INCLUDE_DIR is {folder}: xsimd {_dotted(version)} is too old, "
            f"at least {_dotted(XSIMD_MINIMUM)} is needed"
        )
    return Headers(f"xsimd {_dotted(version)}", folder)


def _fetch(folder: Path) -> None:
    """xsimd/ of pythran's wheel in `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        print(f"fetching xsimd's headers, in {PYTHRAN}", file=sys.stderr, flush=True)
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, PYTHRAN]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode != 0 or not wheels:
            raise BuildError(f"Fetching them did not work: {' '.join(command)}\n{result.stderr}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("pythran/xsimd/")]
            wheel.extractall(scratch, names)
        unpacked = Path(scratch) / "pythran"
        if (_xsimd_version(unpacked) or ()) < XSIMD_MINIMUM:
            raise BuildError(f"{wheels[0].name} holds no xsimd of that version.")
        try:
            unpacked.replace(folder)
        except OSError:  # another build was faster
            if _xsimd_version(folder) is None:
                raise


def _xsimd_version(include: Path) -> tuple[int, ...] | None:
    """The version of the headers under `include`, None where there are none."""
    try:
        text = (include / "xsimd/config/xsimd_config.hpp").read_text(encoding="utf-8")
    except OSError:
        return None
    parts = dict(re.findall(r"#define XSIMD_VERSION_(MAJOR|MINOR|PATCH) (\d+)", text))
    return tuple(int(parts.get(key, 0)) for key in ("MAJOR", "MINOR", "PATCH"))


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))

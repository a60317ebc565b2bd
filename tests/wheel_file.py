"""What a wheel for other machines must be: checked by its tag, without running it.

    python tests/wheel_file.py dist/*.whl      says what is wrong; exit status 1 if anything is

auditwheel knows the rules of tags better. This needs `readelf` alone, and looks at what else can be
wrong: the machine, an executable stack, names that other libraries could take over.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
ATTENTION = "airllm/flash_attention/libflash_attn_standalone.so.1"
# Of glibc, and there on each machine that has Python; the wheel brings nothing else.
LIBRARIES = {
    "manylinux": r"lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux-\S+\.so\.\d",
    "musllinux": r"libc\.so",
}


def faults(wheel: Path) -> list[str]:
    """What is wrong with the wheel, in words; empty if nothing is."""
    tag = re.search(r"-(cp\d+t?)-\1-(\w+?linux)_(\d+)_(\d+)_(\w+)\.whl$", wheel.name)
    if not tag:
        return ["its tag is not that of a CPython and a Linux"]
    python, libc, major, minor, machine = tag.groups()
    libc_name = {"manylinux": "gnu", "musllinux": "musl"}[libc]
    suffix = f"cpython-{python.removeprefix('cp')}-{machine}-linux-{libc_name}.so"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        libraries = [name for name in archive.namelist() if ".so" in name]
        exports = {
            f"tensor_ops_cpp.{suffix}": r"PyInit_tensor_ops_cpp",
            ATTENTION: r"fa_\w+|mha_\w+",
        }
        if sorted(libraries) != sorted(exports):
            return [f"it holds {libraries}, not {list(exports)}"]
        found = []
        for name in libraries:
            path = Path(archive.extract(name, scratch))
            found += _faults(path, libc, machine, exports[name])
            found += [
                f"{path.name} needs GLIBC_{'.'.join(map(str, version))}"
                for version in _glibc_versions(path)
                if libc == "musllinux" or version > (int(major), int(minor))
            ]
        return found


def _readelf(option: str, path: Path) -> str:
    command = ["readelf", "--wide", option, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _glibc_versions(path: Path) -> list[tuple[int, ...]]:
    found = set(re.findall(r"GLIBC_([\d.]+)", _readelf("--version-info", path)))
    return sorted(tuple(map(int, version.split("."))) for version in found)


def _faults(path: Path, libc: str, machine: str, exports: str) -> list[str]:
    found = []
    if MACHINES[machine] not in _readelf("--file-header", path):
        found.append(f"{path.name} is not {machine}")
    dynamic = _readelf("--dynamic", path)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    others = [name for name in needed if not re.fullmatch(LIBRARIES[libc], name)]
    if others or not needed:
        found.append(f"{path.name} needs the libraries {others or 'of no libc'}")
    if re.search(r"GNU_STACK.* RWE ", _readelf("--program-headers", path)):
        found.append(f"the stack of {path.name} is executable")
    symbols = re.findall(r"(?:GLOBAL|WEAK|UNIQUE)\s+\w+\s+\d+ (\S+)", _readelf("--dyn-syms", path))
    others = [symbol for symbol in symbols if not re.fullmatch(exports, symbol)]
    if others or not symbols:
        found.append(f"{path.name} exports {others[:5] or 'nothing'}")
    return found


if __name__ == "__main__":
    wrong = {name: faults(Path(name)) for name in sys.argv[1:]}
    for name, reasons in wrong.items():
        print(f"{name}: {'; '.join(reasons) or 'as its tag says'}")
    sys.exit(1 if any(wrong.values()) or not wrong else 0)

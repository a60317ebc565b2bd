"""Hostile parameter structs: the attention library refuses them by name, or runs them as they say.

`tests/flash_attention/hostile.cpp` makes each struct from its number: `hostile 4711 1` repeats one.
The same structs under sanitizers: tests/test_cpp_sanitizers.py.
"""

import re
import subprocess

import cpp_program
from cpp_program import build

import attention_library

SOURCE = cpp_program.ROOT / "tests/flash_attention/hostile.cpp"
LINE = re.compile(r"(\d+) refused, (\d+) accepted, (\d+) ran\n")


def program(name, toolchain, isas, made):
    """The program, linked to the library's objects; those that the build in `made` has are its."""
    folder = cpp_program.folder(name)
    flags = (*build.COMMON_FLAGS, *build.WARNINGS, build.INCLUDE, *toolchain.flags)
    own = build.Unit((SOURCE,), folder / "hostile.o", (*flags, *cpp_program.FLAGS))
    with cpp_program.locked(folder):
        units = attention_library.library_units(toolchain, isas, folder)
        units = [*build.reused(toolchain, units, folder, made), own]
        build.link(toolchain, build.compile_all(toolchain, units), folder / "hostile", ())
    return folder / "hostile"


def run(path, first, count):
    """How many structs were refused, accepted, and run."""
    command = [str(path), str(first), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr[-8000:]
    return map(int, LINE.fullmatch(result.stdout).groups())


def test_no_hostile_struct_of_a_hundred_thousand_crashes_or_writes_where_it_may_not():
    toolchain, isas = build.Toolchain.native(), cpp_program.native_isas()
    path = program("attention-hostile", toolchain, isas, build.EXTENSION_OBJECTS)
    refused, accepted, ran = run(path, 0, 100_000)
    assert refused > 50_000
    assert min(accepted, ran) > 20_000

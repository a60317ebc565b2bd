"""What the ISAs' objects may hold: nothing that the linker could merge with another object's.

An inline function or a template that two objects define under one name is kept once: the scalar
kernels would then run AVX-512 code. And each object compiles on a small machine.
"""

import functools
import subprocess

import cpp_program
import pytest

MEBIBYTE = 1 << 20


@functools.cache
def symbols(nm, path):
    command = [nm, "--extern-only", "--defined-only", "--format=posix", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in output.splitlines()]


def shared_symbols(nm, objects):
    """The names that two or more objects define for others, weak and unique ones included."""
    owners = {}
    for path in objects:
        for symbol in symbols(nm, path):
            owners.setdefault(symbol, []).append(path.stem)
    assert owners, "nm lists nothing"
    return {name: paths for name, paths in owners.items() if len(paths) > 1}


@pytest.fixture(
    scope="module",
    params=["native", pytest.param("aarch64", marks=pytest.mark.emulator)],
)
def objects(request):
    """nm for a machine's objects, those of the ISAs, and those of everything else."""
    if request.param == "native":
        return "nm", *cpp_program.core_objects(*cpp_program.native_build())
    nm = "aarch64-linux-gnu-nm"
    cpp_program.require("aarch64-linux-gnu-g++", nm)
    return nm, *cpp_program.core_objects(*cpp_program.aarch64_build())


def test_the_isas_share_no_function_with_each_other(objects):
    nm, kernels, _ = objects
    assert shared_symbols(nm, kernels) == {}


def test_the_isas_share_no_function_with_what_runs_on_every_cpu(objects):
    nm, kernels, others = objects
    for kernel in kernels:
        for other in others:
            assert shared_symbols(nm, [kernel, other]) == {}


def test_two_objects_that_share_a_function_are_noticed(tmp_path):
    compiler = cpp_program.build.Toolchain.native().compiler
    source = tmp_path / "shared.cpp"
    source.write_text(
        "template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }\n"
        "float entry(float x) { return twice(x); }\n"
    )
    paths = [tmp_path / "a.o", tmp_path / "b.o"]
    for path in paths:
        subprocess.run([*compiler, f"-Dentry={path.stem}", "-c", source, "-o", path], check=True)
    assert shared_symbols("nm", paths) == {"_Z5twiceIfET_S0_": ["a", "b"]}


@pytest.mark.packaging
def test_each_object_compiles_in_under_700_megabytes(objects):
    _, kernels, others = objects
    taken = cpp_program.memory_taken(kernels + others)
    assert {name: size for name, size in taken.items() if size >= 700 * MEBIBYTE} == {}
    # build.py reckons with it when it decides how many compilers may run at once.
    assert cpp_program.build.COMPILER_BYTES >= 700 * MEBIBYTE


def test_no_object_is_compiled_with_a_warning(objects):
    _, kernels, others = objects
    warnings = [cpp_program.build.Record.of(path).warnings for path in kernels + others]
    assert [text for text in warnings if text] == []


def test_what_the_compiler_takes_is_measured(tmp_path):
    source, toolchain = tmp_path / "large.cpp", cpp_program.build.Toolchain.native()
    unit = cpp_program.build.Unit((source,), tmp_path / "large.o", ())
    taken = []
    for n in (1, 20000):
        source.write_text("".join(f"int f{i}() {{ return {i}; }}\n" for i in range(n)))
        cpp_program.build.compile_all(toolchain, [unit])
        taken.append(cpp_program.build.Record.of(unit.object))
    small, large = taken
    assert MEBIBYTE < small.peak_bytes < large.peak_bytes - MEBIBYTE
    assert 0 < small.cpu_seconds < large.cpu_seconds

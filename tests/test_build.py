"""The build description: what is compiled again and what is not, and a build for one ISA alone."""

import os
import platform
import subprocess
import sys
import sysconfig

import cpp_program
import pytest
from extension import ISAS

import airllm

build = cpp_program.build
MEBIBYTE = 1 << 20

# ---- compiling what has changed ------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path):
    """A source that includes a header, and its object."""
    (tmp_path / "number.h").write_text("int number();\n")
    source = tmp_path / "number.cpp"
    source.write_text('#include "number.h"\nint number() { return 1; }\n')
    return build.Unit(source, tmp_path / "objects/number.o", ())


def compiled(unit, capfd, toolchain=None):
    """Whether a build compiles the unit, or finds its object fresh."""
    objects = build.compile_all(toolchain or build.Toolchain.native(), [unit])
    assert objects == [unit.object]
    assert unit.object.exists()
    return "compiling" in capfd.readouterr().err


def make_newer(path, than):
    """Dates a file after another, as an edit would."""
    now = than.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(now, now))


def test_what_has_not_changed_is_not_compiled_again(unit, capfd):
    assert compiled(unit, capfd)
    assert not compiled(unit, capfd)


def test_an_edited_source_is_compiled_again(unit, capfd):
    compiled(unit, capfd)
    make_newer(unit.source, than=unit.object)
    assert compiled(unit, capfd)


def test_an_edited_header_is_noticed(unit, capfd):
    compiled(unit, capfd)
    make_newer(unit.source.with_name("number.h"), than=unit.object)
    assert compiled(unit, capfd)


def test_other_flags_compile_again(unit, capfd):
    compiled(unit, capfd)
    assert compiled(build.Unit(unit.source, unit.object, ("-O1",)), capfd)


def test_an_error_shows_the_compilers_words_and_leaves_no_object(unit, capfd):
    compiled(unit, capfd)
    unit.source.write_text("int number() { return one; }\n")
    make_newer(unit.source, than=unit.object)
    with pytest.raises(build.BuildError, match=r"number\.cpp:1:.*error: .*one"):
        build.compile_all(build.Toolchain.native(), [unit])
    assert not unit.object.exists()


def test_a_link_that_fails_leaves_the_program_as_it_was(unit, tmp_path):
    toolchain = build.Toolchain.native()
    program = tmp_path / "program"
    program.write_text("the last one that worked")
    with pytest.raises(build.BuildError, match="main"):
        build.link(toolchain, build.compile_all(toolchain, [unit]), program, ())
    assert program.read_text() == "the last one that worked"


# ---- a build for one ISA -------------------------------------------------------------------------

ONLY = {"x86_64": "avx2", "AMD64": "avx2"}.get(platform.machine(), "neon")


@pytest.fixture(scope="module")
def one_isa():
    """An extension that holds one ISA, and the objects that it was linked of.

    All but the dispatch are those of the extension that was built in place, where it has the ISA.
    """
    folder = cpp_program.folder("one-isa")
    output = folder / f"tensor_ops_cpp{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = []
    with (
        cpp_program.locked(folder),
        cpp_program.extensions_objects(folder, record=objects),
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("TENSOR_OPS_ISA", ONLY)
        build.build_extension(folder, output, airllm.__version__)
    return output, objects


@pytest.fixture(scope="module")
def extension(one_isa):
    return one_isa[0]


def import_it(extension, *emulator, **variables):
    code = "import tensor_ops_cpp as ops; print(ops.available_isas(), ops.simd_level)"
    return subprocess.run(
        [*emulator, sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(extension.parent), "TENSOR_OPS_ISA": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.packaging
def test_an_isa_named_at_build_time_is_the_only_one_compiled_in(one_isa):
    extension, objects = one_isa
    assert {path.stem for path in objects if path.parent.name == "isa"} == {ONLY}
    if ONLY not in ISAS:
        pytest.skip(f"this CPU has no {ONLY}")
    result = import_it(extension)
    assert result.stdout.strip() == f"['{ONLY}'] {ONLY}", result.stderr


@pytest.mark.packaging
def test_an_isa_that_was_not_compiled_in_cannot_be_forced(extension):
    if ONLY not in ISAS:
        pytest.skip(f"this CPU has no {ONLY}")
    error = import_it(extension, TENSOR_OPS_ISA="scalar").stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert f"ISA 'scalar' cannot run here; possible: {ONLY}" in error


@pytest.mark.emulator
@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates an older x86-64 CPU")
def test_where_the_cpu_can_run_no_isa_of_the_build_the_import_says_so(extension):
    cpp_program.require("qemu-x86_64-static")
    result = import_it(extension, "qemu-x86_64-static", "-cpu", "core2duo")
    assert result.returncode == 1
    assert "this build holds only kernels that this CPU cannot run (avx2)" in result.stderr


@pytest.mark.packaging
def test_each_binding_compiles_in_under_700_megabytes(one_isa):
    _, objects = one_isa
    bindings = [path for path in objects if path.parent.name == "bindings"]
    assert len(bindings) == len(build.BINDING_SOURCES)
    taken = cpp_program.memory_taken(bindings)
    assert {name: size for name, size in taken.items() if size >= 700 * MEBIBYTE} == {}

"""The build description: what is compiled again and what is not, and a build for one ISA alone."""

import dataclasses
import os
import platform
import re
import shutil
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


def unit_in(folder):
    """A source that includes a header, and its object, in a folder of their own."""
    folder.mkdir()
    (folder / "number.h").write_text("int number();\n")
    source = folder / "number.cpp"
    source.write_text('#include "number.h"\nint number() { return 1; }\n')
    return build.Unit((source,), folder / "objects/number.o", ())


@pytest.fixture(params=["plain", "with a space, # and $"])
def unit(tmp_path, request):
    return unit_in(tmp_path / request.param)


def compiled(unit, capfd, toolchain=None):
    """Whether a build compiles the unit, or finds its object fresh."""
    objects = build.compile_all(toolchain or build.Toolchain.native(), [unit])
    assert objects == [unit.object]
    assert unit.object.exists()
    return "compiling" in capfd.readouterr().err


def edit(path):
    path.write_text(path.read_text() + "// edited\n")


def test_what_has_not_changed_is_not_compiled_again(unit, capfd):
    assert compiled(unit, capfd)
    assert not compiled(unit, capfd)


def test_an_edited_source_is_compiled_again(unit, capfd):
    compiled(unit, capfd)
    edit(unit.sources[0])
    assert compiled(unit, capfd)


def test_an_edited_header_is_noticed(unit, capfd):
    compiled(unit, capfd)
    edit(unit.sources[0].with_name("number.h"))
    assert compiled(unit, capfd)


def test_a_header_that_is_gone_is_noticed(unit, capfd):
    compiled(unit, capfd)
    unit.sources[0].with_name("number.h").unlink()
    with pytest.raises(build.BuildError, match=r"number\.h"):
        compiled(unit, capfd)


def test_a_file_with_another_date_and_the_same_content_is_not_compiled_again(unit, capfd):
    compiled(unit, capfd)
    os.utime(unit.sources[0], (2e9, 2e9))
    assert not compiled(unit, capfd)


def test_a_copy_of_the_folder_is_not_compiled_again(tmp_path, capfd):
    compiled(unit_in(tmp_path / "first"), capfd)
    copy = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "first", copy)
    moved = build.Unit((copy / "number.cpp",), copy / "objects/number.o", ())
    assert not compiled(moved, capfd)
    edit(copy / "number.h")
    assert compiled(moved, capfd)


def test_sources_are_compiled_as_one_and_each_is_watched(unit, capfd):
    other = unit.sources[0].with_name("other.cpp")
    other.write_text("int other() { return number(); }\n")
    both = dataclasses.replace(unit, sources=(unit.sources[0], other))
    assert compiled(both, capfd)
    assert not compiled(both, capfd)
    edit(unit.sources[0])
    assert compiled(both, capfd)
    edit(other)
    assert compiled(both, capfd)


def test_objects_of_another_build_are_taken_if_they_were_made_in_the_same_way(unit, capfd):
    compiled(unit, capfd)
    toolchain, made = build.Toolchain.native(), unit.object.parent
    other = made.with_name("other")
    wanted = dataclasses.replace(unit, object=other / "number.o")
    assert build.reused(toolchain, [wanted], other, made) == [unit]
    without = dataclasses.replace(wanted, flags=("-O1",))
    assert build.reused(toolchain, [without], other, made) == [without]
    edit(unit.sources[0])
    assert build.reused(toolchain, [wanted], other, made) == [wanted]


def test_the_build_says_what_it_compiled_and_what_that_took(unit, capfd):
    build.compile_all(build.Toolchain.native(), [unit])
    assert re.search(r"compiled 1 of 1 objects in \d+ s of CPU\n", capfd.readouterr().err)


@pytest.mark.parametrize("name", ["CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"])
def test_flags_of_the_environment_that_are_not_used_are_named(monkeypatch, name):
    for variable in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS"):
        monkeypatch.delenv(variable, raising=False)
    assert build.unused_variables() == ""
    monkeypatch.setenv(name, "-march=native")
    assert f"note: {name} of the environment is not used" in build.unused_variables()
    assert 'CXX="g++ -g"' in build.unused_variables()


def test_flags_may_follow_the_compiler_in_cxx(unit, capfd, monkeypatch):
    compiled(unit, capfd)
    monkeypatch.setenv("CXX", " ".join((*build.Toolchain.native().compiler, "-g")))
    assert compiled(unit, capfd)


def test_a_change_of_one_kernel_makes_a_part_of_the_build_again():
    """Bounds of seconds would be a machine's; these are counts of objects, and shares."""
    made = build.records(build.EXTENSION_OBJECTS)
    if not made:
        pytest.skip("the extension was not built in place")
    everything = sum(record.cpu_seconds for record in made.values())
    isas = cpp_program.isas.isas_for(build.Toolchain.native().machine)
    # linear_quantized.h is in two parts of each ISA: plain codes, and codes that are looked up.
    bounds = {"elementwise.h": 1, "attention.h": 1, "linear_f32.h": 1, "linear_quantized.h": 2}
    for header, parts in bounds.items():
        again = build.again_after(build.EXTENSION_OBJECTS, f"cpp_ext/kernels/{header}", made)
        assert 1 <= len(again) <= parts * len(isas), header
        most = 0.4 if parts == 1 else 0.5
        assert sum(record.cpu_seconds for record in again.values()) < most * everything, header


def test_other_flags_compile_again(unit, capfd):
    compiled(unit, capfd)
    assert compiled(dataclasses.replace(unit, flags=("-O1",)), capfd)


def test_an_error_shows_the_compilers_words_and_leaves_no_object(unit, capfd):
    compiled(unit, capfd)
    unit.sources[0].write_text("int number() { return one; }\n")
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
    toolchain = build.Toolchain.native()
    with pytest.MonkeyPatch.context() as environment, cpp_program.locked(folder):
        environment.setenv("TENSOR_OPS_ISA", ONLY)
        units = build.extension_units(toolchain, folder, airllm.__version__)
        units = build.reused(toolchain, units, folder, build.EXTENSION_OBJECTS)
        objects = build.compile_all(toolchain, units)
        build.link(toolchain, objects, output, build.shared_library_flags())
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
    assert {path.stem for path in objects if path.parent.name == "isa"} == {
        f"{ONLY}_{part}" for part in cpp_program.isas.PARTS
    }
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

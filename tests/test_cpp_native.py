"""The C++ tests (tests/cpp) on this machine: every kernel on every ISA that its CPU has."""

import subprocess
import sys

import cpp_program
import pytest
from subprocess_python import run_python

# The Linux kernel's names for what isas.py calls it.
CPUINFO = {
    "avx2": {"avx2"},
    "fma": {"fma"},
    "f16c": {"f16c"},
    "avxvnni": {"avx_vnni"},
    "avx512": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "avx512vnni": {"avx512_vnni"},
    "amx_int8": {"amx_tile", "amx_int8"},
    "neon": {"asimd"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
}


@pytest.fixture(scope="module")
def program():
    return cpp_program.native()


def tiles_are_granted():
    """Whether Linux lets a process use AMX: old kernels and some containers do not."""
    prctl, request_permission, tile_data = 158, 0x1023, 18  # of x86-64
    code = f"ctypes.CDLL(None).syscall({prctl}, {request_permission}, {tile_data})"
    return run_python(f"import ctypes; print({code})").stdout == "0\n"


@pytest.mark.parametrize("group", cpp_program.GROUPS)
def test_every_test_passes_on_every_isa_of_this_cpu(program, group):
    cpp_program.run(program, group)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/cpuinfo")
def test_the_isas_found_are_those_whose_features_the_system_lists(program):
    flags = cpp_program.cpu_flags()
    expected = [
        isa.name
        for isa in cpp_program.native_isas()
        if all(CPUINFO[need] <= flags for need in isa.needs)
        and ("amx_int8" not in isa.needs or tiles_are_granted())
    ]
    assert cpp_program.run(program, "dispatch") == expected


# Those that reach products of 8 bits; the other kernels of AVX-VNNI and AMX are others' objects.
PRODUCT_GROUPS = ("dispatch", "executor", "experts", "heads", "layer", "linear", "quantized")


@pytest.mark.isa
@pytest.mark.parametrize("group", PRODUCT_GROUPS)
def test_kernels_pass_on_what_stands_in_for_instructions_that_this_cpu_lacks(group):
    names, isas = cpp_program.with_stand_ins()
    if not names:
        pytest.skip("this CPU has AVX-VNNI and AMX, or no AVX-512 to stand in for them")
    toolchain = cpp_program.build.Toolchain.native()
    program = cpp_program.built("stand-in", toolchain, isas, PRODUCT_GROUPS)
    assert set(names) <= set(cpp_program.run(program, group))


# ---- the harness: what is wrong is seen ----------------------------------------------------------


@pytest.fixture(scope="module")
def broken_program(program, tmp_path_factory):
    """The program with one group more, whose tests go wrong in every way they can."""
    source = tmp_path_factory.mktemp("broken") / "test_broken.cpp"
    source.write_text(
        "#include <cstdlib>\n"
        f'#include "{cpp_program.ROOT}/tests/cpp/arrays.h"\n'
        'TEST(two_is_three) { check::equal(2, 3, "two"); }\n'
        'TEST(nan_is_near) { check::near("nan", arrays::not_a_number, 1, 1, "here"); }\n'
        'TEST(it_throws) { throw std::runtime_error("thrown"); }\n'
        "TEST(it_writes_past_the_end) { arrays::Floats x(3); x.data()[3] = 1; }\n"
        "KERNEL_TEST(no_kernel_adds) {\n"
        "    arrays::Floats x = arrays::normal(3, 1), y(3);\n"
        "    table.add(x.data(), x.data(), y.data(), 3);\n"
        '    check::that(arrays::same_bytes(x, y), "x + x is x");\n'
        "}\n"
        "TEST(it_dies) { std::abort(); }\n"
    )
    main = cpp_program.ROOT / "tests/cpp/main.cpp"
    toolchain, isas = cpp_program.build.Toolchain.native(), cpp_program.native_isas()
    return cpp_program.linked("native", toolchain, isas, [main, source], "broken")


def test_what_fails_is_reported_with_its_values_and_its_isa(broken_program):
    with pytest.raises(pytest.fail.Exception) as failure:
        cpp_program.run(broken_program)
    report = str(failure.value)
    assert "broken: two_is_three ... \n    test_broken.cpp:3: two: 2, expected 3\n" in report
    assert "nan here: nan, exact 1" in report
    assert "exception: thrown" in report
    assert "written outside of the array made here" in report
    first = cpp_program.native_isas()[0].name
    assert f"broken: no_kernel_adds [{first}] ... \n    test_broken.cpp:10: x + x is x\n" in report
    assert "broken: it_dies ... \nkilled by signal 6, in the last test above" in report


def test_a_group_that_does_not_exist_is_an_error(program):
    result = subprocess.run([program, "nonsense"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no tests in group nonsense" in result.stdout

"""TENSOR_OPS_ISA: the instruction set can be forced by name, and a name that cannot run says so."""

import numpy as np
import pytest
import subprocess_python
from extension import EVERY_ISA, ISAS, require_cpp

RUN = (
    "import numpy as np, tensor_ops_cpp as ops; "
    "x = np.linspace(-3, 3, 50, dtype=np.float32); "
    "assert abs(float(ops.silu(x).sum()) - float((x / (1 + np.exp(-x))).sum())) < 1e-4; "
)
KNOWN = ["scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "neon_dotprod", "neon_i8mm"]


@pytest.fixture(autouse=True)
def extension():
    return require_cpp()


def run(code, **variables):
    return subprocess_python.run_python(RUN + code, **variables)


def test_the_isas_are_listed_from_the_slowest_to_the_fastest(extension):
    available = extension.available_isas()
    assert available == [isa for isa in KNOWN if isa in available]


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_an_isa_is_forced_by_name(isa):
    result = run("print(ops.simd_level, ops.get_optimization_info()['isa'])", TENSOR_OPS_ISA=isa)
    assert result.stdout.split() == [isa, isa], result.stderr


def test_the_best_isa_is_chosen_unless_one_is_forced(extension):
    best = extension.available_isas()[-1]
    assert run("print(ops.simd_level)").stdout.strip() == best
    assert run("print(ops.simd_level)", TENSOR_OPS_ISA="").stdout.strip() == best


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_simd_is_what_every_isa_but_scalar_has(isa):
    result = run("print(ops.has_simd)", TENSOR_OPS_ISA=isa)
    assert result.stdout.strip() == str(isa != "scalar")


@pytest.mark.parametrize("name", ["avx9", "AVX2", "avx2 ", "../scalar"])
def test_an_unknown_name_is_an_import_error_that_lists_what_can_run(name):
    check_refused(name)


@pytest.mark.parametrize("name", sorted(set(KNOWN) - set(ISAS)))
def test_an_isa_of_another_cpu_is_an_import_error_that_lists_what_can_run(name):
    check_refused(name)


def check_refused(name):
    result = run("", TENSOR_OPS_ISA=name)
    assert result.returncode == 1  # an exception, not an abort
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert name in last_line
    assert all(isa in last_line for isa in ISAS)


def test_changing_the_isa_at_run_time_is_confirmed(extension):
    before = extension.simd_level
    try:
        for isa in extension.available_isas():
            extension.set_isa(isa)
            assert extension.simd_level == isa
            assert extension.get_optimization_info()["isa"] == isa
    finally:
        extension.set_isa(before)


def test_changing_to_an_isa_that_cannot_run_changes_nothing(extension):
    before = extension.simd_level
    with pytest.raises(ValueError, match=r"avx9.*scalar"):
        extension.set_isa("avx9")
    assert extension.simd_level == before


def test_a_matrix_packed_for_one_isa_still_works_after_a_change(extension):
    before = extension.simd_level
    data = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    x = np.ones((2, 64), np.float32)
    try:
        for packed_for in extension.available_isas():
            extension.set_isa(packed_for)
            matrix = extension.PackedMatrix(extension.quantize(data, "q8_0"), "q8_0", (40, 64))
            exact = extension.linear(x, matrix, activations="f32")
            for isa in extension.available_isas():
                extension.set_isa(isa)
                np.testing.assert_allclose(extension.linear(x, matrix), exact, atol=0.2)
    finally:
        extension.set_isa(before)


@pytest.mark.skipif(len(ISAS) < 2, reason="one ISA here")
def test_matrices_that_share_a_quantised_input_are_packed_for_one_isa(extension):
    """The kernels of each ISA round the input to tiles of their own shape."""
    before, rows = extension.simd_level, np.zeros((8, 34), np.uint8)
    x, matrices = np.ones((2, 32), np.float32), []
    try:
        for isa in (ISAS[0], ISAS[-1]):
            extension.set_isa(isa)
            matrices.append(extension.PackedMatrix(rows, "q8_0", (8, 32)))
    finally:
        extension.set_isa(before)
    with pytest.raises(ValueError, match="linear_many: the matrices were packed for different"):
        extension.linear_many(x, matrices)
    assert len(extension.linear_many(x, matrices, activations="f32")) == 2

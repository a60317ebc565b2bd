"""The binary that is built here on CPUs that lack most of what it could use, emulated by QEMU."""

import os
import platform
import subprocess
import sys

import cpp_program
import pytest
from extension import require_cpp

EMULATOR = "qemu-x86_64-static"
# Without AVX, 2006 (and 2008, the least that NumPy runs on); with AVX2 and FMA, 2013.
CORE_2, NEHALEM, HASWELL = ((EMULATOR, "-cpu", cpu) for cpu in ("core2duo", "Nehalem", "Haswell"))

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or sys.platform != "linux",
        reason="needs an x86-64 binary and QEMU's emulation of Linux",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def emulator():
    cpp_program.require(EMULATOR)


def run_python(code, emulator):
    """What Python prints, run by the emulator with the extension's folder on its path."""
    own = {"PYTHONPATH": str(cpp_program.ROOT), "TENSOR_OPS_ISA": ""}
    # OPENBLAS_CORETYPE would have NumPy use instructions that the emulated CPU lacks.
    others = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    result = subprocess.run(
        [*emulator, sys.executable, "-c", code],
        env={**others, **own},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("group", ["dispatch", "elementwise", "formats", "matmul", "layer"])
def test_a_cpu_without_avx_takes_scalar_and_passes(group):
    assert cpp_program.run(cpp_program.native(), group, emulator=CORE_2) == ["scalar"]


@pytest.mark.parametrize("group", ["dispatch", "layer"])
def test_a_cpu_with_avx2_takes_it_and_passes(group):
    isas = cpp_program.run(cpp_program.native(), group, emulator=HASWELL)
    assert isas == ["scalar", "avx2"]


def test_the_extension_imports_on_a_cpu_without_avx():
    require_cpp()
    assert run_python("import tensor_ops_cpp as ops; print(ops.simd_level)", CORE_2) == ["scalar"]


def test_the_extension_computes_on_a_cpu_without_avx():
    require_cpp()
    said = run_python(
        "import numpy as np, tensor_ops_cpp as ops\n"
        "random = np.random.default_rng(0)\n"
        "a, b = random.standard_normal((9, 40)), random.standard_normal((40, 33))\n"
        "single = lambda x: np.ascontiguousarray(x, np.float32)\n"
        "error = ops.matmul(single(a), single(b)) - a @ b\n"
        "w = ops.PackedMatrix(ops.quantize(single(random.standard_normal((33, 64))), 'q4_0'),\n"
        "                     'q4_0', (33, 64))\n"
        "x = random.standard_normal((2, 64))\n"
        "product = x @ w.dequantize().astype(np.float64).T\n"
        "share = np.linalg.norm(ops.linear(single(x), w) - product) / np.linalg.norm(product)\n"
        "print(ops.simd_level, np.abs(error).max() < 1e-5, share < 0.01)\n",
        NEHALEM,
    )
    assert said == ["scalar", "True", "True"]

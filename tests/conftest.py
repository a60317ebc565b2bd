"""The backends that operations are tested on: NumPy, and the extension on every ISA it can run.

AIRLLM_REQUIRE_CPP=1 (set where the extension must have been built, as in CI) turns the skipping of
tests that need the extension into failures.
"""

import importlib
import os

import pytest

from airllm import numpy_ops

try:
    cpp = importlib.import_module("tensor_ops_cpp")
    why_no_cpp = ""
except ImportError as error:
    cpp = None
    why_no_cpp = f"tensor_ops_cpp does not import: {error}"

ISAS = cpp.available_isas() if cpp else []


def require_cpp():
    """The extension, or a skipped (where it is required: a failed) test."""
    if cpp is None:
        if os.environ.get("AIRLLM_REQUIRE_CPP") == "1":
            pytest.fail(why_no_cpp)
        pytest.skip(why_no_cpp)
    return cpp


@pytest.fixture(scope="module", params=["numpy", *(f"cpp-{isa}" for isa in ISAS or ["missing"])])
def ops(request):
    """The operations on one backend and ISA after the other."""
    if request.param == "numpy":
        yield numpy_ops
        return
    extension = require_cpp()
    isa = request.param.removeprefix("cpp-")
    before = extension.simd_level
    extension.set_isa(isa)
    assert extension.simd_level == isa
    yield extension
    extension.set_isa(before)


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    """The operations on each backend, for what does not depend on the ISA."""
    return numpy_ops if request.param == "numpy" else require_cpp()

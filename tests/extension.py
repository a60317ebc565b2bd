"""The C++ extension, if it was built, and the instruction sets that it can run here.

The fastest of them is tested by default; the others have the marker `isa`.

AIRLLM_REQUIRE_CPP=1 (set where the extension must have been built, as in CI) turns the skipping of
tests that need it into failures.
"""

import contextlib
import importlib
import os

import pytest

try:
    _cpp = importlib.import_module("tensor_ops_cpp")
    _why_not = ""
except ImportError as error:
    _cpp = None
    _why_not = f"tensor_ops_cpp does not import: {error}"

ISAS = _cpp.available_isas() if _cpp else []


def _marked(name, isa):
    return pytest.param(name, marks=() if isa in ISAS[-1:] or not ISAS else pytest.mark.isa)


# For parameters: each ISA; and NumPy with the extension on each ISA.
EVERY_ISA = [_marked(isa, isa) for isa in ISAS or ["missing"]]
EVERY_BACKEND = ["numpy", *(_marked(f"cpp-{isa}", isa) for isa in ISAS or ["missing"])]


def require_cpp():
    """The extension, or a skipped (where it is required: a failed) test."""
    if _cpp is None:
        if os.environ.get("AIRLLM_REQUIRE_CPP") == "1":
            pytest.fail(_why_not)
        pytest.skip(_why_not)
    return _cpp


@contextlib.contextmanager
def forced_isa(isa):
    """The extension on that ISA, which is confirmed; afterwards on the one before."""
    cpp = require_cpp()
    before = cpp.simd_level
    cpp.set_isa(isa)
    try:
        assert cpp.simd_level == isa
        yield cpp
        assert cpp.simd_level == isa, "a test left another ISA behind"
    finally:
        cpp.set_isa(before)

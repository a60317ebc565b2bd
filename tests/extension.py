"""The C++ extension, if it was built, and the instruction sets that it can run here.

AIRLLM_REQUIRE_CPP=1 (set where the extension must have been built, as in CI) turns the skipping of
tests that need it into failures.
"""

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


def require_cpp():
    """The extension, or a skipped (where it is required: a failed) test."""
    if _cpp is None:
        if os.environ.get("AIRLLM_REQUIRE_CPP") == "1":
            pytest.fail(_why_not)
        pytest.skip(_why_not)
    return _cpp

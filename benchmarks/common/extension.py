"""The C++ extension, which the benchmarks measure."""

import importlib
import sys
from typing import Any

import common  # noqa: F401 (puts the checkout on the path)

try:
    cpp: Any = importlib.import_module("tensor_ops_cpp")
except ImportError as error:
    sys.exit(
        f"the C++ extension does not import: {error}\n"
        "Build it with `pip install .` or `python setup.py build_ext --inplace` in the checkout."
    )

"""Sub-interpreters (mod_wsgi starts one for each application): the extension refuses them, and
NumPy takes its place."""

import pytest
from extension import require_cpp
from subprocess_python import run_python

# Runs `code` in a sub-interpreter, if this Python can make one from Python code.
RUN = """
import sys
try:
    if sys.version_info >= (3, 13):
        import _interpreters
        create = lambda: _interpreters.create("legacy")
    else:
        import _xxsubinterpreters as _interpreters
        create = lambda: _interpreters.create(isolated=False)
except ImportError:
    sys.exit("no sub-interpreters")
failure = _interpreters.run_string(create(), CODE)
if failure is not None:
    sys.exit(str(failure))
"""

IMPORT = """
try:
    import tensor_ops_cpp
except ImportError as error:
    print(error, flush=True)
"""

HYBRID = """
import warnings
warnings.simplefilter("ignore")  # NumPy's, of sub-interpreters
import numpy as np
from airllm import tensor_ops_hybrid as ops
print(ops.backend, ops.silu(np.zeros(1, np.float32)), flush=True)
"""


def in_a_sub_interpreter(code, before="", **variables):
    """What the code prints."""
    require_cpp()
    done = run_python(before + RUN.replace("CODE", repr(code)), **variables)
    if done.stderr.strip() == "no sub-interpreters":
        pytest.skip("this Python makes no sub-interpreters from Python code")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("before", ["", "import tensor_ops_cpp\n"], ids=["first", "second"])
def test_an_import_is_refused_with_the_reason(before):
    says = in_a_sub_interpreter(IMPORT, before)
    assert "tensor_ops_cpp runs in Python's main interpreter only" in says
    assert "WSGIApplicationGroup %{GLOBAL}" in says


def test_the_operations_run_on_numpy():
    assert in_a_sub_interpreter(HYBRID) == "numpy [0.]\n"

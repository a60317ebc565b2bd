"""airllm.tensor_ops_hybrid: which backend is picked, and what is said about it."""

import inspect
import json

import pytest
from extension import require_cpp
from subprocess_python import run_python

from airllm import numpy_ops

IMPORT = "from airllm import tensor_ops_hybrid as ops; "
INFO = IMPORT + "import json; print(json.dumps(ops.get_backend_info()))"
FALLBACK = "Running on NumPy"


@pytest.fixture
def fake_extension(tmp_path_factory):
    """Writes a `tensor_ops_cpp.py` with the given code; returns where to import it from."""

    def write(code):
        folder = tmp_path_factory.mktemp("extension")
        (folder / "tensor_ops_cpp.py").write_text(code, encoding="utf-8")
        return [folder]

    return write


@pytest.fixture
def missing(fake_extension):
    return fake_extension(
        'raise ModuleNotFoundError("No module named tensor_ops_cpp", name="tensor_ops_cpp")'
    )


@pytest.fixture
def broken(fake_extension):
    return fake_extension('raise ImportError("libgone.so.6: cannot open shared object file")')


@pytest.fixture
def working(fake_extension):
    """An extension that has everything: NumPy's, under another level's name."""
    return fake_extension("from airllm.numpy_ops import *\nhas_simd, simd_level = True, 'fake'")


def test_the_extension_is_used_when_it_imports(working):
    result = run_python(IMPORT + "print(ops.backend, ops.simd_level)", path=working)
    assert result.stdout.split() == ["cpp", "fake"]
    assert result.stderr == ""


def test_auto_is_what_no_variable_means(working):
    for choice in ("", "auto"):
        result = run_python(IMPORT + "print(ops.backend)", path=working, AIRLLM_BACKEND=choice)
        assert result.stdout.strip() == "cpp"


def test_numpy_can_be_asked_for_and_then_nothing_is_said(working, broken):
    code = IMPORT + "print(ops.backend, ops.simd_level, ops.has_simd)"
    for path in (working, broken):
        result = run_python(code, path=path, AIRLLM_BACKEND="numpy")
        assert result.stdout.split() == ["numpy", "numpy", "False"]
        assert result.stderr == ""


def test_without_the_extension_numpy_runs_and_the_log_says_why(missing):
    result = run_python(IMPORT + "print(ops.backend)", path=missing)
    assert result.stdout.strip() == "numpy"
    assert "tensor_ops_cpp is not installed" in result.stderr
    assert FALLBACK in result.stderr
    assert "pip install" in result.stderr


def test_a_broken_extension_is_reported_with_its_own_reason(broken):
    result = run_python(IMPORT + "print(ops.backend)", path=broken)
    assert result.stdout.strip() == "numpy"
    assert "libgone.so.6: cannot open shared object file" in result.stderr
    assert FALLBACK in result.stderr


def test_an_extension_that_fails_in_an_unexpected_way_is_only_broken(fake_extension):
    path = fake_extension("raise SystemError('initialization failed')")
    result = run_python(IMPORT + "print(ops.backend)", path=path)
    assert result.stdout.strip() == "numpy"
    assert "initialization failed" in result.stderr


def test_an_extension_that_misses_what_it_imports_is_broken_and_not_missing(fake_extension):
    result = run_python(IMPORT, path=fake_extension("import no_such_module"))
    assert "does not import: No module named 'no_such_module'" in result.stderr


def test_an_extension_of_another_version_is_named_with_what_it_lacks(fake_extension):
    path = fake_extension("from airllm.numpy_ops import *\ndel rope, softmax")
    result = run_python(IMPORT + "print(ops.backend)", path=path)
    assert result.stdout.strip() == "numpy"
    assert "lacks rope, softmax" in result.stderr


def test_the_reason_is_given_once(broken):
    assert run_python(IMPORT * 2, path=broken).stderr.count(FALLBACK) == 1


def test_the_report_goes_to_the_logger_named_airllm(broken):
    code = "import logging; logging.getLogger('airllm').setLevel('ERROR'); " + IMPORT
    assert run_python(code, path=broken).stderr == ""


def test_asking_for_cpp_without_it_is_an_import_error_with_reason_and_way_out(missing, broken):
    for path, reason in ((missing, "is not installed"), (broken, "libgone.so.6")):
        result = run_python(IMPORT, path=path, AIRLLM_BACKEND="cpp")
        last_line = result.stderr.strip().splitlines()[-1]
        assert last_line.startswith("ImportError: ")
        assert reason in last_line
        assert "pip install" in last_line
        assert "AIRLLM_BACKEND=numpy" in last_line


def test_an_unknown_backend_is_a_value_error_that_lists_the_known_ones(working):
    result = run_python(IMPORT, path=working, AIRLLM_BACKEND="cuda")
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line == 'ValueError: AIRLLM_BACKEND is "cuda"; expected auto or cpp or numpy.'


def test_an_isa_that_cannot_run_is_an_error_and_not_a_fallback(fake_extension):
    path = fake_extension("raise ImportError(\"ISA 'avx9' cannot run here; possible: scalar\")")
    result = run_python(IMPORT, path=path, TENSOR_OPS_ISA="avx9")
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert "'avx9' cannot run here; possible: scalar" in last_line


def test_an_isa_named_without_the_extension_does_not_keep_numpy_from_running(missing):
    result = run_python(IMPORT + "print(ops.backend)", path=missing, TENSOR_OPS_ISA="avx2")
    assert result.stdout.strip() == "numpy"


def test_both_backends_offer_every_operation(backend):
    assert [name for name in numpy_ops.__all__ if not hasattr(backend, name)] == []


def test_the_hybrid_calls_the_operations_of_the_backend_it_picked(fake_extension):
    path = fake_extension(
        "from airllm.numpy_ops import *\nhas_simd, simd_level = True, 'fake'\n"
        "for name in [n for n in dict(globals()) if callable(globals()[n])]:\n"
        "    globals()[name] = lambda *a, name=name, **k: (name, a, k)\n"
    )
    code = IMPORT + (
        "from airllm import numpy_ops; import inspect; "
        "called = [n for n in numpy_ops.__all__ if inspect.isfunction(getattr(numpy_ops, n))]; "
        "print(all(getattr(ops, n)(1, b=2) == (n, (1,), {'b': 2}) for n in called), len(called))"
    )
    assert run_python(code, path=path).stdout.split()[0] == "True"


def test_a_changed_isa_shows_at_once(working):
    code = IMPORT + "import tensor_ops_cpp; tensor_ops_cpp.simd_level = 'x'; print(ops.simd_level)"
    assert run_python(code, path=working).stdout.strip() == "x"


def test_an_unknown_name_is_an_attribute_error(working):
    result = run_python(IMPORT + "ops.no_such_operation", path=working)
    assert "AttributeError" in result.stderr
    assert "no_such_operation" in result.stderr


def test_backend_info_says_what_runs_and_why(broken):
    info = json.loads(run_python(INFO, path=broken).stdout)
    assert info["backend"] == "numpy"
    assert info["requested"] == "auto"
    assert "libgone.so.6" in info["fallback_reason"]
    assert info["simd_level"] == "numpy"
    assert info["has_simd"] is False
    assert info["available_isas"] == []
    assert info["threads"] >= 1
    assert info["cpu_budget"]["chosen"] == info["threads"]


def test_backend_info_has_no_fallback_reason_without_a_fallback(working):
    info = json.loads(run_python(INFO, path=working).stdout)
    assert (info["backend"], info["fallback_reason"]) == ("cpp", None)


def test_print_backend_info_prints_every_entry(working):
    code = IMPORT + "ops.print_backend_info(); print(*ops.get_backend_info())"
    *lines, names = run_python(code, path=working).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == names.split()


def test_the_two_backends_describe_themselves_alike(backend):
    info = backend.get_optimization_info()
    assert {"isa", "threads", "compiler", "flags", "version"} <= info.keys()
    assert info["isa"] == backend.simd_level
    budget = backend.cpu_budget()
    assert {"affinity", "cgroup_quota", "env", "chosen", "reason"} <= budget.keys()
    assert budget["chosen"] >= 1
    assert backend.get_num_threads() >= 1


# What the functions say of themselves.


def described(code, backend):
    head = "import inspect, numpy as np\nfrom airllm import tensor_ops_hybrid as ops\n"
    result = run_python(head + code, AIRLLM_BACKEND=backend)
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(params=["cpp", "numpy"])
def chosen(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def test_every_operation_has_a_signature_that_inspect_reads(chosen):
    code = """
for name in ops.__all__:
    if inspect.isfunction(getattr(ops, name)):
        print(name, *inspect.signature(getattr(ops, name)).parameters)
        assert getattr(ops, name).__doc__
"""
    lines = described(code, chosen).splitlines()
    assert "linear x w activations out" in lines
    assert "softmax x out" in lines
    functions = [name for name in numpy_ops.__all__ if inspect.isfunction(getattr(numpy_ops, name))]
    assert {line.split()[0] for line in lines} >= set(functions)


def test_a_star_import_brings_the_operations_and_the_backend(chosen):
    code = "from airllm.tensor_ops_hybrid import *\nprint(backend, softmax.__name__, logging)"
    result = run_python(code, AIRLLM_BACKEND=chosen)
    assert "name 'logging' is not defined" in result.stderr
    code = "from airllm.tensor_ops_hybrid import *\nprint(backend, softmax.__name__, simd_level)"
    assert described(code, chosen).split()[:2] == [chosen, "softmax"]


def test_a_call_that_does_not_fit_is_told_the_signature(chosen):
    code = """
x = np.zeros((2, 2), np.float32)
for call in (lambda: ops.softmax(x, axis=0), lambda: ops.linear(x), lambda: ops.silu(x, x, x)):
    try:
        call()
    except TypeError as error:
        print(error)
"""
    assert described(code, chosen).splitlines() == [
        "softmax: there is no argument 'axis': the last axis is the feature axis; expected "
        "softmax(x, *, out=None)",
        "linear: missing a required argument: 'w'; expected linear(x, w, *, activations='auto', "
        "out=None)",
        "silu: too many positional arguments; expected silu(x, *, out=None)",
    ]


def test_a_wrong_type_keeps_the_message_of_the_operation(chosen):
    code = """
try:
    ops.softmax(3)
except TypeError as error:
    print(error)
"""
    assert described(code, chosen).startswith("softmax: x is an int; expected a numpy array")

"""The type stubs of the extension, the extension itself, and NumPy's operations have one API."""

import ast
import inspect
from pathlib import Path

import pytest
from extension import require_cpp

from airllm import numpy_ops

STUBS = Path(__file__).parent.parent / "tensor_ops_cpp-stubs/__init__.pyi"
MODULE = ast.parse(STUBS.read_text(encoding="utf-8"))
FUNCTIONS = {node.name: node for node in MODULE.body if isinstance(node, ast.FunctionDef)}
CLASSES = {node.name: node for node in MODULE.body if isinstance(node, ast.ClassDef)}
VARIABLES = {node.target.id for node in MODULE.body if isinstance(node, ast.AnnAssign)}
VARIABLES -= {name for name in VARIABLES if name.startswith("_") and name != "__version__"}
BY_NUMPY = [name for name in numpy_ops.__all__ if inspect.isfunction(getattr(numpy_ops, name))]


def parameters(function):
    """(name, positional or keyword, default) of each, of a function as the stub writes it down."""
    a = function.args
    assert not a.posonlyargs
    assert a.vararg is None
    assert a.kwarg is None
    none = [None] * (len(a.args) - len(a.defaults))
    positional = zip(a.args, [*none, *a.defaults], strict=True)
    keyword = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    return [
        (arg.arg, kind, default and ast.literal_eval(default))
        for kind, group in (("positional", positional), ("keyword", keyword))
        for arg, default in group
    ]


def documented(function):
    """The same of an extension's function, whose docstring begins with its signature."""
    signature = function.__doc__.splitlines()[0]
    return parameters(ast.parse(f"def {signature}: ...").body[0])


def methods(node):
    return {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}


def is_property(method):
    return [ast.unparse(decorator) for decorator in method.decorator_list] == ["property"]


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_every_name_of_the_module_is_in_the_stubs_and_no_other():
    cpp = require_cpp()
    found = public(dir(cpp)) | {"__version__", "has_simd", "simd_level"}
    assert found == FUNCTIONS.keys() | CLASSES.keys() | VARIABLES
    assert all(hasattr(cpp, name) for name in VARIABLES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_parameters_and_defaults_that_the_stub_says(name):
    assert parameters(FUNCTIONS[name]) == documented(getattr(require_cpp(), name))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_methods_and_properties_that_the_stub_says(name):
    cls = getattr(require_cpp(), name)
    stub = methods(CLASSES[name])
    assert public(dir(cls)) == public(stub)
    for key, method in stub.items():
        if is_property(method):
            assert isinstance(inspect.getattr_static(cls, key), property)
        else:
            assert parameters(method) == documented(getattr(cls, key)), key


@pytest.mark.parametrize("name", BY_NUMPY)
def test_numpys_function_of_the_same_name_has_the_same_parameters(name):
    source = ast.parse(inspect.getsource(inspect.unwrap(getattr(numpy_ops, name)))).body[0]
    assert parameters(source) == parameters(FUNCTIONS[name])

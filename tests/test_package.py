"""`import airllm`: what is at its top, how quick it is, and the base of its exceptions."""

import importlib
import inspect
import pkgutil

import pytest
from subprocess_python import run_python

import airllm


def test_the_names_at_the_top_are_those_of_their_modules() -> None:
    from airllm.layer_engine import LayerWiseInferenceEngine
    from airllm.util.errors import AirllmError

    assert airllm.LayerWiseInferenceEngine is LayerWiseInferenceEngine
    assert airllm.AirllmError is AirllmError
    for name in airllm.__all__:
        assert name in dir(airllm)
        assert getattr(airllm, name) is not None


def test_importing_the_package_imports_neither_numpy_nor_the_engine() -> None:
    code = """
import sys, airllm
heavy = {"numpy", "tokenizers", "jinja2", "tqdm", "tensor_ops_cpp", "asyncio", "huggingface_hub"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "LayerWiseInferenceEngine" in dir(airllm)
from airllm import LayerWiseInferenceEngine
assert "numpy" in sys.modules
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'airllm' has no attribute 'nothing'"):
        _ = airllm.nothing


def own_exceptions() -> list[type[BaseException]]:
    found = []
    for module in pkgutil.walk_packages(airllm.__path__, "airllm."):
        if module.name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__ == module.name:
                found.append(kind)
    return found


def test_every_public_exception_has_the_one_base() -> None:
    public = [kind for kind in own_exceptions() if not kind.__name__.startswith("_")]
    assert {"FormatError", "BudgetError", "HubError"} <= {kind.__name__ for kind in public}
    assert [kind for kind in public if not issubclass(kind, airllm.AirllmError)] == []


def test_exceptions_that_were_value_errors_still_are() -> None:
    for kind in (airllm.FormatError, airllm.BudgetError, airllm.ContextFullError):
        assert issubclass(kind, ValueError)

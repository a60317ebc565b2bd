"""The table of ops: one in Python, one in C++, and what the backends say of themselves."""

from types import NoneType
from typing import get_type_hints

import pytest
from extension import require_cpp

from airllm.backends import load_backend, numpy_backend
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import GraphError
from airllm.graph.ops import SIGNATURES


def as_cpp_says(signature):
    return {
        "inputs": len(signature.inputs),
        "output": get_type_hints(signature.width)["return"] is not NoneType,
        "weights": signature.weights,
        "optional": signature.optional,
        "many": signature.many,
    }


def test_the_tables_of_python_and_cpp_agree_in_every_op():
    cpp = require_cpp()
    expected = {kind: as_cpp_says(signature) for kind, signature in SIGNATURES.items()}
    assert cpp.graph_ops() == expected


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return load_backend(request.param)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_both_backends_support_every_op(backend, kind):
    assert backend.supports(kind)


def test_no_backend_supports_a_name_that_is_no_op(backend):
    assert not backend.supports("convolution")


def test_a_graph_with_an_op_that_the_backend_lacks_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(numpy_backend.OPS, "silu")
    g = GraphBuilder("mlp")
    x = g.external("x", 4)
    g.add(x, g.silu(g.silu(x)), out=x)
    with pytest.raises(GraphError, match="graph 'mlp': the numpy backend has no op silu; choose"):
        load_backend("numpy").executor(g.build(), 1)


def test_the_cpp_backend_supports_what_the_extension_lists(monkeypatch):
    require_cpp()
    from airllm.backends import cpp_backend

    monkeypatch.delitem(cpp_backend._OPS, "silu")
    assert not load_backend("cpp").supports("silu")


@pytest.mark.parametrize("kind", SIGNATURES)
def test_an_op_counts_its_flops_by_a_buffer_that_it_has(kind):
    own = ["state"] if SIGNATURES[kind].state is not None else ["out"]
    assert SIGNATURES[kind].per in (*SIGNATURES[kind].inputs, *own)

"""Graphs of one op, run on a backend, and how near their results must be."""

import numpy as np
from extension import require_cpp

from airllm.backends import Backend, load_backend
from airllm.graph.builder import GraphBuilder

# Largest error over the largest value; a few roundings of float32, sums of up to 96 products.
EXACT = 2e-6


def backend_named(name: str) -> Backend:
    """The backend, or a skipped test."""
    if name == "cpp":
        require_cpp()
    return load_backend(name)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(backend: Backend, build, inputs, weights, max_tokens=None):
    """What a graph of one op gives: build(g, buffers, slots) -> the op's output.

    inputs: [n_tokens, width] by name; weights: float32 arrays by name.
    """
    g = GraphBuilder("one op", activations="f32")
    buffers = [g.external(name, array.shape[1]) for name, array in inputs.items()]
    slots = [g.weight(name, *array.shape) for name, array in weights.items()]
    made = build(g, *buffers, *slots)
    zero = g.external("zero", made.width)
    g.add(made, zero, out=zero)  # the graph's output is what the caller passes
    n_tokens = len(next(iter(inputs.values())))
    graph = g.build()
    executor = backend.executor(graph, max_tokens or n_tokens)
    bound = executor.bind(
        {
            name: backend.weight(graph.roles[name], array.view(np.uint8), "f32", array.shape)
            for name, array in weights.items()
        }
    )
    out = np.zeros((n_tokens, made.width), np.float32)
    executor.run(bound, inputs | {"zero": out}, n_tokens)
    return out


def assert_close(actual, expected, bound=EXACT):
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= bound, f"error {error:.1e}, allowed {bound:.0e}"

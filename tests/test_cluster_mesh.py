"""Clusters of our workers on this machine, driven by the tests' own root."""

import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_root import Root
from variants import variant
from worker_threads import addresses, workers

# Of the largest logit. F32: sums of up to 256 products in another order. Q80: a rounding that tips
# is one 127th of a block's largest value, and moves others after it.
F32_BOUND, Q80_BOUND = 3e-6, 0.03

SHAPES = {
    "llama": Shape("llama", True),
    "llama-f32": Shape("llama", False),
    "qwen3": Shape("qwen3", True, heads=16, theta=1e6),
    "qwen3-f32": Shape("qwen3", False, heads=16, theta=1e6),
    "qwen3moe": Shape("qwen3moe", True, experts=5, active=2),
}


def assert_close(logits, expected, shape):
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error <= (Q80_BOUND if shape.quantized else F32_BOUND)


@pytest.mark.parametrize("n", [variant(1), 3, variant(7)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_cluster_computes_the_models_logits(name, n):
    model = Model(SHAPES[name], seed=n)
    expected = model.reference(model.tokens, n + 1)
    with workers(n) as made:
        root = Root(model, addresses(made))
        assert_close(root.run(model.tokens), expected, model.shape)
        root.stop()


@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_tokens_one_by_one_give_the_same_as_a_batch(name):
    model = Model(SHAPES[name])
    tokens = model.tokens[:24]
    with workers(3) as made:
        root = Root(model, addresses(made))
        assert_close(root.run(tokens, batch=1), model.reference(tokens, 4), model.shape)
        root.stop()


@pytest.mark.parametrize("name", SHAPES)
def test_numpy_workers_do_the_same(name):
    model = Model(SHAPES[name])
    tokens = model.tokens[:12]
    with workers(1, "numpy") as made:
        root = Root(model, addresses(made))
        assert_close(root.run(tokens, batch=5), model.reference(tokens, 2), model.shape)
        root.stop()


def test_a_root_may_go_back_in_position():
    model = Model(SHAPES["llama"])
    with workers(1) as made:
        root = Root(model, addresses(made))
        first = root.run(model.tokens)
        again = root.step(model.tokens[10:20], 10)
        np.testing.assert_array_equal(again, root.step(model.tokens[10:20], 10))
        assert_close(again, first[10:20], model.shape)
        root.stop()


def test_sessions_in_a_row_leave_nothing_behind():
    models = [Model(SHAPES[name], seed=i) for i, name in enumerate(["llama", "qwen3", "llama"])]
    with workers(3) as made:
        for model in models:
            root = Root(model, addresses(made))
            assert_close(root.run(model.tokens), model.reference(model.tokens, 4), model.shape)
            root.stop()
            for worker in made:
                worker.report.wait_until_idle()


def test_one_thread_or_two_give_the_same_bits():
    model = Model(SHAPES["qwen3moe"])
    logits = []
    for threads in (1, 2):
        with workers(1, threads=threads) as made:
            root = Root(model, addresses(made))
            logits.append(root.run(model.tokens))
            root.stop()
    np.testing.assert_array_equal(*logits)

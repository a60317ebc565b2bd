"""How prompts are cut: no bit depends on where, and no batch is larger than allowed."""

import numpy as np
import pytest
from extension import require_cpp
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import Sizes, write_tiny_model
from variants import variant

from airllm.engine.pieces import Kinds, even_batches
from airllm.layer_engine import LayerWiseInferenceEngine

KINDS = st.builds(Kinds, st.integers(1, 600), st.booleans(), st.booleans())


@given(KINDS, st.integers(1, 2000))
def test_runs_are_the_batches_of_an_evaluation(kinds, n):
    runs = kinds.runs(n)
    assert [runs[0].start, *(run.stop for run in runs)] == [
        *(run.start for run in runs),
        n,
    ]
    by_token = kinds.by_token(n)
    for start, stop in even_batches(n, kinds.batch_size):
        assert set(by_token[start:stop].tolist()) == {kinds.of(stop - start)}


@given(KINDS, st.integers(1, 2000), st.integers(1, 600), st.data())
def test_pieces_are_of_the_kinds_that_the_tokens_have_alone(kinds, n, most, data):
    length = kinds.reusable(data.draw(st.integers(0, n)), n)
    sizes = kinds.pieces_after(length, n, most)
    assert length < n
    assert sum(sizes) == n - length
    assert max(sizes) <= kinds.batch_size
    by_token, at = kinds.by_token(n), length
    for size in sizes:
        assert set(by_token[at : at + size].tolist()) == {kinds.of(size)}
        at += size
    if kinds.any_batch and most >= 130:
        assert max(sizes) <= most


@given(st.integers(1, 2000), st.integers(0, 2000), st.booleans())
def test_all_but_a_small_rest_can_be_reused(n, most, rounds):
    """The rest is as large as its kind of batch wants it, and no larger."""
    kinds = Kinds(512, True, rounds)
    least = kinds.of(n)
    assert kinds.reusable(most, n) == max(0, min(most, n - least))


def test_numpy_reuses_whole_batches():
    kinds = Kinds(100, False, True)
    assert [kinds.reusable(most, 300) for most in (99, 100, 199, 250, 300)] == [
        0,
        100,
        100,
        200,
        200,
    ]
    assert kinds.pieces_after(100, 300, 10) == [100, 100]


@pytest.mark.parametrize("activations", ["auto", "q8", variant("q16"), variant("f32")])
@pytest.mark.parametrize("type", ["q4_0", variant("f16"), variant("f32"), variant("q6_k")])
@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_logits_after_any_pieces_are_those_of_one_evaluation_bit_for_bit(
    tmp_path, backend, type, activations
):
    if backend == "cpp":
        require_cpp()
    sizes = Sizes(hidden=256, ffn=512, n_layers=2, head_dim=64, rope_dims=64, context=320)
    path = write_tiny_model(tmp_path, type, sizes=sizes).path
    random = np.random.default_rng(2)
    settings = {"backend": backend, "activations": activations, "batch_size": 150}
    with LayerWiseInferenceEngine(path, **settings) as engine:
        kinds = engine._model.decoder.kinds
        for n in (2, 40, 64, 65, 130, 151, 320):
            tokens = random.integers(0, 268, n).tolist()
            engine.reset()
            whole = engine.forward(tokens).copy()
            for most in (70, 129):
                engine.reset()
                length, at = kinds.reusable(int(random.integers(0, n)), n), 0
                # The first part is evaluated as it is in the whole, then the rest after it.
                first = kinds.pieces_after(0, n, most)
                while first and at + first[0] <= length:
                    engine.forward(tokens[at : at + first[0]])
                    at += first.pop(0)
                length = kinds.reusable(at, n)
                engine._model.decoder.state.trim(length)
                for size in kinds.pieces_after(length, n, most):
                    logits = engine.forward(tokens[length : length + size])
                    length += size
                np.testing.assert_array_equal(logits, whole)

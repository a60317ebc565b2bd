"""Embeddings: the last hidden states, pooled as the file or the caller says."""

import numpy as np
import pytest
from extension import require_cpp
from family_models import ARCHITECTURES, VOCAB, write_family_model
from scheduling import NoText, Told, ask, run
from tiny_model import write_tiny_model
from variants import variant

from airllm.engine.requests import Embedded, Request
from airllm.layer_engine import ContextFullError
from airllm.layer_engine import LayerWiseInferenceEngine as Engine

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 90).tolist()
EXACT = {"kv_type": "f32", "activations": "f32", "batch_size": 32}


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


@pytest.fixture
def engine(tmp_path, backend):
    with Engine(write_tiny_model(tmp_path).path, backend=backend, **EXACT) as engine:
        yield engine


def hidden_of(engine, n):
    """The last hidden state of each of the first tokens, each evaluated as the last one."""
    return np.stack([engine.embed(TOKENS[: i + 1], pooling="last") for i in range(n)])


@pytest.mark.parametrize(
    "architecture",
    [
        each if each in ("llama", "gemma3n", "kimi-k3", "cohere2", "gemma2") else variant(each)
        for each in ARCHITECTURES
    ],
)
def test_the_head_makes_the_logits_of_the_last_hidden_state(tmp_path, backend, architecture):
    path = write_family_model(tmp_path, architecture)
    with Engine(path, backend=backend, **EXACT) as engine:
        engine._model.prompts.tokenizer = NoText()
        hidden = engine.embed(TOKENS, pooling="last")
        file, config = engine._model.planned.file, engine.config
        name = "token_embd.weight" if config.tied_embeddings else "output.weight"
        matrix = file.data(name).view(np.float32).reshape(VOCAB, -1)
        logits = matrix.astype(np.float64) @ hidden * config.logit_scale
        if "output.bias" in file.tensors:
            logits = logits + file.data("output.bias").view(np.float32)
        if config.final_softcap:
            logits = config.final_softcap * np.tanh(logits / config.final_softcap)
        expected = engine.forward(TOKENS)
        assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)


def test_pooling_takes_the_last_the_first_or_the_mean(engine):
    each = hidden_of(engine, 40)
    np.testing.assert_allclose(engine.embed(TOKENS[:40], pooling="cls"), each[0], atol=1e-5)
    mean = engine.embed(TOKENS[:40], pooling="mean")
    np.testing.assert_allclose(mean, each.mean(axis=0), atol=1e-5)
    assert mean.dtype == np.float32
    assert mean.shape == (64,)


@pytest.mark.parametrize(
    ("number", "pooling"), [(None, "last"), (1, "mean"), (2, "cls"), (3, "last")]
)
def test_the_models_file_says_how_to_pool(tmp_path, number, pooling):
    path = write_tiny_model(tmp_path, metadata={"llama.pooling_type": number}).path
    with Engine(path, backend="numpy") as engine:
        np.testing.assert_array_equal(
            engine.embed(TOKENS[:9]), engine.embed(TOKENS[:9], pooling=pooling)
        )


def test_a_pooling_that_there_is_not_is_an_error_unless_another_is_asked_for(tmp_path):
    path = write_tiny_model(tmp_path, metadata={"llama.pooling_type": 4}).path
    with Engine(path, backend="numpy") as engine:
        with pytest.raises(ValueError, match="pooling of type 4"):
            engine.embed(TOKENS[:9])
        assert engine.embed(TOKENS[:9], pooling="mean").shape == (64,)


def test_an_embedding_may_be_normalised(engine):
    plain, normal = engine.embed("hello world"), engine.embed("hello world", normalize=True)
    assert np.linalg.norm(normal) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(normal * np.linalg.norm(plain), plain, rtol=1e-5)


def test_an_embedding_leaves_the_cache_alone(engine):
    engine.forward(TOKENS[:10])
    engine.embed(TOKENS)
    assert engine.position == 10


@pytest.mark.parametrize(
    ("text", "settings", "error", "message"),
    [
        ("", {}, ValueError, "the prompt is empty"),
        ([], {}, ValueError, "n at least 1"),
        ([1] * 97, {}, ContextFullError, "the prompt has 97 tokens"),
        ("x" * 3000, {}, ContextFullError, "the prompt has"),
        ("x", {"pooling": "sum"}, ValueError, "pooling is 'sum'"),
    ],
)
def test_what_cannot_be_embedded_is_refused(engine, text, settings, error, message):
    with pytest.raises(error, match=message):
        engine.embed(text, **settings)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_scheduler_gives_the_same_embeddings_beside_answers(tmp_path, backend, pooling):
    path = write_family_model(tmp_path, "gemma3", **{"gemma3.context_length": 400})
    prompt = np.random.default_rng(4).integers(0, VOCAB, 350).tolist()
    with Engine(path, backend=backend) as engine:
        engine._model.prompts.tokenizer = NoText()
        expected = engine.embed(prompt, pooling=pooling)
        with engine.scheduler(piece_tokens=70) as scheduler:
            for is_again in (False, True):
                _, answer = ask(scheduler, prompt[:40])
                told = Told()
                scheduler.submit(Request(prompt, embedding=pooling, reuse="exact"), told)
                run(scheduler)
                (embedded,) = told.of(Embedded)
                np.testing.assert_array_equal(embedded.embedding, expected)
                assert embedded.prompt_tokens == 350
                reuses = is_again and pooling == "last" and backend == "cpp"
                assert bool(embedded.reused_tokens) == reuses
                assert len(answer.answer.tokens) == 8

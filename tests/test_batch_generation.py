"""Several prompts at once: each answer is the one that its prompt gets alone."""

import gc
import weakref

import numpy as np
import pytest
from extension import require_cpp
from tiny_model import FAMILIES, Sizes, write_tiny_model

from airllm.layer_engine import ContextFullError, LayerWiseInferenceEngine

PROMPTS = ["hello world", "a", "the quick brown fox jumps over the lazy dog", "x" * 40, "hello"]
SETTINGS = {"max_new_tokens": 25, "temperature": 1.0, "seed": 3}


@pytest.fixture(params=["numpy", "cpp"])
def engine(request, tmp_path):
    if request.param == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path, "f32" if request.param == "numpy" else "q8_0")
    with LayerWiseInferenceEngine(model.path, backend=request.param) as engine:
        yield engine


def alone(engine, prompts, **settings):
    return [engine.generate(prompt, **SETTINGS | settings) for prompt in prompts]


def assert_same(batch, expected):
    assert [g.tokens for g in batch] == [g.tokens for g in expected]
    assert [g.text for g in batch] == [g.text for g in expected]
    assert [g.finish_reason for g in batch] == [g.finish_reason for g in expected]


def assert_each_is_as_alone(engine, n):
    """Logits of n sequences that go on together, bit for bit."""
    steps = np.random.default_rng(1).integers(0, 268, (6, n))
    with engine.sequences(n) as sequences:
        together = [sequences.forward(step).copy() for step in steps]
    for lane in range(n):
        engine.reset()
        for step, logits in zip(steps, together, strict=True):
            np.testing.assert_array_equal(engine.forward([step[lane]]), logits[lane])


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_answers_are_those_of_generate_in_the_prompts_order(engine, batch):
    found = engine.generate_batch(PROMPTS, batch=batch, **SETTINGS)
    assert_same(found, alone(engine, PROMPTS))
    assert [g.prompt_tokens for g in found] == [len(engine.tokenize(p)) for p in PROMPTS]


def test_greedy_answers_are_those_of_generate(engine):
    greedy = {"temperature": 0, "seed": None}
    found = engine.generate_batch(PROMPTS, **SETTINGS | greedy)
    expected = []
    for prompt in PROMPTS:
        engine.reset()
        expected += alone(engine, [prompt], **greedy)
    assert_same(found, expected)


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0", "q4_1"])
@pytest.mark.parametrize(
    ("backend", "activations"), [("cpp", "auto"), ("cpp", "f32"), ("numpy", "auto")]
)
def test_logits_in_a_batch_are_those_alone_bit_for_bit(tmp_path, type, backend, activations):
    if backend == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path, type)
    settings = {"backend": backend, "activations": activations}
    with LayerWiseInferenceEngine(model.path, **settings) as engine:
        assert_each_is_as_alone(engine, 5)


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_more_sequences_than_are_evaluated_at_once_go_in_shares(tmp_path, backend):
    if backend == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path, "q4_0")
    with LayerWiseInferenceEngine(model.path, backend=backend, batch_size=3) as engine:
        assert_same(engine.generate_batch(PROMPTS, batch=5, **SETTINGS), alone(engine, PROMPTS))
        assert_each_is_as_alone(engine, 5)


@pytest.mark.parametrize("family", ["gemma2", "qwen3moe"])
def test_windows_softcaps_and_experts_work_in_batches_too(tmp_path, family):
    require_cpp()
    model = write_tiny_model(tmp_path, "q8_0", sizes=FAMILIES[family])
    with LayerWiseInferenceEngine(model.path, backend="cpp", kv_type="f32") as engine:
        assert_same(engine.generate_batch(PROMPTS, **SETTINGS), alone(engine, PROMPTS))


def test_both_backends_decode_the_same_batch(tmp_path):
    require_cpp()
    model = write_tiny_model(tmp_path, sizes=Sizes(head_dim=32, rope_dims=32))
    tokens = np.random.default_rng(2).integers(0, 268, (12, 4))
    logits = []
    for backend in ("numpy", "cpp"):
        with (
            LayerWiseInferenceEngine(model.path, backend=backend, kv_type="q8_0") as engine,
            engine.sequences(4, 12) as sequences,
        ):
            logits.append(np.stack([sequences.forward(step).copy() for step in tokens]))
    error = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
    assert error < 1e-2  # the rounding of their 8-bit caches; measured: a tenth


# ---- where answers end ---------------------------------------------------------------------------


def test_a_stop_string_ends_its_answer_and_not_the_others(engine):
    expected = alone(engine, PROMPTS)
    texts = [g.text for g in expected]
    stop = next(
        piece
        for piece in (texts[0][at : at + 3] for at in range(4, len(texts[0]) - 3))
        if not any(piece in text for text in texts[1:])
    )
    found = engine.generate_batch(PROMPTS, stop=stop, **SETTINGS)
    assert_same(found, alone(engine, PROMPTS, stop=stop))
    assert found[0].finish_reason == "stop"
    assert [g.tokens for g in found[1:]] == [g.tokens for g in expected[1:]]


@pytest.mark.parametrize("on_full", ["stop", "shift"])
def test_a_full_context_is_each_answers_own(engine, on_full):
    prompts = ["x" * 93, "hello", "y" * 80]
    settings = {"max_new_tokens": 30, "on_full": on_full}
    found = engine.generate_batch(prompts, **SETTINGS | settings)
    assert_same(found, alone(engine, prompts, **settings))
    assert (found[0].finish_reason == "context") == (on_full == "stop")
    assert bool(found[0].shifted_tokens) == (on_full == "shift")
    assert not found[1].shifted_tokens


def test_no_prompts_and_no_tokens_are_fine(engine):
    assert engine.generate_batch([]) == []
    found = engine.generate_batch(PROMPTS, max_new_tokens=0)
    assert [(g.text, g.finish_reason) for g in found] == [("", "length")] * 5


def test_prompts_may_be_chats(engine):
    chat = [{"role": "user", "content": "hello"}]
    assert_same(engine.generate_batch([chat, "a"], **SETTINGS), alone(engine, [chat, "a"]))


@pytest.mark.parametrize("markup", [False, True])
def test_control_tokens_that_mark_thoughts_are_text_only_if_they_are_wanted(
    engine, monkeypatch, markup
):
    mark = engine.tokenizer.encode("<|im_start|>", parse_special=True)[-1]
    monkeypatch.setattr(engine._model.prompts, "answer_marks", frozenset([mark]))
    settings = {"max_new_tokens": 2, "logit_bias": {mark: 1e6}, "markup": markup}
    chat = [{"role": "user", "content": "hello"}]
    found = engine.generate_batch([chat, "hello"], **settings)
    assert [g.text for g in found] == ["<|im_start|>" * 2 * markup, ""]
    assert_same(found[:1], alone(engine, [chat], **settings))


# ---- what is reported ----------------------------------------------------------------------------


def test_on_token_gets_each_prompts_text_and_on_progress_the_prompts_done(engine):
    pieces = dict.fromkeys(range(len(PROMPTS)), "")
    progress = []

    def on_token(index, piece):
        assert piece
        pieces[index] += piece

    found = engine.generate_batch(
        PROMPTS, batch=2, on_token=on_token, on_progress=lambda *n: progress.append(n), **SETTINGS
    )
    assert list(pieces.values()) == [g.text for g in found]
    assert progress == [(n, 5) for n in range(1, 6)]


def test_the_weights_are_gone_through_once_for_all_sequences(engine, monkeypatch):
    layers = engine._model.decoder.weights.layers
    asked = []
    monkeypatch.setattr(
        engine._model.decoder.weights,
        "layers",
        lambda *range: asked.append(range) or layers(*range),
    )
    settings = {"max_new_tokens": 6, "temperature": 0}
    tokens = [g.tokens for g in engine.generate_batch(["aa", "bb", "cc"], **settings)]
    steps = max(map(len, tokens)) - 1  # the first token comes with the prompt
    assert asked == [(0, 3)] * (1 + steps)  # the three prompts share a pass


# ---- what stays as it was ------------------------------------------------------------------------


def test_the_engines_own_cache_is_not_touched(engine):
    engine.forward([5, 6, 7])
    before = engine.forward([8])
    engine.reset()
    engine.forward([5, 6, 7])
    engine.generate_batch(PROMPTS, **SETTINGS)
    np.testing.assert_array_equal(engine.forward([8]), before)


def test_states_exist_only_while_a_batch_runs_and_are_as_long_as_it_needs(engine, monkeypatch):
    made = []
    new_state = engine._model.decoder.new_state
    monkeypatch.setattr(
        engine._model.decoder,
        "new_state",
        lambda capacity, pool: made.append(new_state(capacity, pool)) or made[-1],
    )
    engine.generate_batch(["ab", "abc", "a"], batch=2, max_new_tokens=10, seed=1)
    assert [state.capacity for state in made] == [13, 13]
    monkeypatch.undo()
    gone = [weakref.ref(state) for state in made]
    made.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_an_exception_from_on_token_leaves_the_engine_usable(engine):
    def interrupt(index, piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate_batch(PROMPTS, on_token=interrupt, seed=1)
    assert engine.generate_batch(["hello"], **SETTINGS)[0].tokens


# ---- what is refused -----------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(engine):
    pieces = []
    with pytest.raises(
        ContextFullError, match=r"prompt has 97 tokens; the context has room for 96"
    ):
        engine.generate_batch(["a", "x" * 97], on_token=lambda *piece: pieces.append(piece))
    assert not pieces


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch is 0"),
        ({"on_full": "error"}, ValueError, "on_full is 'error'; expected 'stop' or 'shift'"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens is -1"),
    ],
)
def test_bad_arguments_are_refused(engine, settings, error, message):
    with pytest.raises(error, match=message):
        engine.generate_batch(["a"] * 600, **settings)


def test_sequences_longer_than_the_context_are_refused(engine):
    with (
        pytest.raises(ValueError, match="capacity is 97; the context has room for 96"),
        engine.sequences(2, 97),
    ):
        pass


@pytest.mark.parametrize("prompts", ["hello", [{"role": "user", "content": "hello"}]])
def test_one_prompt_in_place_of_several_is_refused(engine, prompts):
    with pytest.raises(TypeError, match="prompts is one prompt; expected a list"):
        engine.generate_batch(prompts)


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.generate_batch(["a", ""])


def test_a_stream_gives_each_answer_when_it_is_ready(engine):
    prompts = ["hello world", "hello", "x"]
    settings = {"batch": 2, "seed": 3, "max_new_tokens": 9}
    expected = engine.generate_batch(prompts, **settings)
    order = []
    for index, answer in engine.stream_batch(prompts, **settings):
        order.append(index)
        assert (answer.text, answer.tokens) == (expected[index].text, expected[index].tokens)
    assert sorted(order) == [0, 1, 2]


def test_a_stream_that_is_closed_frees_the_engine(engine):
    answers = engine.stream_batch(["hello", "x"], batch=1, seed=3, max_new_tokens=5)
    next(answers)
    with pytest.raises(RuntimeError, match="busy"):
        engine.forward([1])
    answers.close()
    engine.generate("x", max_new_tokens=1)

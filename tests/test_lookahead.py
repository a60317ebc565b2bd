"""Lookahead: the same answers in fewer passes."""

from types import SimpleNamespace

import numpy as np
import pytest
from extension import require_cpp
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import FAMILIES, Sizes, write_tiny_model
from variants import variant

from airllm.engine.lookahead import Draft, Lookahead, NGrams
from airllm.engine.sampling import Sampler
from airllm.layer_engine import ContextFullError, LayerWiseInferenceEngine
from airllm.numpy_ops.sampling import candidates

PROMPTS = ["hello world hello", "ab ab ab ab ab", "x", [{"role": "user", "content": "hello 12 12"}]]


@pytest.fixture(scope="module", params=["numpy-f32", "cpp-q8_0", variant("cpp-f16")])
def engine(request, tmp_path_factory):
    backend, type = request.param.split("-")
    if backend == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path_factory.mktemp("model"), type)
    with LayerWiseInferenceEngine(model.path, backend=backend) as engine:
        yield engine


@pytest.fixture
def endless(engine, monkeypatch):
    """No token ends an answer."""
    monkeypatch.setattr(engine.tokenizer, "eos_ids", frozenset())


def both(engine, prompt, lookahead, **settings):
    """The answers without and with guesses, each from an empty cache."""
    engine.reset()
    plain = engine.generate(prompt, **settings)
    position = engine.position
    engine.reset()
    ahead = engine.generate(prompt, lookahead=lookahead, **settings)
    # An answer that has ended may leave tokens in the cache that were accepted, and no others.
    assert position == engine.position
    return plain, ahead


def same(plain, ahead):
    fields = ("text", "tokens", "finish_reason", "prompt_tokens", "shifted_tokens")
    return all(getattr(plain, field) == getattr(ahead, field) for field in fields)


# The answer.


@pytest.mark.parametrize("kv_type", ["f16", variant("f32")])
@pytest.mark.parametrize("family", [None, "gemma2", "qwen3moe"])
@pytest.mark.parametrize("type", ["f32", variant("f16"), variant("bf16"), "q8_0", variant("q4_1")])
@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_rows_together_are_bit_for_bit_those_one_by_one(tmp_path, backend, type, family, kv_type):
    """What identity stands on."""
    sizes = FAMILIES[family] if family else Sizes()
    _check_rows(write_tiny_model(tmp_path, type, sizes=sizes).path, backend, kv_type, "auto")


@pytest.mark.parametrize("activations", ["q8", "f32"])
@pytest.mark.parametrize("type", ["q8_0", "q6_k"])
def test_rows_together_are_those_one_by_one_however_rounded(tmp_path, type, activations):
    _check_rows(write_tiny_model(tmp_path, type).path, "cpp", "f16", activations)


def _check_rows(path, backend, kv_type, activations):
    if backend == "cpp":
        require_cpp()
    tokens = np.random.default_rng(4).integers(0, 268, 40).tolist()
    settings = {"backend": backend, "kv_type": kv_type, "activations": activations}
    with LayerWiseInferenceEngine(path, **settings) as engine:
        engine.forward(tokens[:11])
        one_by_one = [engine.forward([token]) for token in tokens[11:]]
        engine.reset()
        engine.forward(tokens[:11])
        assert engine._model.decoder is not None
        ahead = Lookahead(engine._model.decoder, len(tokens) - 12, engine.config.vocab_size)
        np.testing.assert_array_equal(ahead.evaluate(tokens[11:]), one_by_one)
        assert engine.position == 11


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("lookahead", [1, variant(2), 7, variant(63)])
def test_greedy_answers_are_identical(engine, prompt, lookahead):
    plain, ahead = both(engine, prompt, lookahead, temperature=0, max_new_tokens=50)
    assert same(plain, ahead)


def test_sampled_answers_are_identical_whatever_the_seed(engine, endless):
    """So their distribution is the same. A penalty that rewards makes this model repeat itself:
    many guesses are right, and many wrong."""
    accepted = passes = 0
    for seed in range(20):
        settings = {"seed": seed, "temperature": 0.4, "max_new_tokens": 40, "repeat_penalty": 0.3}
        plain, ahead = both(engine, PROMPTS[1], 4, **settings)
        assert same(plain, ahead)
        accepted, passes = accepted + ahead.accepted_tokens, passes + ahead.passes
    assert accepted > 60
    assert passes > 20 * (1 + 40 / 5) + 60  # so many it would be if no guess were wrong


def test_a_repeat_penalty_sees_the_accepted_tokens(engine):
    settings = {"temperature": 0, "repeat_penalty": 1.3, "max_new_tokens": 50}
    assert same(*both(engine, PROMPTS[1], 5, **settings))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 11])
def test_the_longest_answer_is_as_long_as_without(engine, n):
    plain, ahead = both(engine, PROMPTS[1], 8, temperature=0, max_new_tokens=n)
    assert same(plain, ahead)
    assert len(ahead.tokens) <= n


def test_a_stop_string_ends_the_answer_where_it_does_without(engine):
    engine.reset()
    text = engine.generate(PROMPTS[1], temperature=0, max_new_tokens=40).text
    for at in (3, 8, 20):
        stop = text[at : at + 2]
        assert same(*both(engine, PROMPTS[1], 8, temperature=0, max_new_tokens=40, stop=stop))


@pytest.mark.parametrize("on_full", ["stop", "shift"])
def test_the_contexts_end_is_where_it_is_without(engine, endless, on_full):
    """96 tokens; a pass has no more guesses than there is room for."""
    settings = {"temperature": 0, "max_new_tokens": 150, "on_full": on_full}
    plain, ahead = both(engine, PROMPTS[1], 8, **settings)
    assert same(plain, ahead)
    assert plain.finish_reason == ("context" if on_full == "stop" else "length")


def test_a_full_context_can_be_an_error(engine, endless):
    engine.reset()
    with pytest.raises(ContextFullError, match="the context of 96 tokens is full"):
        engine.generate(PROMPTS[1], temperature=0, max_new_tokens=150, on_full="error", lookahead=8)


def test_what_comes_after_is_as_without(engine):
    """Guesses that were wrong leave nothing behind that a later prompt would see."""
    answers = []
    for lookahead in (0, 8):
        engine.reset()
        first = engine.generate(PROMPTS[0], temperature=0, max_new_tokens=20, lookahead=lookahead)
        more = PROMPTS[0] + first.text + " and"
        second = engine.generate(more, temperature=0, max_new_tokens=20, lookahead=lookahead)
        answers.append((first.text, second.text, second.reused_tokens))
    assert answers[0] == answers[1]


def test_an_abandoned_stream_leaves_an_engine_that_works(engine):
    engine.reset()
    stream = engine.stream(PROMPTS[1], temperature=0, max_new_tokens=40, lookahead=8)
    for _ in range(5):
        next(stream)
    stream.close()
    assert same(*both(engine, PROMPTS[1], 8, temperature=0, max_new_tokens=20))


# Passes.


def test_passes_and_accepted_tokens_add_up(engine):
    plain, ahead = both(engine, PROMPTS[1], 8, temperature=0, max_new_tokens=60)
    assert plain.accepted_tokens == 0
    assert plain.passes == ahead.passes + ahead.accepted_tokens
    assert plain.tokens_per_pass == 1.0
    assert ahead.tokens_per_pass == pytest.approx(plain.passes / ahead.passes)


def test_an_answer_that_repeats_itself_takes_few_passes(engine, monkeypatch):
    """Made to repeat: the sampler takes the likeliest of three tokens, by turns."""
    turns = [7, 9, 11]
    monkeypatch.setattr(
        Sampler, "sample", lambda self, logits, history, *_: turns[len(history) % 3]
    )
    engine.reset()
    ahead = engine.generate("x", max_new_tokens=60, lookahead=8)
    assert ahead.passes <= 6 + 60 // 9  # until it has repeated itself once, and then 9 a pass
    assert [token for token in ahead.tokens if token not in turns] == []


@pytest.mark.parametrize(("lookahead", "message"), [(64, "at most 63"), (-1, "lookahead is -1")])
def test_a_number_of_guesses_that_makes_no_sense_is_refused(engine, lookahead, message):
    with pytest.raises(ValueError, match=message):
        engine.generate("x", lookahead=lookahead)


# Guesses.


def test_a_guess_is_what_followed_the_last_tokens_before():
    assert NGrams().guess([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]


def test_the_latest_occurrence_and_the_longest_run_go_first():
    assert NGrams().guess([1, 2, 7, 1, 2, 8, 1, 2], 1) == [8]
    assert NGrams().guess([0, 1, 2, 7, 1, 2, 8, 0, 1, 2], 1) == [7]


def test_a_text_that_repeats_itself_is_guessed_beyond_its_end():
    assert NGrams().guess([5, 6, 5, 6], 5) == [5, 6, 5, 6, 5]
    assert NGrams().guess([9, 9, 9], 4) == [9, 9, 9, 9]


@pytest.mark.parametrize(("room", "n_guessed"), [(-1, 0), (0, 0), (1, 1), (3, 3), (99, 5)])
def test_no_more_is_guessed_than_there_is_room_for(room, n_guessed):
    """Of the answer and of the context: a row beyond the cache would be written past its end."""
    ahead = Lookahead(SimpleNamespace(batch_size=512), 5, 9)
    history = [1, 2, 3, 4, 1, 2]
    answer = SimpleNamespace(pending=[2], n_again=0, history=history, room=lambda: room)
    assert (ahead.guess(answer) or []) == [3, 4, 1, 2, 3][:n_guessed]
    answer.pending = [1, 2]
    assert ahead.guess(answer) is None


def test_what_never_stood_there_is_not_guessed():
    for tokens in ([], [1], [1, 2], [1, 2, 3, 4], [1, 2, 1]):
        assert NGrams().guess(tokens, 4) == []


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5))
def test_a_text_that_grows_is_guessed_as_if_it_came_at_once(tokens, n):
    growing = NGrams()
    for end in range(len(tokens) + 1):
        assert growing.guess(tokens[:end], n) == NGrams().guess(tokens[:end], n)


# A draft.


@pytest.fixture(scope="module")
def draft(engine, tmp_path_factory):
    """A model with other weights, or rather with fewer bits of the same: it is mostly right."""
    path = write_tiny_model(tmp_path_factory.mktemp("draft"), "q4_1").path
    with LayerWiseInferenceEngine(path, backend=engine.backend) as draft:
        yield draft


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.5, "seed": 7}])
def test_answers_with_a_draft_are_identical(engine, draft, settings):
    engine.reset()
    plain = engine.generate(PROMPTS[0], max_new_tokens=40, **settings)
    engine.reset()
    drafted = engine.generate(PROMPTS[0], lookahead=4, draft=draft, max_new_tokens=40, **settings)
    assert same(plain, drafted)


def test_a_draft_that_is_right_gives_as_many_tokens_a_pass_as_it_guesses(engine, endless):
    with LayerWiseInferenceEngine(
        engine._model.planned.file.path,
        backend=engine.backend,
        kv_type=engine._model.decoder.state.layout.kv_type,
    ) as twin:
        engine.reset()
        answer = engine.generate("x", temperature=0, max_new_tokens=41, lookahead=4, draft=twin)
        engine.reset()
        untold = engine.generate("x", temperature=0, max_new_tokens=46, draft=twin)
    assert answer.passes == 1 + 40 // 5
    assert answer.accepted_tokens == 32
    assert untold.passes == 1 + 45 // 9  # 8 guesses where nobody says how many


def test_a_draft_with_a_shorter_context_guesses_as_long_as_it_can(engine, draft, endless, tmp_path):
    path = write_tiny_model(tmp_path).path
    with LayerWiseInferenceEngine(path, backend=engine.backend, context=20) as short:
        engine.reset()
        plain = engine.generate(PROMPTS[0], temperature=0, max_new_tokens=50)
        engine.reset()
        settings = {"temperature": 0, "max_new_tokens": 50, "lookahead": 4}
        assert same(plain, engine.generate(PROMPTS[0], draft=short, **settings))


def test_a_draft_of_another_vocabulary_is_refused(engine, tmp_path):
    tokens = [*engine._model.planned.file.metadata.texts("tokenizer.ggml.tokens")]
    tokens[-1] = "other"
    merges = engine._model.planned.file.metadata.texts("tokenizer.ggml.merges")[:-1]
    changes = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
    path = write_tiny_model(tmp_path, metadata=changes).path
    with (
        LayerWiseInferenceEngine(path, backend=engine.backend) as other,
        pytest.raises(ValueError, match="other tokens than this one"),
    ):
        engine.generate("x", lookahead=4, draft=other)


def test_a_draft_that_is_not_to_guess_is_refused(engine, draft):
    with pytest.raises(ValueError, match="lookahead=0 wants none"):
        engine.generate("x", lookahead=0, draft=draft)


# Distribution.


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """An engine, and the same once more as a draft, whose guess is always the likeliest token."""
    require_cpp()
    path = write_tiny_model(tmp_path_factory.mktemp("model"), "q8_0").path
    with (
        LayerWiseInferenceEngine(path, backend="cpp") as engine,
        LayerWiseInferenceEngine(path, backend="cpp") as draft,
    ):
        engine.tokenizer.eos_ids = frozenset()
        yield engine, draft


def test_sampled_tokens_have_the_models_distribution(sampled):
    drawn, expected, accepted = _triples(*sampled)
    assert _chi_squared(drawn, expected) < CHI_SQUARED_LIMIT
    assert DRAWS / 10 < accepted < DRAWS


def test_a_guess_that_is_taken_too_often_would_be_noticed(sampled, monkeypatch):
    """The same with a rule that is wrong: a guess that might have been drawn is taken."""
    guesses = []
    sample, plain_guess = Sampler.sample, Draft.guess

    def guess(self, tokens, n):
        guesses[:] = plain_guess(self, tokens, n)
        return [*guesses]

    def take_guess(self, logits, history, *_):
        guessed = guesses.pop(0) if guesses else None
        return (
            guessed if guessed in candidates(logits, *LIKELY)[0] else sample(self, logits, history)
        )

    monkeypatch.setattr(Draft, "guess", guess)
    monkeypatch.setattr(Sampler, "sample", take_guess)
    drawn, expected, _ = _triples(*sampled)
    assert _chi_squared(drawn, expected) > 2 * CHI_SQUARED_LIMIT


DRAWS = 600
LIKELY = (1.0, 3, 1.0, 0.0)  # temperature, top_k, top_p, min_p
CHI_SQUARED_LIMIT = 61.7  # of 27 - 1 degrees of freedom, the 99.99th percentile


def _triples(engine, draft):
    """How often each answer of three tokens came, of three likely ones each, how often it should
    have, and how many guesses were right. A pass checks the second token and gives the third."""
    settings = dict(zip(("temperature", "top_k", "top_p", "min_p"), LIKELY, strict=True))
    expected = {(): 1.0}
    for _ in range(3):
        longer = {}
        for tokens, p in expected.items():
            engine.reset()
            logits = engine.forward(engine.tokenize(PROMPTS[1]) + list(tokens))
            for token, share in zip(*candidates(logits, *LIKELY), strict=True):
                longer[*tokens, int(token)] = p * share
        expected = longer
    drawn, accepted = dict.fromkeys(expected, 0), 0
    for seed in range(DRAWS):
        answer = engine.generate(
            PROMPTS[1], max_new_tokens=3, lookahead=4, draft=draft, seed=seed, **settings
        )
        drawn[answer.tokens] += 1
        accepted += answer.accepted_tokens
    return drawn, expected, accepted


def _chi_squared(drawn, expected):
    return sum((drawn[key] - DRAWS * p) ** 2 / (DRAWS * p) for key, p in expected.items())

"""Generation: reproducible, in whole characters, and ending for the right reason."""

import numpy as np
import pytest
from extension import require_cpp
from scripted_decoder import ScriptedDecoder, tokens_of
from tiny_model import byte_token, vocabulary_tokens, write_tiny_model

from airllm.layer_engine import ContextFullError, LayerWiseInferenceEngine

EOS = 2  # <|im_end|>
LLAMA = [byte_token(byte) for byte in "🦙".encode()]


@pytest.fixture
def engine(tmp_path):
    with LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend="numpy") as engine:
        yield engine


@pytest.fixture
def scripted(engine):
    """An engine that says what it is told."""

    def script(tokens: list[int]) -> LayerWiseInferenceEngine:
        engine._model._decoder = ScriptedDecoder(tokens, engine.context)
        return engine

    return script


# ---- the model's own words -----------------------------------------------------------------------


def test_the_same_seed_generates_the_same_tokens(engine):
    settings = {"max_new_tokens": 30, "temperature": 1.0, "seed": 11}
    first = engine.generate("hello world", **settings)
    assert engine.generate("hello world", **settings).tokens == first.tokens
    assert engine.generate("hello world", **settings | {"seed": 12}).tokens != first.tokens


def test_a_new_engine_generates_the_same_tokens_from_the_same_seed(tmp_path):
    model = write_tiny_model(tmp_path)
    texts = set()
    for _ in range(2):
        with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
            engine.forward([5, 6, 7])  # must be forgotten
            texts.add(engine.generate("hello", max_new_tokens=20, seed=3).tokens)
    assert len(texts) == 1


def test_greedy_tokens_are_those_of_forward(engine):
    generation = engine.generate("hello", max_new_tokens=10, temperature=0)
    engine.reset()
    logits, expected = engine.forward(engine.tokenize("hello")), []
    while len(expected) < len(generation.tokens):
        expected.append(int(logits.argmax()))
        logits = engine.forward(expected[-1:])
    assert list(generation.tokens) == expected


def test_stream_gives_the_same_text_as_generate(engine):
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 5}
    assert "".join(engine.stream("hello", **settings)) == engine.generate("hello", **settings).text


def test_on_token_gets_the_text_piece_by_piece(engine):
    pieces = []
    text = engine.generate("hello", max_new_tokens=20, seed=5, on_token=pieces.append).text
    assert "".join(pieces) == text
    assert all(pieces)
    assert len(pieces) > 1


def test_the_text_is_what_detokenize_gives(scripted):
    engine = scripted([*tokens_of("Grüße, "), *LLAMA, EOS])
    generation = engine.generate("hello")
    assert generation.text == engine.detokenize(generation.tokens) == "Grüße, 🦙"


# ---- characters and stop strings -----------------------------------------------------------------


def test_a_character_of_several_tokens_comes_whole(scripted):
    engine = scripted([*tokens_of("a"), *LLAMA, *tokens_of("b"), EOS])
    assert list(engine.stream("hello")) == ["a", "🦙", "b"]


def test_half_a_character_at_the_limit_is_not_shown(scripted):
    generation = scripted([*tokens_of("a"), *LLAMA]).generate("hello", max_new_tokens=3)
    assert (generation.text, generation.finish_reason) == ("a", "length")
    assert len(generation.tokens) == 3


def test_a_stop_string_over_several_tokens_ends_the_answer_before_it(scripted):
    pieces = []
    engine = scripted(tokens_of("one\nUser: two"))
    generation = engine.generate("hello", stop=["\nUser:"], on_token=pieces.append)
    assert generation.text == "".join(pieces) == "one"
    assert generation.finish_reason == "stop"
    assert len(generation.tokens) == len("one\nUser:")


def test_a_stop_string_can_be_given_alone(scripted):
    assert scripted(tokens_of("one.two")).generate("hello", stop=".").text == "one"


def test_control_tokens_are_no_text(scripted):
    engine = scripted([*tokens_of("a"), 1, *tokens_of("b"), EOS])
    assert engine.generate("hello").text == "ab"


# ---- why it ends ---------------------------------------------------------------------------------


def test_an_end_token_ends_the_answer_and_is_not_part_of_it(scripted):
    generation = scripted([*tokens_of("hi"), EOS]).generate("hello")
    assert (generation.text, generation.finish_reason) == ("hi", "stop")
    assert list(generation.tokens) == tokens_of("hi")


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_max_new_tokens_limits_the_answer(scripted, limit):
    generation = scripted(tokens_of("abcdefgh")).generate("hello", max_new_tokens=limit)
    assert (generation.text, generation.finish_reason) == ("abcdefgh"[:limit], "length")


def test_the_last_token_is_not_evaluated_for_nothing(scripted):
    engine = scripted(tokens_of("abc"))
    engine.generate("hello", max_new_tokens=3)
    assert engine._model.decoder.evaluated == [
        engine.tokenize("hello"),
        *([t] for t in tokens_of("ab")),
    ]


def test_a_full_context_ends_the_answer(engine):
    prompt = "x" * (engine.context - 3)
    generation = engine.generate(prompt, temperature=0, max_new_tokens=100)
    assert generation.prompt_tokens == engine.context - 3
    assert generation.finish_reason == "context"
    assert len(generation.tokens) == 4  # three that are in the context, and one that follows
    assert engine.position == engine.context


def test_a_prompt_that_fills_the_context_still_gets_one_token(engine):
    generation = engine.generate("x" * engine.context, temperature=0)
    assert (len(generation.tokens), generation.finish_reason) == (1, "context")


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(engine):
    with pytest.raises(ValueError, match=r"prompt has 97 tokens; the context has room for 96"):
        engine.generate("x" * 97)


def test_a_full_context_is_an_error_for_those_who_want_one(engine):
    with pytest.raises(ContextFullError, match="96 tokens is full, after 93 of the prompt and 4 "):
        engine.generate("x" * 93, temperature=0, max_new_tokens=100, on_full="error")
    assert engine.generate("hello", max_new_tokens=1, seed=1).tokens


@pytest.mark.parametrize("keep", [0, 7, -1])
def test_shift_forgets_the_older_half_of_what_it_need_not_keep(scripted, keep):
    engine = scripted(tokens_of("abcdefgh"))
    prompt = "".join(chr(33 + at) for at in range(92))
    generation = engine.generate(prompt, max_new_tokens=7, on_full="shift", keep=keep)
    seen = tokens_of(prompt + "abcde")  # 97, one more than there is room for
    kept = {0: 0, 7: 7, -1: 92}[keep]
    forgotten = (97 - kept) // 2
    assert generation.text == "abcdefg"
    assert generation.finish_reason == "length"
    assert generation.shifted_tokens == forgotten
    assert engine._model.decoder.state.tokens == (
        seen[:kept] + seen[kept + forgotten :] + tokens_of("f")
    )


def rows_of(state, length):
    """All keys and values of a state that keeps float32."""
    rows = [
        rows for layer in state.layout.layers for rows in state.heads_rows(layer.keys, 0, length)
    ]
    return np.concatenate([part.view(np.float32) for of_head in rows for part in of_head])


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_keys_and_values_after_a_shift_are_those_of_the_tokens_that_are_left(tmp_path, backend):
    """No trace of what was forgotten, nor of where the rest stood before."""
    if backend == "cpp":
        require_cpp()
    path = write_tiny_model(tmp_path).path
    exact = {"kv_type": "f32", "activations": "f32"}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        settings = {"temperature": 0, "on_full": "shift", "keep": 5}
        generation = engine.generate("x" * 90, max_new_tokens=60, **settings)
        assert len(generation.tokens) == 60
        assert generation.shifted_tokens
        state = engine._model.decoder.state
        tokens = state.tokens.copy()
        mine = rows_of(state, len(tokens))
        engine.reset()
        engine.forward(tokens)
        its = rows_of(state, len(tokens))
    np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)  # batches that differ


def test_shift_again_and_again_needs_no_more_room(engine):
    generation = engine.generate("x" * 90, max_new_tokens=300, seed=2, on_full="shift")
    assert (len(generation.tokens), generation.finish_reason) == (300, "length")
    assert generation.shifted_tokens == 90 + 299 - engine.position


def test_with_almost_all_kept_shift_still_goes_on(engine):
    generation = engine.generate("x" * 95, max_new_tokens=9, seed=2, on_full="shift", keep=-1)
    assert len(generation.tokens) == 9
    assert engine._model.decoder.state.tokens[:95] == engine.tokenize("x" * 95)


def test_to_keep_the_whole_context_leaves_shift_nothing_to_forget(engine):
    with pytest.raises(ContextFullError, match="must keep 96 tokens, and the context has 96"):
        engine.stream("x" * 96, on_full="shift", keep=-1)
    assert engine.generate("x" * 96, keep=-1).finish_reason == "context"


def test_a_shift_keeps_the_bos_token(tmp_path):
    model = write_tiny_model(tmp_path, metadata={"tokenizer.ggml.add_bos_token": True})
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        generation = engine.generate("x" * 90, max_new_tokens=20, seed=1, on_full="shift")
        assert generation.shifted_tokens
        assert engine._model.decoder.state.tokens[0] == engine.tokenizer.bos_id


# ---- what is reported ----------------------------------------------------------------------------


def test_speeds_are_tokens_over_seconds(engine):
    generation = engine.generate("hello world", max_new_tokens=8, temperature=0)
    assert generation.prompt_tokens == len(engine.tokenize("hello world"))
    assert generation.prefill_tokens_per_second == pytest.approx(
        generation.prompt_tokens / generation.prefill_seconds
    )
    assert generation.decode_tokens_per_second == pytest.approx(7 / generation.decode_seconds)


def test_progress_is_reported_for_the_prompt_and_not_for_the_answer(engine):
    calls = []
    settings = {"max_new_tokens": 4, "seed": 5, "on_progress": lambda *now: calls.append(now)}
    engine.generate("hello", **settings)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert "".join(engine.stream("again", **settings))
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_speeds_are_zero_where_nothing_was_measured(engine):
    generation = engine.generate("hello", max_new_tokens=0)
    assert generation.prefill_tokens_per_second == generation.decode_tokens_per_second == 0.0


# ---- chats ---------------------------------------------------------------------------------------


def test_messages_are_put_into_the_models_chat_template(scripted):
    engine = scripted([*tokens_of("hi"), EOS])
    engine.generate([{"role": "user", "content": "hello"}])
    prompt = engine.detokenize(engine._model.decoder.evaluated[0])
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert engine._model.decoder.evaluated[0][0] == 1  # the control token, not its letters


def test_a_plain_prompt_cannot_spell_control_tokens(scripted):
    engine = scripted([EOS])
    engine.generate("<|im_start|>")
    assert 1 not in engine._model.decoder.evaluated[0]


def test_bos_begins_a_prompt_and_a_chat_once_where_the_model_wants_it(tmp_path):
    model = write_tiny_model(tmp_path, metadata={"tokenizer.ggml.add_bos_token": True})
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        assert engine.tokenize("hello").count(1) == 1
        engine._model._decoder = ScriptedDecoder([EOS], engine.context)
        engine.generate([{"role": "user", "content": "hello"}])
        evaluated = engine._model.decoder.evaluated[0]
    assert evaluated[0] == 1
    assert evaluated[1] != 1  # the template began with it


def test_a_model_without_a_chat_template_says_so(tmp_path):
    tokens = [token.replace("<|im_start|>", "<|begin|>") for token in vocabulary_tokens()]
    no_chat = {"tokenizer.chat_template": None, "tokenizer.ggml.tokens": tokens}
    model = write_tiny_model(tmp_path, metadata=no_chat)
    with (
        LayerWiseInferenceEngine(model.path, backend="numpy") as engine,
        pytest.raises(ValueError, match=r"tiny\.gguf: has no chat template"),
    ):
        engine.generate([{"role": "user", "content": "hello"}])


# ---- what is refused -----------------------------------------------------------------------------


def test_an_empty_prompt_is_refused(engine):
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.generate("")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"stop": ["a", ""]}, "stop has an empty string"),
        ({"on_full": "wrap"}, "on_full is 'wrap'; expected 'stop' or 'shift' or 'error'"),
        ({"keep": -2}, "keep is -2; expected at least -1"),
    ],
)
def test_stream_refuses_bad_arguments_at_the_call(engine, settings, message):
    with pytest.raises(ValueError, match=message):
        engine.stream("hello", **settings)


# ---- interruptions -------------------------------------------------------------------------------


def interrupt_layer(engine, monkeypatch, at: int) -> None:
    """Ctrl-C in the middle of the forward pass: at the at-th layer that runs, one by one."""
    monkeypatch.setattr(engine._model.decoder.weights, "layers_at_once", 1)
    executor = engine._model.decoder._layers[0]  # that of all layers, which are of one kind
    run, calls = executor.run_layers, iter(range(1, 10**6))

    def interrupted(*args, **kwargs):
        if next(calls) == at:
            raise KeyboardInterrupt
        run(*args, **kwargs)

    monkeypatch.setattr(executor, "run_layers", interrupted)


@pytest.mark.parametrize("layer", [1, 3, 5, 20])
def test_ctrl_c_in_any_layer_leaves_the_engine_usable(engine, monkeypatch, layer):
    expected = engine.generate("hello", max_new_tokens=10, temperature=0).tokens
    with monkeypatch.context() as patch:
        interrupt_layer(engine, patch, layer)
        with pytest.raises(KeyboardInterrupt):
            engine.generate("hello", max_new_tokens=10, temperature=0)
    assert engine.generate("hello", max_new_tokens=10, temperature=0).tokens == expected


def test_ctrl_c_in_forward_forgets_the_unfinished_batch_only(engine, monkeypatch):
    engine.forward([1, 2, 3])
    with monkeypatch.context() as patch:
        interrupt_layer(engine, patch, 2)
        with pytest.raises(KeyboardInterrupt):
            engine.forward([4, 5])
    assert engine.position == 3
    after = engine.forward([4, 5])
    engine.reset()
    engine.forward([1, 2, 3])
    np.testing.assert_array_equal(after, engine.forward([4, 5]))


def test_an_exception_from_on_token_leaves_the_engine_usable(engine):
    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("hello", seed=1, on_token=interrupt)
    assert engine.generate("hello", max_new_tokens=2, seed=1).tokens


def test_a_stream_that_is_dropped_or_closed_leaves_the_engine_usable(engine):
    for _ in engine.stream("hello", seed=1):
        break
    engine.forward([1])
    stream = engine.stream("hello", seed=1)
    next(stream)
    stream.close()
    engine.forward([1])


def test_the_engine_is_busy_while_a_stream_is_open(engine):
    stream = engine.stream("hello", seed=1)
    next(stream)
    for use in (lambda: engine.forward([1]), lambda: engine.generate("hello"), engine.reset):
        with pytest.raises(RuntimeError, match=r"stream\(\) is not finished"):
            use()
    assert list(stream)


def test_closing_the_engine_ends_an_open_stream_with_an_error(engine):
    stream = engine.stream("hello", seed=1, max_new_tokens=50)
    next(stream)
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        list(stream)

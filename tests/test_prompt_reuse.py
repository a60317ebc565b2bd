"""What two prompts begin with alike is evaluated once, and nobody can tell from the answer."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from extension import require_cpp
from scripted_decoder import ScriptedDecoder, tokens_of
from sequence_states import heads_of, new_state
from tiny_model import write_tiny_model

from airllm.backends.numpy_backend import NumpyBackend
from airllm.layer_engine import Generation, LayerWiseInferenceEngine

Engine = LayerWiseInferenceEngine
EOS = 2  # <|im_end|>
GREEDY = {"temperature": 0, "max_new_tokens": 8}


@pytest.fixture(params=["numpy", "cpp"])
def engine(tmp_path, request) -> Iterator[Engine]:
    if request.param == "cpp":
        require_cpp()
    path = write_tiny_model(tmp_path).path
    with LayerWiseInferenceEngine(path, backend=request.param) as engine:
        yield engine


@pytest.fixture
def evaluated(engine, monkeypatch) -> list[list[int]]:
    """The tokens of each evaluation from now on."""
    seen: list[list[int]] = []
    evaluate = engine._model.decoder.evaluate

    def note(tokens, *rest):
        seen.append(tokens.tolist())
        return evaluate(tokens, *rest)

    monkeypatch.setattr(engine._model.decoder, "evaluate", note)
    return seen


# ---- what is evaluated ---------------------------------------------------------------------------


def test_a_prompt_that_goes_on_is_evaluated_from_there(engine, evaluated):
    engine.generate("once upon", max_new_tokens=1)
    evaluated.clear()
    generation = engine.generate("once upon a time", max_new_tokens=1)
    assert evaluated == [engine.tokenize(" a time")]
    assert generation.reused_tokens == len(engine.tokenize("once upon"))
    assert generation.prompt_tokens == len(engine.tokenize("once upon a time"))


def test_an_answer_that_is_part_of_the_next_prompt_is_not_evaluated_again(engine):
    engine._model._decoder = ScriptedDecoder([*tokens_of("fine"), EOS, EOS], engine.context)
    engine.generate("How? ")
    assert engine.generate("How? fine.").reused_tokens == len("How? fine")
    assert engine._model.decoder.evaluated[-1] == tokens_of(".")


def test_the_same_prompt_again_evaluates_its_last_token(engine, evaluated):
    engine.generate("hello world", **GREEDY)
    evaluated.clear()
    generation = engine.generate("hello world", **GREEDY)
    ids = engine.tokenize("hello world")
    assert evaluated[0] == ids[-1:]
    assert generation.reused_tokens == len(ids) - 1


def test_prompts_that_part_are_evaluated_from_where_they_do(engine, evaluated):
    engine.generate("abcdef", max_new_tokens=3, seed=1)
    generation = engine.generate("abcxyz", max_new_tokens=1)
    assert generation.reused_tokens == 3
    assert evaluated[-1] == engine.tokenize("xyz")


def test_tokens_that_forward_evaluated_count_too(engine):
    engine.forward(engine.tokenize("abc"))
    assert engine.generate("abcd", max_new_tokens=1).reused_tokens == 3


def test_after_reset_all_is_evaluated(engine, evaluated):
    engine.generate("hello world", **GREEDY)
    engine.reset()
    evaluated.clear()
    assert engine.generate("hello world", **GREEDY).reused_tokens == 0
    assert evaluated[0] == engine.tokenize("hello world")


def test_the_speed_is_that_of_the_tokens_that_were_evaluated(engine):
    engine.generate("once upon", max_new_tokens=1)
    generation = engine.generate("once upon a time", max_new_tokens=1)
    assert generation.prefill_tokens_per_second == pytest.approx(
        len(engine.tokenize(" a time")) / generation.prefill_seconds
    )


def test_in_a_chat_only_the_new_turn_is_evaluated(engine):
    engine._model._decoder = ScriptedDecoder([*tokens_of("fine"), EOS, EOS], engine.context)
    chat = [{"role": "user", "content": "How?"}]
    first = engine.generate(chat)
    chat += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Why?"}]
    second = engine.generate(chat)
    assert second.reused_tokens == first.prompt_tokens + len("fine")
    assert engine.detokenize(engine._model.decoder.evaluated[-1]) == (
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


# ---- the answer is the same ----------------------------------------------------------------------


def test_keys_and_values_after_reuse_are_those_of_the_same_batches_in_an_empty_cache(tmp_path):
    model = write_tiny_model(tmp_path)
    with (
        LayerWiseInferenceEngine(model.path, backend="numpy") as reusing,
        LayerWiseInferenceEngine(model.path, backend="numpy") as fresh,
    ):
        for prompt in ("abc", "abcdef", "abcxyz"):
            reusing.generate(prompt, max_new_tokens=1)
        for batch in ("abc", "xyz"):
            fresh.forward(fresh.tokenize(batch))
        mine, its = reusing._model.decoder.state, fresh._model.decoder.state
        assert mine.tokens == its.tokens
        for layer in mine.layout.layers:
            assert layer.keys is not None
            rows = zip(*(each.heads_rows(layer.keys, 0, 6) for each in (mine, its)), strict=True)
            for own, others in rows:
                np.testing.assert_array_equal(own, others)
        np.testing.assert_array_equal(reusing.forward([7]), fresh.forward([7]))


def test_with_a_seed_the_answer_does_not_depend_on_what_was_asked_before(engine):
    def answer(prompt: str) -> Generation:
        return engine.generate(prompt, temperature=1.0, seed=7, max_new_tokens=20)

    first = answer("once upon a time")
    answer("once upon")
    engine.generate("once upon a ", max_new_tokens=3)
    again = answer("once upon a time")
    assert again.tokens == first.tokens
    assert again.reused_tokens == 0


@pytest.mark.parametrize("layer", [1, 4, 5])
def test_what_an_interrupted_prompt_left_behind_is_right(tmp_path, monkeypatch, layer):
    """Three layers, batches of 3, 3 and 4 tokens: it comes in the first or second batch."""
    model = write_tiny_model(tmp_path)
    with LayerWiseInferenceEngine(model.path, backend="numpy", batch_size=4) as engine:
        expected = engine.generate("abcdefghij", **GREEDY).tokens
        engine.reset()

        def interrupt(done: int, total: int) -> None:
            if done == layer:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.generate("abcdefghij", **GREEDY, on_progress=interrupt)
        assert engine.position == (0 if layer < 3 else 3)
        generation = engine.generate("abcdefghij", **GREEDY)
        assert generation.reused_tokens == (0 if layer < 3 else 3)
        assert generation.tokens == expected


# ---- the state -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked", "kept"),
    [
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 3], 2),  # the last one's logits are still to be computed
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1, 9, 3], 1),
        ([1, 2, 3], [9], 0),
    ],
)
def test_a_state_keeps_what_it_shares_with_a_prompt_but_for_its_last_token(
    there: Sequence[int], asked: Sequence[int], kept: int
) -> None:
    state = new_state(NumpyBackend(), [heads_of(1, 1)], 8)
    state.advance(there)
    assert state.keep_shared(asked) == kept
    assert state.tokens == asked[:kept]
    assert state.length == kept

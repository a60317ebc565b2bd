"""The scheduler: many requests at once, each with the answer that it gets alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from extension import require_cpp
from family_models import ARCHITECTURES, VOCAB, write_family_model
from scheduling import GREEDY, NoText, alone, ask, open_tiny, prompts_alike, run, some_tokens
from streamed_model import SIZES as LAYERS
from tiny_model import write_tiny_model
from variants import variant

from airllm.engine import running
from airllm.engine.requests import DeadlineError, Piece, PromptProgress
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import ContextFullError, Sampling
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import BudgetError

Engine = LayerWiseInferenceEngine


@pytest.fixture(params=["numpy", "cpp"])
def engine(request, tmp_path):
    with open_tiny(tmp_path, request.param) as engine:
        yield engine


@pytest.fixture
def scheduler(engine):
    with engine.scheduler(lanes=4, piece_tokens=70) as scheduler:
        yield scheduler


def noted(engine, monkeypatch, of_step) -> list[list]:
    """Grows by a list for each pass, of what of_step says of its steps."""
    seen, evaluate = [], engine._model.decoder.evaluate_each

    def note(steps, *rest):
        seen.append([of_step(step) for step in steps])
        return evaluate(steps, *rest)

    monkeypatch.setattr(engine._model.decoder, "evaluate_each", note)
    return seen


@pytest.fixture
def passes(engine, monkeypatch):
    """Of each pass the sizes of its steps."""
    return noted(engine, monkeypatch, lambda step: len(step.tokens))


# ---- the answers ---------------------------------------------------------------------------------


def test_answers_among_31_others_are_those_alone(engine):
    asked = []
    for number, prompt in enumerate(prompts_alike(32, 280)):
        sampling = GREEDY if number % 2 else Sampling(1.2, seed=number, repeat_penalty=1.3)
        asked.append((prompt, sampling, number % 13))
    expected = [alone(engine, *each) for each in asked]
    with engine.scheduler(lanes=32, piece_tokens=70) as scheduler:
        for _ in range(2):  # the second time, all of them have been seen before
            told = [ask(scheduler, *each)[1] for each in asked]
            run(scheduler)
            for each, its in zip(told, expected, strict=True):
                assert (each.answer.tokens, each.answer.text) == (its.tokens, its.text)
                assert each.answer.finish_reason == its.finish_reason
                assert (each.tokens(), each.text()) == (its.tokens, its.text)
    if engine.backend == "cpp":
        assert sum(each.answer.reused_tokens for each in told) > 1000


@pytest.mark.parametrize("backend", [variant("numpy"), "cpp"])
@pytest.mark.parametrize(
    "architecture",
    [
        each if each in ("gemma3", "gemma4", "qwen35", "falcon-h1", "lfm2") else variant(each)
        for each in ARCHITECTURES
    ],
)
def test_every_family_gives_the_answers_that_it_gives_alone(tmp_path, architecture, backend):
    """With windows, recurrent memory and experts; pieces, reuse and neighbours change nothing."""
    if backend == "cpp":
        require_cpp()
    context = 128 if architecture == "minimax-m3" else 300  # its blocks are sparse beyond
    path = write_family_model(tmp_path, architecture, **{f"{architecture}.context_length": context})
    with Engine(path, backend=backend) as engine:
        engine._model.prompts.tokenizer = NoText()
        n = 8 if backend == "cpp" else 4
        asked = [
            [token % VOCAB for token in prompt] for prompt in prompts_alike(n, engine.context - 10)
        ]
        expected = [alone(engine, prompt) for prompt in asked]
        with engine.scheduler(lanes=4, piece_tokens=66) as scheduler:
            for _ in range(2):
                told = [ask(scheduler, prompt)[1] for prompt in asked]
                run(scheduler)
                assert [each.answer.tokens for each in told] == [its.tokens for its in expected]
        if backend == "cpp":
            assert any(each.answer.reused_tokens for each in told)


def test_each_request_has_its_own_limits(engine, scheduler):
    prompt = some_tokens(20)
    _, plain = ask(scheduler, prompt, max_new_tokens=20)
    run(scheduler)
    whole = plain.answer
    stop = whole.text[5:8]
    _, stopped = ask(scheduler, prompt, max_new_tokens=20, limits={"stop": stop})
    _, short = ask(scheduler, prompt, max_new_tokens=3)
    _, none = ask(scheduler, prompt, max_new_tokens=0, n=2)
    run(scheduler)
    assert stopped.answer.text == whole.text[: whole.text.index(stop)]
    assert stopped.answer.finish_reason == "stop"
    assert short.answer.tokens == whole.tokens[:3]
    assert [each.tokens for each in none.answers.values()] == [(), ()]


@pytest.mark.parametrize("on_full", ["stop", "shift"])
def test_a_full_context_ends_or_shifts_an_answer_as_alone(engine, on_full):
    asked = [(some_tokens(390), GREEDY, 40), (some_tokens(200, 1), GREEDY, 5)]
    expected = [alone(engine, *each, on_full=on_full) for each in asked]
    with engine.scheduler(lanes=2, piece_tokens=70) as scheduler:
        told = [ask(scheduler, *each, limits={"on_full": on_full})[1] for each in asked]
        run(scheduler)
    for each, its in zip(told, expected, strict=True):
        assert each.answer.tokens == its.tokens
        assert each.answer.shifted_tokens == its.shifted_tokens
        assert each.answer.finish_reason == its.finish_reason


def test_a_full_context_can_be_an_error_of_its_request(scheduler):
    _, told = ask(scheduler, some_tokens(395), max_new_tokens=40, limits={"on_full": "error"})
    _, other = ask(scheduler, some_tokens(5))
    run(scheduler)
    assert isinstance(told.error, ContextFullError)
    assert len(other.answer.tokens) == 8


def test_control_tokens_are_shown_to_those_who_read_markup(engine, scheduler):
    bos = engine.tokenizer.bos_id
    always = replace(GREEDY, logit_bias={bos: 1e6})
    _, hidden = ask(scheduler, some_tokens(5), always, 3)
    _, shown = ask(scheduler, some_tokens(5), always, 3, shown=frozenset([bos]))
    run(scheduler)
    spelling = engine.tokenizer.token_bytes(bos).decode()
    assert (hidden.answer.text, shown.answer.text) == ("", 3 * spelling)
    assert shown.text() == 3 * spelling


def test_several_answers_share_the_prompt(engine, passes):
    prompt, sampling = some_tokens(150), Sampling(1.5, seed=7)
    expected = [alone(engine, prompt, replace(sampling, seed=7 + i)) for i in range(3)]
    passes.clear()
    with engine.scheduler(lanes=3, cache_bytes=0) as scheduler:
        _, told = ask(scheduler, prompt, sampling, n=3)
        run(scheduler)
    assert [told.answers[i].tokens for i in range(3)] == [each.tokens for each in expected]
    assert [told.tokens(i) for i in range(3)] == [each.tokens for each in expected]
    assert [size for sizes in passes for size in sizes if size > 1] == [150]


# ---- the passes ----------------------------------------------------------------------------------


def test_an_answer_waits_for_no_more_than_a_piece_of_a_prompt(engine, passes):
    if engine.backend == "numpy":
        pytest.skip("its pieces are batches")
    with engine.scheduler(lanes=2, piece_tokens=70) as scheduler:
        _, first = ask(scheduler, some_tokens(5), max_new_tokens=30)
        scheduler.step()
        ask(scheduler, some_tokens(350, 1))
        run(scheduler)
    assert sum(len(sizes) == 2 and max(sizes) > 1 for sizes in passes) == 5
    assert max(max(sizes) for sizes in passes) == 70
    assert len(first.answer.tokens) == 30


def test_short_prompts_share_a_pass_as_long_as_together_they_are_no_longer_than_a_piece(
    engine, passes
):
    prompts = [some_tokens(n, n) for n in (40, 31, 20, 19)]
    expected = [alone(engine, prompt) for prompt in prompts]
    passes.clear()
    with engine.scheduler(lanes=4, piece_tokens=70, cache_bytes=0) as scheduler:
        told = [ask(scheduler, prompt)[1] for prompt in prompts]
        run(scheduler)
    assert [each.answer.tokens for each in told] == [its.tokens for its in expected]
    assert [sorted(size for size in sizes if size > 1) for sizes in passes[:3]] == [
        *([40], [19, 20, 31]),  # 31 does not fit, and 20 waits behind it; then 70 do
        [],
    ]


def test_beside_a_long_prompt_no_other_one_is_evaluated_before_it_is_complete(engine, passes):
    if engine.backend == "numpy":
        pytest.skip("its pieces are batches")
    with engine.scheduler(lanes=3, piece_tokens=70) as scheduler:
        asked = [ask(scheduler, some_tokens(n, n), max_new_tokens=1)[0] for n in (276, 20, 40)]
        scheduler.step()
        # One that does not fit has not begun: what it can reuse may come until it does.
        assert [handle.stage for handle in asked] == ["prompt", "queue", "queue"]
        run(scheduler)
    assert passes == [[69]] * 4 + [[20, 40]]


def test_only_the_last_piece_of_a_prompt_has_logits(engine, scheduler, monkeypatch):
    wanted = noted(engine, monkeypatch, lambda step: step.wanted)
    ask(scheduler, some_tokens(200), max_new_tokens=1)
    run(scheduler)
    assert wanted == [["nothing"]] * (0 if engine.backend == "numpy" else 2) + [["last"]]


def test_what_follows_a_reused_beginning_is_cut_as_in_the_whole_prompt(tmp_path, monkeypatch):
    """On NumPy, a token's bits depend on the size of its batch: of 37 tokens, 7, 7, 8, 7 and 8."""
    path = write_tiny_model(tmp_path, "f32").path
    with Engine(path, backend="numpy", batch_size=8) as engine, engine.scheduler() as scheduler:
        engine.tokenizer.eos_ids = frozenset()
        first = some_tokens(37)
        passes = noted(engine, monkeypatch, lambda step: step.sizes)
        for prompt in (first, [*first[:20], *some_tokens(17, 1)]):
            _, told = ask(scheduler, prompt, max_new_tokens=1, reuse="exact")
            run(scheduler)
    assert told.answer.reused_tokens == 14
    assert [size for (sizes,) in passes for size in sizes] == [7, 7, 8, 7, 8, 8, 7, 8]


def test_room_for_the_logits_of_a_whole_prompt_is_given_back(scheduler):
    for all_tokens in (True, False):
        ask(scheduler, some_tokens(60), max_new_tokens=2, prompt_logprobs=all_tokens)
        run(scheduler)
    assert len(scheduler._logits) <= scheduler.lanes


def test_the_logits_of_all_tokens_take_no_more_memory_than_those_of_a_piece(engine, passes):
    with engine.scheduler(lanes=2) as scheduler:
        for seed in range(2):
            ask(scheduler, some_tokens(9, seed), max_new_tokens=1, prompt_logprobs=True)
        run(scheduler)
    assert passes == [[9], [9]]


@pytest.mark.parametrize(
    ("reuse", "n_reused", "n_first"), [("any", [0, 65, 65], 1), ("none", [0, 0, 0], 3)]
)
def test_of_prompts_that_begin_alike_the_first_is_evaluated_for_all(
    engine, passes, reuse, n_reused, n_first
):
    asked = [[*some_tokens(65), seed] for seed in range(10, 13)]
    with engine.scheduler(lanes=3) as scheduler:
        told = [ask(scheduler, prompt, reuse=reuse)[1] for prompt in asked]
        run(scheduler)
    assert [each.answer.reused_tokens for each in told] == n_reused
    assert passes[0] == [66] * n_first  # who can reuse nothing waits for nobody


@pytest.mark.parametrize("n", [67, 130])
def test_prompts_of_which_few_bits_can_be_reused_wait_for_nothing(engine, passes, n):
    with engine.scheduler(piece_tokens=260) as scheduler:
        for last in (1, 2):
            ask(scheduler, [*some_tokens(n - 1), last], max_new_tokens=1, reuse="exact")
        run(scheduler)
    # At least 65 tokens are evaluated. On NumPy, their bits depend on all batches before them.
    waits = engine.backend == "cpp" and n == 130
    assert passes[0] == ([n] if waits else [n, n])


def test_prompts_that_reuse_what_was_evaluated_before_share_a_pass(engine, passes):
    with engine.scheduler(lanes=4) as scheduler:
        for last in range(4):
            ask(scheduler, [*some_tokens(66), last], max_new_tokens=1, reuse="any")
        run(scheduler)
    assert [sorted(sizes) for sizes in passes] == [[67], [1, 1, 1]]


@pytest.mark.parametrize(("seeds", "cache_bytes"), [((1, 2), None), ((1, 1), 0)])
def test_prompts_of_which_none_can_reuse_another_wait_for_nothing(
    engine, passes, seeds, cache_bytes
):
    with engine.scheduler(piece_tokens=140, cache_bytes=cache_bytes) as scheduler:
        for seed in seeds:
            ask(scheduler, some_tokens(66, seed), max_new_tokens=1, reuse="any")
        run(scheduler)
    assert passes[0] == [66, 66]


def test_who_begins_like_one_that_answers_waits_for_nothing(scheduler):
    ask(scheduler, some_tokens(66), max_new_tokens=30, reuse="any")
    scheduler.step()
    handle, _ = ask(scheduler, some_tokens(66), reuse="any")
    scheduler.step()
    assert (handle.stage, handle.reused_tokens) == ("answer", 65)


def test_who_leaves_before_a_pass_takes_no_part_in_it(scheduler, passes):
    handle, _ = ask(scheduler, some_tokens(9))
    ask(scheduler, some_tokens(9), max_new_tokens=0, then=lambda *_: scheduler.cancel(handle))
    run(scheduler)
    assert handle.stage == "cancelled"
    assert not passes


def test_who_leaves_a_pass_of_several_prompts_leaves_the_others_as_they_were(engine):
    prompts = [some_tokens(20, seed) for seed in range(3)]
    expected = [alone(engine, prompt) for prompt in prompts]
    with engine.scheduler(lanes=3) as scheduler:
        told = []
        for at, prompt in enumerate(prompts):
            then = (lambda handle, _: scheduler.cancel(handle)) if at == 1 else None
            handle, its = ask(scheduler, prompt, then=then)
            told.append(its)
            if at == 1:
                left = handle
        run(scheduler)
    assert [type(event) for event in told[1].events] == [PromptProgress]
    assert left.answer_tokens == 0
    for at in (0, 2):
        assert told[at].answer.tokens == expected[at].tokens


def test_prompts_are_evaluated_in_the_order_in_which_they_came(scheduler):
    order = []

    def note(handle, event):
        if isinstance(event, PromptProgress):
            order.append(handle.number)

    for seed in range(6):
        ask(scheduler, some_tokens(150, seed), then=note)
    run(scheduler)
    assert order == sorted(order)
    assert set(order) == {1, 2, 3, 4, 5, 6}


def test_the_progress_of_a_prompt_is_told(engine, scheduler):
    _, told = ask(scheduler, some_tokens(300))
    run(scheduler)
    done = [event.done for event in told.of(PromptProgress)]
    assert done == ([300] if engine.backend == "numpy" else [75, 150, 225, 300])
    assert {event.total for event in told.of(PromptProgress)} == {300}


def test_prompts_of_a_streamed_model_share_a_pass(tmp_path, monkeypatch):
    require_cpp()
    path = write_tiny_model(tmp_path, "q4_0", sizes=replace(LAYERS, context=400)).path
    with pytest.raises(BudgetError) as refusal:
        Engine(path, ram_budget=1)
    with Engine(path, ram_budget=refusal.value.minimum) as engine:
        assert engine.plan().streams
        engine.tokenizer.eos_ids = frozenset()
        expected = [alone(engine, some_tokens(50, seed)) for seed in range(3)]
        passes = noted(engine, monkeypatch, lambda step: len(step.tokens))
        with Scheduler(engine._model, cache_bytes=0, within_budget=False) as scheduler:
            asked = [ask(scheduler, some_tokens(50, seed))[1] for seed in range(3)]
            run(scheduler)
            assert passes == [[50] * 3] + [[1] * 3] * 7
            for n in (180, 100, 60):  # the second does not fit beside the first, the third does
                ask(scheduler, some_tokens(n, n), max_new_tokens=1)
            run(scheduler)
            # The logits of all tokens have room for those of a piece.
            monkeypatch.setattr(running, "_LOGITS_BYTES", 4 * engine.config.vocab_size * 65)
            ask(scheduler, some_tokens(195), max_new_tokens=1, prompt_logprobs=True)
            run(scheduler)
        assert [told.answer.tokens for told in asked] == [each.tokens for each in expected]
        assert passes[8:] == [[180, 60], [100], [65], [65], [65]]


def test_a_pass_that_nobody_waits_for_is_abandoned(tmp_path):
    require_cpp()
    model = write_tiny_model(tmp_path, "q4_0", sizes=LAYERS)
    with pytest.raises(BudgetError) as refusal:
        Engine(model.path, ram_budget=1)
    with Engine(model.path, ram_budget=refusal.value.minimum) as engine:
        layers, leave = [], {}

        def after_layer(done, total):
            layers.append(done)
            leave.get(done, int)()

        def be_late():
            late.submitted -= 101.0

        with Scheduler(engine._model, on_layer=after_layer) as scheduler:
            one, other = (ask(scheduler, some_tokens(9, seed))[0] for seed in range(2))
            leave |= {2: lambda: scheduler.cancel(one), 4: lambda: scheduler.cancel(other)}
            run(scheduler)
            late, told = ask(scheduler, some_tokens(9), deadline_seconds=100.0)
            leave = {3: be_late}
            run(scheduler)
    assert layers == [1, 2, 3, 4, 1, 2, 3]
    assert isinstance(told.error, DeadlineError)


def test_of_streamed_prompts_that_begin_alike_the_first_is_evaluated_for_all(tmp_path):
    require_cpp()
    path = write_tiny_model(tmp_path, "q4_0", sizes=replace(LAYERS, context=1000)).path
    with pytest.raises(BudgetError) as refusal:
        Engine(path, ram_budget=1, context=1000)
    with Engine(path, ram_budget=refusal.value.minimum, context=1000) as engine:
        assert engine.plan().streams
        engine.tokenizer.eos_ids = frozenset()
        asked = [[*some_tokens(300), *some_tokens(70, seed)] for seed in range(1, 4)]
        expected = [alone(engine, prompt) for prompt in asked]
        settings = {"within_budget": False, "cache_bytes": 8 << 20}
        with Scheduler(engine._model, **settings) as scheduler:
            told = [ask(scheduler, prompt)[1] for prompt in asked]
            run(scheduler)
            few = [ask(scheduler, [*some_tokens(100, 9), seed])[1] for seed in range(3)]
            run(scheduler)
        assert [each.answer.tokens for each in told] == [its.tokens for its in expected]
        assert [each.answer.reused_tokens for each in told] == [0, 300, 300]
        assert [each.answer.reused_tokens for each in few] == [0, 0, 0]  # not worth a pass


# ---- what is reported beside the text ------------------------------------------------------------


def expected_logprobs(engine: Engine, prompt: list[int], answer: Sequence[int] = ()) -> np.ndarray:
    """Of each token after the first, given those before it; float64 [n - 1, vocab]."""
    decoder = engine._model.decoder
    decoder.state.clear()
    ids = np.array(prompt, np.int32)
    rows = [decoder.evaluate(ids, np.empty((len(ids), engine.config.vocab_size), np.float32))]
    if answer:  # the head rounds a row by itself in another way
        decoder.state.clear()
        rows[0][-1] = decoder.evaluate(ids)
    rows += [decoder.evaluate(np.array([token], np.int32)).copy()[None] for token in answer]
    exact = np.concatenate(rows)[:-1].astype(np.float64)
    return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def test_logprobs_are_those_of_the_models_distribution(engine, scheduler):
    prompt = some_tokens(30)
    _, told = ask(scheduler, prompt, Sampling(2.0, top_k=3, seed=1), logprobs=True, top_logprobs=4)
    run(scheduler)
    found = [each for piece in told.of(Piece) for each in piece.logprobs]
    assert tuple(each.token for each in found) == told.answer.tokens
    expected = expected_logprobs(engine, prompt, told.answer.tokens)[len(prompt) - 1 :]
    for each, row in zip(found, expected, strict=True):
        assert each.logprob == pytest.approx(row[each.token], abs=1e-9)
        likeliest = np.argsort(-row, kind="stable")[:4]
        assert [token for token, _ in each.top] == likeliest.tolist()
        assert [logprob for _, logprob in each.top] == pytest.approx(row[likeliest], abs=1e-9)


def test_no_more_tokens_are_told_than_there_are():
    found = running._logprob(np.zeros(3, np.float32), 1, 100)
    assert [token for token, _ in found.top] == [0, 1, 2]


def test_the_best_of_several_answers_are_those_with_the_largest_mean_logprob(engine, scheduler):
    prompt, sampling = some_tokens(30), Sampling(2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    singles = []
    for index in range(4):
        own = replace(sampling, seed=5 + index)
        _, told = ask(scheduler, prompt, own, logprobs=True)
        run(scheduler)
        logprobs = [each.logprob for piece in told.of(Piece) for each in piece.logprobs]
        singles.append((np.mean(logprobs), told.answer.tokens))
    _, told = ask(scheduler, prompt, sampling, n=2, best_of=4)
    run(scheduler)
    best = [found for _, found in sorted(singles, reverse=True)]
    assert [told.answers[index].tokens for index in range(2)] == best[:2]
    assert [told.tokens(index) for index in range(2)] == best[:2]


@pytest.mark.parametrize("max_new_tokens", [0, 3])
def test_a_prompts_own_logprobs_can_be_told(engine, scheduler, max_new_tokens):
    prompt = some_tokens(300)
    ask(scheduler, prompt)
    _, told = ask(
        scheduler,
        prompt,
        max_new_tokens=max_new_tokens,
        prompt_logprobs=True,
        top_logprobs=1,
    )
    run(scheduler)
    found = [each for event in told.of(PromptProgress) for each in event.logprobs]
    assert [each.token for each in found] == prompt[1:]
    expected = expected_logprobs(engine, prompt)
    own = expected[np.arange(len(prompt) - 1), prompt[1:]]
    np.testing.assert_allclose([each.logprob for each in found], own, atol=1e-5)
    np.testing.assert_allclose([each.top[0][1] for each in found], expected.max(1), atol=1e-5)
    assert len(told.answer.tokens) == max_new_tokens
    assert told.answer.reused_tokens == 0

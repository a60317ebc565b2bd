"""The scheduler: many requests at once, each with the answer that it gets alone."""

import gc
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from extension import require_cpp
from family_models import ARCHITECTURES, VOCAB, write_family_model
from scheduling import GREEDY, NoText, Told, alone, ask, run
from streamed_model import SIZES as LAYERS
from tiny_model import Sizes, write_tiny_model
from variants import variant

from airllm.engine.requests import (
    DeadlineError,
    Finished,
    Piece,
    PromptProgress,
    QueueFullError,
    Request,
)
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import ContextFullError, Limits, Sampling
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import BudgetError

Engine = LayerWiseInferenceEngine
SIZES = Sizes(context=400)


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 150, n).tolist()


def prompts(n: int, most: int, seed: int = 1) -> list[list[int]]:
    """Prompts of 1 to `most` tokens, many of which begin alike."""
    random = np.random.default_rng(seed)
    shared = tokens(most)
    found = []
    for _ in range(n):
        length = int(random.integers(1, most + 1))
        begin = int(random.integers(0, length))
        found.append(shared[:begin] + random.integers(3, 150, length - begin).tolist())
    return found


@pytest.fixture(params=["numpy", "cpp"])
def engine(request, tmp_path):
    if request.param == "cpp":
        require_cpp()
    type = "f32" if request.param == "numpy" else "q8_0"
    path = write_tiny_model(tmp_path, type, sizes=SIZES).path
    with Engine(path, backend=request.param) as engine:
        engine.tokenizer.eos_ids = frozenset()  # no token ends an answer
        yield engine


@pytest.fixture
def scheduler(engine):
    with engine.scheduler(lanes=4, piece_tokens=70) as scheduler:
        yield scheduler


@pytest.fixture
def passes(engine, monkeypatch):
    """Of each pass the sizes of its steps."""
    seen: list[list[int]] = []
    evaluate = engine._model.decoder.evaluate_each

    def note(steps, *rest):
        seen.append([len(step.tokens) for step in steps])
        return evaluate(steps, *rest)

    monkeypatch.setattr(engine._model.decoder, "evaluate_each", note)
    return seen


# ---- the answers ---------------------------------------------------------------------------------


def test_answers_among_31_others_are_those_alone(engine):
    asked = []
    for number, prompt in enumerate(prompts(32, 280)):
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
        asked = [[token % VOCAB for token in prompt] for prompt in prompts(8, engine.context - 10)]
        expected = [alone(engine, prompt) for prompt in asked]
        with engine.scheduler(lanes=4, piece_tokens=66) as scheduler:
            for _ in range(2):
                told = [ask(scheduler, prompt)[1] for prompt in asked]
                run(scheduler)
                assert [each.answer.tokens for each in told] == [its.tokens for its in expected]
        if backend == "cpp":
            assert any(each.answer.reused_tokens for each in told)


def test_each_request_has_its_own_limits(engine, scheduler):
    prompt = tokens(20)
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
    asked = [(tokens(390), GREEDY, 40), (tokens(200, 1), GREEDY, 5)]
    expected = [alone(engine, *each, on_full=on_full) for each in asked]
    with engine.scheduler(lanes=2, piece_tokens=70) as scheduler:
        told = [ask(scheduler, *each, limits={"on_full": on_full})[1] for each in asked]
        run(scheduler)
    for each, its in zip(told, expected, strict=True):
        assert each.answer.tokens == its.tokens
        assert each.answer.shifted_tokens == its.shifted_tokens
        assert each.answer.finish_reason == its.finish_reason


def test_a_full_context_can_be_an_error_of_its_request(scheduler):
    _, told = ask(scheduler, tokens(395), max_new_tokens=40, limits={"on_full": "error"})
    _, other = ask(scheduler, tokens(5))
    run(scheduler)
    assert isinstance(told.error, ContextFullError)
    assert len(other.answer.tokens) == 8


def test_several_answers_share_the_prompt(engine, passes):
    prompt, sampling = tokens(150), Sampling(1.5, seed=7)
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
        _, first = ask(scheduler, tokens(5), max_new_tokens=30)
        scheduler.step()
        ask(scheduler, tokens(350, 1))
        run(scheduler)
    assert sum(len(sizes) == 2 and max(sizes) > 1 for sizes in passes) == 5
    assert max(max(sizes) for sizes in passes) == 70
    assert len(first.answer.tokens) == 30


def test_prompts_are_evaluated_in_the_order_in_which_they_came(scheduler):
    order = []

    def note(handle, event):
        if isinstance(event, PromptProgress):
            order.append(handle.number)

    for seed in range(6):
        ask(scheduler, tokens(150, seed), then=note)
    run(scheduler)
    assert order == sorted(order)
    assert set(order) == {1, 2, 3, 4, 5, 6}


def test_the_progress_of_a_prompt_is_told(engine, scheduler):
    _, told = ask(scheduler, tokens(300))
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
        expected = [alone(engine, tokens(50, seed)) for seed in range(3)]
        passes = []
        evaluate = engine._model.decoder.evaluate_each
        monkeypatch.setattr(
            engine._model.decoder,
            "evaluate_each",
            lambda steps, *rest: passes.append(len(steps)) or evaluate(steps, *rest),
        )
        with engine.scheduler(cache_bytes=0) as scheduler:
            asked = [ask(scheduler, tokens(50, seed))[1] for seed in range(3)]
            run(scheduler)
        assert [told.answer.tokens for told in asked] == [each.tokens for each in expected]
        assert passes == [3] * 8


# ---- who leaves ----------------------------------------------------------------------------------


def test_who_is_cancelled_hears_nothing_more_wherever_the_request_is(scheduler):
    handles = [ask(scheduler, tokens(200, seed), max_new_tokens=30) for seed in range(7)]
    for _ in range(12):
        scheduler.step()
    stages = [handle.stage for handle, _ in handles]
    assert {"queue", "prompt", "answer"} <= {*stages, "prompt"}
    heard = {}
    for handle, told in handles[::2]:
        assert scheduler.cancel(handle)
        assert not scheduler.cancel(handle)
        assert handle.stage == "cancelled"
        heard[handle.number] = len(told.events)
    run(scheduler)
    for handle, told in handles[::2]:
        assert len(told.events) == heard[handle.number]
    assert [len(told.answer.tokens) for _, told in handles[1::2]] == [30, 30, 30]


def test_a_callback_may_cancel_its_own_request(scheduler):
    def leave(handle, event):
        if isinstance(event, Piece):
            assert scheduler.cancel(handle)

    handle, told = ask(scheduler, tokens(5), then=leave)
    _, other = ask(scheduler, tokens(5))
    run(scheduler)
    assert handle.stage == "cancelled"
    assert len(told.of(Piece)) == 1
    assert len(other.answer.tokens) == 8


def test_cancel_waits_for_the_callback_under_way(engine):
    entered, leave, cancelled = threading.Event(), threading.Event(), threading.Event()

    def slow(handle, event):
        entered.set()
        assert leave.wait(10)

    with engine.scheduler() as scheduler:
        handle, _ = ask(scheduler, tokens(5), then=slow)
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        assert entered.wait(10)
        canceller = threading.Thread(
            target=lambda: (scheduler.cancel(handle), cancelled.set()), daemon=True
        )
        canceller.start()
        assert not cancelled.is_set()
        leave.set()
        assert cancelled.wait(10)
        scheduler.close()
        server.join(10)


def test_what_was_evaluated_for_a_request_that_left_is_reused(engine, scheduler):
    if engine.backend == "numpy":
        pytest.skip("its prompts are in one batch")
    handle, _ = ask(scheduler, tokens(300))
    scheduler.step()
    scheduler.step()
    scheduler.cancel(handle)
    run(scheduler)
    _, again = ask(scheduler, tokens(300))
    run(scheduler)
    assert again.answer.reused_tokens == 150


def test_a_deadline_ends_a_request_wherever_it_is(scheduler):
    _, late = ask(scheduler, tokens(5), deadline_seconds=1e-9)
    run(scheduler)
    assert isinstance(late.error, DeadlineError)
    assert "deadline_seconds=1e-09" in str(late.error)
    for seed in range(4):
        ask(scheduler, tokens(5, seed))
    scheduler.step()
    _, waiting = ask(scheduler, tokens(5), queue_seconds=1e-9)
    _, patient = ask(scheduler, tokens(5), queue_seconds=1e9, deadline_seconds=1e9)
    run(scheduler)
    assert "queue_seconds" in str(waiting.error)
    assert patient.answer.tokens


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_full_queue_refuses_and_has_room_again_later(engine):
    with engine.scheduler(lanes=1, queue_length=2) as scheduler:
        ask(scheduler, tokens(5))
        ask(scheduler, tokens(5))
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            ask(scheduler, tokens(5))
        scheduler.step()
        ask(scheduler, tokens(5))
        run(scheduler)
        assert (scheduler.n_waiting, scheduler.n_running) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prompt": "text"}, TypeError, "prompt is 'text'; expected token ids"),
        ({"prompt": []}, ValueError, "n at least 1"),
        ({"prompt": [1000]}, ValueError, "token 1000 is not in the vocabulary"),
        ({"prompt": [1] * 401}, ContextFullError, "the prompt has 401 tokens"),
        ({"n": 0}, ValueError, "n is 0"),
        ({"n": 9}, ValueError, "n is 9; at most 4 answers run at once"),
        ({"n": 2, "best_of": 1}, ValueError, "best_of is 1; expected at least 2"),
        ({"top_logprobs": -1}, ValueError, "top_logprobs is -1"),
        ({"deadline_seconds": 0}, ValueError, "deadline_seconds is 0"),
        ({"queue_seconds": "soon"}, TypeError, "queue_seconds is 'soon'"),
        ({"reuse": "some"}, ValueError, "reuse is 'some'; expected 'exact' or"),
        ({"embedding": "sum"}, ValueError, "embedding is 'sum'"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_name(scheduler, settings, error, message):
    with pytest.raises(error, match=message):
        scheduler.submit(Request(**{"prompt": [5], **settings}), Told())
    assert scheduler.n_waiting == 0


def test_a_callback_that_fails_ends_its_own_request_alone(scheduler):
    def fail(handle, event):
        if isinstance(event, Piece):
            raise KeyError("a bug of the client")

    handle, told = ask(scheduler, tokens(5), then=fail)
    _, other = ask(scheduler, tokens(5))
    run(scheduler)
    assert handle.stage == "failed"
    assert isinstance(told.error, KeyError)
    assert len(other.answer.tokens) == 8


def test_logits_that_are_no_numbers_end_their_own_request_alone(engine, scheduler, monkeypatch):
    evaluate = engine._model.decoder.evaluate_each

    def spoil(steps, *rest):
        rows = evaluate(steps, *rest)
        if len(rows) == 3:
            rows[1][:] = np.nan
        return rows

    monkeypatch.setattr(engine._model.decoder, "evaluate_each", spoil)
    told = [ask(scheduler, [each])[1] for each in (5, 6, 7)]
    run(scheduler)
    assert isinstance(told[1].error, ValueError)
    assert [len(each.answer.tokens) for each in (told[0], told[2])] == [8, 8]


@pytest.mark.parametrize("error", [OSError("the disk is gone"), MemoryError("no room")])
def test_a_pass_that_fails_ends_the_requests_in_it_and_no_others(
    engine, scheduler, monkeypatch, error
):
    expected = ask(scheduler, tokens(100))[1]
    run(scheduler)
    first, second = (ask(scheduler, tokens(100, seed))[1] for seed in (1, 2))
    scheduler.step()
    layers = engine._model.decoder.weights.layers

    def fail(*_):
        raise error

    monkeypatch.setattr(engine._model.decoder.weights, "layers", fail)
    scheduler.step()
    monkeypatch.setattr(engine._model.decoder.weights, "layers", layers)
    later = ask(scheduler, tokens(100))[1]
    run(scheduler)
    assert first.error is error
    assert second.error in (error, None)
    assert later.answer.tokens == expected.answer.tokens


def test_without_memory_for_a_pass_what_was_kept_makes_room(engine, scheduler, monkeypatch):
    ask(scheduler, tokens(100))
    run(scheduler)
    assert scheduler.cached_bytes
    memory, asked = scheduler._pool.memory, []

    def short(n_bytes):
        asked.append(n_bytes)
        if scheduler.cached_bytes:
            raise MemoryError
        return memory(n_bytes)

    monkeypatch.setattr(scheduler._pool, "memory", short)
    _, told = ask(scheduler, tokens(380, 1))
    run(scheduler)
    assert asked
    assert len(told.answer.tokens) == 8


# ---- memory --------------------------------------------------------------------------------------


def test_nothing_is_held_when_all_have_ended(engine):
    with engine.scheduler(lanes=4, piece_tokens=70, cache_bytes=0) as scheduler:
        for prompt in prompts(9, 300):
            ask(scheduler, prompt, n=2)
        run(scheduler)
        assert scheduler._pool.nbytes == 0
        assert scheduler._reserved == 0


def test_what_is_kept_stays_within_its_bytes(engine):
    page = engine._model.decoder.layout.page_bytes[0]
    with engine.scheduler(lanes=4, cache_bytes=12 * page) as scheduler:
        for prompt in prompts(20, 380):
            ask(scheduler, prompt)
            run(scheduler)
            assert 0 < scheduler.cached_bytes <= 12 * page


def test_lanes_wait_for_memory_that_others_have(tmp_path):
    path = write_tiny_model(tmp_path, "f32", sizes=SIZES).path
    with Engine(path, backend="numpy") as engine:
        needed = engine.plan().total_bytes
    with Engine(path, backend="numpy", ram_budget=needed + (64 << 10)) as engine:
        most = []

        def note(handle, event):
            most.append(scheduler.n_running)

        with engine.scheduler(lanes=4) as scheduler:
            told = [
                ask(scheduler, tokens(300, seed), max_new_tokens=90, then=note)[1]
                for seed in range(4)
            ]
            run(scheduler)
            assert max(most) == 1
            small = [ask(scheduler, tokens(30, seed), then=note)[1] for seed in range(4)]
            run(scheduler)
            assert max(most) > 1
        assert all(each.answer.tokens for each in [*told, *small])


# ---- from the first to the last ------------------------------------------------------------------


def test_a_thread_serves_requests_of_many_threads(engine):
    asked = prompts(12, 200)
    expected = [alone(engine, prompt) for prompt in asked]
    with engine.scheduler(lanes=3, piece_tokens=70) as scheduler:
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        found = {}

        def client(index):
            handle, told = ask(scheduler, asked[index])
            assert handle.wait(30)
            found[index] = told.answer.tokens

        clients = [threading.Thread(target=client, args=(index,)) for index in range(12)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(30)
        scheduler.close(drain=True)
        server.join(10)
        assert not server.is_alive()
    assert [found[index] for index in range(12)] == [each.tokens for each in expected]


def test_close_drains_or_ends_what_is_there_and_frees_the_engine(engine):
    with engine.scheduler(lanes=1) as scheduler:
        told = [ask(scheduler, tokens(5, seed))[1] for seed in range(3)]
        scheduler.step()
        scheduler.close(drain=True)
        assert all(len(each.answer.tokens) == 8 for each in told)
        with pytest.raises(RuntimeError, match="the scheduler is closed"):
            ask(scheduler, tokens(5))
    with engine.scheduler(lanes=1) as scheduler:
        with pytest.raises(RuntimeError, match="busy"):
            engine.generate("hello", max_new_tokens=1)
        told = [ask(scheduler, tokens(5, seed))[1] for seed in range(3)]
        scheduler.step()
        scheduler.close()
        assert all("the scheduler was closed" in str(each.error) for each in told)
    engine.generate("hello", max_new_tokens=1)


def test_a_callback_may_close_the_scheduler(engine):
    with engine.scheduler() as scheduler:
        handle, told = ask(scheduler, tokens(5), then=lambda *_: scheduler.close())
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        assert handle.wait(10)
        server.join(10)
    assert "the scheduler was closed" in str(told.error)


def test_the_engines_own_cache_is_not_touched(engine):
    engine.forward([5, 6, 7])
    with engine.scheduler() as scheduler:
        ask(scheduler, tokens(100))
        run(scheduler)
    after = engine.forward([8])
    engine.reset()
    engine.forward([5, 6, 7])
    np.testing.assert_array_equal(engine.forward([8]), after)


def test_times_of_a_request_are_in_order(scheduler):
    handle, told = ask(scheduler, tokens(5))
    run(scheduler)
    times = [handle.submitted, handle.started, handle.first_token, handle.ended]
    assert times == sorted(times)
    assert handle.answer_tokens == len(told.answer.tokens)


@pytest.mark.parametrize("n", [150, pytest.param(10_000, marks=pytest.mark.soak)])
def test_random_requests_that_come_and_leave_leave_nothing_behind(engine, n):
    random = np.random.default_rng(3)
    with engine.scheduler(lanes=5, queue_length=8, piece_tokens=70) as scheduler:
        known, refused = [], 0
        for number in range(n):
            prompt = tokens(int(random.integers(1, 300)), int(random.integers(0, 5)))
            reuse = (None, "any", "exact", "none")[number % 4]
            try:
                known.append(
                    ask(scheduler, prompt, max_new_tokens=int(random.integers(0, 9)), reuse=reuse)
                )
            except QueueFullError:
                refused += 1
            if random.random() < 0.3:
                scheduler.cancel(known[int(random.integers(0, len(known)))][0])
            for _ in range(int(random.integers(0, 6))):
                scheduler.step()
        run(scheduler)
        assert {handle.stage for handle, _ in known} == {"finished", "cancelled"}
        assert all(told.of(Finished) for handle, told in known if handle.stage == "finished")
        assert scheduler._reserved == 0
        assert len(scheduler._free) == scheduler._n_states <= 5
        scheduler._tree.shrink(0)
        gc.collect()
        scheduler._pool.shrink()
        assert scheduler._pool.nbytes == 0
        assert scheduler.cached_bytes == 0


def test_a_scheduler_that_is_dropped_frees_the_engine(engine):
    scheduler = Scheduler(engine._model)
    with pytest.warns(ResourceWarning, match="was dropped without close"):
        del scheduler
    engine.generate("hello", max_new_tokens=1)


def test_no_option_is_taken_that_makes_no_sense(engine):
    for settings in ({"lanes": 0}, {"queue_length": 0}, {"piece_tokens": 0}, {"cache_bytes": -1}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name} is"), engine.scheduler(**settings):
            pass
    assert engine.generate("hello", max_new_tokens=1)
    assert Limits(3) == Limits(3)


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
    prompt = tokens(30)
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


def test_the_best_of_several_answers_are_those_with_the_largest_mean_logprob(engine, scheduler):
    prompt, sampling = tokens(30), Sampling(2.0, top_k=0, top_p=1.0, min_p=0.0, seed=5)
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
    prompt = tokens(300)
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


def test_an_error_that_no_request_accounts_for_ends_what_runs_and_nothing_else(
    engine, monkeypatch, caplog
):
    with engine.scheduler(lanes=1) as scheduler:
        choose, calls = scheduler._choose, []

        def fail_once():
            calls.append(1)
            if len(calls) == 3:
                raise ZeroDivisionError("a bug")
            return choose()

        monkeypatch.setattr(scheduler, "_choose", fail_once)
        asked = [ask(scheduler, tokens(5, seed)) for seed in range(3)]
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        assert all(handle.wait(30) for handle, _ in asked)
        scheduler.close()
        server.join(10)
    assert isinstance(asked[0][1].error, ZeroDivisionError)
    assert asked[2][1].answer.tokens
    assert "a step of the scheduler failed" in caplog.text


def test_memory_that_is_short_for_keeping_a_sequence_ends_no_request(engine, monkeypatch):
    with engine.scheduler() as scheduler:
        monkeypatch.setattr(scheduler._tree, "add", lambda *_: (_ for _ in ()).throw(MemoryError))
        _, told = ask(scheduler, tokens(50))
        run(scheduler)
    assert len(told.answer.tokens) == 8


@pytest.mark.parametrize("n", [25, pytest.param(600, marks=pytest.mark.soak)])
def test_threads_that_submit_and_cancel_at_any_time_hear_no_one_elses_events(engine, n):
    """Each thread's prompts begin with its own token, by which it knows its answers."""
    faults: list[str] = []

    def client(number: int, scheduler: Scheduler, expected: list[tuple[int, ...]]) -> None:
        random = np.random.default_rng(number)
        for _ in range(n):
            handle, told = None, Told()
            try:
                handle, told = ask(scheduler, [number + 3, *tokens(90)], max_new_tokens=5)
            except QueueFullError:
                continue
            if random.random() < 0.5:
                handle.wait(float(random.random()) * 0.02)
                cancelled, n_events = scheduler.cancel(handle), len(told.events)
                if cancelled and (len(told.events) != n_events or told.answers):
                    faults.append("an event after cancel")
            elif not handle.wait(60):
                faults.append("no end")
            elif told.answer.tokens != expected[number]:
                faults.append("another one's answer")

    expected = [alone(engine, [number + 3, *tokens(90)], max_new_tokens=5) for number in range(6)]
    answers = [each.tokens for each in expected]
    with engine.scheduler(lanes=3, queue_length=4, piece_tokens=70) as scheduler:
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        clients = [
            threading.Thread(target=client, args=(number, scheduler, answers))
            for number in range(6)
        ]
        for each in clients:
            each.start()
        for each in clients:
            each.join(300)
        scheduler.close(drain=True)
        server.join(30)
        assert not server.is_alive()
        assert not faults
        assert scheduler._reserved == 0

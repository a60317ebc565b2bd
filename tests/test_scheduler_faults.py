"""The scheduler: who leaves, what goes wrong, and what stays behind: nothing."""

import gc
import threading

import numpy as np
import pytest
from scheduling import SIZES, Told, alone, ask, open_tiny, prompts_alike, run, some_tokens
from tiny_model import write_tiny_model

from airllm.engine import lanes
from airllm.engine.requests import (
    DeadlineError,
    Failed,
    Finished,
    Piece,
    PromptProgress,
    QueueFullError,
    Request,
)
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import ContextFullError, Limits, Sampling
from airllm.layer_engine import LayerWiseInferenceEngine

Engine = LayerWiseInferenceEngine


@pytest.fixture(params=["numpy", "cpp"])
def engine(request, tmp_path):
    with open_tiny(tmp_path, request.param) as engine:
        yield engine


@pytest.fixture
def scheduler(engine):
    with engine.scheduler(lanes=4, piece_tokens=70) as scheduler:
        yield scheduler


# ---- who leaves ----------------------------------------------------------------------------------


def test_who_is_cancelled_hears_nothing_more_wherever_the_request_is(scheduler):
    handles = [ask(scheduler, some_tokens(200, seed), max_new_tokens=30) for seed in range(7)]
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


def test_who_is_cancelled_in_the_queue_makes_room_at_once(engine):
    with engine.scheduler(lanes=1, queue_length=1) as scheduler:
        handle, _ = ask(scheduler, some_tokens(5))
        with pytest.raises(QueueFullError):
            ask(scheduler, some_tokens(5))
        scheduler.cancel(handle)
        assert scheduler.n_waiting == 0
        _, told = ask(scheduler, some_tokens(5))
        run(scheduler)
    assert told.answer.tokens


def test_who_is_cancelled_while_it_gets_its_lanes_is_not_served(scheduler, monkeypatch):
    take = scheduler._lanes.take

    def leave(*wanted):
        scheduler.cancel(handle)
        return take(*wanted)

    handle, told = ask(scheduler, some_tokens(5))
    monkeypatch.setattr(scheduler._lanes, "take", leave)
    run(scheduler)
    assert not told.events
    assert (scheduler._lanes.n_in_use, scheduler._lanes.reserved) == (0, 0)


def test_a_callback_may_cancel_its_own_request(scheduler):
    def leave(handle, event):
        if isinstance(event, Piece):
            assert scheduler.cancel(handle)

    handle, told = ask(scheduler, some_tokens(5), then=leave)
    _, other = ask(scheduler, some_tokens(5))
    run(scheduler)
    assert handle.stage == "cancelled"
    assert len(told.of(Piece)) == 1
    assert len(other.answer.tokens) == 8


def test_who_is_cancelled_by_its_last_piece_does_not_hear_that_it_has_ended(scheduler):
    heard = []

    def leave(handle, event):
        heard.append(type(event))
        if isinstance(event, Piece):
            scheduler.cancel(handle)

    scheduler.submit(Request(some_tokens(5), Sampling(0.0), Limits(1)), leave)
    run(scheduler)
    assert heard == [PromptProgress, Piece]


def test_no_other_thread_comes_within_an_event_or_between_the_last_one_and_the_end(scheduler):
    free = []

    def probe(handle, _):
        def acquire():
            free.append(handle._telling.acquire(blocking=False))
            if free[-1]:
                handle._telling.release()

        thread = threading.Thread(target=acquire)
        thread.start()
        thread.join()

    def end(stage):
        probe(handle, None)
        return really_end(stage)

    handle, _ = ask(scheduler, some_tokens(5), max_new_tokens=1, then=probe)
    really_end, handle.end = handle.end, end
    run(scheduler)
    assert handle.stage == "finished"
    assert free == [False] * 4  # progress, a piece, its end, and that of the request
    ask(scheduler, some_tokens(5), then=probe, deadline_seconds=1e-9)
    scheduler.step()
    assert free == [False] * 5


def test_cancel_waits_for_the_callback_under_way(engine):
    entered, leave, cancelled = threading.Event(), threading.Event(), threading.Event()

    def slow(handle, event):
        entered.set()
        assert leave.wait(10)

    with engine.scheduler() as scheduler:
        handle, _ = ask(scheduler, some_tokens(5), then=slow)
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
    handle, _ = ask(scheduler, some_tokens(300))
    scheduler.step()
    scheduler.step()
    scheduler.cancel(handle)
    run(scheduler)
    _, again = ask(scheduler, some_tokens(300))
    run(scheduler)
    assert again.answer.reused_tokens == 150


def test_what_a_pass_evaluated_for_a_request_that_left_in_it_is_reused(
    engine, scheduler, monkeypatch
):
    evaluate = engine._model.decoder.evaluate_each
    handle, told = ask(scheduler, some_tokens(200))

    def leave(*rest):
        found = evaluate(*rest)
        scheduler.cancel(handle)
        return found

    monkeypatch.setattr(engine._model.decoder, "evaluate_each", leave)
    scheduler.step()
    assert not told.events
    run(scheduler)
    _, again = ask(scheduler, some_tokens(200), reuse="any")
    run(scheduler)
    assert again.answer.reused_tokens == (199 if engine.backend == "numpy" else 66)


def test_a_deadline_ends_a_request_wherever_it_is(scheduler):
    _, late = ask(scheduler, some_tokens(5), deadline_seconds=1e-9)
    run(scheduler)
    assert isinstance(late.error, DeadlineError)
    assert "deadline_seconds=1e-09" in str(late.error)
    for seed in range(4):
        ask(scheduler, some_tokens(5, seed))
    scheduler.step()
    _, waiting = ask(scheduler, some_tokens(5), queue_seconds=1e-9)
    _, patient = ask(scheduler, some_tokens(5), queue_seconds=1e9, deadline_seconds=1e9)
    run(scheduler)
    assert "queue_seconds" in str(waiting.error)
    assert patient.answer.tokens


def test_each_deadline_counts_to_its_own_end(scheduler):
    handle, told = ask(
        scheduler, some_tokens(5), max_new_tokens=30, queue_seconds=10.0, deadline_seconds=100.0
    )
    scheduler.step()
    handle.submitted -= 20.0
    scheduler.step()
    assert not handle.is_over  # it no longer waits
    handle.submitted -= 90.0
    scheduler.step()
    assert "deadline_seconds=100" in str(told.error)


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_full_queue_refuses_and_has_room_again_later(engine):
    with engine.scheduler(lanes=1, queue_length=2) as scheduler:
        ask(scheduler, some_tokens(5))
        ask(scheduler, some_tokens(5))
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            ask(scheduler, some_tokens(5))
        scheduler.step()
        ask(scheduler, some_tokens(5))
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
        ({"top_logprobs": 101}, ValueError, "top_logprobs is 101"),
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

    handle, told = ask(scheduler, some_tokens(5), then=fail)
    _, other = ask(scheduler, some_tokens(5))
    run(scheduler)
    assert handle.stage == "failed"
    assert isinstance(told.error, KeyError)
    assert len(other.answer.tokens) == 8


def test_what_is_called_after_events_is_called_once_for_a_pass_and_ends_nothing(scheduler, caplog):
    heard = []

    def hear(handle, event):
        heard.append(type(event))

    def after():
        heard.append("after")
        raise KeyError("a bug of the client")

    told = [ask(scheduler, some_tokens(5, n), then=hear, after=after)[1] for n in range(2)]
    scheduler.step()
    assert heard.count(PromptProgress) == 2
    assert heard.index("after") == len(heard) - 1
    run(scheduler)
    assert [len(each.answer.tokens) for each in told] == [8, 8]
    assert "what is called after events raised an error" in caplog.text
    heard.clear()
    ask(scheduler, some_tokens(5), then=hear, after=after, deadline_seconds=1e-9)
    scheduler.step()
    assert heard == [Failed, "after"]


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
    expected = ask(scheduler, some_tokens(100))[1]
    run(scheduler)
    first, second = (ask(scheduler, some_tokens(100, seed))[1] for seed in (1, 2))
    scheduler.step()
    layers = engine._model.decoder.weights.layers

    def fail(*_):
        raise error

    monkeypatch.setattr(engine._model.decoder.weights, "layers", fail)
    scheduler.step()
    monkeypatch.setattr(engine._model.decoder.weights, "layers", layers)
    later = ask(scheduler, some_tokens(100))[1]
    run(scheduler)
    assert first.error is error
    assert second.error in (error, None)
    assert later.answer.tokens == expected.answer.tokens


def test_a_pass_that_lost_tokens_is_not_tried_again(engine, scheduler, monkeypatch):
    calls = []

    def lose(steps, *rest):
        calls.append(1)
        steps[0].state.clear()
        raise MemoryError("no room")

    _, told = ask(scheduler, some_tokens(5))
    scheduler.step()
    monkeypatch.setattr(engine._model.decoder, "evaluate_each", lose)
    scheduler.step()
    assert isinstance(told.error, MemoryError)
    assert len(calls) == 1


def test_without_memory_for_a_pass_what_was_kept_makes_room(engine, scheduler, monkeypatch):
    ask(scheduler, some_tokens(100))
    run(scheduler)
    assert scheduler.cached_bytes
    memory, asked = scheduler._lanes.pool.memory, []

    def short(n_bytes):
        asked.append(n_bytes)
        if scheduler.cached_bytes:
            raise MemoryError
        return memory(n_bytes)

    monkeypatch.setattr(scheduler._lanes.pool, "memory", short)
    _, told = ask(scheduler, some_tokens(380, 1))
    run(scheduler)
    assert asked
    assert len(told.answer.tokens) == 8


def test_without_memory_for_lanes_a_request_waits_for_those_that_run(scheduler, monkeypatch):
    take = scheduler._lanes.take

    def short(*wanted):
        if scheduler.n_running or wanted[1] > 20:
            raise MemoryError("no room")
        return take(*wanted)

    monkeypatch.setattr(scheduler._lanes, "take", short)
    told = [ask(scheduler, some_tokens(n))[1] for n in (5, 6, 30)]
    run(scheduler)
    assert [len(each.answer.tokens) for each in told[:2]] == [8, 8]
    assert "no room" in str(told[2].error)


def test_ctrl_c_in_a_pass_ends_the_requests_in_it(engine, scheduler, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    handle, _ = ask(scheduler, some_tokens(5))
    monkeypatch.setattr(engine._model.decoder, "evaluate_each", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    assert handle.stage == "failed"


def test_a_sequence_that_has_lost_tokens_is_not_kept(scheduler):
    handle, _ = ask(scheduler, some_tokens(5), max_new_tokens=30)
    scheduler.step()
    scheduler._tree.shrink(0)
    scheduler._jobs[0].choices[0].state.trim(3)
    scheduler.cancel(handle)
    scheduler.step()
    assert not len(scheduler._tree)


@pytest.mark.parametrize(("step", "call"), [("_choose", 3), ("_admit", 1)])
def test_an_error_that_no_request_accounts_for_ends_what_runs_or_is_next_and_nothing_else(
    engine, monkeypatch, caplog, step, call
):
    with engine.scheduler(lanes=1) as scheduler:
        really, calls = getattr(scheduler, step), []

        def fail_once():
            calls.append(1)
            if len(calls) == call:
                raise ZeroDivisionError("a bug")
            return really()

        monkeypatch.setattr(scheduler, step, fail_once)
        asked = [ask(scheduler, some_tokens(5, seed)) for seed in range(3)]
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
        _, told = ask(scheduler, some_tokens(50))
        run(scheduler)
    assert len(told.answer.tokens) == 8


@pytest.mark.parametrize("n", [25, pytest.param(150, marks=pytest.mark.soak)])
def test_threads_that_submit_and_cancel_at_any_time_hear_no_one_elses_events(engine, n):
    """Each thread's prompts begin with its own token, by which it knows its answers."""
    faults: list[str] = []

    def client(number: int, scheduler: Scheduler, expected: list[tuple[int, ...]]) -> None:
        random = np.random.default_rng(number)
        for _ in range(n):
            handle, told = None, Told()
            try:
                handle, told = ask(scheduler, [number + 3, *some_tokens(90)], max_new_tokens=5)
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

    expected = [
        alone(engine, [number + 3, *some_tokens(90)], max_new_tokens=5) for number in range(6)
    ]
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
        assert scheduler._lanes.reserved == 0


# ---- memory --------------------------------------------------------------------------------------


def test_nothing_is_held_when_all_have_ended(engine):
    with engine.scheduler(lanes=4, piece_tokens=70, cache_bytes=0) as scheduler:
        for prompt in prompts_alike(9, 300):
            ask(scheduler, prompt, n=2)
        run(scheduler)
        assert scheduler._lanes.pool.nbytes == 0
        assert (scheduler._lanes.reserved, scheduler._lanes.n_in_use) == (0, 0)


def test_a_lane_whose_answer_ends_before_its_sibling_is_given_back_once(engine):
    with engine.scheduler(lanes=2) as scheduler:
        prompt, sampling = some_tokens(5), Sampling(temperature=1.0, seed=3)
        _, free = ask(scheduler, prompt, sampling, 30, n=2)
        run(scheduler)
        stop = next(
            text
            for at in range(20)
            if (text := free.text(0)[at : at + 4]) and text not in free.text(1)
        )
        handle, _ = ask(scheduler, prompt, sampling, 30, n=2, limits={"stop": (stop,)})
        in_use = []
        while not handle.is_over:
            scheduler.step()
            in_use.append(scheduler._lanes.n_in_use)
        assert set(in_use[:-1]) == {1, 2}
        assert scheduler._lanes.n_in_use == 0


def test_what_is_kept_stays_within_its_bytes(engine):
    page = engine._model.decoder.layout.page_bytes[0]
    with engine.scheduler(lanes=4, cache_bytes=12 * page) as scheduler:
        for prompt in prompts_alike(20, 380):
            ask(scheduler, prompt)
            run(scheduler)
            assert 0 < scheduler.cached_bytes <= 12 * page


def test_lanes_wait_for_memory_that_others_have(tmp_path):
    path = write_tiny_model(tmp_path, "f32", sizes=SIZES).path
    with Engine(path, backend="numpy") as engine:
        needed = engine.plan().total_bytes
    with Engine(path, backend="numpy", ram_budget=needed + (64 << 10)) as engine:
        most, left = [], []

        def note(handle, event):
            most.append(scheduler.n_running)
            left.append(max(0, memory - scheduler._lanes.reserved) - scheduler.cached_bytes)

        memory = engine._model.decoder.memory_for_sequences()
        with engine.scheduler(lanes=4) as scheduler:
            for_cache = scheduler._tree.most_bytes
            told = [
                ask(scheduler, some_tokens(300, seed), max_new_tokens=90, then=note)[1]
                for seed in range(4)
            ]
            run(scheduler)
            assert max(most) == 1
            small = [ask(scheduler, some_tokens(30, seed), then=note)[1] for seed in range(4)]
            run(scheduler)
            assert max(most) > 1
            assert scheduler.cached_bytes
            # Alone, a request may take more than there is.
            _, several = ask(scheduler, some_tokens(300), max_new_tokens=90, n=4, then=note)
            for _ in range(500):
                scheduler.step()
            assert len(several.answers) == 4
            assert min(left) >= 0  # what is kept makes way, and
            assert scheduler._tree.most_bytes == for_cache  # may come back
        assert all(each.answer.tokens for each in [*told, *small])


def test_what_is_kept_has_half_of_the_budget_and_no_more_than_it_may_by_default(
    tmp_path, monkeypatch
):
    path = write_tiny_model(tmp_path, "f32", sizes=SIZES).path
    with Engine(path, backend="numpy", ram_budget="1GiB") as engine:
        memory = engine._model.decoder.memory_for_sequences()
        with engine.scheduler() as scheduler:
            assert scheduler._tree.most_bytes == memory // 2
        monkeypatch.setattr(lanes, "CACHE_BYTES", 1 << 20)
        with engine.scheduler() as scheduler:
            assert scheduler._tree.most_bytes == 1 << 20


def test_no_more_is_reserved_than_a_lane_can_hold(engine):
    with Scheduler(engine._model, capacity=100) as scheduler:
        ask(scheduler, some_tokens(5), max_new_tokens=10**6)
        scheduler.step()
        assert scheduler._lanes.reserved == engine._model.decoder.state_bytes(100)


# ---- from the first to the last ------------------------------------------------------------------


def test_a_thread_serves_requests_of_many_threads(engine):
    asked = prompts_alike(12, 200)
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
        told = [ask(scheduler, some_tokens(5, seed))[1] for seed in range(3)]
        scheduler.step()
        scheduler.close(drain=True)
        assert all(len(each.answer.tokens) == 8 for each in told)
        with pytest.raises(RuntimeError, match="the scheduler is closed"):
            ask(scheduler, some_tokens(5))
    with engine.scheduler(lanes=1) as scheduler:
        with pytest.raises(RuntimeError, match="busy"):
            engine.generate("hello", max_new_tokens=1)
        told = [ask(scheduler, some_tokens(5, seed))[1] for seed in range(3)]
        scheduler.step()
        scheduler.close()
        assert all("the scheduler was closed" in str(each.error) for each in told)
    assert (scheduler.cached_bytes, scheduler._lanes._free) == (0, [])
    with pytest.raises(RuntimeError, match="the scheduler is closed"):
        scheduler.serve_forever()
    engine.generate("hello", max_new_tokens=1)


def test_a_scheduler_that_cannot_be_made_leaves_the_engine_free(engine, monkeypatch):
    monkeypatch.setattr(lanes, "PrefixTree", lambda *_: (_ for _ in ()).throw(MemoryError("tree")))
    with pytest.raises(MemoryError, match="tree") as refusal, engine.scheduler():
        pass
    assert refusal.value.__traceback__ is not None  # which holds what was made
    engine.generate("hello", max_new_tokens=1)


def test_the_thread_that_serves_waits_once_for_each_time_that_it_is_woken(engine, monkeypatch):
    with engine.scheduler() as scheduler:
        saves, waits = [], []
        monkeypatch.setattr(scheduler._lanes, "save", lambda *, idle: saves.append(idle))
        monkeypatch.setattr(scheduler._changed, "wait_for", lambda due, *_: waits.append(due()))
        ask(scheduler, some_tokens(5), max_new_tokens=3)
        scheduler._serve()
        scheduler._serve()
        assert (saves, waits) == ([False, False], [])  # a file may be due between two steps
        scheduler._wake()
        scheduler._serve()
        scheduler._serve()
        assert (saves, waits) == ([False, False, True, True], [True, False])


def test_a_request_that_comes_before_the_drain_is_served_by_the_thread_that_serves(
    engine, monkeypatch
):
    with engine.scheduler() as scheduler:
        asked = []

        def come_and_close(*, idle):
            if not asked:
                asked.append(ask(scheduler, some_tokens(5))[1])
                scheduler.close(drain=True)

        monkeypatch.setattr(scheduler._lanes, "save", come_and_close)
        scheduler.serve_forever()
        assert len(asked[0].answer.tokens) == 8


def test_a_callback_may_close_the_scheduler_and_not_serve_as_well(engine):
    def close(*_):
        with pytest.raises(RuntimeError, match="a thread is in serve_forever"):
            scheduler.serve_forever()
        scheduler.close()
        scheduler.close(drain=True)  # it is no longer to be drained

    with engine.scheduler() as scheduler:
        handle, told = ask(scheduler, some_tokens(5), then=close)
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        assert handle.wait(10)
        server.join(10)
    assert "the scheduler was closed" in str(told.error)


def test_close_takes_no_step_before_the_thread_that_serves_has_left(engine, monkeypatch):
    called, serving = threading.Event(), []

    def close():
        called.set()
        scheduler.close()

    def leave(handle, event):
        if not called.is_set():
            closer.start()
            assert called.wait(10)

    with engine.scheduler() as scheduler:
        real = scheduler.step

        def step():
            if threading.current_thread() is closer:
                serving.append(scheduler._server)
            return real()

        monkeypatch.setattr(scheduler, "step", step)
        closer = threading.Thread(target=close)
        ask(scheduler, some_tokens(5), then=leave)
        server = threading.Thread(target=scheduler.serve_forever)
        server.start()
        server.join(10)
        closer.join(10)
        assert scheduler.closed
    assert serving
    assert not any(serving)


def test_the_engines_own_cache_is_not_touched(engine):
    engine.forward([5, 6, 7])
    with engine.scheduler() as scheduler:
        ask(scheduler, some_tokens(100))
        run(scheduler)
    after = engine.forward([8])
    engine.reset()
    engine.forward([5, 6, 7])
    np.testing.assert_array_equal(engine.forward([8]), after)


def test_times_of_a_request_are_in_order(scheduler):
    handle, told = ask(scheduler, some_tokens(5))
    run(scheduler)
    times = [handle.submitted, handle.started, handle.first_token, handle.ended]
    assert times == sorted(times)
    assert handle.answer_tokens == len(told.answer.tokens)


@pytest.mark.parametrize("n", [150, pytest.param(1_000, marks=pytest.mark.soak)])
def test_random_requests_that_come_and_leave_leave_nothing_behind(engine, n):
    random = np.random.default_rng(3)
    with engine.scheduler(lanes=5, queue_length=8, piece_tokens=70) as scheduler:
        known, refused = [], 0
        for number in range(n):
            prompt = some_tokens(int(random.integers(1, 300)), int(random.integers(0, 5)))
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
        assert scheduler._lanes.reserved == 0
        assert scheduler._lanes.n_in_use == 0
        assert len(scheduler._lanes._free) <= 5
        scheduler._tree.shrink(0)
        gc.collect()
        scheduler._lanes.pool.shrink()
        assert scheduler._lanes.pool.nbytes == 0
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

"""Several models within one budget: which is loaded, which makes way, and who waits."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_models import Clock, Scripted, loaded_models, run, until

from airllm.engine.requests import QueueFullError
from airllm.server import loaded_models as module
from airllm.server import model_catalog, model_slots
from airllm.server.loaded_models import LoadedModels
from airllm.server.model_errors import LoadError, ModelBusyError, UnknownModelError


async def use(models: LoadedModels, name: str, **more: Any) -> str:
    async with models.use(name, **more) as engine:
        return engine.model.name


async def states(models: LoadedModels) -> dict[str, str]:
    return {listed.id: listed.state for listed in await models.listed()}


async def until_unloaded(models: LoadedModels, id: str) -> None:
    while (await states(models)).get(id, "unloaded") != "unloaded":
        await asyncio.sleep(0.001)


# ---- loading and making way ----------------------------------------------------------------------


def test_a_model_is_loaded_when_it_is_used_and_stays() -> None:
    a, b = Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b)
        assert await states(models) == {"a": "unloaded", "b": "unloaded"}
        assert await use(models, "a") == "a"
        assert await use(models, "a") == "a"
        assert await states(models) == {"a": "loaded", "b": "unloaded"}
        assert (a.n_loads, b.n_loads) == (1, 0)
        await models.close()
        assert a.n_loaded == 0

    run(test)


def test_models_that_fit_together_stay_together() -> None:
    a, b = Scripted("a", 2), Scripted("b", 3)

    async def test() -> None:
        models = loaded_models(a, b, budget=5)
        for name in "abab":
            await use(models, name)
        assert (a.n_loads, b.n_loads) == (1, 1)
        await models.close()

    run(test)


def test_the_least_recently_used_makes_way_and_no_more_than_needed() -> None:
    a, b, c = Scripted("a"), Scripted("b"), Scripted("c")

    async def test() -> None:
        models = loaded_models(a, b, c, budget=2)
        for name in "abac":
            await use(models, name)
        assert await states(models) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        await models.close()

    run(test)


def test_a_model_larger_than_the_budget_gets_all_of_it() -> None:
    a, large = Scripted("a"), Scripted("large", 100)

    async def test() -> None:
        models = loaded_models(a, large, budget=3)
        await use(models, "a")
        await use(models, "large")
        assert await states(models) == {"a": "unloaded", "large": "loaded"}
        await models.close()

    run(test)


def test_a_model_on_which_something_runs_does_not_make_way() -> None:
    a, b = Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b)
        async with models.use("a"):
            other = asyncio.create_task(use(models, "b"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert (a.n_loaded, b.n_loads) == (1, 0)
        assert await other == "b"
        assert a.n_loaded == 0
        await models.close()

    run(test)


def test_one_on_which_nothing_runs_makes_way_although_it_was_used_later() -> None:
    a, b, c = Scripted("a"), Scripted("b"), Scripted("c")

    async def test() -> None:
        models = loaded_models(a, b, c, budget=2)
        async with models.use("a"):
            await use(models, "b")
            await use(models, "c")
            assert (a.n_loaded, b.n_loaded) == (1, 0)
        await models.close()

    run(test)


def test_requests_that_come_at_once_load_a_model_once() -> None:
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a)
        assert await asyncio.gather(*(use(models, "a") for _ in range(20))) == ["a"] * 20
        assert a.n_loads == 1
        await models.close()

    run(test)


def test_what_is_taken_is_never_more_than_the_budget() -> None:
    models_there = [Scripted(name, n) for name, n in (("a", 3), ("b", 4), ("c", 5), ("d", 2))]

    async def test() -> None:
        models = loaded_models(*models_there, budget=7)
        most = 0

        async def ask(at: int) -> None:
            nonlocal most
            async with models.use("abcd"[at * 7 % 4]):
                most = max(most, sum(one.n_bytes for one in models_there if one.n_loaded))
                await asyncio.sleep(0.001 * (at % 3))

        await asyncio.gather(*(ask(at) for at in range(40)))
        assert 0 < most <= 7
        await models.close()
        assert not any(one.n_loaded for one in models_there)

    run(test)


# ---- models that fail ----------------------------------------------------------------------------


def test_a_load_that_fails_is_told_to_all_and_not_tried_again_at_once() -> None:
    clock, a = Clock(), Scripted("a", error=ValueError("the file lies"))

    async def test() -> None:
        models = loaded_models(a, clock=clock)
        found = await asyncio.gather(*(use(models, "a") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [LoadError] * 3
        with pytest.raises(LoadError, match="a cannot be loaded: the file lies"):
            await use(models, "a")
        assert a.n_loads == 1
        a.error = None
        clock.now += module.RETRY_SECONDS
        assert await use(models, "a") == "a"
        await models.close()

    run(test)


def test_no_model_makes_way_for_a_file_that_is_damaged() -> None:
    a, damaged = Scripted("a"), Scripted("damaged", header_error=ValueError("no GGUF"))
    clock = Clock()

    async def test() -> None:
        models = loaded_models(a, damaged, clock=clock)
        await use(models, "a")
        await models.listed()
        clock.now += module.RETRY_SECONDS
        with pytest.raises(LoadError, match="no GGUF"):
            await use(models, "damaged")
        assert await states(models) == {"a": "loaded"}  # and no damaged one among those there are
        await models.close()

    run(test)


def test_a_file_that_is_damaged_is_logged_once_and_the_others_are_listed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        damaged = Scripted("damaged", header_error=ValueError("no GGUF"))
        models = loaded_models(Scripted("a"), damaged)
        assert [listed.context for listed in await models.listed()] == [4096]
        await models.listed()
        await models.close()

    run(test)
    assert caplog.text.count("damaged cannot be loaded: no GGUF") == 1


def test_an_engine_that_ends_is_loaded_again_later() -> None:
    clock, a = Clock(), Scripted("a")

    async def test() -> None:
        models = loaded_models(a, clock=clock)
        await use(models, "a")
        a.engine.ends_with = RuntimeError("the engine has failed")
        a.engine.close()
        await until(lambda: models._slots["a"].failed)
        clock.now += module.RETRY_SECONDS
        assert await use(models, "a") == "a"
        assert a.n_loads == 2
        await models.close()

    run(test)


# ---- who waits, and who leaves -------------------------------------------------------------------


def test_nobody_waits_for_ever() -> None:
    async def test() -> None:
        models = loaded_models(Scripted("a"), Scripted("b"))
        async with models.use("a"):
            models._queue_seconds = 0.02  # not before: to load takes its time, too
            with pytest.raises(ModelBusyError, match="b could not be loaded within"):
                await use(models, "b")
        await models.close()

    run(test)


def test_who_waits_when_the_server_ends_waits_no_longer() -> None:
    async def test() -> None:
        models = loaded_models(Scripted("a"), Scripted("b"))
        async with models.use("a"):
            waiting = asyncio.create_task(use(models, "b"))
            await until(lambda: models._queue)
            await models.close()
            await asyncio.wait({waiting}, timeout=5)
            assert waiting.cancelled()

    run(test)


def test_the_queue_is_looked_at_when_the_first_is_due() -> None:
    async def test() -> None:
        models = loaded_models()
        for seconds in (100, 1, 50):
            models._wake_in(seconds)
        timer = models._timer
        assert timer is not None
        assert timer.when() - asyncio.get_running_loop().time() < 2
        await models.close()
        assert timer.cancelled()

    run(test)


def test_a_model_that_was_used_late_in_its_turn_stays_no_longer_than_that() -> None:
    slot = model_slots.Slot(Scripted("a").source(), load_seconds=10.0, used=29.5)
    assert slot.stays_until(0.0) == 30.0
    assert slot.turn_ends(100.0) == 130.0


def test_a_model_waits_until_all_that_make_way_for_it_may() -> None:
    clock = Clock()

    async def test() -> None:
        models = loaded_models(*map(Scripted, "ab"), Scripted("c", 2), budget=2, clock=clock)
        for name in "ab":
            await use(models, name)
        models._slots["a"].load_seconds = 10.0  # so that it stays a second
        waiting = asyncio.create_task(use(models, "c"))
        await until(lambda: models._timer is not None)
        assert not models._changing
        clock.now += 1.0
        models._go_on()
        assert await waiting == "c"
        await models.close()

    run(test)


def test_who_stands_behind_one_that_leaves_is_served_at_once() -> None:
    async def test() -> None:
        models = loaded_models(*map(Scripted, "ac"), Scripted("b", 2), budget=2)
        async with models.use("a"):
            left, stays = (asyncio.create_task(use(models, name)) for name in "bc")
            await until(lambda: len(models._queue) == 2 and models._slots["b"].needs)
            await until(lambda: models._changing is None)
            left.cancel()
            await asyncio.wait({stays}, timeout=5)
            assert stays.done()
        await models.close()

    run(test)


def test_no_more_wait_than_may() -> None:
    async def test() -> None:
        models = loaded_models(Scripted("a"), Scripted("b"), queue_length=2)
        async with models.use("a"):
            waiting = [asyncio.create_task(use(models, "b")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                await use(models, "b")
            assert await use(models, "a") == "a"  # which is loaded, and waits for nothing
        assert await asyncio.gather(*waiting) == ["b", "b"]
        await models.close()

    run(test)


def test_who_leaves_before_the_load_has_begun_makes_nothing_load() -> None:
    a, b = Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b)
        async with models.use("a"):
            other = asyncio.create_task(use(models, "b"))
            await asyncio.sleep(0)
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        assert await use(models, "a") == "a"
        assert (a.n_loads, b.n_loads) == (1, 0)
        await models.close()

    run(test)


def test_who_leaves_while_a_model_is_loaded_does_not_hold_it() -> None:
    a, b = Scripted("a"), Scripted("b")
    a.may_load.clear()

    async def test() -> None:
        models = loaded_models(a, b)
        left = asyncio.create_task(use(models, "a"))
        await until(lambda: a.n_loads)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        a.may_load.set()
        slot = models._slots["a"]
        await until(lambda: slot.state == "loaded")
        assert slot.used == slot.loaded > 0  # from when on it is not used
        assert await use(models, "b") == "b"  # for which the other has made way
        assert a.n_loaded == 0
        await models.close()

    run(test)


def test_who_leaves_just_as_the_model_is_granted_does_not_hold_it() -> None:
    async def test() -> None:
        models = loaded_models(Scripted("a"), Scripted("b"))
        left = asyncio.create_task(use(models, "a"))
        grant = models._grant

        def granted_too_late(waiter: Any) -> None:
            grant(waiter)
            left.cancel()

        models._grant = granted_too_late  # type: ignore[method-assign]
        await asyncio.gather(left, return_exceptions=True)
        assert left.cancelled()
        models._grant = grant  # type: ignore[method-assign]
        assert await use(models, "b") == "b"
        await models.close()

    run(test)


def test_who_leaves_just_before_the_load_fails_keeps_nobody_from_the_error() -> None:
    a = Scripted("a")
    a.may_load.clear()

    async def test() -> None:
        models = loaded_models(a)
        left, stays = (asyncio.create_task(use(models, "a")) for _ in range(2))
        await until(lambda: a.n_loads == 1)
        left.cancel()  # it is still in the queue
        models._slots["a"].failed = LoadError("a is broken"), models._clock()
        models._go_on()
        with pytest.raises(LoadError, match="a is broken"):
            await stays
        await asyncio.gather(left, return_exceptions=True)
        assert left.cancelled()
        a.may_load.set()
        await models.close()

    run(test)


# ---- taking turns --------------------------------------------------------------------------------


def test_requests_for_two_models_that_come_at_once_load_each_once() -> None:
    a, b = Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b)
        found = await asyncio.gather(*(use(models, "ab"[at % 2]) for at in range(40)))
        assert found == ["a", "b"] * 20
        assert (a.n_loads, b.n_loads) == (1, 1)
        await models.close()

    run(test)


def test_requests_that_wait_while_models_are_looked_for_go_on_together() -> None:
    went_on: list[str] = []

    async def test() -> None:
        models = loaded_models(Scripted("a"), clock=Clock())

        async def ask() -> None:
            await models.find("a")
            went_on.append("request")

        async def turns_of_the_loop() -> None:
            while len(went_on) < 20 or went_on[-1] == "request":
                await asyncio.sleep(0)
                if went_on:
                    went_on.append("turn")

        await asyncio.gather(turns_of_the_loop(), *(ask() for _ in range(20)))
        await models.close()

    run(test)
    assert went_on.index("turn") == 20


def test_a_client_that_leaves_while_models_are_looked_for_takes_no_others_along() -> None:
    async def test() -> None:
        models = loaded_models(Scripted("a"))
        leaving, staying = (asyncio.create_task(models.find("a")) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).id == "a"
        await models.close()

    run(test)


def test_a_busy_model_takes_new_requests_for_a_turn_and_then_makes_way() -> None:
    clock, a, b = Clock(), Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b, clock=clock)
        async with models.use("a"):
            other = asyncio.create_task(use(models, "b"))
            await asyncio.sleep(0)
            clock.now += model_slots.LEAST_TURN / 2
            assert await use(models, "a") == "a"
            clock.now += model_slots.LEAST_TURN
            late = asyncio.create_task(use(models, "a"))
            await asyncio.sleep(0.01)
            assert not late.done()
        assert await other == "b"
        clock.now += model_slots.MOST_TURN
        assert await late == "a"
        assert (a.n_loads, b.n_loads) == (2, 1)
        await models.close()

    run(test)


def test_a_model_that_was_just_loaded_has_its_turn_however_long_others_have_waited() -> None:
    clock, a, b = Clock(), Scripted("a"), Scripted("b")

    async def test() -> None:
        models = loaded_models(a, b, clock=clock)
        held = asyncio.Event()

        async def hold() -> None:
            async with models.use("b"):
                await held.wait()

        async with models.use("a"):
            holding = asyncio.create_task(hold())
            await asyncio.sleep(0)
            clock.now += 10 * model_slots.MOST_TURN
            other = asyncio.create_task(use(models, "a"))
            await asyncio.sleep(0)
            clock.now += 10 * model_slots.MOST_TURN
        await until(lambda: b.n_loaded)
        assert await use(models, "b") == "b"
        assert not other.done()
        held.set()
        clock.now += model_slots.MOST_TURN
        assert await other == "a"
        await holding
        await models.close()

    run(test)


def test_clients_that_ask_without_a_pause_do_not_swap_models_for_each_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two clients, each with a model of its own, and memory for one; a turn has about 40 questions.
    Both get on, and in far fewer loads than questions."""
    monkeypatch.setattr(model_slots, "LEAST_TURN", 0.05)
    monkeypatch.setattr(model_slots, "MOST_TURN", 0.05)
    a, b = Scripted("a"), Scripted("b")
    asked = {"a": 0, "b": 0}

    async def test() -> None:
        models = loaded_models(a, b)

        async def client(name: str) -> None:
            while min(asked.values()) < 60:
                async with models.use(name):
                    await asyncio.sleep(0.001)
                asked[name] += 1

        await asyncio.gather(client("a"), client("b"))
        await models.close()

    run(test)
    assert 4 * (a.n_loads + b.n_loads) < sum(asked.values())


# ---- unloading -----------------------------------------------------------------------------------


def test_a_model_that_is_not_used_is_unloaded_in_time() -> None:
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a, keep_alive=0.01)
        await use(models, "a")
        await until_unloaded(models, "a")
        assert a.n_loaded == 0
        await models.close()

    run(test)


def test_a_request_says_how_long_its_model_stays() -> None:
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a, keep_alive=0.01)
        await use(models, "a", keep_alive=-1)
        await asyncio.sleep(0.03)
        assert a.n_loaded == 1
        await use(models, "a", keep_alive=0)
        await until(lambda: a.n_loaded == 0)
        await models.close()

    run(test)


def test_the_time_at_which_a_busy_model_would_be_unloaded_is_not_over() -> None:
    clock = Clock()

    async def test() -> None:
        models = loaded_models(Scripted("a"), keep_alive=5.0, clock=clock)
        async with models.use("a"):
            clock.now += 100.0
            before = time.time()
            expires = (await models.find("a")).idle_until
            assert expires is not None
            assert expires >= before
        await models.close()

    run(test)


def test_unloading_what_is_not_loaded_changes_nothing() -> None:
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a)
        assert await models.unload("a") == "a"
        for _ in range(2):
            await use(models, "a")
        assert a.n_loads == 1
        await models.unload("a")
        await until(lambda: models._slots["a"].state == "unloaded")
        assert models._slots["a"].n_bytes == 0
        await models.close()

    run(test)


def test_unloading_waits_for_what_runs() -> None:
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a)
        async with models.use("a"):
            assert await models.unload("a") == "a"
            await asyncio.sleep(0.01)
            assert a.n_loaded == 1
        await until(lambda: a.n_loaded == 0)
        await models.close()

    run(test)


# ---- files that come, go and change --------------------------------------------------------------


def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_catalog, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(model_catalog, "LOOK_TIMES", 0.0)


def test_a_model_that_appears_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_always(monkeypatch)
    there = [Scripted("a")]

    async def test() -> None:
        models = loaded_models(find=lambda: [one.source() for one in there])
        with pytest.raises(UnknownModelError, match=r"no model 'b' here; there are: a$"):
            await use(models, "b")
        there.append(Scripted("b"))
        assert await use(models, "b") == "b"
        await models.close()

    run(test)


def test_names_that_nobody_knows_do_not_make_the_server_look_again_and_again() -> None:
    n_looks = 0

    def find() -> list[Any]:
        nonlocal n_looks
        n_looks += 1
        return [Scripted("a").source()]

    async def test() -> None:
        models = loaded_models(find=find)
        for _ in range(50):
            with pytest.raises(UnknownModelError):
                await use(models, "b")
        await models.close()

    run(test)
    assert n_looks == 1


def test_a_model_whose_file_has_gone_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_always(monkeypatch)
    a = Scripted("a")
    there = [a, Scripted("b")]

    async def test() -> None:
        models = loaded_models(find=lambda: [one.source() for one in there], budget=2)
        async with models.use("a") as engine:
            there.remove(a)
            await models.listed()
            assert engine.model.name == "a"  # what runs goes on
        await until(lambda: models._changing is None and not a.n_loaded)
        assert list(models._slots) == ["b"]
        assert await states(models) == {"b": "unloaded"}
        with pytest.raises(UnknownModelError):
            await use(models, "a")
        await models.close()

    run(test)


def test_a_model_whose_file_has_changed_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_always(monkeypatch)
    a = Scripted("a")

    async def test() -> None:
        models = loaded_models(a)
        await use(models, "a")
        a.version += 1
        await models.listed()
        await use(models, "a")
        assert a.n_loads == 2
        await models.close()

    run(test)


def test_a_model_that_somebody_waits_for_stays_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_always(monkeypatch)
    there = [Scripted("a"), Scripted("b")]

    async def test() -> None:
        models = loaded_models(find=lambda: [one.source() for one in there])
        async with models.use("a"):
            waiting = asyncio.create_task(use(models, "b"))
            await until(lambda: models._queue)
            del there[1]
            assert (await states(models)).keys() == {"a", "b"}
        assert await waiting == "b"
        await models.close()

    run(test)


def test_a_file_that_was_mended_is_tried_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_always(monkeypatch)
    a = Scripted("a", header_error=ValueError("no GGUF"))

    async def test() -> None:
        models = loaded_models(a)
        with pytest.raises(LoadError):
            await use(models, "a")
        a.header_error = None
        a.version += 1
        await models.listed()
        assert await use(models, "a") == "a"
        await models.close()

    run(test)


def test_what_is_found_of_a_file_that_has_changed_meanwhile_is_not_kept() -> None:
    async def test() -> None:
        models, new = loaded_models(), Scripted("a", version=1).source()

        def needs() -> Any:
            slot.source = new
            return Scripted("a").source().needs()

        slot = model_slots.Slot(replace(Scripted("a").source(), needs=needs))
        old = slot.source
        await models._read_needs(slot)
        assert slot.needs is None
        models._has_failed(slot, old, ValueError("no GGUF"))
        assert slot.failed is None
        await models.close()

    run(test)


def test_an_error_says_nothing_of_the_folder() -> None:
    assert module._without("/home/me", "/home/me/a.gguf: no GGUF") == "a.gguf: no GGUF"


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("Qwen3-0.6B-Q4_K_M", "Qwen3-0.6B-Q4_K_M"),
        ("qwen3-0.6b-q4_k_m", "Qwen3-0.6B-Q4_K_M"),
        ("Qwen3-0.6B:Q4_K_M", "Qwen3-0.6B-Q4_K_M"),
        ("Qwen3-0.6B-Q4_K_M.gguf", "Qwen3-0.6B-Q4_K_M"),
        ("llama:latest", "llama"),
        ("hf.co/org/repo:Q8_0", "hf.co/org/repo:Q8_0"),
    ],
)
def test_a_model_has_the_names_that_clients_use(name: str, id: str) -> None:
    async def test() -> None:
        ids = ("Qwen3-0.6B-Q4_K_M", "llama", "hf.co/org/repo:Q8_0", "Twice", "TWICE")
        models = loaded_models(*map(Scripted, ids))
        assert (await models.find(name)).id == id
        await models.close()

    run(test)


@pytest.mark.parametrize("name", ["twice", "../llama", "/llama", "llama\0", "l" * 10_000_000, "-"])
def test_other_names_are_unknown(name: str) -> None:
    async def test() -> None:
        models = loaded_models(*map(Scripted, ("llama", "Twice", "TWICE")))
        with pytest.raises(UnknownModelError) as found:
            await models.find(name)
        assert len(str(found.value)) < 400
        assert (await models.find("TWICE")).id == "TWICE"
        await models.close()

    run(test)

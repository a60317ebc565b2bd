"""Answers as streams, for loops and for asyncio: what they say of how they ended, and that a
cancelled one leaves the engine free."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamed_model import SIZES
from tiny_model import TinyModel, write_tiny_model

import airllm
from airllm.layer_engine import LayerWiseInferenceEngine

GREEDY = {"temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("stream"), sizes=SIZES)


@pytest.fixture
def engine(model: TinyModel) -> Iterator[LayerWiseInferenceEngine]:
    with LayerWiseInferenceEngine(model.path, backend="numpy", context=96, batch_size=4) as opened:
        yield opened


def test_a_stream_says_how_it_ended_once_it_has(engine: LayerWiseInferenceEngine) -> None:
    stream = engine.stream("abc", **GREEDY)
    assert (stream.finish_reason, stream.usage, stream.generation) == (None, None, None)
    text = "".join(stream)
    assert stream.generation is not None
    assert stream.generation.text == text
    assert stream.finish_reason == stream.generation.finish_reason == "length"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 6
    assert stream.usage.prompt_tokens == len(engine.tokenize("abc"))
    assert stream.usage.total_tokens == stream.usage.prompt_tokens + 6
    assert list(stream) == []


def test_a_stream_is_still_a_generator_that_returns_the_generation(
    engine: LayerWiseInferenceEngine,
) -> None:
    def delegating() -> Iterator[str]:
        found.append((yield from engine.stream("abc", **GREEDY)))  # type: ignore[misc]

    found: list[airllm.Generation] = []
    text = "".join(delegating())
    assert found[0].text == text


def test_a_stream_that_is_left_early_frees_the_engine(engine: LayerWiseInferenceEngine) -> None:
    with engine.stream("abc", **GREEDY) as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="busy"):
            engine.reset()
    engine.reset()
    assert stream.finish_reason is None


def test_usage_counts_the_tokens_that_were_cached(engine: LayerWiseInferenceEngine) -> None:
    first = engine.generate("abcabc", **GREEDY)
    stream = engine.stream("abcabc" + first.text, **GREEDY)
    for _ in stream:
        pass
    assert stream.usage is not None
    assert stream.usage.cached_tokens >= 6


def test_asyncio_gets_the_same_answer(engine: LayerWiseInferenceEngine) -> None:
    expected = engine.generate("abc", **GREEDY)
    engine.reset()

    async def ask() -> list[str]:
        async with engine.astream("abc", **GREEDY) as stream:
            pieces = [piece async for piece in stream]
        assert stream.finish_reason == "length"
        assert stream.usage is not None
        assert stream.usage.completion_tokens == 6
        return pieces

    assert "".join(asyncio.run(ask())) == expected.text
    engine.reset()
    said: list[str] = []
    generation = asyncio.run(engine.agenerate("abc", on_token=said.append, **GREEDY))
    assert generation.tokens == expected.tokens
    assert "".join(said) == expected.text


def test_the_event_loop_goes_on_while_the_model_runs(engine: LayerWiseInferenceEngine) -> None:
    async def both() -> None:
        ran = asyncio.Event()
        main, seen = threading.get_ident(), []

        def on_progress(done: int, total: int) -> None:
            seen.append(threading.get_ident() != main)
            loop.call_soon_threadsafe(ran.set)
            # If the loop were blocked by the model, this would wait in vain.
            assert asyncio.run_coroutine_threadsafe(ran.wait(), loop).result(30)

        loop = asyncio.get_running_loop()
        await engine.agenerate("abc", on_progress=on_progress, **GREEDY)
        assert seen
        assert all(seen)

    asyncio.run(both())


def test_a_cancelled_task_ends_the_prompts_evaluation_and_frees_the_engine(
    engine: LayerWiseInferenceEngine,
) -> None:
    async def cancel() -> int:
        calls, started = 0, asyncio.Event()
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        def on_progress(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                loop.call_soon_threadsafe(started.set)
                assert cancelled.wait(30)

        task = asyncio.create_task(engine.agenerate("abc" * 20, on_progress=on_progress, **GREEDY))
        await started.wait()
        task.cancel()
        loop.call_soon(lambda: loop.call_soon(cancelled.set))  # after the task has seen it
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.reset()  # it is free
        return calls

    assert asyncio.run(cancel()) == 2  # of some hundred: the next layer was not evaluated


def test_a_cancelled_task_ends_the_answer(engine: LayerWiseInferenceEngine) -> None:
    async def cancel() -> None:
        stream = engine.astream("abc", temperature=0.0, max_new_tokens=90)
        await anext(stream)
        task = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.reset()
        assert stream.finish_reason is None

    asyncio.run(cancel())


def test_another_task_may_close_a_stream_that_is_read(engine: LayerWiseInferenceEngine) -> None:
    async def close() -> None:
        stream = engine.astream("abc", temperature=0.0, max_new_tokens=90)

        async def read() -> int:
            return len([piece async for piece in stream])

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        await stream.aclose()
        assert await task < 90
        engine.reset()

    asyncio.run(close())


def test_invalid_arguments_raise_before_anything_is_awaited(
    engine: LayerWiseInferenceEngine,
) -> None:
    with pytest.raises(ValueError, match="temperature"):
        engine.astream("abc", temperature=-1.0)


def test_the_engine_takes_the_name_of_a_model_that_was_pulled(
    model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    place = tmp_path / "hf.co/org/repo/tiny-F32.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(model.path.read_bytes())
    for name in ("hf.co/org/repo:F32", "org/repo"):
        with LayerWiseInferenceEngine(name, backend="numpy", context=16) as opened:
            assert opened.context == 16


@pytest.mark.parametrize("name", ["smollm2-135m", "hf.co/org/other:Q8_0"])
def test_a_model_that_was_not_pulled_is_named_with_the_remedy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    with pytest.raises(airllm.HubError, match=f"{name} has not been fetched yet.*airllm pull"):
        LayerWiseInferenceEngine(name)
    with pytest.raises(FileNotFoundError):
        LayerWiseInferenceEngine(tmp_path / "none.gguf")

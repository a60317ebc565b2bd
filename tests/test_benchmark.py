"""Prefill and decode are timed as llama-bench times them. The clock is the test's own."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from airllm.tools import benchmark
from airllm.util.progress import OnProgress


class CountingModel:
    """Takes `seconds_per_call` of a pretended clock for each forward call."""

    def __init__(self, seconds_per_call: Sequence[float]) -> None:
        self.now = 0.0
        self.calls: list[list[int]] = []
        self.resets: list[int] = []  # how many calls came before each reset
        self._durations = iter(seconds_per_call)

    def reset(self) -> None:
        self.resets.append(len(self.calls))

    def forward(
        self, tokens: Sequence[int], *, on_progress: OnProgress | None = None
    ) -> NDArray[np.float32]:
        self.calls.append(list(tokens))
        if on_progress is not None:
            on_progress(1, 2)
        self.now += next(self._durations)
        return np.zeros(4, np.float32)

    def clock(self) -> float:
        return self.now


def test_prefill_is_tokens_over_seconds_without_the_warm_up() -> None:
    model = CountingModel([100.0, 2.0, 4.0])  # the slow first call is the warm-up
    result = benchmark.measure(model, benchmark.prefill(8, 50), 2, clock=model.clock)
    assert result.test == "pp8"
    assert result.tokens_per_second == (8 / 2 + 8 / 4) / 2
    assert result.stddev == pytest.approx(np.std([4.0, 2.0], ddof=1), rel=1e-12)
    assert [len(call) for call in model.calls] == [8, 8, 8]


def test_decode_gives_one_token_a_call_after_a_single_token_of_warm_up() -> None:
    model = CountingModel([100.0] + [0.5] * 6)
    result = benchmark.measure(model, benchmark.decode(3, 50), 2, clock=model.clock)
    assert result == benchmark.Result("tg3", tokens_per_second=2.0, stddev=0.0)
    assert [len(call) for call in model.calls] == [1] * 7


def test_each_repetition_starts_from_an_empty_cache() -> None:
    model = CountingModel([1.0] * 7)
    benchmark.measure(model, benchmark.decode(3, 50), 2, clock=model.clock)
    assert model.resets == [0, 1, 4]


def test_tokens_before_are_in_the_cache_and_not_timed() -> None:
    model = CountingModel([9.0, 100.0, 2.0, 100.0, 4.0])
    test = benchmark.prefill(8, 50).after(30, 50)
    seen: list[tuple[int, int]] = []

    def on_progress(done: int, total: int) -> None:
        seen.append((done, total))

    result = benchmark.measure(model, test, 2, clock=model.clock, on_progress=on_progress)
    assert result.test == "pp8@30"
    assert result.tokens_per_second == (8 / 2 + 8 / 4) / 2
    assert [len(call) for call in model.calls] == [8, 30, 8, 30, 8]
    assert model.resets == [0, 1, 3]
    assert seen[-1] == (84, 84)
    assert benchmark.prefill(8, 50).after(0, 50) == benchmark.prefill(8, 50)


def test_one_repetition_has_no_spread() -> None:
    model = CountingModel([1.0, 1.0])
    assert benchmark.measure(model, benchmark.prefill(4, 50), 1, clock=model.clock).stddev == 0.0


def test_the_tokens_are_in_the_vocabulary_and_the_same_each_time() -> None:
    test = benchmark.prefill(1000, 7)
    assert set(test.timed[0]) == set(range(7))
    assert test == benchmark.prefill(1000, 7)


def test_progress_counts_the_warm_up_goes_on_within_a_prompt_and_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    model = CountingModel([1.0] * 3)
    benchmark.measure(model, benchmark.prefill(4, 50), 2, on_progress=lambda *now: seen.append(now))
    assert seen == [(2, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]


def test_within_a_single_token_no_progress_is_asked_for() -> None:
    seen: list[tuple[int, int]] = []
    model = CountingModel([1.0] * 4)
    benchmark.measure(model, benchmark.decode(3, 50), 1, on_progress=lambda *now: seen.append(now))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_batch_gives_a_token_of_each_sequence_a_call_and_counts_them_all() -> None:
    model = CountingModel([100.0] + [0.5] * 3)
    batch = benchmark.Batch(model)
    result = benchmark.measure(batch, benchmark.decode_batch(3, 4, 50), 1, clock=model.clock)
    assert result == benchmark.Result("tg3x4", tokens_per_second=8.0, stddev=0.0)
    assert [len(call) for call in model.calls] == [4] * 4


@pytest.mark.parametrize("make", [benchmark.prefill, benchmark.decode])
def test_a_test_without_tokens_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="0 tokens measures nothing"):
        make(0, 50)


def test_no_repetition_is_refused() -> None:
    with pytest.raises(ValueError, match="0 repetitions"):
        benchmark.measure(CountingModel([]), benchmark.prefill(4, 50), 0)

"""Progress with the time left: lines in a log, a bar on a terminal, nothing for what is quick."""

import io
import itertools
import logging
import os
import pty

import pytest

from airllm.util import progress
from airllm.util.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("airllm.util.progress.time.monotonic", clock)
    return clock


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest gives each phase of a test a stderr of its own."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_in_a_log_it_is_a_line_every_ten_seconds_with_the_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airllm")
    with Progress("scoring", "chunks") as shown:
        for chunk in range(1, 9):
            clock.now += 6
            shown.update(chunk, 8, "perplexity 9.5")
    assert caplog.messages == [
        "scoring: 25%, 36 s left, perplexity 9.5",
        "scoring: 50%, 24 s left, perplexity 9.5",
        "scoring: 75%, 12 s left, perplexity 9.5",
        "scoring: 100%, 0 s left, perplexity 9.5",
    ]


def test_in_a_log_what_is_quick_is_not_mentioned(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airllm")
    with Progress("loading", "layers") as shown:
        clock.now += 9
        shown.update(30, 30)
    assert caplog.messages == []


def test_in_a_log_the_time_left_waits_for_the_first_unit(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airllm")
    with Progress("loading", "layers") as shown:
        clock.now += 60
        shown.update(0, 30)
    assert caplog.messages == []


def test_shown_false_shows_nothing_in_a_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "airllm")
    with Progress("scoring", "chunks", shown=False) as shown:
        clock.now += 60
        shown.update(1, 2)
    assert caplog.messages == []


def test_shown_false_shows_nothing_on_a_terminal(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = on_a_terminal(monkeypatch)
    with Progress("scoring", "chunks", shown=False) as shown:
        clock.now += 60
        shown.update(1, 2)
    assert screen.getvalue() == ""


def test_on_a_terminal_what_is_quick_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_a_terminal(monkeypatch)
    with Progress("loading", "layers") as shown:
        for layer in range(1, 31):
            shown.update(layer, 30)
    assert screen.getvalue().strip() == ""


def test_on_a_terminal_it_is_a_bar_that_goes_away(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = on_a_terminal(monkeypatch)
    with Progress("loading", "layers") as shown:
        clock.now += 2
        shown.update(10, 30)
        assert "loading:  33%" in screen.getvalue()
        assert "10/30" in screen.getvalue()
    assert last_drawn(screen) == ""


def test_on_a_terminal_a_bar_that_is_full_goes_away_before_the_with_ends(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = on_a_terminal(monkeypatch)
    with Progress("loading", "layers") as shown:
        clock.now += 2
        shown.update(29, 30)
        assert last_drawn(screen) != ""
        shown.update(30, 30)
        assert last_drawn(screen) == ""


def test_on_a_terminal_the_time_left_follows_from_the_whole_time_so_far(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = on_a_terminal(monkeypatch)
    with Progress("loading", "layers") as shown:
        clock.now += 60  # the first update comes late: the bar is new, the work is not
        shown.update(10, 30)
    assert "[01:00<02:00" in screen.getvalue()


def test_on_a_terminal_a_note_is_whole_and_new_though_no_unit_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A streamed batch has its first answers after many passes."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    seconds = itertools.count()
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))
    screen = on_a_terminal(monkeypatch)
    with Progress("answering", "prompts") as shown:
        for layer in range(10, 13):
            shown.update(2, 4, f"layer {layer}/22, 0.97 GB/s, 83% waiting for disk")
            assert f", layer {layer}/22, 0.97 GB/s, 83% waiting for disk]" in last_drawn(screen)
            assert len(last_drawn(screen)) < 80


def test_a_terminal_that_claims_to_have_no_columns_still_gets_its_bar(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()  # nobody has told it its size
    with os.fdopen(master, "rb", 0) as screen, os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress("loading", "layers") as shown:
            clock.now += 2
            shown.update(10, 30)
        terminal.flush()
        assert b"loading:  33%" in screen.read(4096)


def last_drawn(screen: Terminal) -> str:
    """What the line shows now; blanks over a bar that went away are nothing."""
    return screen.getvalue().split("\r")[-1].strip()


def test_progress_of_a_part_is_progress_of_the_whole() -> None:
    calls: list[tuple[int, int]] = []
    part = progress.part_of(lambda *now: calls.append(now), 100, 50, 200)
    assert part is not None
    part(1, 3)
    part(3, 3)
    assert calls == [(116, 200), (150, 200)]
    assert progress.part_of(None, 100, 50, 200) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")],
)
def test_durations_are_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text

"""The line that says what goes on while a model is streamed."""

import fcntl
import io
import json
import logging
import os
import pty
import struct
import termios
from typing import Any

import pytest
from fake_engine import FakeEngine

from airllm.cli import main
from airllm.cli.live import StreamLine

Capture = pytest.CaptureFixture[str]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("airllm.cli.live.time.monotonic", clock)
    return clock


class Disk:
    """1 GB a second, and nine tenths of the time somebody waits for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self) -> dict[str, Any]:
        seconds = self._clock.now - 90
        return {"bytes_read": int(1e9 * seconds), "waited_for_disk_seconds": 0.9 * seconds}


class PageCache(Disk):
    """3 GB a second; three quarters of the time somebody waits for two threads that pack."""

    def __call__(self) -> dict[str, Any]:
        seconds = self._clock.now - 90
        waited = {"waited_for_disk_seconds": 0.75 * seconds, "pack_seconds": 1.8 * seconds}
        return {"bytes_read": int(3e9 * seconds), **waited}


def layers(line: StreamLine, clock: Clock, n: int, seconds: float) -> None:
    for layer in range(1, n + 1):
        clock.now += seconds
        line.update(layer, 4)


def test_a_prompts_line_has_layer_speed_waiting_and_the_time_left(clock: Clock) -> None:
    line = StreamLine(Disk(clock))
    layers(line, clock, 1, 2.0)
    assert line.text(1, 4) == (
        "reading the prompt: layer 1/4, 1.00 GB/s, 90% waiting for disk, 6 s left"
    )


def test_where_the_page_cache_serves_the_reads_packing_is_what_is_waited_for(clock: Clock) -> None:
    line = StreamLine(PageCache(clock), packers=2)
    layers(line, clock, 1, 2.0)
    assert line.place(1, 4) == "layer 1/4, 3.00 GB/s, 75% waiting for packing"


def test_reads_through_the_page_cache_are_not_called_the_disk(clock: Clock) -> None:
    line = StreamLine(lambda: {**Disk(clock)(), "direct": False})
    layers(line, clock, 1, 2.0)
    assert line.place(1, 4).endswith("90% waiting for reads")


def test_some_packing_does_not_hide_a_slow_disk(clock: Clock) -> None:
    def stats() -> dict[str, Any]:
        return {**Disk(clock)(), "pack_seconds": 0.8 * (clock.now - 90)}

    line = StreamLine(stats, packers=2)
    layers(line, clock, 1, 2.0)
    assert line.place(1, 4).endswith("90% waiting for disk")


def test_a_tokens_line_has_the_seconds_of_a_token_and_what_is_left_at_most(clock: Clock) -> None:
    line = StreamLine(Disk(clock), max_tokens=11)
    layers(line, clock, 4, 2.0)  # the prompt, which makes the first token
    layers(line, clock, 4, 1.0)
    layers(line, clock, 2, 1.0)
    assert line.text(2, 4) == (
        "token 3: layer 2/4, 1.00 GB/s, 90% waiting for disk, 4.00 s/token, at most 34 s left"
    )


def test_guesses_that_were_right_count_as_tokens(clock: Clock) -> None:
    position = 0
    line = StreamLine(Disk(clock), position=lambda: position, max_tokens=21)
    for after in (50, 54, 56, 57):  # a prompt of 50, and 4 and 2 tokens, and on
        layers(line, clock, 4, 1.0)
        position = after
    layers(line, clock, 2, 1.0)
    assert line.text(2, 4) == (
        "token 9: layer 2/4, 1.00 GB/s, 90% waiting for disk, 1.71 s/token (2.3 a pass), "
        "at most 20 s left"
    )


def test_in_a_log_it_is_a_line_every_ten_seconds(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "airllm")
    with StreamLine(Disk(clock)) as line:
        layers(line, clock, 4, 3.0)
        layers(line, clock, 4, 3.0)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "reading the prompt",
        "token 2",
    ]


def test_on_a_terminal_it_stands_below_the_cursor_and_goes_before_text_comes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with StreamLine(Disk(clock)) as line:
        say = line.before(screen.write)
        layers(line, clock, 1, 1.0)
        assert "layer 1/4" in screen.getvalue()
        assert screen.getvalue().endswith("\x1b8")  # the cursor is where it was
        screen.truncate(0)
        say("text")
        assert "layer" not in screen.getvalue()
        assert screen.getvalue().endswith("\x1b[K\x1b8text")


def test_the_line_is_as_wide_as_the_terminal_although_the_answer_goes_to_a_pipe(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(follower, "w") as terminal, StreamLine(Disk(clock)) as line:
        monkeypatch.setattr("sys.stderr", terminal)
        layers(line, clock, 1, 1.0)
        said = os.read(leader, 4096).decode().partition("\x1b[K")[2].removesuffix("\x1b8")
    os.close(leader)
    assert len(said) == 39


def test_quiet_shows_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with StreamLine(Disk(clock), shown=False) as line:
        layers(line, clock, 4, 20.0)
    assert screen.getvalue() == ""


STATS = {
    "bytes_read": 3_000_000_000,
    "disk_seconds": 2.0,
    "waited_for_disk_seconds": 1.0,
    "io": "io_uring",
    "direct": True,
}


def test_what_was_streamed_is_said_at_the_end_and_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["x"], ["x"]).install(monkeypatch)
    engine.streamed = STATS
    assert main(["generate", "-m", "m.gguf", "-p", "x"]) == 0
    assert (
        "streamed 3.00 GB at 1.50 GB/s (io_uring, past the page cache)" in capsys.readouterr().err
    )
    assert main(["generate", "-m", "m.gguf", "-p", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stream"] == STATS

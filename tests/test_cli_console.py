"""What is shown: sizes for people, a model's text on a terminal, the log on stderr."""

import io
import json

import pytest

from airllm.cli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (98_362_432, "93.8 MiB"),
        (500 << 20, "500 MiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 55, "32768 TiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(n: int, text: str) -> None:
    assert console.format_bytes(n) == text


def test_on_a_terminal_a_model_cannot_send_escape_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    console.write("a\x1b[2Jb\r\x07\x9bc\n\té 🙂")
    assert screen.getvalue() == "a�[2Jb���c\n\té 🙂"


def test_in_a_file_a_models_text_is_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.write("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\n"


def test_a_character_that_stdout_lacks_becomes_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ascii = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", ascii)
    console.replace_what_stdout_cannot_show()
    console.write("für 🙂")
    assert ascii.buffer.getvalue() == b"f?r ?"


@pytest.mark.parametrize(
    ("options", "err"),
    [
        ({"quiet": False, "debug": False}, "airllm: i\nairllm: warning: w\nairllm: error: e\n"),
        ({"quiet": True, "debug": False}, "airllm: error: e\n"),
        (
            {"quiet": False, "debug": True},
            "airllm: debug: d\nairllm: i\nairllm: warning: w\nairllm: error: e\n",
        ),
    ],
)
def test_the_log_goes_to_stderr_as_much_of_it_as_was_asked_for(
    options: dict[str, bool], err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.logging_to_stderr(**options):
        console.log.debug("d")
        console.log.info("i")
        console.log.warning("w")
        console.log.error("e")
    console.log.info("after")
    assert capsys.readouterr() == ("", err)


def test_quiet_means_no_progress() -> None:
    with console.logging_to_stderr(quiet=True, debug=False):
        assert not console.progress("scoring", "chunks").shown
    with console.logging_to_stderr(quiet=False, debug=False):
        assert console.progress("scoring", "chunks").shown


def test_infinities_and_nan_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.write_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": (-1e999,)}})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": [None]}}

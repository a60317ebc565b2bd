"""What a file or a peer says never reaches a terminal as anything but text."""

import io
import json
import sys

import pytest

from airllm.cli import console
from airllm.text.chat_template import ChatTemplate, ChatTemplateError
from airllm.util.metadata import FormatError, Metadata
from airllm.util.printable import printable, printable_lines
from airllm.util.progress import Progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("é 漢字 🙂 a\\b", "é 漢字 🙂 a\\b"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nairllm: all is well\r", "a\\nairllm: all is well\\r"),
        ("\x9b2J\x7f\0\t", "\\x9b2J\\x7f\\x00\\t"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\ud800", "\\ud800"),
        (b"\x1b", "b'\\x1b'"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_every_character_is_printable_afterwards_and_stays_as_it_is() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything)
    assert shown.isprintable()
    assert printable(shown) == shown


def test_a_message_of_several_lines_keeps_them() -> None:
    assert printable_lines("a\n\x1bb") == "a\n\\x1bb"


ESCAPE = "\x1b]0;owned\x07\n"


def test_an_error_that_quotes_a_file_is_one_line_without_escapes() -> None:
    assert str(Metadata(f"{ESCAPE}.gguf", {}).fault(f"has {ESCAPE}")).isprintable()
    assert str(FormatError(ESCAPE)).isprintable()


def test_what_a_template_says_when_it_refuses_is_one_line_without_escapes() -> None:
    template = ChatTemplate("{{ raise_exception('\x1b]0;owned\x07\\nairllm: all is well') }}")
    with pytest.raises(ChatTemplateError) as caught:
        template.render([{"role": "user", "content": "Hello"}])
    assert str(caught.value) == (
        "the model's chat template: \\x1b]0;owned\\x07\\nairllm: all is well"
    )


def test_notes_and_the_log_escape_what_they_quote(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("first\nsecond \x1b[2J")
    with console.logging_to_stderr(quiet=False, debug=False):
        console.log.warning("a token %s", "\x1b[2J")
    assert capsys.readouterr().err == (
        "airllm: first\nsecond \\x1b[2J\nairllm: warning: a token \\x1b[2J\n"
    )


def test_json_on_a_terminal_has_no_character_that_it_would_obey(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"text": "é 🙂 \x1b[2J \x9b2J \x7f \u202e \U000e0001"}
    console.write_json(value)
    line = capsys.readouterr().out.removesuffix("\n")
    assert line.isprintable()
    assert "é 🙂" in line
    assert json.loads(line) == value


def test_a_progress_bars_label_and_note_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("airllm.util.progress.QUIET_SECONDS", 0.0)
    with Progress("\x1b]0;owned", "layers") as progress:
        progress.update(1, 2, "\x1b]0;owned")
    assert "\\x1b]0;owned" in screen.getvalue()
    assert "\x1b]0;owned" not in screen.getvalue()


def test_a_traceback_escapes_the_messages_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("\x1b]0;owned\x07") from ValueError("\x1b[2J")
    except RuntimeError as error:
        console.show_traceback(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "RuntimeError: \\x1b]0;owned\\x07\n" in said
    assert "ValueError: \\x1b[2J\n" in said
    assert "\x1b" not in said

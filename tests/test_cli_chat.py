"""airllm chat: what the model sees of a conversation, and what Ctrl-C and a full context do."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
from fake_engine import FakeEngine

from airllm.cli import main

Capture = pytest.CaptureFixture[str]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def chat(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, typed: str, *options: str) -> int:
    engine.install(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return main(["chat", "--model", "m.gguf", *options])


def test_each_line_is_answered_with_all_that_was_said_before(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["Par", "is."], ["2 million."])
    assert chat(monkeypatch, engine, "Capital of France?\nHow many live there?\n") == 0
    assert engine.requests == [
        [user("Capital of France?")],
        [user("Capital of France?"), assistant("Paris."), user("How many live there?")],
    ]
    assert capsys.readouterr().out == "Paris.\n2 million.\n"


def test_from_a_pipe_there_are_no_prompts_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(monkeypatch, FakeEngine(["Yes."]), "Well?\n")
    assert capsys.readouterr() == ("Yes.\n", "")


def test_empty_lines_are_no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"])
    chat(monkeypatch, engine, "\n  \nhello\n\n")
    assert engine.requests == [[user("hello")]]


def test_the_system_message_comes_first_and_survives_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(["a"], ["b"])
    chat(monkeypatch, engine, "one\n/reset\ntwo\n", "--system", "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    assert engine.requests == [[system, user("one")], [system, user("two")]]


def test_exit_ends_before_the_lines_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"])
    assert chat(monkeypatch, engine, "one\n/exit\ntwo\n") == 0
    assert engine.requests == [[user("one")]]
    assert engine.closed


def test_help_lists_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    chat(monkeypatch, FakeEngine(), "/help\n")
    text = capsys.readouterr().out
    assert [word for word in ("/reset", "/help", "/exit", "Ctrl-C", "Ctrl-D") if word in text] == [
        "/reset", "/help", "/exit", "Ctrl-C", "Ctrl-D",
    ]  # fmt: skip


def test_an_unknown_command_is_no_message(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    engine = FakeEngine()
    chat(monkeypatch, engine, "/quit\n")
    assert engine.requests == []
    assert "there is no /quit" in capsys.readouterr().err


def test_a_message_may_begin_with_a_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["Accounts."])
    chat(monkeypatch, engine, "/etc/passwd holds what?\n")
    assert engine.requests == [[user("/etc/passwd holds what?")]]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["Once ", KeyboardInterrupt()], ["Sure."])
    assert chat(monkeypatch, engine, "Tell a story\nA short one\n") == 0
    assert engine.requests[1] == [
        user("Tell a story"), assistant("Once "), user("A short one"),
    ]  # fmt: skip
    assert capsys.readouterr().out == "Once \nSure.\n"


def test_ctrl_c_before_the_first_word_takes_the_question_back(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine([KeyboardInterrupt()], ["Sure."])
    assert chat(monkeypatch, engine, "A long question\nA short one\n") == 0
    assert engine.requests[1] == [user("A short one")]
    assert "the question is forgotten" in capsys.readouterr().err


def test_an_answer_that_fills_the_context_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(monkeypatch, FakeEngine(["half an"], finish_reason="context", context=64), "go\n")
    err = capsys.readouterr().err
    assert "context of 64 tokens is full" in err
    assert "/reset" in err
    assert "--on-full shift" in err
    assert "--context 128" in err


def test_with_shift_a_full_context_forgets_the_oldest_exchanges_and_not_the_system_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b b"], ["c c"], ["a"], context=9)
    options = ["--system", "hello", "--on-full", "shift"]
    assert chat(monkeypatch, engine, "a\nb\nc c\n", *options) == 0
    system = {"role": "system", "content": "hello"}
    assert engine.requests == [
        [system, user("a")],
        [system, user("a"), assistant("b b"), user("b")],
        [system, user("c c")],  # ten tokens would not fit; of nine, four may stay
    ]
    assert "the oldest 4 messages are forgotten" in capsys.readouterr().err


def test_with_shift_an_endless_answer_keeps_the_system_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"])
    engine.shifted_tokens = 20
    chat(monkeypatch, engine, "a\n", "--system", "hello world", "--on-full", "shift")
    assert engine.sampling["on_full"] == "shift"
    assert engine.sampling["keep"] == 2  # "hello world"
    assert "the oldest 20 tokens were forgotten" in capsys.readouterr().err


def test_with_shift_a_message_longer_than_the_context_still_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"], context=4)
    assert chat(monkeypatch, engine, "a\na b c hello\n", "--on-full", "shift") == 1
    assert "has 4 tokens with this message" in capsys.readouterr().err


def test_more_context_than_the_model_allows_is_not_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(monkeypatch, FakeEngine(["half an"], finish_reason="context", context=1000), "go\n")
    err = capsys.readouterr().err
    assert "/reset" in err
    assert "--context" not in err


def test_a_message_that_does_not_fit_fails_where_nobody_can_react(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["a b"], context=4)
    assert chat(monkeypatch, engine, "hello\nhello world\n") == 1
    assert engine.requests == [[user("hello")]]
    assert "has 5 tokens with this message; the context of 4 tokens" in capsys.readouterr().err


def test_a_session_goes_on_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    session = ["--session", str(tmp_path / "s")]
    chat(monkeypatch, FakeEngine(["Par", "is."]), "Capital?\n", "--system", "Be brief.", *session)
    assert capsys.readouterr().err == ""
    engine = FakeEngine(["2 million."])
    assert chat(monkeypatch, engine, "How many live there?\n", *session) == 0
    begun = [{"role": "system", "content": "Be brief."}, user("Capital?"), assistant("Paris.")]
    assert engine.requests == [[*begun, user("How many live there?")]]
    assert "going on with the conversation of 3 messages" in capsys.readouterr().err


def test_a_session_keeps_its_own_system_message_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    session = ["--session", str(tmp_path / "s")]
    chat(monkeypatch, FakeEngine(["b"]), "a\n", *session)
    engine = FakeEngine(["c"], ["d"])
    chat(monkeypatch, engine, "b\n/reset\nc\n", "--system", "hello", *session)
    assert engine.requests == [[user("a"), assistant("b"), user("b")], [user("c")]]
    assert "--system changes nothing" in capsys.readouterr().err


def test_a_session_is_saved_when_the_conversation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    engine = FakeEngine(["b"], context=4)
    assert chat(monkeypatch, engine, "a\na b c hello\n", "--session", str(path)) == 1
    assert engine.load_session(path) == [user("a"), assistant("b")]


def test_a_session_that_cannot_be_written_is_refused_before_the_first_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"])
    assert chat(monkeypatch, engine, "a\n", "--session", str(tmp_path / "none" / "s")) == 1
    assert engine.requests == []
    assert "No such file" in capsys.readouterr().err


def test_a_model_without_a_chat_template_is_refused_before_the_first_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine()
    engine.has_chat_template = False
    assert chat(monkeypatch, engine, "") == 1
    assert "m.gguf: has no chat template" in capsys.readouterr().err


class TypedLines(io.StringIO):
    """A terminal on which `lines` are typed; an exception is what a key like Ctrl-C raises."""

    def __init__(self, *lines: str | BaseException) -> None:
        super().__init__()
        self._lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> str:
        line = self._lines.pop(0) if self._lines else ""
        if isinstance(line, BaseException):
            raise line
        return line


def chat_on_terminal(
    monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, *lines: str | BaseException
) -> int:
    engine.install(monkeypatch)
    monkeypatch.setattr("sys.stdin", TypedLines(*lines))
    return main(["chat", "--model", "m.gguf"])


def test_with_a_person_the_prompt_does_not_get_among_the_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert chat_on_terminal(monkeypatch, FakeEngine(["Yes."]), "Well?\n") == 0
    out, err = capsys.readouterr()
    assert out == "Yes.\n"
    assert err.count("> ") == 2


def test_ctrl_c_at_the_prompt_does_not_end_the_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["Yes."])
    assert chat_on_terminal(monkeypatch, engine, KeyboardInterrupt(), "Well?\n") == 0
    assert engine.requests == [[user("Well?")]]
    assert "Ctrl-D or /exit ends" in capsys.readouterr().err


def test_with_a_person_a_message_that_does_not_fit_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"], ["c"], context=4)
    lines = ("a\n", "a b c\n", "/reset\n", "a b c\n")
    assert chat_on_terminal(monkeypatch, engine, *lines) == 0
    assert engine.requests == [[user("a")], [user("a b c")]]
    assert "has 5 tokens with this message" in capsys.readouterr().err


ON_A_TERMINAL = """
import sys
sys.path.insert(0, {tests!r})
from fake_engine import FakeEngine
from airllm.cli import main, model

def endless():
    yield "Once upon a time"
    while True:  # until Ctrl-C
        pass

engine = FakeEngine(endless(), ["The end."])
model.open_engine = lambda args, **options: engine
sys.exit(main(["chat", "--model", "m.gguf"]))
"""


class Terminal:
    """The chat on a pseudo-terminal, as a person would have it."""

    def __init__(self) -> None:
        tests = Path(__file__).parent
        self.master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL.format(tests=str(tests))],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "PYTHONPATH": str(tests.parent), "TERM": "dumb"},
            preexec_fn=_own_the_terminal,
        )
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` has come; what was read before it is gone."""
        while text not in self.seen:
            assert select.select([self.master], [], [], 30)[0], f"{text!r} did not come in 30 s"
            try:
                data = os.read(self.master, 4096)
            except OSError:  # Linux says EIO when the other side has closed
                data = b""
            assert data, f"{text!r} did not come; last: {self.seen!r}"
            self.seen += data.decode()
        self.seen = self.seen.split(text, 1)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def _own_the_terminal() -> None:
    """Makes stdin the controlling terminal, so that ^C typed there becomes a SIGINT; which a shell
    may have told its background jobs, this one among them, to ignore."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with Terminal() as terminal:
        terminal.wait_for("> ")
        terminal.type("Tell a story\n")
        terminal.wait_for("Once upon a time")
        terminal.type("\x03")
        terminal.wait_for("airllm: stopped")
        terminal.wait_for("> ")
        terminal.type("And now?\n")
        terminal.wait_for("The end.")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0

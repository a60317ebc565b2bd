"""airllm chat: what the model sees of a conversation, and what Ctrl-C and a full context do."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from airllm.cli import main, typed
from airllm.cli.history import History

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLLM_HISTORY", str(tmp_path / "history" / "of_the_test"))


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
    chat(monkeypatch, engine, "/sett temperature 0\n/unheard-of\n")
    assert engine.requests == []
    err = capsys.readouterr().err
    assert "there is no /sett;" in err
    assert "there is no /unheard-of;" in err


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
    assert engine.options["on_full"] == "shift"
    assert engine.options["keep"] == 2  # "hello world"
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
    monkeypatch: pytest.MonkeyPatch,
    engine: FakeEngine,
    *lines: str | BaseException,
    options: Sequence[str] = (),
) -> int:
    engine.install(monkeypatch)
    monkeypatch.setattr("sys.stdin", TypedLines(*lines))
    return main(["chat", "--model", "m.gguf", *options])


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
    assert "Ctrl-D or /bye ends" in capsys.readouterr().err


def test_with_a_person_a_message_that_does_not_fit_is_not_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"], ["c"], context=4)
    lines = ("a\n", "a b c\n", "/reset\n", "a b c\n")
    assert chat_on_terminal(monkeypatch, engine, *lines) == 0
    assert engine.requests == [[user("a")], [user("a b c")]]
    assert "has 5 tokens with this message" in capsys.readouterr().err


# Messages of several lines.


def test_lines_between_quotes_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"], ["b"])
    chat(monkeypatch, engine, '"""one\ntwo\n\n  three"""\n"""\nfour\n"""\n')
    assert engine.requests[0] == [user("one\ntwo\n\n  three")]
    assert engine.requests[1][-1] == user("four")


def test_a_command_between_quotes_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"])
    chat(monkeypatch, engine, '"""/unheard-of"""\n')
    assert engine.requests == [[user("/unheard-of")]]


@pytest.mark.parametrize("pasted", ['"""A docstring."""\nimport os', "a \\\nb \\", "/bye\nnow"])
def test_quotes_and_backslashes_in_a_paste_mean_nothing(
    pasted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(["a"])
    first, *others = pasted.split("\n")
    marked = [f"\x1b[200~{first}\n", *(f"{line}\n" for line in others[:-1])]
    marked.append(f"{others[-1]}\x1b[201~\n")
    assert chat_on_terminal(monkeypatch, engine, *marked) == 0
    assert engine.requests == [[user(pasted)]]


def test_a_backslash_at_the_end_of_a_line_continues_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(["a"])
    chat(monkeypatch, engine, "one\\\ntwo\\\nthree\n")
    assert engine.requests == [[user("one\ntwo\nthree")]]


def test_the_end_of_the_input_ends_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"])
    assert chat(monkeypatch, engine, '"""one\ntwo\n') == 0
    assert engine.requests == [[user("one\ntwo")]]


def test_a_paste_that_comes_line_by_line_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a library that does not keep a paste together; the lines come without a pause."""
    lines, waiting = ["one", "two", "three", "four"], [True, True, False, False]
    monkeypatch.setattr("builtins.input", lambda prompt: lines.pop(0))
    monkeypatch.setattr(typed, "_more_is_waiting", lambda: waiting.pop(0))
    assert typed._edited_line("> ") == "one\ntwo\nthree"
    assert typed._edited_line("> ") == "four"


# Commands.


@pytest.mark.parametrize("command", ["/bye", "/exit", "/quit", "/BYE"])
def test_every_word_for_the_end_ends(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"])
    assert chat(monkeypatch, engine, f"one\n{command}\ntwo\n") == 0
    assert engine.requests == [[user("one")]]


def test_a_setting_holds_for_the_next_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["a"])
    chat(
        monkeypatch,
        engine,
        "/set temperature 0\n/set parameter top_k 7\n/set max_tokens 5\n/set seed 3\none\n",
    )
    found = {name: engine.options[name] for name in ("temperature", "top_k", "max_new_tokens")}
    assert found == {"temperature": 0.0, "top_k": 7, "max_new_tokens": 5}
    assert engine.options["seed"] == 3
    assert "max_tokens is 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temperature warm", "'warm' is not a number"),
        ("/set temperature", "expected one argument"),
        (
            "/set warmth 3",
            "there is no setting warmth; there are: system, think, max-tokens, temperature",
        ),
        ("/set top_p 0", "top_p is 0.0; expected above 0"),
        ("/save", "expected a file"),
        ("/load", "expected a file"),
        ("/load /no/such/file", "/no/such/file: No such file or directory\n"),
    ],
)
def test_a_command_that_cannot_be_done_says_so_and_the_chat_goes_on(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["a"])
    assert chat(monkeypatch, engine, f"{line}\nhello\n") == 0
    assert said in capsys.readouterr().err
    assert engine.requests == [[user("hello")]]
    assert "temperature" not in engine.options


def test_the_system_message_can_be_set_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["a"], ["b"], ["c"])
    chat(monkeypatch, engine, "one\n/set system Be brief.\ntwo\n/set system\nthree\n")
    system = {"role": "system", "content": "Be brief."}
    assert [request[0] for request in engine.requests] == [user("one"), system, user("one")]
    assert len(engine.requests[2]) == 5


def test_show_says_what_runs_and_how_full_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(context=99)
    engine.position = 12
    chat(monkeypatch, engine, "/show\n", "--system", "Be brief.", "--top-k", "9")
    lines = [line.split(None, 1) for line in capsys.readouterr().err.splitlines()]
    assert ["model", "m.gguf"] in lines
    assert ["context", "12 of 99 tokens are used"] in lines
    assert ["top_k", "9"] in lines
    assert ["min_p", "0.05"] in lines  # as the model's file or airllm has it
    assert ["system", "Be brief."] in lines


def test_a_saved_conversation_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "my session"
    engine = FakeEngine(["b"], ["d"])
    typed = f"a\n/save {path}\n/reset\n/load {path}\nc\n"
    assert chat(monkeypatch, engine, typed) == 0
    assert engine.load_session(path) == [user("a"), assistant("b")]
    assert engine.requests[1] == [user("a"), assistant("b"), user("c")]
    assert "> a\nb\n" in capsys.readouterr().err


# Sessions.


def test_a_session_is_saved_after_each_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(["b"], ["d"])
    saved = []
    real = engine.save_session

    def save(path: Path, **options: Any) -> None:
        real(path, **options)
        saved.append(len(engine.load_session(path)))

    engine.save_session = save  # type: ignore[method-assign]
    chat(monkeypatch, engine, "a\nc\n", "--session", str(tmp_path / "s"))
    assert saved == [0, 2, 4, 4]


def test_with_a_person_a_session_that_cannot_be_saved_is_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["b"], ["d"])
    real, saves = engine.save_session, []

    def save(path: Path, **options: Any) -> None:
        saves.append(path)
        if len(saves) == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, **options)

    engine.save_session = save  # type: ignore[method-assign]
    options = ["--session", str(tmp_path / "s")]
    assert chat_on_terminal(monkeypatch, engine, "a\n", "c\n", options=options) == 0
    assert "the session could not be saved: [Errno 28]" in capsys.readouterr().err
    assert len(engine.load_session(tmp_path / "s")) == 4


def test_a_resumed_conversation_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    messages = [user("Hi \x1b[2J"), assistant("Hello\nyou")]
    (tmp_path / "s").write_text(json.dumps(messages))
    options = ["--session", str(tmp_path / "s")]
    assert chat_on_terminal(monkeypatch, FakeEngine(), "/bye\n", options=options) == 0
    assert "> Hi \ufffd[2J\nHello\nyou\n" in capsys.readouterr().err


def test_of_a_long_conversation_the_end_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    messages = [user(f"question {n}") for n in range(30)]
    (tmp_path / "s").write_text(json.dumps(messages))
    options = ["--session", str(tmp_path / "s")]
    chat_on_terminal(monkeypatch, FakeEngine(), options=options)
    err = capsys.readouterr().err
    assert "... 10 earlier messages\n> question 10\n" in err
    assert "question 9\n" not in err


# The history.


def test_messages_are_kept_for_later_sittings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state" / "h"
    monkeypatch.setenv("AIRLLM_HISTORY", str(path))
    chat_on_terminal(monkeypatch, FakeEngine(["b"]), '"""one\n', 'two"""\n', "/bye\n")
    assert History(path).messages == ["one\ntwo", "/bye"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("way", ["option", "variable", "pipe"])
def test_who_wants_no_history_has_none(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRLLM_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if way == "variable":
        monkeypatch.setenv("AIRLLM_HISTORY", "")
    if way == "pipe":
        chat(monkeypatch, FakeEngine(["b"]), "a\n")
    else:
        options = ["--no-history"] if way == "option" else []
        chat_on_terminal(monkeypatch, FakeEngine(["b"]), "a\n", options=options)
    assert list(tmp_path.rglob("*")) == []
    monkeypatch.delenv("AIRLLM_HISTORY", raising=False)
    chat_on_terminal(monkeypatch, FakeEngine(["b"]), "a\n")
    assert History(tmp_path / "airllm" / "chat_history").messages == ["a"]


def test_a_history_that_grows_is_cut_to_its_newer_half(tmp_path: Path) -> None:
    path = tmp_path / "h"
    lines = [f'"{n:07}"\n' for n in range(200_000)]
    path.write_text("".join(lines))
    history = History(path)
    assert history.messages[-1] == "0199999"
    assert len(history.messages) == 1000
    assert path.stat().st_size < 600_000
    history.append("new")
    assert History(path).messages[-2:] == ["0199999", "new"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"[" * 100_000, b'{"a": 1}\n7\nnull\n"\\u0000"\n', b"\n\n"]
)
def test_a_history_that_is_none_is_empty(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(content)
    history = History(tmp_path / "h")
    assert history.messages == []
    history.append("a")
    assert History(tmp_path / "h").messages[-1:] == ["a"]


def test_a_history_that_is_a_link_is_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "other").write_text('"secret"\n')
    (tmp_path / "h").symlink_to(tmp_path / "other")
    history = History(tmp_path / "h")
    assert history.messages == []
    history.append("a")
    assert (tmp_path / "other").read_text() == '"secret"\n'

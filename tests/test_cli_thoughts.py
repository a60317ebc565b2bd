"""What airllm chat and generate do with a model's thoughts: on a terminal, in a pipe, in the next
turn."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from airllm.cli import main
from airllm.text.prompts import Chat

Capture = pytest.CaptureFixture[str]

QWEN = "<think> </think>"
READS_THOUGHTS = "{{ message.reasoning_content }} <think> </think>"
GPT_OSS = "<|channel|> <|message|> {{ message.thinking }}"
THINKING = ["<thi", "nk>\nHm, Fra", "nce.\n</think>\n\nPar", "is."]
CHANNELS = (
    "<|channel|>analysis<|message|>A capital.<|end|>",
    "<|start|>assistant<|channel|>final<|message|>Paris.",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What the screen gets, from stdout and stderr."""
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def generate(*options: str) -> int:
    return main(["generate", "-m", "m.gguf", "Capital of France?", *options])


def chat(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine, typed: str, *options: str) -> int:
    engine.install(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    return main(["chat", "-m", "m.gguf", *options])


@pytest.mark.parametrize(("template", "pieces"), [(QWEN, THINKING), (GPT_OSS, CHANNELS)])
def test_a_pipe_gets_the_answer_alone(
    template: str, pieces: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(pieces, template=template).install(monkeypatch)
    assert generate("-q") == 0
    assert capsys.readouterr() == ("Paris.\n", "")
    assert engine.markup


def test_in_a_pipe_thoughts_that_are_wanted_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("-q", "--think", "show") == 0
    assert capsys.readouterr() == ("Paris.\n", "[thinking]\nHm, France.\n[answer]\n")


def test_on_a_terminal_thoughts_are_dim_and_the_answer_is_plain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate() == 0
    said = terminal.getvalue().partition("airllm: ")[0]
    assert said == "\x1b[2mHm, Fra\x1b[22m\x1b[2mnce.\x1b[22m\n\nParis.\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "")])
def test_a_terminal_without_styles_has_lines_around_thoughts(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv(name, value)
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("-q", "--think", "show") == 0
    assert terminal.getvalue() == "[thinking]\nHm, France.\n[answer]\nParis.\n"


def test_hidden_thoughts_are_a_line_that_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("--think", "hide") == 0
    said = terminal.getvalue().partition("airllm: ")[0]
    assert said == "\rthinking, 0 s\x1b[K\r\x1b[KParis.\n"


def test_quiet_shows_thoughts_only_if_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("-q") == 0
    assert terminal.getvalue() == "Paris.\n"


def test_an_answer_may_begin_inside_the_thought_that_its_prompt_has_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(
        ["Hm.\n</think>\n\nParis."], template=QWEN, prompt_end="<assistant>\n<think>\n"
    )
    engine.install(monkeypatch)
    assert generate("-q") == 0
    assert capsys.readouterr().out == "Paris.\n"


def test_a_question_about_the_mark_of_thoughts_is_no_thought(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["A tag."], template=QWEN, prompt_end="What is <think>?<end>\n<assistant>")
    engine.install(monkeypatch)
    assert generate("-q") == 0
    assert capsys.readouterr().out == "A tag.\n"


def test_raw_shows_what_the_model_writes(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    engine = FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("-q", "--raw") == 0
    assert capsys.readouterr().out == "".join(THINKING) + "\n"
    assert not engine.markup


def test_json_has_the_thought_apart(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    FakeEngine(THINKING, template=QWEN).install(monkeypatch)
    assert generate("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["thought"]) == ("Paris.", "Hm, France.")


def test_a_call_is_shown_as_the_model_writes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    FakeEngine([call], template="<tool_call> " + QWEN).install(monkeypatch)
    assert generate("-q") == 0
    assert capsys.readouterr().out == call + "\n"


def test_a_call_of_gpt_oss_shows_its_function_and_arguments(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
    FakeEngine([call], template=GPT_OSS).install(monkeypatch)
    assert generate("-q") == 0
    assert capsys.readouterr().out == 'to=functions.f {"x": 1}\n'


@pytest.mark.parametrize(
    ("template", "thoughts"),
    [(QWEN, {}), (READS_THOUGHTS, {"reasoning_content": "Hm, France."})],
)
def test_the_next_turn_has_the_thought_apart_if_the_template_reads_it(
    template: str, thoughts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(THINKING, ["2 million."], template=template)
    assert chat(monkeypatch, engine, "Capital?\nHow large?\n") == 0
    said = {"role": "assistant", "content": "Paris."}
    assert engine.requests[1] == [
        {"role": "user", "content": "Capital?"},
        said | thoughts,
        {"role": "user", "content": "How large?"},
    ]


def test_the_next_turn_of_gpt_oss_has_the_final_channel_as_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(CHANNELS, ["2 million."], template=GPT_OSS)
    assert chat(monkeypatch, engine, "Capital?\nHow large?\n") == 0
    said = {"role": "assistant", "content": "Paris.", "thinking": "A capital."}
    assert engine.requests[1][1] == said


def test_ctrl_c_in_a_thought_keeps_it(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pieces: list[Any] = ["<think>Hm", KeyboardInterrupt()]
    engine = FakeEngine(pieces, ["Paris."], template=READS_THOUGHTS)
    assert chat(monkeypatch, engine, "Capital?\nJust say it\n") == 0
    said = {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    assert engine.requests[1][1] == said
    assert capsys.readouterr() == ("Paris.\n", "airllm: stopped\n")


def test_a_session_keeps_thoughts_and_does_not_show_them_again(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    engine = FakeEngine(THINKING, template=READS_THOUGHTS)
    assert chat(monkeypatch, engine, "Capital?\n", "--session", path) == 0
    assert json.loads(Path(path).read_text())[1] == {
        "role": "assistant", "content": "Paris.", "reasoning_content": "Hm, France.",
    }  # fmt: skip
    capsys.readouterr()
    engine = FakeEngine(["2 million."], template=READS_THOUGHTS)
    assert chat(monkeypatch, engine, f"/load {path}\nHow large?\n") == 0
    assert engine.requests[0][1]["reasoning_content"] == "Hm, France."
    assert "Hm, France." not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "out", "err"),
    [
        ("/set think show\nQ\n", "Paris.\n", "[thinking]\nHm, France.\n[answer]\n"),
        ("/set think\nQ\n", "Paris.\n", "[thinking]\nHm, France.\n[answer]\n"),
        ("/set think show\n/set think hide\nQ\n", "Paris.\n", "airllm: think is hide\n"),
    ],
)
def test_a_command_shows_and_hides_thoughts(
    typed: str, out: str, err: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(monkeypatch, FakeEngine(THINKING, template=QWEN), typed)
    found = capsys.readouterr()
    assert found.out == out
    assert found.err.endswith(err)


@pytest.mark.parametrize("typed", ["/set think off\n", "/set nothink\n"])
def test_a_command_asks_the_model_not_to_think(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["Paris."], template=QWEN)
    chat(monkeypatch, engine, typed + "Q\n")
    off = {"enable_thinking": False, "thinking": False}
    assert engine.requests == [Chat([{"role": "user", "content": "Q"}], off)]


def test_an_option_asks_the_model_not_to_think(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["Paris."], template=QWEN).install(monkeypatch)
    kwargs = '{"enable_thinking": true, "x": 1}'
    assert generate("--think", "off", "--chat-template-kwargs", kwargs) == 0
    assert engine.requests[0].variables == {"enable_thinking": True, "thinking": False, "x": 1}


def test_a_setting_of_thoughts_that_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chat(monkeypatch, FakeEngine(), "/set think loud\n")
    assert "think: expected one of show, hide, off, not loud" in capsys.readouterr().err

"""airllm generate: what is asked of the engine, and what comes out where."""

import argparse
import io
import json
from typing import Any

import pytest
from fake_engine import FakeEngine

from airllm.cli import main
from airllm.text.prompts import Chat
from airllm.weights.budget import BudgetError

Capture = pytest.CaptureFixture[str]


def generate(*options: str) -> int:
    return main(["generate", "--model", "m.gguf", *options])


def test_the_answer_is_on_stdout_and_the_speed_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine([" there", " was"]).install(monkeypatch)
    assert generate("--prompt", "Once") == 0
    out, err = capsys.readouterr()
    assert out == " there was\n"
    assert err == "airllm: prompt: 7 tokens, 14.0 tokens/s; answer: 2 tokens, 8.0 tokens/s\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_slow_prompt_shows_how_far_it_is_until_the_answer_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeEngine(["x"]).install(monkeypatch)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("airllm.util.progress.QUIET_SECONDS", 0)
    assert generate("--prompt", "Once") == 0
    bar, blank, report = screen.getvalue().removeprefix("\r").split("\r")
    assert bar.startswith("reading the prompt:  50%")
    assert blank.strip() == ""
    assert report.startswith("airllm: prompt: 7 tokens")


def test_quiet_leaves_stderr_empty(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    FakeEngine(["text"]).install(monkeypatch)
    assert generate("--prompt", "Once", "--quiet") == 0
    assert capsys.readouterr() == ("text\n", "")


def test_json_is_one_object_with_text_tokens_and_timings(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["Größe", " ✓"], finish_reason="length").install(monkeypatch)
    assert generate("--prompt", "Once", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("threads") >= 1
    assert found == {
        "text": "Größe ✓",
        "thought": "",
        "tokens": [0, 1],
        "prompt_tokens": 7,
        "shifted_tokens": 0,
        "finish_reason": "length",
        "passes": 2,
        "accepted_tokens": 0,
        "tokens_per_pass": 1.0,
        "timings": {
            "prefill_seconds": 0.5,
            "prefill_tokens_per_second": 14.0,
            "decode_seconds": 0.25,
            "decode_tokens_per_second": 8.0,
        },
        "stream": None,
        "backend": "numpy",
        "isa": "numpy",
    }


def test_raw_continues_the_prompt_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    generate("--prompt", " Once\n", "--raw")
    assert engine.requests == [" Once\n"]


@pytest.mark.parametrize("option", [[], ["--chat"]])
def test_with_a_template_the_prompt_is_a_users_message(
    option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(["x"], ["y"]).install(monkeypatch)
    generate("--prompt", "Why?", "--system", "Be brief.", *option)
    assert engine.requests == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    ]
    generate("--prompt", "Why?", *option)
    assert engine.requests[1] == [{"role": "user", "content": "Why?"}]


def test_without_a_template_the_prompt_is_continued_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    engine.has_chat_template = False
    assert generate("--prompt", "Once") == 0
    assert engine.requests == ["Once"]
    assert "the model has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--chat"], ["--system", "Be brief."]])
def test_who_wants_a_chat_and_gets_none_is_told(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    engine.has_chat_template = False
    assert generate("--prompt", "Once", *options) == 1
    assert "m.gguf: has no chat template" in capsys.readouterr().err


def test_the_prompt_may_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    assert generate("Why is the sky blue?") == 0
    assert engine.requests == [[{"role": "user", "content": "Why is the sky blue?"}]]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ([], "expected a prompt"),
        (["Why?", "-p", "How?"], "expected one prompt, found two"),
        (["Why?", "--raw", "--system", "S"], "--system is for a chat"),
        (["Why?", "--raw", "--chat-template-kwargs", '{"a": 1}'], "--raw wants none"),
        (["Why?", "--raw", "--think", "hide"], "with --raw, thoughts are not told apart"),
    ],
)
def test_options_that_contradict_each_other_are_a_usage_error(
    options: list[str], fault: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    assert generate(*options) == 2
    assert fault in capsys.readouterr().err


def test_variables_of_the_template_go_with_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["!"]).install(monkeypatch)
    variables = '{"enable_thinking": false, "tools": [{"name": "f"}]}'
    assert generate("--chat", "--prompt", "Hi", "--chat-template-kwargs", variables) == 0
    (request,) = engine.requests
    assert request == Chat([{"role": "user", "content": "Hi"}], json.loads(variables))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--chat", "--chat-template-kwargs", "[1]"], "[1] is no JSON object"),
        (["--chat", "--chat-template-kwargs", "{x"], "{x is no JSON"),
        (["--chat", "--chat-template-kwargs", "[" * 100_000], "is no JSON"),
    ],
)
def test_variables_that_are_none_are_a_usage_error(
    options: list[str], fault: str, capsys: Capture
) -> None:
    try:
        status = generate("--prompt", "Hi", *options)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert fault in capsys.readouterr().err


def test_a_dash_reads_the_prompt_from_stdin_without_its_last_newline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    generate("--raw", "-")
    assert engine.requests == ["one\ntwo"]


def test_a_prompt_on_stdin_that_is_not_utf8_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    assert generate("--prompt", "-") == 1
    assert "the prompt on stdin is not UTF-8" in capsys.readouterr().err


def test_a_prompt_in_the_command_line_that_is_not_utf8_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Python passes the byte FF as the lone surrogate DCFF, which no tokeniser can encode."""
    FakeEngine().install(monkeypatch)
    with pytest.raises(SystemExit) as exit:
        generate("--prompt", "caf\udcff")
    assert exit.value.code == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_every_sampling_option_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    generate(
        *("--prompt", "p", "--max-tokens", "9", "--temperature", "0.5", "--top-k", "7"),
        *("--top-p", "0.6", "--min-p", "0.1", "--repeat-penalty", "1.2", "--seed", "3"),
        *("--stop", "a", "--stop", "b", "--on-full", "shift", "--keep", "-1"),
        *("--lookahead", "5"),
    )
    assert engine.options == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.6,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 3,
        "stop": ["a", "b"],
        "on_full": "shift",
        "keep": -1,
        "lookahead": 5,
        "draft": None,
    }


def test_what_is_kept_needs_something_that_forgets(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    assert generate("--prompt", "p", "--keep", "5") == 2
    assert "--keep needs --on-full shift" in capsys.readouterr().err


def test_tokens_that_were_forgotten_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["x"], context=64).install(monkeypatch)
    engine.shifted_tokens = 31
    generate("--prompt", "p", "--on-full", "shift")
    assert "context of 64 tokens was full: 31 tokens were forgotten" in capsys.readouterr().err


def test_model_context_and_threads_reach_the_engine_which_is_closed_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine(["x"]).install(monkeypatch)
    generate("--prompt", "p", "--context", "99", "--threads", "2")
    assert engine.opened_with == {"model": "m.gguf", "context": 99, "threads": 2}
    assert engine.closed


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("length", "stopped after 5 tokens; --max-tokens allows more"),
        ("context", "the context of 1000 tokens is full; --context makes it larger"),
    ],
)
def test_an_answer_that_was_cut_says_why(
    reason: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["x"], finish_reason=reason).install(monkeypatch)
    generate("--prompt", "p", "--max-tokens", "5")
    assert says in capsys.readouterr().err


def test_chat_with_a_model_that_has_no_template_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    engine.has_chat_template = False
    assert generate("--prompt", "Why?", "--chat") == 1
    assert "m.gguf: has no chat template" in capsys.readouterr().err


def test_a_draft_is_another_model(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    engine, draft = FakeEngine(["x"]), FakeEngine()
    engines = {"m.gguf": engine, "small.gguf": draft}
    monkeypatch.setattr("airllm.cli.model.draft_plan", lambda *_: draft.plan())
    monkeypatch.setattr("airllm.cli.model.open_engine", lambda args, **_: engines[args.model])
    assert generate("--prompt", "p", "--draft", "small.gguf", "--lookahead", "0") == 2
    assert "--lookahead 0 turns guesses off" in capsys.readouterr().err
    assert generate("--prompt", "p", "--draft", "small.gguf", "--lookahead", "4") == 0
    assert engine.options["draft"] is draft
    assert draft.closed
    assert "lookahead: 0 tokens were guessed right, 1.00 tokens a pass" in capsys.readouterr().err


def test_only_one_of_draft_and_head_guesses(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine, draft = FakeEngine(["x"], ["y"]), FakeEngine()
    with_head = {}

    def open_engine(args: argparse.Namespace, **_: Any) -> FakeEngine:
        with_head[args.model] = args.mtp
        return {"m.gguf": engine, "small.gguf": draft}[args.model]

    monkeypatch.setattr("airllm.cli.model.draft_plan", lambda *_: draft.plan())
    monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
    assert generate("--prompt", "p", "--draft", "small.gguf", "--mtp") == 2
    assert "--draft and --mtp both make the guesses" in capsys.readouterr().err
    assert generate("--prompt", "p", "--draft", "small.gguf") == 0
    assert with_head == {"small.gguf": False, "m.gguf": False}  # whatever AIRLLM_MTP says
    assert generate("--prompt", "p", "--mtp") == 0
    assert with_head["m.gguf"] is True


def test_model_and_draft_are_within_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, draft = FakeEngine(["x"]), FakeEngine()
    draft.memory_bytes = 3000
    granted = {}

    def open_engine(args: argparse.Namespace, **_: Any) -> FakeEngine:
        granted[args.model] = args.ram
        return {"m.gguf": engine, "small.gguf": draft}[args.model]

    monkeypatch.setattr("airllm.cli.model.draft_plan", lambda *_: draft.plan())
    monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
    assert generate("--prompt", "p", "--draft", "small.gguf", "--ram", "10000") == 0
    assert granted == {"small.gguf": 2999, "m.gguf": 7000}  # a byte less: no embedding is kept


def test_a_budget_too_small_for_model_and_draft_says_what_the_draft_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    draft = FakeEngine()

    def open_engine(args: argparse.Namespace, **_: Any) -> FakeEngine:
        if args.model == "m.gguf":
            raise BudgetError("the model does not run in 1000 bytes: it needs 5000", 5000)
        return draft

    monkeypatch.setattr("airllm.cli.model.draft_plan", lambda *_: draft.plan())
    monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
    command = ("--prompt", "p", "--draft", "small.gguf", "--ram", "2000")
    assert generate(*command) == 1
    expected = "it needs 5000; 1000 bytes for --draft small.gguf come on top of that"
    assert expected in capsys.readouterr().err
    assert draft.closed
    draft.streamed = {}
    assert generate(*command) == 1
    assert "--draft small.gguf does not fit in 2.0 KiB" in capsys.readouterr().err


def test_a_draft_that_does_not_run_at_all_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def draft_plan(*_: object) -> None:
        raise BudgetError("the model does not run in 10 bytes: it needs 50", 50)

    monkeypatch.setattr("airllm.cli.model.draft_plan", draft_plan)
    assert generate("--prompt", "p", "--draft", "small.gguf", "--ram", "10") == 1
    assert "--draft small.gguf: the model does not run in 10 bytes" in capsys.readouterr().err

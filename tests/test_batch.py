"""airllm batch: every prompt is answered once, whatever interrupts it."""

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_model import Sizes, write_tiny_model

from airllm.cli import main
from airllm.engine.settings import Limits, Sampling
from airllm.text.prompts import Chat
from airllm.tools.batch_answers import Answers
from airllm.tools.batch_jobs import SETTINGS, read_jobs
from airllm.tools.json_lines import BatchError
from airllm.weights.budget import BudgetError
from airllm.weights.plan_model import plan_model

Capture = pytest.CaptureFixture[str]
RUN = "run"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write(path, {"prompt": "one"}, {"prompt": "two", "id": "b"}, {"messages": chat("three")})
    return path


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def batch(prompts: Path, *options: str) -> int:
    out = prompts.with_name("answers.jsonl")
    return main(["batch", "-m", "m.gguf", "--in", str(prompts), "--out", str(out), *options])


def answers(prompts: Path) -> list[dict[str, Any]]:
    return read(prompts.with_name("answers.jsonl"))


# The command.


def test_every_prompt_gets_a_line_with_its_index_and_id(prompts, monkeypatch, capsys: Capture):
    engine = FakeEngine(["tre"], ["du", "e"], ["uno"]).install(monkeypatch)
    assert batch(prompts) == 0
    assert engine.requests == [chat("three"), "two", "one"]
    found = sorted(answers(prompts), key=lambda answer: answer["index"])
    assert [(a["index"], a.get("id"), a["text"]) for a in found] == [
        (0, None, "uno"),
        (1, "b", "due"),
        (2, None, "tre"),
    ]
    assert found[1]["tokens"] == 2
    assert found[1]["finish_reason"] == "stop"
    assert found[1]["prompt_tokens"] == 7
    assert capsys.readouterr() == ("", "airllm: 3 prompts answered now, 0 failed\n")


def test_pieces_of_text_are_counted_while_an_answer_is_made(prompts, monkeypatch):
    notes: list[tuple[int, int, str]] = []
    monkeypatch.setattr("airllm.util.progress.Progress.update", lambda _, *now: notes.append(now))
    FakeEngine(["tre"], ["du", "e"], ["uno"]).install(monkeypatch)
    batch(prompts)
    assert [now for now in notes if len(now) == 3] == [
        (0, 3, "pieces of text: 1"),
        (1, 3, "pieces of text: 2"),
        (1, 3, "pieces of text: 3"),
        (2, 3, "pieces of text: 4"),
    ]


def test_a_line_and_the_command_give_the_template_its_variables(prompts, monkeypatch):
    asked = []
    engine = FakeEngine(*[["x"]] * 4).install(monkeypatch)
    monkeypatch.setattr(engine, "prompt_length", lambda prompt: asked.append(prompt) or 7)
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    lines = [
        {"messages": messages},
        {"messages": messages, "chat_template_kwargs": {"a": 2}, "tools": [{"name": "f"}]},
        {"prompt": "Hi"},
    ]
    write(prompts, *lines)
    assert batch(prompts, "--chat-template-kwargs", '{"a": 1, "b": 1}') == 0
    assert asked == [
        Chat(messages, {"a": 1, "b": 1}),
        Chat(messages, {"a": 2, "b": 1, "tools": [{"name": "f"}]}),
        "Hi",
    ]


@pytest.mark.parametrize(
    ("options", "thought", "variables"),
    [
        ((), {"thought": "Hm."}, {}),
        (("--think", "show"), {"thought": "Hm."}, {}),
        (("--think", "hide"), {}, {}),
        (
            ("--think", "off"),
            {"thought": "Hm."},
            {"enable_thinking": False, "thinking": False},
        ),
    ],
)
def test_a_chats_thought_is_apart_from_its_text(
    prompts, monkeypatch, options: tuple[str, ...], thought, variables
):
    said = ["<think>Hm.</th", "ink>\n\nYes."]
    engine = FakeEngine(said, said, template="<think> </think>").install(monkeypatch)
    write(prompts, {"messages": chat("Hi")}, {"prompt": "Hi"})
    assert batch(prompts, *options) == 0
    of_chat, of_text = sorted(answers(prompts), key=lambda answer: answer["index"])
    assert of_text["text"] == "".join(said)
    assert "thought" not in of_text
    assert of_chat["text"] == "Yes."
    assert {key: of_chat[key] for key in of_chat if key == "thought"} == thought
    assert engine.requests[-1] == (Chat(chat("Hi"), variables) if variables else chat("Hi"))
    assert engine.markup


def test_variables_are_a_part_of_what_was_asked(prompts, monkeypatch, capsys: Capture):
    write(prompts, {"messages": chat("x"), "chat_template_kwargs": {"a": 1}})
    FakeEngine(["x"]).install(monkeypatch)
    assert batch(prompts) == 0
    write(prompts, {"messages": chat("x"), "chat_template_kwargs": {"a": 2}})
    assert batch(prompts) == 1
    assert "answers another prompt than number 0" in capsys.readouterr().err
    write(prompts, {"messages": chat("x"), "chat_template_kwargs": {"a": 1}})
    assert batch(prompts, "--chat-template-kwargs", '{"b": 1}') == 1
    assert "with other settings" in capsys.readouterr().err


def test_a_lines_settings_go_before_those_of_the_command(prompts, monkeypatch):
    write(prompts, {"prompt": "x", "max_new_tokens": 3, "seed": 9, "stop": ["a", "b"]})
    engine = FakeEngine(["y"]).install(monkeypatch)
    batch(prompts, "--temperature", "0.5", "-n", "70")
    assert engine.options["max_new_tokens"] == 3
    assert engine.options["seed"] == 9
    assert engine.options["stop"] == ["a", "b"]
    assert engine.options["temperature"] == 0.5


def test_the_biases_of_a_line_are_by_token(prompts, monkeypatch):
    write(prompts, {"prompt": "x", "logit_bias": {"15": -100, "2": 0.5}, "dry_breakers": ["a"]})
    engine = FakeEngine(["y"]).install(monkeypatch)
    batch(prompts)
    assert engine.options["logit_bias"] == {15: -100, 2: 0.5}
    assert engine.options["dry_breakers"] == ["a"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError("the disk"), MemoryError()])
def test_what_is_interrupted_goes_on_and_repeats_nothing(
    prompts, monkeypatch, capsys: Capture, interruption
):
    FakeEngine(["tre"], ["d", interruption]).install(monkeypatch)
    assert batch(prompts) != 0
    assert [a["text"] for a in answers(prompts)] == ["tre"]
    engine = FakeEngine(["due"], ["uno"]).install(monkeypatch)
    assert batch(prompts, "--json") == 0
    assert engine.requests == ["two", "one"]
    assert [a["text"] for a in answers(prompts)] == ["tre", "due", "uno"]
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "prompts": 3,
        "answered": 2,
        "failed": 0,
        "answered_before": 1,
        "stream": None,
    }
    assert "1 of 3 prompts are answered already" in err
    engine = FakeEngine().install(monkeypatch)
    assert batch(prompts) == 0
    assert engine.requests == []


def test_a_prompt_that_cannot_be_answered_does_not_keep_the_others_from_it(
    prompts, monkeypatch, capsys: Capture
):
    write(prompts, {"prompt": "one"}, {"prompt": "too long"}, {"prompt": "three"})
    FakeEngine(["tre"], ["uno"]).install(monkeypatch)
    assert batch(prompts) == 1
    found = {answer["index"]: answer.get("text") for answer in answers(prompts)}
    assert found == {0: "uno", 1: None, 2: "tre"}
    assert answers(prompts)[0]["error"] == "it is too long"
    assert "1 prompts could not be answered" in capsys.readouterr().err


def test_answers_of_another_model_or_other_settings_are_not_added_to(
    prompts, monkeypatch, capsys: Capture
):
    FakeEngine(["uno"], ["due"], ["tre"]).install(monkeypatch)
    batch(prompts)
    kept = answers(prompts)
    for options, fingerprint in ((["--temperature", "0.1"], b"1"), ([], b"2")):
        engine = FakeEngine().install(monkeypatch)
        monkeypatch.setattr(engine, "fingerprint", lambda print=fingerprint: print)
        assert batch(prompts, *options) == 1
        err = capsys.readouterr().err
        assert "answers.jsonl:1: was answered by another model, or with other settings" in err
        assert answers(prompts) == kept


def test_a_context_that_follows_from_the_memory_is_a_setting(prompts, monkeypatch, capsys: Capture):
    """What does not fit a shorter one would stay unanswered, or be cut off."""
    FakeEngine(["tre"], [KeyboardInterrupt()], context=1000).install(monkeypatch)
    batch(prompts)
    FakeEngine(context=500).install(monkeypatch)
    assert batch(prompts, "--ram", "1GiB") == 1
    assert "follows from --ram unless --context says it" in capsys.readouterr().err
    engine = FakeEngine(["due"], ["uno"], context=1000).install(monkeypatch)
    assert batch(prompts, "--ram", "1GiB", "--context", "1000") == 0
    assert engine.requests == ["two", "one"]


def test_a_real_model_answers_as_generate_does(tmp_path, capsys: Capture):
    from airllm.layer_engine import LayerWiseInferenceEngine

    model = write_tiny_model(tmp_path).path
    prompts, out = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    write(prompts, {"prompt": "hello"}, {"messages": chat("hello")}, {"prompt": "x " * 200})
    with prompts.open("a") as file:  # settings of its own, and some that make no sense
        file.write('{"prompt": "hello", "temperature": 0}\n{"prompt": "hello", "top_p": 7}\n')
    command = ["batch", "-m", str(model), "--in", str(prompts), "--out", str(out)]
    how = ["--backend", "numpy", "--seed", "1", "-n", "6"]
    assert main([*command, *how]) == 1
    found = sorted(read(out), key=lambda answer: answer["index"])
    first, second, third, fourth, fifth = found
    with LayerWiseInferenceEngine(model, backend="numpy") as engine:
        assert first["text"] == engine.generate("hello", max_new_tokens=6, seed=1).text
        assert second["text"] == engine.generate(chat("hello"), max_new_tokens=6, seed=1).text
        assert fourth["text"] == engine.generate("hello", max_new_tokens=6, temperature=0).text
    assert "the context has room for 96" in third["error"]
    assert "top_p is 7" in fifth["error"]


KILLED = """
import os, sys
from airllm.tools.batch_answers import Answers
from airllm.cli import main
append = Answers.append
def append_and_die(self, job, answer):
    append(self, job, answer)
    if job.index == 3:
        os.kill(os.getpid(), 9)
Answers.append = append_and_die
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_batch_of_a_streamed_model_loses_and_repeats_nothing(tmp_path, capsys: Capture):
    sizes = Sizes(hidden=512, ffn=1024, n_layers=8, n_heads=8, head_dim=64, rope_dims=64)
    model = write_tiny_model(tmp_path, "q4_0", sizes=sizes).path
    with pytest.raises(BudgetError) as refused:
        plan_model(model, ram_budget=1)
    prompts = tmp_path / "p.jsonl"
    write(prompts, *({"prompt": "hello " * n, "seed": n // 2} for n in range(1, 7)))
    command = ["batch", "-m", str(model), "--in", str(prompts), "--batch", "2", "-n", "5"]
    command += ["--ram", str(refused.value.minimum), "--json", "--out"]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert main([*command, str(whole)]) == 0
    assert json.loads(capsys.readouterr().out)["stream"]["bytes_taken"] > 0
    run = [sys.executable, "-c", KILLED, *command, killed]
    done = subprocess.run(run, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    before = killed.read_bytes()
    assert 0 < before.count(b"\n") < 6
    assert main([*command, str(killed)]) == 0
    assert killed.read_bytes().startswith(before)
    texts = [sorted((a["index"], a["text"]) for a in read(path)) for path in (whole, killed)]
    assert texts[0] == texts[1]
    assert len(read(killed)) == 6


# Prompts.


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "no line of JSON"),
        ("[1]", "expected an object, found a list"),
        ("{}", 'expected either "prompt" or "messages"'),
        ('{"prompt": "x", "messages": []}', 'expected either "prompt" or "messages"'),
        ('{"prompt": 7}', "prompt is no string"),
        ('{"prompt": "x", "tools": []}', 'tools is for "messages"'),
        ('{"messages": [{"role": "u", "content": ""}], "tools": 1}', "tools is 1; expected a list"),
        (
            '{"messages": [{"role": "u", "content": ""}], "chat_template_kwargs": [1]}',
            "chat_template_kwargs is [1]; expected an object",
        ),
        (
            '{"messages": [{"role": "u", "content": ""}], "chat_template_kwargs": {"a": [NaN]}}',
            "chat_template_kwargs has NaN",
        ),
        ('{"messages": [{"role": "u", "content": [1e999]}]}', "messages has '1e999'"),
        ('{"messages": [{"role": 1, "content": ""}]}', "messages is no list of objects"),
        ('{"prompt": "\\ud800"}', "prompt has half of a character, '\\ud800'"),
        ('{"messages": [{"role": "\\udfff", "content": ""}]}', "messages has half of a character"),
        ('{"prompt": "x", "stop": ["\\ud800"]}', "stop has half of a character"),
        ('{"prompt": "x", "\\ud800": 1}', "has '\\ud800'; known are prompt"),
        ('{"prompt": "x", "prompt": "y"}', "'prompt' is there twice"),
        ('{"prompt": "x", "seed": 1, "seed": 1}', "'seed' is there twice"),
        ('{"prompt": "x", "temperature": NaN}', "temperature is NaN; expected int or float"),
        ('{"prompt": "x", "min_p": -Infinity}', "min_p is -Infinity; expected int or float"),
        ('{"prompt": "x", "top_p": 1e400}', "top_p is '1e400'; expected int or float"),
        ('{"prompt": "x", "top_k": 1.0}', "top_k is 1.0; expected int"),
        ('{"prompt": "x", "seed": ' + "9" * 5000 + "}", "seed is an integer of 5000 digits"),
        ('{"prompt": "x", "id": ' + "9" * 5000 + "}", "id is an integer of 5000 digits; expected"),
        ('{"prompt": "x", "id": NaN}', "id is NaN; expected a string or an integer"),
        ('{"prompt": "x", "id": ' + "[" * 10_000 + "]" * 10_000 + "}", "no line of JSON"),
        ('{"prompt": {"a": ["b"]}}', "prompt is no string"),
        ("\0", "no line of JSON"),
        ('{"messages": []}', "messages is no list"),
        ('{"messages": [{"role": "user"}]}', "messages is no list"),
        ('{"prompt": "x", "temprature": 0}', "has 'temprature'; known are prompt, messages, id, "),
        ('{"prompt": "x", "seed": "1"}', "seed is '1'; expected int"),
        ('{"prompt": "x", "seed": true}', "seed is True; expected int"),
        ('{"prompt": "x", "stop": [1]}', "stop is [1]; expected str"),
        ('{"prompt": "x", "dry_breakers": [1]}', "dry_breakers is [1]; expected str"),
        ('{"prompt": "x", "logit_bias": [1]}', "logit_bias is [1]; expected dict"),
        ('{"prompt": "x", "logit_bias": {"x": 1}}', "logit_bias has 'x'; expected the id of a"),
        ('{"prompt": "x", "logit_bias": {"1": "y"}}', "logit_bias of token 1 is 'y'; expected a"),
        ('{"prompt": "x", "logit_bias": {"1": NaN}}', "logit_bias of token 1 is NaN"),
        ('{"prompt": "x", "id": [1]}', "id is [1]; expected a string or an integer"),
        ('{"prompt": "x", "id": "a"}', "the id 'a' is that of line 1, too"),
        ("[" * 100_000, "no line of JSON"),
    ],
)
def test_a_bad_line_is_refused_before_anything_is_answered(prompts, monkeypatch, line, fault):
    prompts.write_text('{"prompt": "fine", "id": "a"}\n\n' + line + "\n")
    with pytest.raises(BatchError) as error:
        read_jobs(prompts)
    assert str(error.value).startswith(f"{prompts}:3: ")
    assert fault in str(error.value)


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(prompts):
    prompts.write_bytes('\ufeff{"prompt": "a"}\r\n\ufeff\r\n\ufeff{"prompt": "é"}\r\n'.encode())
    assert [(job.line, job.prompt) for job in read_jobs(prompts)] == [(1, "a"), (3, "é")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_is_refused_by_its_line(prompts, encoding):
    prompts.write_bytes('{"prompt": "é"}\n'.encode(encoding))
    with pytest.raises(BatchError, match=rf"^{prompts}:1: no line of JSON in UTF-8"):
        read_jobs(prompts)


def test_a_line_beyond_all_prompts_is_refused_before_it_is_in_memory(prompts):
    with prompts.open("wb") as file:
        file.write(b'{"prompt": "a"}\n')
        file.truncate(10 * 2**30)  # a line of 10 GiB, of which the disk has none
    with pytest.raises(BatchError, match=rf"^{prompts}:2: longer than 67,108,864 bytes"):
        read_jobs(prompts)


def test_many_names_are_no_endless_search(prompts):
    names = ", ".join(f'"{n}": 0' for n in range(100_000))
    prompts.write_text(f'{{{names}, "99999": 0}}\n')
    started = time.process_time()
    with pytest.raises(BatchError, match="'99999' is there twice"):
        read_jobs(prompts)
    assert time.process_time() - started < 10  # comparing each with each: minutes


class CheckingEngine(FakeEngine):
    """It refuses the settings that the engine refuses, and no others."""

    def stream_batch(self, prompts, *, batch, markup, on_token=None, **settings):
        stop, how = settings.pop("stop"), settings
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        Limits(how.pop("max_new_tokens"), stop, how.pop("on_full"))
        Sampling(**how)
        self._answers += [["ok"]] * len(prompts)
        return super().stream_batch(prompts, batch=batch, markup=markup, on_token=on_token)


numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [10**400, -(10**400), 10**999, 2**31, 2**63, 1e308, 5e-324, True, -1, 0, 1, 0.5]
    ),
)
strings = st.text(max_size=4) | st.sampled_from(["\ud800", "\0", "", "\u2028", "x" * 1000])
anything = st.recursive(
    st.none() | numbers | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=2),
    max_leaves=4,
)
said = st.lists(st.fixed_dictionaries({"role": strings, "content": strings | anything}), max_size=2)
fields = dict.fromkeys(SETTINGS, anything) | {"id": anything}
lines = st.one_of(
    st.fixed_dictionaries({"prompt": strings}, optional=dict.fromkeys(SETTINGS, numbers)),
    st.fixed_dictionaries({"messages": said}, optional=dict.fromkeys(SETTINGS, numbers)),
    st.fixed_dictionaries({"prompt": strings}, optional=fields),
    anything,
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(lines | st.sampled_from(["", "  "]), min_size=1, max_size=4), st.booleans())
def test_whatever_lines_say_each_is_answered_once_or_the_file_is_refused_by_its_line(
    prompts, monkeypatch, capsys: Capture, file, ascii
):
    out = prompts.with_name("answers.jsonl")
    out.unlink(missing_ok=True)
    rows = [line if line in ("", "  ") else json.dumps(line, ensure_ascii=ascii) for line in file]
    prompts.write_bytes("\n".join(rows).encode(errors="surrogatepass"))
    CheckingEngine().install(monkeypatch)
    capsys.readouterr()
    status = batch(prompts)
    err = capsys.readouterr().err
    if status == 0 or out.exists():
        found = sorted(answers(prompts), key=lambda answer: answer["index"])
        asked = [line for line in file if line not in ("", "  ")]
        assert [answer["index"] for answer in found] == list(range(len(asked)))
        assert [answer.get("id") for answer in found] == [line.get("id") for line in asked]
        assert all(("text" in answer) != ("error" in answer) for answer in found)
        assert status == int(any("error" in answer for answer in found))
    else:
        assert re.match(rf"airllm: error: {re.escape(str(prompts))}:\d: ", err)
        assert len(err) < 500 + len(str(prompts))


def test_lines_without_text_are_no_prompts(prompts):
    prompts.write_text('\n{"prompt": "a"}\n  \n{"prompt": "b"}')
    assert [(job.index, job.line) for job in read_jobs(prompts)] == [(0, 2), (1, 4)]


# Answers.


def answered(prompts: Path, *texts: str) -> Path:
    out = prompts.with_name("answers.jsonl")
    with Answers.open(out, read_jobs(prompts), RUN) as file:
        for job, text in zip(list(file.left), texts, strict=False):
            file.append(job, {"text": text})
    return out


def left(prompts: Path) -> list[int]:
    with Answers.open(prompts.with_name("answers.jsonl"), read_jobs(prompts), RUN) as file:
        return [job.index for job in file.left]


def test_a_last_line_torn_anywhere_is_made_again(prompts):
    out = answered(prompts, "uno", "due")
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        out.write_bytes(whole[:end])
        assert left(prompts) == [1, 2]
        assert out.read_bytes() == whole[:first]


def test_a_first_answer_that_is_torn_is_made_again(prompts):
    out = answered(prompts, "uno")
    out.write_bytes(out.read_bytes()[:-5])
    assert left(prompts) == [0, 1, 2]
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    "tail",
    [
        b"my notes",
        b'{"index": 1, "day": "Monday"',
        b'{"index": 9',
        b'{"index": 0',  # which has been answered
        b'{"index": 1, "id": "c"',
        b'{"index": 2, "prompt_sha256": "' + b"0" * 32 + b'", "run_sha256": "run", "text"',
    ],
)
def test_a_last_line_that_is_not_surely_ours_is_not_taken_away(prompts, tail):
    out = answered(prompts, "uno")
    out.write_bytes(before := out.read_bytes() + tail)
    with pytest.raises(BatchError, match=r"answers\.jsonl:2: does not end in a newline"):
        left(prompts)
    assert out.read_bytes() == before


def test_an_answer_of_another_run_that_is_torn_is_not_taken_away(prompts):
    out = answered(prompts, "uno", "due")
    out.write_bytes(before := out.read_bytes()[:-3])
    jobs = read_jobs(prompts)
    with pytest.raises(BatchError, match="was answered by another model"):
        Answers.open(out, jobs, "another run")
    out.write_bytes(torn := before[before.index(b"\n") + 1 :])
    with pytest.raises(BatchError, match=r":1: does not end in a newline"):
        Answers.open(out, jobs, "another run")
    assert out.read_bytes() == torn


def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_changes(prompts):
    out = answered(prompts, "uno", "due")
    damaged = out.read_bytes().replace(b'"index": 0', b'"index" 0')
    out.write_bytes(damaged)
    with pytest.raises(BatchError, match=r"answers\.jsonl:1: no line of JSON"):
        left(prompts)
    assert out.read_bytes() == damaged


@pytest.mark.parametrize(
    "text",
    [
        *("my diary", "my diary\n", '{"prompt": "x"}\n', "{}", "{", " ", '{"index": 0}\n'),
        *('{"index": ', '{"index": 0, "day": "Monday"', '{"index": 0, "prompt_sha256": "0'),
    ],
)
def test_a_file_of_something_else_is_left_alone(prompts, text):
    out = prompts.with_name("answers.jsonl")
    out.write_text(text)
    with pytest.raises(BatchError, match=r"answers\.jsonl:1: "):
        left(prompts)
    assert out.read_text() == text


def test_a_prompt_that_changed_is_refused_by_both_lines(prompts):
    answered(prompts, "uno", "due")
    write(prompts, {"prompt": "one"}, {"prompt": "TWO", "id": "b"}, {"prompt": "three"})
    with pytest.raises(BatchError, match=r"answers\.jsonl:2: .* number 1, in line 2 of the input"):
        left(prompts)


def test_prompts_may_be_added_at_the_end(prompts):
    answered(prompts, "uno", "due", "tre")
    with prompts.open("a") as file:
        file.write('{"prompt": "four"}\n')
    assert left(prompts) == [3]


def test_fewer_prompts_than_answers_are_refused(prompts):
    answered(prompts, "uno", "due")
    write(prompts, {"prompt": "one"})
    with pytest.raises(BatchError, match=r":2: is no answer to one of the 1 prompts"):
        left(prompts)


def test_two_answers_to_one_prompt_are_refused(prompts):
    out = answered(prompts, "uno")
    out.write_bytes(out.read_bytes() * 2)
    with pytest.raises(BatchError, match=r":2: a second answer to prompt 0"):
        left(prompts)


def test_two_processes_do_not_write_one_file(prompts):
    out, jobs = prompts.with_name("answers.jsonl"), read_jobs(prompts)
    with Answers.open(out, jobs, RUN), pytest.raises(BatchError, match="another process"):
        Answers.open(out, jobs, RUN)
    assert left(prompts) == [0, 1, 2]


APPEND = """
import os, sys
from pathlib import Path
from airllm.tools.batch_answers import Answers
from airllm.tools.batch_jobs import read_jobs
prompts, out = map(Path, sys.argv[1:3])
try:
    with Answers.open(out, read_jobs(prompts), "run") as answers:
        for job in answers.left:
            answers.append(job, {"text": 1000 * "x"})
            if "kill" in sys.argv:
                os.kill(os.getpid(), 9)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


def test_an_answer_is_in_the_file_before_the_next_prompt(prompts):
    out = prompts.with_name("answers.jsonl")
    command = [sys.executable, "-c", APPEND, prompts, out, "kill"]
    for n_done in (1, 2, 3):
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert [answer["index"] for answer in read(out)] == list(range(n_done))


def test_a_full_disk_leaves_whole_lines_and_a_later_run_goes_on(prompts):
    out = prompts.with_name("answers.jsonl")
    command = [sys.executable, "-c", APPEND, prompts, out]
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"{out}: File too large\n"
    assert [answer["index"] for answer in read(out)] == [0]
    assert subprocess.run(command).returncode == 0
    assert [answer["index"] for answer in read(out)] == [0, 1, 2]


def test_an_answer_is_on_the_disk_before_the_next_one_and_the_files_name_before_the_first(
    prompts, monkeypatch
):
    out, jobs = prompts.with_name("answers.jsonl"), read_jobs(prompts)
    synced: list[tuple[bool, int]] = []  # of each fsync: whether it is a folder's; answers then

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, out.read_bytes().count(b"\n")))

    monkeypatch.setattr("os.fsync", fsync)
    with Answers.open(out, jobs, RUN) as file:
        assert synced == [(True, 0)]
        for job in jobs[:2]:
            file.append(job, {"text": "x"})
            assert synced[-1] == (False, job.index + 1)
    assert len(synced) == 3
    with Answers.open(out, jobs, RUN):
        assert len(synced) == 3  # the name has lasted


def test_out_that_is_no_file_is_an_error(prompts):
    os.mkfifo(prompts.with_name("pipe"))
    for out in (prompts.parent, prompts.with_name("pipe")):
        with pytest.raises(BatchError, match=f"{out}: is no regular file"):
            Answers.open(out, read_jobs(prompts), RUN)
    assert not os.path.lexists(prompts.with_name("answers.jsonl"))


def test_out_in_a_folder_that_is_not_there_is_refused_before_the_model_is_loaded(
    prompts, monkeypatch, capsys: Capture
):
    monkeypatch.setattr("airllm.cli.model.open_engine", None)
    out = prompts.parent / "nowhere" / "answers.jsonl"
    assert main(["batch", "-m", "m.gguf", "--in", str(prompts), "--out", str(out)]) == 1
    assert f"{out.parent}: No such file or directory" in capsys.readouterr().err

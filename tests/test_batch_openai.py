"""airllm batch with the lines of OpenAI's batch files: what is taken, what is refused, and results
that OpenAI's own readers take."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

from airllm.cli import main
from airllm.tools.batch_answers import Answers
from airllm.tools.batch_jobs import read_jobs
from airllm.tools.json_lines import BatchError

Capture = pytest.CaptureFixture[str]
RUN = "c0" * 16


def request(id: str, text: str = "hello", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-x", "messages": [{"role": "user", "content": text}], **body},
    }


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def batch(prompts: Path, *options: str) -> int:
    out = prompts.with_name("out.jsonl")
    return main(["batch", "-m", "m.gguf", "--in", str(prompts), "--out", str(out), *options])


def results(prompts: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in prompts.with_name("out.jsonl").read_text().splitlines()]


def test_a_request_gets_a_result_in_openais_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(["Hi", " there"], finish_reason="context").install(monkeypatch)
    prompts = write(tmp_path / "in.jsonl", request("r-1", max_tokens=5, temperature=0.5, stop="x"))
    assert batch(prompts) == 0
    (found,) = results(prompts)
    assert found.keys() == {"id", "custom_id", "response", "error"}
    assert found["id"].startswith("batch_req_0-")
    assert (found["custom_id"], found["error"]) == ("r-1", None)
    assert found["response"]["status_code"] == 200
    body = found["response"]["body"]
    assert body.pop("created") > 1_600_000_000
    assert body == {
        "object": "chat.completion",
        "model": "gpt-x",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi there"},
                "finish_reason": "length",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    sampling = {name: engine.options[name] for name in ("max_new_tokens", "temperature", "stop")}
    assert sampling == {"max_new_tokens": 5, "temperature": 0.5, "stop": "x"}


@pytest.mark.parametrize(
    ("options", "thought"), [((), {"reasoning_content": "Hm."}), (("--think", "hide"), {})]
)
def test_a_thought_is_the_messages_reasoning_content(
    options: tuple[str, ...],
    thought: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeEngine(["<think>Hm.</think>Hi"], template="<think> </think>").install(monkeypatch)
    prompts = write(tmp_path / "in.jsonl", request("r-1"))
    assert batch(prompts, *options) == 0
    (choice,) = results(prompts)[0]["response"]["body"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hi", **thought}


@pytest.mark.parametrize(("text", "content"), [("", None), ("See: ", "See:")])
def test_a_call_of_a_tool_is_apart_from_the_text(
    text: str,
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
    FakeEngine([text + call], template="<tool_call> </tool_call>").install(monkeypatch)
    tools = [{"type": "function", "function": {"name": "look"}}]
    prompts = write(tmp_path / "in.jsonl", request("r-1", tools=tools))
    assert batch(prompts) == 0
    (choice,) = results(prompts)[0]["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == content
    (found,) = message["tool_calls"]
    assert found["function"]["name"] == "look"
    assert json.loads(found["function"]["arguments"]) == {"at": 1}


def test_what_looks_like_a_call_is_text_without_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    FakeEngine([call], template="<tool_call> </tool_call>").install(monkeypatch)
    prompts = write(tmp_path / "in.jsonl", request("r-1"))
    assert batch(prompts) == 0
    (choice,) = results(prompts)[0]["response"]["body"]["choices"]
    assert choice["message"] == {"role": "assistant", "content": call}
    assert choice["finish_reason"] == "stop"


def test_a_completion_continues_its_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(["world"]).install(monkeypatch)
    line = request("t") | {"url": "/v1/completions", "body": {"prompt": "hello", "max_tokens": 3}}
    prompts = write(tmp_path / "in.jsonl", line)
    assert batch(prompts) == 0
    assert engine.requests == ["hello"]
    body = results(prompts)[0]["response"]["body"]
    assert body["object"] == "text_completion"
    assert body["model"] == "m.gguf"
    assert body["choices"][0]["text"] == "world"


def test_a_request_that_cannot_be_answered_gets_an_error_in_openais_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeEngine(["Hi"]).install(monkeypatch)
    prompts = write(tmp_path / "in.jsonl", request("a", "too long"), request("b"))
    assert batch(prompts) == 1
    bad, good = sorted(results(prompts), key=lambda found: found["custom_id"])
    assert bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["message"] == "it is too long"
    assert good["response"]["status_code"] == 200


def test_an_interrupted_run_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    prompts = write(tmp_path / "in.jsonl", *(request(name, name) for name in "abc"))
    FakeEngine(["3"], [KeyboardInterrupt()]).install(monkeypatch)
    assert batch(prompts) == 130
    engine = FakeEngine(["2"], ["1"]).install(monkeypatch)
    assert batch(prompts) == 0
    assert len(engine.requests) == 2
    assert [found["custom_id"] for found in results(prompts)] == ["c", "b", "a"]
    changed = write(tmp_path / "in.jsonl", *(request(name, name + "!") for name in "abc"))
    assert batch(changed) == 1
    assert "answers another prompt than number 2" in capsys.readouterr().err


def test_a_result_torn_anywhere_is_made_again(tmp_path: Path) -> None:
    prompts = write(tmp_path / "in.jsonl", *(request(name, name) for name in "abc"))
    out, jobs = tmp_path / "out.jsonl", read_jobs(prompts)
    with Answers.open(out, jobs, RUN) as file:
        for job in file.left[:2]:
            file.append(job, {"response": {}, "error": None})
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        out.write_bytes(whole[:end])
        with Answers.open(out, jobs, RUN) as file:
            assert [job.index for job in file.left] == [1, 2]
        assert out.read_bytes() == whole[:first]
    out.write_bytes(whole[:first] + b'{"id": "batch_req_7-')
    with pytest.raises(BatchError, match="does not end in a newline"):
        Answers.open(out, jobs, RUN)


def test_penalties_and_biases_are_settings(tmp_path: Path) -> None:
    line = request("a", frequency_penalty=0.5, presence_penalty=1, logit_bias={"7": -100})
    (job,) = read_jobs(write(tmp_path / "in.jsonl", line))
    assert job.settings == {
        "frequency_penalty": 0.5, "presence_penalty": 1, "logit_bias": {7: -100},
    }  # fmt: skip


def test_fields_that_change_nothing_are_taken(tmp_path: Path) -> None:
    line = request(
        "a", max_completion_tokens=9, n=1, stream=False, user="u", seed=None, suffix="",
        response_format={"type": "text"}, tools=[{"type": "function"}],
    )  # fmt: skip
    (job,) = read_jobs(write(tmp_path / "in.jsonl", line))
    assert job.settings == {"max_new_tokens": 9}
    assert job.variables == {"tools": [{"type": "function"}]}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (request("a", n=2), "n is 2, which is not supported"),
        (request("a", stream=True), "stream is True, which is not supported"),
        (request("a", response_format={"type": "json_object"}), "response_format is"),
        (request("a", logprobs=True), "logprobs is True"),
        (request("a", tool_choice="required"), "tool_choice is 'required'"),
        (request("a", max_tokens=1, max_completion_tokens=2), "two different limits of tokens"),
        (request("a", unheard_of=1), "has 'unheard_of'; known are"),
        (request("a", seed="x"), "seed is 'x'; expected int"),
        (request("a", prompt="p"), "has 'messages', and no 'prompt'"),
        (request("a") | {"url": "/v1/embeddings"}, "url is '/v1/embeddings'"),
        (request("a") | {"method": "GET"}, "method is 'GET'"),
        (request("a") | {"custom_id": 7}, "custom_id is 7"),
        (request("a") | {"body": [1]}, "body is [1]"),
        (request("a") | {"prompt": "p"}, "has 'prompt'; known are custom_id"),
        ({"custom_id": "a"}, "method is None"),
        (request("\ud800"), "half of a character"),
        ({"prompt": "p", "max_tokens": 1, "max_new_tokens": 1}, "are the same setting"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_line(
    line: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    prompts = write(tmp_path / "in.jsonl", request("fine"), line)
    with pytest.raises(BatchError) as error:
        read_jobs(prompts)
    assert str(error.value).startswith(f"{prompts}:2: ")
    assert fault in str(error.value)


def test_two_requests_with_one_custom_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="the id 'a' is that of line 1, too"):
        read_jobs(write(tmp_path / "in.jsonl", request("a"), request("a")))


def test_max_tokens_is_a_setting_of_our_own_lines_too(tmp_path: Path) -> None:
    (job,) = read_jobs(write(tmp_path / "in.jsonl", {"prompt": "x", "max_tokens": 3}))
    assert job.settings == {"max_new_tokens": 3}

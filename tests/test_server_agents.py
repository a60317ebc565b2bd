"""Coding agents and chat pages get what they ask for: requests as the programs send them.

tests/agent_requests.py has the requests, and tests/test_agent_programs.py runs the programs.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("starlette")

from agent_requests import (
    CLAUDE,
    CLAUDE_COUNT,
    CLAUDE_HEADERS,
    CLAUDE_LATER,
    CLAUDE_TITLE,
    CODEX,
    CODEX_PROGRAMS,
    CODEX_WEBSOCKET,
    CONTINUE,
    CONTINUE_CHAT,
    CONTINUE_EDIT,
    CONTINUE_GAP,
    CONTINUE_OLLAMA_GAP,
    OPEN_WEBUI,
    OPEN_WEBUI_OLLAMA,
    OPEN_WEBUI_OLLAMA_OPTIONS,
    QUESTION,
    claude_system,
)
from scripted_server import ByteTokenizer, Client, Response


def call(name: str, **arguments: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments})
    return f"I look.\n<tool_call>\n{written}\n</tool_call>"


@pytest.mark.parametrize(
    ("path", "body", "answer", "mark"),
    [
        ("/v1/responses", CODEX, call("exec_command", cmd="ls -a"), '"type":"response.completed"'),
        ("/v1/responses", CODEX_PROGRAMS, call("wait", cell_id="1"), '"type":"response.completed"'),
        ("/v1/messages", CLAUDE, call("Bash", command="ls -a"), '"stop_reason":"tool_use"'),
        ("/v1/messages", CLAUDE_LATER, call("Notebook", path="a"), '"stop_reason":"tool_use"'),
        ("/v1/chat/completions", OPEN_WEBUI, call("weather", city="Rome"), ':"tool_calls"'),
        ("/api/chat", OPEN_WEBUI_OLLAMA, call("weather", city="Rome"), '"tool_calls"'),
        ("/api/chat", OPEN_WEBUI_OLLAMA_OPTIONS, "I look.", '"done_reason":"stop"'),
        ("/v1/chat/completions", CONTINUE, call("ls", dirPath=".."), ':"tool_calls"'),
    ],
    ids=[
        *("Codex", "Codex with programs", "Claude Code", "Claude Code later"),
        *("Open WebUI", "Open WebUI and Ollama", "Open WebUI and Ollama's options", "Continue"),
    ],
)
def test_an_agent_gets_its_call(path: str, body: dict[str, Any], answer: str, mark: str) -> None:
    thinks = "reasoning" in body or "thinking" in body  # the template then begins a thought
    with Client("Hm.\n</think>\n" + answer if thinks else answer) as client:
        response = client.post(path, body, headers=CLAUDE_HEADERS if path == "/v1/messages" else ())
        assert response.status == 200, response.body
        assert mark in response.body.decode()
        assert client.engine.prompt().count(QUESTION) == 1


# ---- Continue ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [CONTINUE_CHAT, CONTINUE_EDIT], ids=["chat", "edit"])
def test_continue_gets_its_answer(body: dict[str, Any]) -> None:
    with Client("x = 2\n") as client:
        response = client.post("/v1/chat/completions", body)
        chunks = [chunk for chunk in response.data if chunk["choices"]]
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert (response.status, said) == (200, "x = 2\n")
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert client.engine.prompt().count(QUESTION) == 1


class CodersTokenizer(ByteTokenizer):
    def marks(self, texts: Iterable[str]) -> dict[str, int]:
        return {"<|fim_prefix|>": 1, "<|fim_suffix|>": 2, "<|fim_middle|>": 3}


_WITH_SUFFIX = {"prompt": "# app.py\ndef f():\n    return ", "suffix": "\n"}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/completions", CONTINUE_GAP, lambda chunk: chunk["choices"][0]["text"]),
        (
            "/v1/completions",
            {**CONTINUE_GAP, **_WITH_SUFFIX},
            lambda chunk: chunk["choices"][0]["text"],
        ),
        ("/api/generate", CONTINUE_OLLAMA_GAP, lambda chunk: chunk["response"]),
        (
            "/api/generate",
            {**CONTINUE_OLLAMA_GAP, **_WITH_SUFFIX, "raw": False},
            lambda chunk: chunk["response"],
        ),
    ],
    ids=["OpenAI", "OpenAI, suffix", "Ollama", "Ollama, suffix"],
)
def test_continue_completes_code_in_a_gap(path: str, body: dict[str, Any], text: Any) -> None:
    with Client("1") as client:
        prompts = client.models.engine.model.prompts
        prompts.__dict__["tokenizer"] = CodersTokenizer()
        response = client.post(path, body)
        assert response.status == 200, response.body
        lines = response.body.decode().splitlines()
        chunks = response.data if path[:3] == "/v1" else [json.loads(line) for line in lines]
        assert "".join(map(text, chunks)) == "1"
        (request,) = client.engine.requests
        prefix = _WITH_SUFFIX["prompt"].encode()
        assert list(request.prompt) == [1, *prefix, 2, *b"\n", 3]
        assert "/src/" in request.limits.stop_strings


# ---- Codex ---------------------------------------------------------------------------------------


def codex(body: dict[str, Any], answer: str) -> tuple[dict[str, Any], Response, str]:
    """The last item of the answer, the whole stream, and the prompt."""
    with Client(f"Hm.\n</think>\n{answer}") as client:
        response = client.post("/v1/responses", body)
        assert response.status == 200, response.body
        item: dict[str, Any] = response.data[-1]["response"]["output"][-1]
        return item, response, client.engine.prompt()


def test_tools_of_a_namespace_are_called_by_both_names() -> None:
    item, _, prompt = codex(CODEX, call("helpers_v1__start", task="look"))
    assert '"name": "helpers_v1__start"' in prompt
    assert "web_search" not in prompt  # OpenAI itself would run it
    assert (item["type"], item["namespace"], item["name"]) == (
        "function_call",
        "helpers_v1",
        "start",
    )
    assert json.loads(item["arguments"]) == {"task": "look"}
    # As Codex sends it back.
    more = [*CODEX["input"], {**item, "id": "fc_1"}]
    _, _, later = codex({**CODEX, "input": more}, "Done.")
    assert later.count("helpers_v1__start") == prompt.count("helpers_v1__start") + 1


def test_a_custom_tool_gets_a_text() -> None:
    item, response, prompt = codex(CODEX_PROGRAMS, call("exec", input='text("two")\n'))
    assert "start: SOURCE" in prompt  # its grammar is told
    assert (item["type"], item["input"]) == ("custom_tool_call", 'text("two")\n')
    assert item["namespace"] == "functions"
    assert item["status"] == "completed"
    told = {data["type"]: data for data in response.data}
    added = told["response.output_item.added"]["item"]
    assert (added["id"], added["input"]) == (item["id"], "")
    assert told["response.custom_tool_call_input.delta"]["delta"] == 'text("two")\n'
    assert told["response.custom_tool_call_input.done"]["input"] == 'text("two")\n'
    assert "response.function_call_arguments.delta" not in told


@pytest.mark.parametrize("arguments", [{"code": "1"}, {"input": 5}, {}])
def test_a_custom_tool_that_is_called_wrongly_gets_what_was_written(arguments: Any) -> None:
    item, _, _ = codex(CODEX_PROGRAMS, call("exec", **arguments))
    assert json.loads(item["input"]) == arguments


def test_calls_of_custom_tools_and_their_results_reach_the_model() -> None:
    _, _, prompt = codex(CODEX_PROGRAMS, "Done.")
    assert '"arguments": {"input": "text(\\"one\\")"}' in prompt
    assert "<tool>Done:one(exec call_4)" in prompt


def test_a_call_is_the_same_whole_and_streamed() -> None:
    answer = call("exec", input="1")
    item, _, _ = codex(CODEX_PROGRAMS, answer)
    with Client(f"Hm.\n</think>\n{answer}") as client:
        whole = client.post("/v1/responses", {**CODEX_PROGRAMS, "stream": False}).json["output"][-1]
    for one in (item, whole):
        del one["id"], one["call_id"]
    assert whole == item


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_each_of_parallel_calls_has_its_arguments(stream: bool) -> None:
    answer = call("exec_command", cmd="one") + call("exec_command", cmd="two")[len("I look.") :]
    with Client(f"Hm.\n</think>\n{answer}") as client:
        response = client.post("/v1/responses", {**CODEX, "stream": stream})
    done = (
        [data["item"] for data in response.data if data["type"] == "response.output_item.done"]
        if stream
        else response.json["output"]
    )
    calls = [item for item in done if item["type"] == "function_call"]
    assert [json.loads(item["arguments"]) for item in calls] == [{"cmd": "one"}, {"cmd": "two"}]


def test_codex_goes_on_with_http_at_once() -> None:
    with Client() as client:
        refused = client.get("/v1/responses", headers=CODEX_WEBSOCKET)
        assert refused.status == 426  # after any other error it would try six times more
        assert "no WebSockets" in refused.json["error"]["message"]


def test_codex_accepts_this_ollama() -> None:
    with Client() as client:
        version = client.get("/api/version").json["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)


# ---- Claude Code ---------------------------------------------------------------------------------


def claude(body: dict[str, Any], answer: str = "Hm.\n</think>\nDone.") -> str:
    """The prompt of a request."""
    with Client(answer) as client:
        response = client.post("/v1/messages", body, headers=CLAUDE_HEADERS)
        assert response.status == 200, response.body
        return client.engine.prompt()


def test_a_deferred_tool_is_told_where_it_was_loaded() -> None:
    first, later = claude(CLAUDE), claude(CLAUDE_LATER)
    assert "Placeholder" not in first
    begin = first.removesuffix("<assistant><think>")
    assert later.startswith(begin)  # all that was evaluated is used again
    rest = later[len(begin) :]
    assert '"name": "Notebook", "description": "Changes a notebook."' in rest
    assert "(ToolSearch call_1)" in rest


def test_a_loaded_tool_that_is_gone_is_no_error() -> None:
    prompt = claude({**CLAUDE_LATER, "tools": CLAUDE["tools"]})
    assert "<tool>There is no function Notebook.\n(ToolSearch call_1)" in prompt


def test_the_prompt_of_an_agent_begins_alike_in_each_request() -> None:
    other = {**CLAUDE, "system": claude_system("cc_version=2.1.332.99f; cch=fffff;")}
    assert claude(CLAUDE) == claude(other)


def test_a_title_needs_the_grammar_and_is_not_asked_for_again() -> None:
    with Client() as client:  # without llguidance
        refused = client.post("/v1/messages", CLAUDE_TITLE, headers=CLAUDE_HEADERS)
        assert refused.status == 501
        assert refused.headers["x-should-retry"] == "false"


def test_tools_are_counted() -> None:
    with Client() as client:
        with_tool = client.post("/v1/messages/count_tokens", CLAUDE_COUNT).json["input_tokens"]
        without = client.post("/v1/messages/count_tokens", {**CLAUDE_COUNT, "tools": []})
        assert with_tool > without.json["input_tokens"] + 100


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_claude_code_is_told_that_a_prompt_is_too_long_as_it_knows_it(path: str) -> None:
    body = {**CLAUDE, "messages": [{"role": "user", "content": "word " * 2000}]}
    with Client() as client:
        if path.endswith("count_tokens"):
            assert client.post(path, body).json["input_tokens"] > 10_000
            return
        refused = client.post(path, body, headers=CLAUDE_HEADERS)
        assert refused.status == 400
        message = refused.json["error"]["message"]
        assert message.startswith("prompt is too long: 1")
        assert " tokens > 4096 maximum" in message


def test_results_come_in_the_order_of_their_calls() -> None:
    calls = [("1", "ls"), ("2", "pwd"), ("3", "id")]
    uses = [
        {"type": "tool_use", "id": id, "name": "Bash", "input": {"command": command}}
        for id, command in calls
    ]
    results = [  # as they ended
        {"tool_use_id": id, "type": "tool_result", "content": f"of {id}", "is_error": False}
        for id in "312"
    ]
    messages = [
        *CLAUDE["messages"],
        {"role": "assistant", "content": uses},
        {"role": "user", "content": results},
    ]
    prompt = claude({**CLAUDE, "messages": messages})
    assert re.findall(r"<tool>of (\d)\(Bash \1\)", prompt) == ["1", "2", "3"]


_NO_LATER_SYSTEM = (
    "{% for message in messages %}{% if message.role != 'system' or loop.first %}"
    "<{{ message.role }}>{{ message.content }}{% endif %}{% endfor %}"
)


def test_a_template_that_drops_system_messages_between_the_turns_gets_them_as_the_users() -> None:
    with Client("Done.", template=_NO_LATER_SYSTEM) as client:
        assert client.post("/v1/messages", {**CLAUDE, "tools": []}).status == 200
        assert "<user># Environment\nToday is Monday." in client.engine.prompt()


# ---- all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/responses",
            {
                "input": [
                    {"type": "function_call", "call_id": "1", "name": "view", "arguments": "{}"},
                    {
                        "type": "function_call_output",
                        "call_id": "1",
                        "output": [{"type": "input_image", "image_url": "data:image/png;base64,"}],
                    },
                ]
            },
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 5,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "1",
                                "content": [{"type": "image", "source": {"type": "base64"}}],
                            }
                        ],
                    }
                ],
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {
                        "role": "tool",
                        "tool_call_id": "1",
                        "content": [{"type": "image_url", "image_url": {"url": ""}}],
                    }
                ]
            },
        ),
    ],
    ids=["Responses", "Messages", "Chat completions"],
)
def test_a_picture_that_a_tool_gives_does_not_end_the_session(
    path: str, body: dict[str, Any]
) -> None:
    with Client("I cannot see it.") as client:
        assert client.post(path, body).status == 200
        assert "[a picture, which this model cannot see]" in client.engine.prompt()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_body_is_refused_by_name(encoding: str) -> None:
    with Client() as client:
        headers = [("content-encoding", encoding)]
        refused = client.post("/v1/responses", b"\x28\xb5\x2f\xfd", headers=headers)
        assert refused.status == 415
        assert encoding in refused.json["error"]["message"]

"""Ollama's API: what a client sends, gets, and is refused."""

from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_server import Client, Response, Say

HELLO = [{"role": "user", "content": "Hello?"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = (
    "<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


def chat(client: Client, **more: Any) -> Response:
    return client.post("/api/chat", {"messages": HELLO, "stream": False, **more})


def joined(lines: list[Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {"content": "", "thinking": "", "tool_calls": []}
    for line in lines:
        whole["content"] += line["message"]["content"]
        whole["thinking"] += line["message"].get("thinking", "")
        whole["tool_calls"] += line["message"].get("tool_calls", [])
    return whole


def without_ids(calls: list[Any]) -> list[Any]:
    return [{"function": call["function"]} for call in calls]


def test_a_chat_is_answered() -> None:
    with Client("Hello.") as client:
        body = chat(client).json
        assert body["message"] == {"role": "assistant", "content": "Hello."}
        assert body["done"] is True
        assert body["done_reason"] == "stop"
        assert body["eval_count"] == 6
        assert body["prompt_eval_count"] == len(client.engine.prompt())


@pytest.mark.parametrize("cut", [1, 6, 1000])
def test_a_stream_says_what_the_whole_answer_says(cut: int) -> None:
    with Client(Say(CALL, cut=cut)) as client:
        whole = chat(client, tools=[WEATHER]).json["message"]
        response = chat(client, tools=[WEATHER], stream=None)  # streams unless told otherwise
        assert response.headers["content-type"] == "application/x-ndjson"
        assert [line["done"] for line in response.lines][-2:] == [False, True]
        streamed = joined(response.lines)
        assert streamed["content"] == whole["content"] == "I look."
        assert streamed["thinking"] == whole["thinking"] == "Hm."
        assert without_ids(streamed["tool_calls"]) == without_ids(whole["tool_calls"])
        function = {"name": "weather", "arguments": {"city": "Rome"}}
        assert whole["tool_calls"][0]["function"] == function


def test_thoughts_are_left_out_if_the_client_wants_none() -> None:
    with Client(CALL) as client:
        assert "thinking" not in chat(client, think=False).json["message"]


def test_a_text_is_answered_through_the_template_or_continued_raw() -> None:
    with Client("Hello.") as client:
        body = {"prompt": "Hi", "system": "Be brief.", "stream": False}
        assert client.post("/api/generate", body).json["response"] == "Hello."
        assert client.engine.prompt() == "<system>Be brief.\n<user>Hi\n<assistant>"
        lines = client.post("/api/generate", {"prompt": "Hi", "raw": True}).lines
        assert "".join(line["response"] for line in lines) == "Hello."
        assert client.engine.prompt() == "Hi"


def test_an_empty_request_finds_the_model_loaded() -> None:
    with Client() as client:
        assert client.post("/api/generate", {"model": "m"}).json["done_reason"] == "load"
        assert client.post("/api/chat", {"model": "m"}).json["message"]["content"] == ""
        assert not client.engine.requests


def test_options_reach_the_engine() -> None:
    with Client() as client:
        options = {
            "temperature": 0.5,
            "num_predict": 4,
            "seed": 3,
            "stop": ["x"],
            "top_k": 5,
            "num_ctx": 8192,
        }
        assert chat(client, options=options).json["done_reason"] == "length"
        request = client.engine.requests[0]
        assert request.sampling.temperature == 0.5
        assert request.sampling.top_k == 5
        assert request.sampling.seed == 3
        assert request.limits.max_new_tokens == 4
        assert request.limits.stop_strings == ("x",)


def test_calls_and_results_of_a_conversation_find_each_other_by_name() -> None:
    with Client() as client:
        call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
        messages = [
            *HELLO,
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
            {"role": "tool", "content": "Sun.", "tool_name": "weather"},
        ]
        assert chat(client, messages=messages, tools=[WEATHER]).status == 200
        assert "<thought>Hm.</thought>" in client.engine.prompt()
        assert "<tool>Sun.(weather call_0)" in client.engine.prompt()


def test_the_model_is_listed_shown_and_loaded() -> None:
    with Client() as client:
        assert client.get("/api/tags").json["models"][0]["name"] == "scripted"
        assert client.get("/api/ps").json["models"][0]["context_length"] == 4096
        shown = client.post("/api/show", {"model": "scripted"}).json
        assert shown["capabilities"] == ["completion", "tools", "thinking"]
        assert client.post("/api/show", {"model": "other"}).status == 404
        assert client.get("/api/version").json["version"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"messages": [{"role": "king"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "images": ["x"]}]}, "messages[0].images"),
        ({"options": {"temperature": -1}}, "temperature"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"options": []}, "options"),
        ({"format": "xml"}, "format"),
        ({"think": "much"}, "think"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(body: dict[str, Any], word: str) -> None:
    with Client() as client:
        response = chat(client, **body)
        assert response.status == 400
        assert word in response.json["error"]
        assert not client.engine.requests

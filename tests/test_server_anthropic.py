"""Anthropic's messages: what a client sends, gets, and is refused."""

import json
from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_server import Client, Response, Say

HELLO = [{"role": "user", "content": "Hello?"}]
WEATHER = {
    "name": "weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = (
    "<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


def ask(client: Client, **more: Any) -> Response:
    return client.post("/v1/messages", {"max_tokens": 200, "messages": HELLO, **more})


def rebuilt(events: list[tuple[str | None, Any]]) -> dict[str, Any]:
    """The message that a stream's events add up to, as Anthropic's SDK does it."""
    message: dict[str, Any] = {}
    inputs: dict[int, str] = {}
    for name, data in events:
        assert name == data["type"]
        match name:
            case "message_start":
                message = data["message"]
            case "content_block_start":
                assert data["index"] == len(message["content"])
                message["content"].append(data["content_block"])
            case "content_block_delta":
                block, delta = message["content"][data["index"]], data["delta"]
                assert data["index"] == len(message["content"]) - 1
                if delta["type"] == "input_json_delta":
                    inputs[data["index"]] = inputs.get(data["index"], "") + delta["partial_json"]
                else:
                    key = delta["type"].removesuffix("_delta")
                    block[key] += delta[key]
            case "content_block_stop":
                if data["index"] in inputs:
                    message["content"][data["index"]]["input"] = json.loads(inputs[data["index"]])
            case "message_delta":
                message |= data["delta"]
                message["usage"] = data["usage"]
    assert events[-1][0] == "message_stop"
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {**message, "id": "", "content": content}


def test_a_message_is_answered() -> None:
    with Client("Hello.") as client:
        body = ask(client, system="Be brief.").json
        assert body["type"] == "message"
        assert body["content"] == [{"type": "text", "text": "Hello."}]
        assert body["stop_reason"] == "end_turn"
        assert body["usage"]["output_tokens"] == 6
        assert client.engine.prompt() == "<system>Be brief.\n<user>Hello?\n<assistant>"


@pytest.mark.parametrize("cut", [1, 4, 1000])
@pytest.mark.parametrize("thinking", [None, {"type": "adaptive"}])
def test_a_stream_says_what_the_whole_message_says(cut: int, thinking: Any) -> None:
    answer = CALL if thinking is None else CALL.removeprefix("<think>")
    with Client(Say(answer, cut=cut)) as client:
        asked = {"tools": [WEATHER], "thinking": thinking}
        whole = without_ids(ask(client, **asked).json)
        streamed = without_ids(rebuilt(ask(client, **asked, stream=True).events))
        assert streamed == whole
        thought = [{"type": "thinking", "thinking": "Hm.", "signature": ""}] if thinking else []
        assert whole["content"] == [
            *thought,
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "name": "weather", "input": {"city": "Rome"}},
        ]
        assert whole["stop_reason"] == "tool_use"


def test_thinking_is_off_unless_it_is_asked_for() -> None:
    with Client() as client:
        ask(client)
        assert not client.engine.prompt().endswith("<think>")
        ask(client, thinking={"type": "enabled", "budget_tokens": 1024})
        assert client.engine.prompt().endswith("<think>")


def test_blocks_of_a_conversation_become_messages() -> None:
    with Client() as client:
        messages = [
            *HELLO,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no sky"}],
                    },
                    {"type": "text", "text": "Well?"},
                ],
            },
        ]
        assert ask(client, messages=messages, tools=[WEATHER]).status == 200
        prompt = client.engine.prompt()
        assert "<assistant>I look.<thought>Hm.</thought>" in prompt
        assert '"arguments": {"city": "Rome"}' in prompt
        assert "<tool>Error: no sky(weather t1)\n<user>Well?" in prompt


def test_an_answer_can_be_begun_by_the_client() -> None:
    with Client() as client:
        ask(client, messages=[*HELLO, {"role": "assistant", "content": "It is ("}])
        assert client.engine.prompt() == "<user>Hello?\n<assistant>It is ("


def test_the_lines_that_agents_put_before_a_system_prompt_are_dropped() -> None:
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=a1b2c;"},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ]
    with Client() as client:
        ask(client, system=system)
        assert client.engine.prompt().startswith("<system>Be brief.\n")
    with Client(keeps_agent_headers=True) as client:
        ask(client, system=system)
        assert "cch=a1b2c" in client.engine.prompt()


def test_the_stop_string_that_came_is_named() -> None:
    with Client(Say("One, ", more="END")) as client:
        body = ask(client, stop_sequences=["STOP", "END"]).json
        assert body["stop_reason"] == "stop_sequence"
        assert body["stop_sequence"] == "END"


def test_an_answer_that_is_cut_off_says_so() -> None:
    with Client("Hello, world.") as client:
        assert ask(client, max_tokens=5).json["stop_reason"] == "max_tokens"


def test_tokens_are_counted_without_an_answer() -> None:
    with Client() as client:
        response = client.post("/v1/messages/count_tokens", {"messages": HELLO})
        assert response.json == {"input_tokens": len("<user>Hello?\n<assistant>")}
        assert not client.engine.requests


def test_models_are_listed_in_anthropics_form_for_its_clients() -> None:
    with Client() as client:
        body = client.get("/v1/models", headers=[("anthropic-version", "2023-06-01")]).json
        assert body["data"][0]["type"] == "model"
        assert body["has_more"] is False
        assert client.get("/v1/models").json["object"] == "list"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type",
        ),
        ({"system": 5}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools[0].type"),
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(body: dict[str, Any], word: str) -> None:
    with Client() as client:
        response = ask(client, **body)
        assert response.status == 400
        assert response.json["type"] == "error"
        assert response.json["error"]["type"] == "invalid_request_error"
        assert word in response.json["error"]["message"]
        assert not client.engine.requests


def test_a_failure_in_a_stream_is_an_event() -> None:
    with Client(Say("Half", error=MemoryError(), error_waits=True)) as client:

        def goes_on(response: Response) -> bool:
            if response.pieces:
                client.engine.go.set()
            return False

        body = {"max_tokens": 9, "messages": HELLO, "stream": True}
        name, data = client.post("/v1/messages", body, leaves_after=goes_on).events[-1]
        assert name == "error"
        assert data["error"]["type"] == "overloaded_error"

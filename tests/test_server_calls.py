"""Calls at will through the server, in each protocol: what a random model writes after the mark of
a call is a right call, whole and streamed.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")

from extension import require_cpp
from scripted_server import Client, Response, Say
from tiny_model import MERGES, Sizes, vocabulary_tokens, write_tiny_model

from airllm.cli.serve import served
from airllm.engine.grammar import Grammars
from airllm.engine.marked_grammar import MarkedGrammars
from airllm.layer_engine import LayerWiseInferenceEngine

pytest.importorskip("llguidance", reason="`pip install .[test]` brings llguidance")

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}\n"
    "{% endfor %}{# <tool_call> #}"
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Paris"]},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "exact"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "", "parameters": PARAMETERS}
MARK = len(vocabulary_tokens()) - 1  # in the place of the vocabulary's last token
MESSAGES = [{"role": "user", "content": "Hi"}]
# The model likes nothing but the mark; from there it is random.
ASKED: dict[str, Any] = {
    "logit_bias": {str(MARK): 1000},
    "parallel_tool_calls": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    require_cpp()
    vocabulary = [*vocabulary_tokens()[:-1], "<tool_call>"]
    kinds = np.array([3] * 3 + [1] * (len(vocabulary) - 4) + [4], np.int32)
    path = write_tiny_model(
        tmp_path_factory.mktemp("model"),
        sizes=Sizes(context=1500),
        metadata={
            "tokenizer.ggml.tokens": vocabulary,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": MERGES[:-1],
            "tokenizer.chat_template": TEMPLATE,
        },
    ).path
    client = Client(opened=lambda: served(LayerWiseInferenceEngine(path), "tiny"))
    with client:
        yield client


def is_right(arguments: Any) -> bool:
    return (
        arguments.keys() == {"city", "exact"}
        and arguments["city"] in ("Rome", "Paris")
        and type(arguments["exact"]) is bool
    )


@pytest.mark.parametrize("seed", range(3))
def test_chat_completions_stream_id_and_name_and_then_arguments(client: Client, seed: int) -> None:
    body = {**ASKED, "messages": MESSAGES, "seed": seed}
    body["tools"] = [{"type": "function", "function": FUNCTION}]
    whole = client.post("/v1/chat/completions", body).json["choices"][0]
    [call] = whole["message"]["tool_calls"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    assert is_right(json.loads(call["function"]["arguments"]))
    streamed = client.post("/v1/chat/completions", {**body, "stream": True}).data
    deltas = [
        one
        for chunk in streamed
        for choice in chunk["choices"]
        for one in choice["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["id"].startswith("call_")
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(deltas) > 2  # the arguments come as they are written
    assert not any("id" in one for one in deltas[1:])
    text = "".join(one["function"]["arguments"] for one in deltas)
    assert text == call["function"]["arguments"]


def test_responses_stream_the_item_and_then_arguments(client: Client) -> None:
    body = {**ASKED, "input": "Hi", "seed": 1, "tools": [{"type": "function", **FUNCTION}]}
    [item] = client.post("/v1/responses", body).json["output"]
    assert (item["type"], item["name"]) == ("function_call", "weather")
    assert is_right(json.loads(item["arguments"]))
    events = client.post("/v1/responses", {**body, "stream": True}).data
    kinds = [event["type"] for event in events]
    begun = kinds.index("response.output_item.added")
    assert events[begun]["item"]["name"] == "weather"
    assert begun < kinds.index("response.function_call_arguments.delta")
    text = "".join(
        event["delta"]
        for event in events
        if event["type"] == "response.function_call_arguments.delta"
    )
    assert text == item["arguments"]


def test_anthropics_messages_stream_the_block_and_then_its_input(client: Client) -> None:
    tool = {"name": "weather", "input_schema": PARAMETERS}
    body = {
        **{key: value for key, value in ASKED.items() if key != "parallel_tool_calls"},
        "messages": MESSAGES,
        "max_tokens": 200,
        "seed": 1,
        "tools": [tool],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    whole = client.post("/v1/messages", body).json
    [block] = whole["content"]
    assert (whole["stop_reason"], block["type"], block["name"]) == (
        *("tool_use", "tool_use", "weather"),
    )
    assert is_right(block["input"])
    events = client.post("/v1/messages", {**body, "stream": True}).data
    begun = next(one["content_block"] for one in events if one["type"] == "content_block_start")
    assert (begun["name"], begun["input"]) == ("weather", {})
    text = "".join(
        one["delta"]["partial_json"] for one in events if one["type"] == "content_block_delta"
    )
    assert json.loads(text) == block["input"]


def test_ollamas_chats_have_the_call(client: Client) -> None:
    body = {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": FUNCTION}],
        "options": {**ASKED, "seed": 1, "num_predict": 200},
    }
    del body["options"]["parallel_tool_calls"]
    whole = client.post("/api/chat", {**body, "stream": False}).json["message"]
    first = whole["tool_calls"][0]["function"]
    assert first["name"] == "weather"
    assert is_right(first["arguments"])
    lines = client.post("/api/chat", body).lines
    streamed = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert streamed[0]["function"] == first


# ---- what is held to a grammar -------------------------------------------------------------------


def chat(client: Client, *tools: dict[str, Any], **more: Any) -> Response:
    functions = [{"type": "function", "function": tool} for tool in tools]
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": functions, **more}
    return client.post("/v1/chat/completions", body)


@pytest.fixture(scope="module")
def grammars(client: Client) -> Any:
    tokenizer = client.thread.model.prompts.tokenizer
    made = Grammars(tokenizer)
    return lambda **given: made.lark(given["lark"])


UNFIT = {"name": "unfit", "parameters": {"type": "object", "propertyNames": {"maxLength": 3}}}


def test_tools_at_will_make_a_grammar_that_begins_with_a_mark(grammars: Any) -> None:
    with Client(grammar=grammars) as client:
        assert chat(client, FUNCTION).status == 200
        form = client.engine.requests[-1].grammar
        assert isinstance(form, MarkedGrammars)
        assert {one.mark for one in form.marked} == {b"<tool_call>", b"<function="}
        assert form.thought == (b"<think>", b"</think>")
        assert chat(client, FUNCTION, tool_choice="none").status == 200
        assert client.engine.requests[-1].grammar is None
        assert chat(client).status == 200
        assert client.engine.requests[-1].grammar is None


def test_the_grammar_of_the_same_tools_is_made_once(grammars: Any) -> None:
    made = []

    def counted(**given: Any) -> Any:
        made.append(given)
        return grammars(**given)

    with Client(grammar=counted) as client:
        chat(client, FUNCTION)
        n = len(made)
        chat(client, FUNCTION)
        assert len(made) == n


def test_a_tool_that_cannot_be_enforced_may_have_any_arguments_and_is_logged_once(
    grammars: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(Say("Hello."), grammar=grammars) as client:
        for _ in range(2):
            assert chat(client, FUNCTION, UNFIT).status == 200
        form = client.engine.requests[-1].grammar
        assert isinstance(form, MarkedGrammars)
    logged = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    [text] = [one for one in logged if "unfit" in one]
    assert "propertyNames" in text
    assert "'weather'" not in text


def test_a_strict_tool_that_cannot_be_enforced_is_refused_by_its_name(grammars: Any) -> None:
    with Client(grammar=grammars) as client:
        assert chat(client, {**FUNCTION, "strict": True}).status == 200
        response = chat(client, FUNCTION, {**UNFIT, "strict": True})
        assert response.status == 400
        error = response.json["error"]
        assert error["param"] == "tools"
        assert "'unfit'" in error["message"]
        assert "propertyNames" in error["message"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": []},
        {"properties": None, "required": None},
        {"properties": {"a": True, "b": None, "c": {"type": {}}}},
        {"required": "a", "properties": {"a": {"enum": 5}}},
        {"type": "array"},
    ],
)
@pytest.mark.parametrize(
    "mark",
    ["<tool_call>", "<tool_call><function=<parameter=", "<|tool_call>call:", "]<]minimax[>["],
)
def test_a_schema_that_is_none_is_no_fault_of_the_server(
    grammars: Any, parameters: dict[str, Any], mark: str
) -> None:
    tool = {"name": "f", "parameters": parameters}
    with Client(grammar=grammars, template=TEMPLATE + f"{{# {mark} #}}") as client:
        assert chat(client, tool).status == 200
        assert chat(client, tool, tool_choice="required").status in (200, 400)


def test_without_the_library_calls_are_as_the_model_writes_them() -> None:
    with Client() as client:
        assert chat(client, {**FUNCTION, "strict": True}).status == 200
        assert chat(client, FUNCTION, {"name": "f", "parameters": {"name": 5}}).status == 200
        assert client.engine.requests[0].grammar is None


# As DeepSeek V3.1's does: it shows calls, whose arguments it joins to a text, and no tools.
_SHOWS_CALLS = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{% for call in m.tool_calls %}"
    "<｜tool▁calls▁begin｜>{{ '' + call.function.arguments }}{% endfor %}; {% endfor %}</think>"
)


def test_calls_that_a_template_shows_stay_calls_where_it_shows_no_tools() -> None:
    answer = "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
    messages = [
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "So.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Rain."},
    ]
    body = {"messages": messages, "tools": [{"type": "function", "function": FUNCTION}]}
    with Client(answer, template=_SHOWS_CALLS) as client:
        choice = client.post("/v1/chat/completions", body).json["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"
        prompt = client.engine.prompt()
    assert prompt.startswith("system: ## Tools\nYou have access to the following tools:\n")
    said = 'user: Well?; assistant: So.<｜tool▁calls▁begin｜>{"a": 1}; tool: Rain.; '
    assert prompt.endswith(f"{said}</think>")

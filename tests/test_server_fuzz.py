"""Bodies that no client should send: each is answered or refused in its protocol's shape, and none
is an error of the server's.
"""

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from scripted_server import Client

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "T"}], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "R"},
            {"role": "tool", "tool_call_id": "1", "content": "C"},
        ],
        "tools": [TOOL],
        "tool_choice": "auto",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 5,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 1,
        "seed": 3,
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"a": 1},
    },
    "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 5, "echo": True, "logprobs": 1, "n": 2},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "T"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "O"},
        ],
        "instructions": "I",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "stream": True,
    },
    "/v1/messages": {
        "max_tokens": 5,
        "system": [{"type": "text", "text": "S"}],
        "messages": [
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f",
                                               "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1",
                                          "content": [{"type": "text", "text": "R"}]}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "adaptive"},
        "stop_sequences": ["x"],
        "stream": True,
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "U"}]},
    "/api/chat": {
        "messages": [
            {"role": "user", "content": "U", "images": []},
            {"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "content": "R", "tool_name": "f"},
        ],
        "tools": [TOOL],
        "options": {"temperature": 0.5, "num_predict": 5, "stop": ["x"]},
        "think": True,
    },
    "/api/generate": {"prompt": "P", "system": "S", "raw": False, "options": {}, "stream": False},
    "/api/show": {"model": "scripted"},
    "/tokenize": {"content": "C", "with_pieces": True},
    "/detokenize": {"tokens": [1, 2]},
}  # fmt: skip

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["auto", "user", "text", "function", "json_schema", "\ud800", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "content", "role", "function", "name", "text", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values lie in a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


def changed(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return body


def check(client: Client, path: str, body: Any) -> None:
    response = client.post(path, json.dumps(body).encode())
    assert not ERRORS.seen
    assert response.status in (200, 400, 404, 501), (response.status, response.body)
    if response.status == 200:
        return
    error = response.json
    if path.startswith("/api/"):
        assert isinstance(error["error"], str)
    elif path.startswith("/v1/messages"):
        assert error["type"] == "error"
        assert error["error"]["message"]
    else:
        assert error["error"]["message"]
        assert error["error"]["type"]


class Errors(logging.Handler):
    """What the server logs of errors that it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


ERRORS = Errors()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    logging.getLogger("airllm").addHandler(ERRORS)
    answer = '<think>Hm.</think>Hi. <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    with Client(answer) as client:
        yield client
    logging.getLogger("airllm").removeHandler(ERRORS)


@pytest.mark.parametrize("path", BODIES)
def test_a_body_that_lacks_a_field_is_answered_or_refused(client: Client, path: str) -> None:
    check(client, path, BODIES[path])
    for place in places(BODIES[path]):
        check(client, path, changed(BODIES[path], place, ...))


@pytest.mark.parametrize("value", [None, 0, -1, 10**30, 0.5, "", "x", [], {}, [[]], [{}], True])
@pytest.mark.parametrize("path", BODIES)
def test_a_value_of_another_kind_is_answered_or_refused(
    client: Client, path: str, value: Any
) -> None:
    for place in places(BODIES[path]):
        check(client, path, changed(BODIES[path], place, value))


def body_is_changed(client: Client, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(list(BODIES)))
    body = BODIES[path]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(body)) or [("x",)]))
        body = changed(body, place, data.draw(JSON))
    check(client, path, body)


@given(data=st.data())
@settings(max_examples=150)
def test_any_json_in_any_place_is_answered_or_refused(client: Client, data: st.DataObject) -> None:
    body_is_changed(client, data)


@pytest.mark.fuzz
@given(data=st.data())
@settings(max_examples=3000)
def test_much_json_in_any_place_is_answered_or_refused(client: Client, data: st.DataObject) -> None:
    body_is_changed(client, data)

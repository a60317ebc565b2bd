"""Chat completions, completions and responses: what a client sends, gets, and is refused."""

from typing import Any

import pytest

pytest.importorskip("starlette")

from scripted_server import Client, Response, Say

HELLO = [{"role": "user", "content": "Hello?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = (
    "<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n"
    '{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


def chat(client: Client, **more: Any) -> Response:
    return client.post("/v1/chat/completions", {"messages": HELLO, **more})


def message(response: Response) -> Any:
    return response.json["choices"][0]["message"]


def merged(chunks: list[Any], choice: int = 0) -> dict[str, Any]:
    """The message that the deltas of a choice add up to, and its finish reason."""
    whole: dict[str, Any] = {"role": None, "content": "", "finish": None}
    for chunk in chunks:
        for one in chunk["choices"]:
            if one["index"] != choice:
                continue
            delta = one["delta"]
            whole["role"] = delta.get("role", whole["role"])
            whole["content"] += delta.get("content") or ""
            whole["finish"] = one["finish_reason"] or whole["finish"]
            if "reasoning_content" in delta:
                thought = whole.get("reasoning_content", "")
                whole["reasoning_content"] = thought + delta["reasoning_content"]
            for call in delta.get("tool_calls", ()):
                calls = whole.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append({"name": call["function"]["name"], "arguments": ""})
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    return whole


def test_a_question_is_answered() -> None:
    with Client("Hello.") as client:
        response = chat(client)
        assert response.status == 200
        assert message(response) == {"role": "assistant", "content": "Hello.", "refusal": None}
        assert response.json["choices"][0]["finish_reason"] == "stop"
        assert response.json["object"] == "chat.completion"
        assert response.json["model"] == "scripted"
        assert client.engine.prompt() == "<user>Hello?\n<assistant>"


def test_usage_counts_the_prompt_and_the_answer() -> None:
    with Client("Hello.") as client:
        usage = chat(client).json["usage"]
        n_prompt = len(client.engine.prompt())
        assert usage["prompt_tokens"] == n_prompt
        assert usage["completion_tokens"] == 6
        assert usage["total_tokens"] == n_prompt + 6
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


@pytest.mark.parametrize("cut", [1, 2, 7, 1000])
def test_a_stream_says_what_the_whole_answer_says(cut: int) -> None:
    with Client(Say(CALL, cut=cut)) as client:
        whole = message(chat(client, tools=[WEATHER]))
        streamed = merged(chat(client, tools=[WEATHER], stream=True).data)
        assert streamed["content"] == whole["content"] == "I look."
        assert streamed["reasoning_content"] == whole["reasoning_content"] == "Hm."
        call = whole["tool_calls"][0]["function"]
        assert streamed["tool_calls"] == [call]
        assert call == {"name": "weather", "arguments": '{"city": "Rome"}'}
        assert streamed["finish"] == "tool_calls"


def test_a_stream_begins_with_the_role_and_ends_with_done() -> None:
    with Client("Hello.") as client:
        response = chat(client, stream=True)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.data[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert response.data[-1]["choices"][0]["finish_reason"] == "stop"
        assert response.body.endswith(b"data: [DONE]\n\n")


def test_a_stream_gives_usage_only_if_asked() -> None:
    with Client("Hello.") as client:
        assert "usage" not in chat(client, stream=True).data[-1]
        chunks = chat(client, stream=True, stream_options={"include_usage": True}).data
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 6
        assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_progress_of_the_prompt_is_told_if_asked() -> None:
    with Client("Hello.") as client:
        chunks = chat(client, stream=True, return_progress=True).data
        told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        assert told
        assert told[-1]["processed"] == told[-1]["total"]


def test_a_call_is_streamed_as_its_name_and_then_its_arguments() -> None:
    with Client(Say(CALL, cut=4)) as client:
        chunks = chat(client, tools=[WEATHER], stream=True).data
        calls = [
            call
            for chunk in chunks
            for one in chunk["choices"]
            for call in one["delta"].get("tool_calls", ())
        ]
        assert calls[0]["id"].startswith("call_")
        assert calls[0]["function"] == {"name": "weather", "arguments": ""}
        assert len(calls) > 3
        assert all("id" not in call for call in calls[1:])


def test_a_call_without_text_has_no_content() -> None:
    with Client('<tool_call>{"name": "weather", "arguments": {}}</tool_call>') as client:
        assert message(chat(client, tools=[WEATHER]))["content"] is None


def test_the_template_gets_the_tools() -> None:
    with Client() as client:
        chat(client, tools=[WEATHER])
        assert '"name": "weather"' in client.engine.prompt()


def test_without_tool_calls_allowed_the_template_gets_no_tools() -> None:
    with Client() as client:
        chat(client, tools=[WEATHER], tool_choice="none")
        assert client.engine.prompt() == "<user>Hello?\n<assistant>"


def test_a_template_without_tools_is_told_about_them_in_the_system_message() -> None:
    plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    with Client(CALL, template=plain) as client:
        messages = [
            {"role": "system", "content": "Be brief."},
            *HELLO,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "Sun."},
        ]
        response = chat(client, messages=messages, tools=[WEATHER])
        prompt = client.engine.prompt()
        assert prompt.startswith("<system>Be brief.\n\nYou may call functions")
        assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt
        assert "<user><tool_response>\nSun.\n</tool_response>" in prompt
        assert message(response)["tool_calls"][0]["function"]["name"] == "weather"


def test_calls_and_results_come_to_the_template_as_objects_with_names() -> None:
    with Client() as client:
        messages = [
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                    }
                ],
            },
            {
                "role": "tool",
                "tool_call_id": "call_1",
                "content": [{"type": "text", "text": "Sun"}],
            },
        ]
        chat(client, messages=messages, tools=[WEATHER])
        prompt = client.engine.prompt()
        assert '"arguments": {"city": "Rome"}' in prompt
        assert "<thought>Hm.</thought>" in prompt
        assert "<tool>Sun(weather call_1)" in prompt


def test_a_developer_is_the_system_and_systems_at_the_beginning_are_one() -> None:
    with Client() as client:
        first = [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}]
        chat(client, messages=[*first, *HELLO])
        assert client.engine.prompt() == "<system>A\n\nB\n<user>Hello?\n<assistant>"


def test_variables_reach_the_template() -> None:
    with Client("So.\n</think>\nYes.") as client:
        response = chat(client, chat_template_kwargs={"enable_thinking": True})
        assert client.engine.prompt().endswith("<assistant><think>")
        assert message(response)["reasoning_content"] == "So."
        assert message(response)["content"] == "Yes."


@pytest.mark.parametrize(("effort", "thinks"), [("high", True), ("none", False)])
def test_an_effort_turns_thinking_on_or_off(effort: str, thinks: bool) -> None:
    with Client() as client:
        chat(client, reasoning_effort=effort)
        assert client.engine.prompt().endswith("<think>") is thinks


def test_an_answer_can_be_continued() -> None:
    with Client() as client:
        messages = [*HELLO, {"role": "assistant", "content": "The answer"}]
        chat(client, messages=messages, continue_final_message=True)
        assert client.engine.prompt() == "<user>Hello?\n<assistant>The answer"


def test_several_choices_are_told_apart() -> None:
    with Client("One.", "Two.") as client:
        choices = chat(client, n=2).json["choices"]
        assert [choice["message"]["content"] for choice in choices] == ["One.", "Two."]
    with Client("One.", "Two.") as client:
        chunks = chat(client, n=2, stream=True).data
        assert [merged(chunks, at)["content"] for at in range(2)] == ["One.", "Two."]


def test_logprobs_come_with_tokens_and_alternatives() -> None:
    with Client(Say("Hé", cut=1)) as client:
        whole = chat(client, logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"][
            "content"
        ]
        assert [one["bytes"] for one in whole] == [[72], [195], [169]]
        assert whole[0]["token"] == "H"
        assert whole[0]["logprob"] == -0.5
        assert [top["logprob"] for top in whole[0]["top_logprobs"]] == [-0.5, -9999.0]
        streamed = [
            one
            for chunk in chat(client, logprobs=True, top_logprobs=2, stream=True).data
            for choice in chunk["choices"]
            for one in (choice["logprobs"] or {"content": []})["content"]
        ]
        assert streamed == whole


def test_limits_and_stop_strings_reach_the_engine() -> None:
    with Client("Hello, world.") as client:
        response = chat(client, max_completion_tokens=5, stop=["\n", "END"], temperature=0, seed=7)
        request = client.engine.requests[0]
        assert request.limits.max_new_tokens == 5
        assert request.limits.stop_strings == ("\n", "END")
        assert request.sampling.temperature == 0
        assert request.sampling.seed == 7
        assert response.json["choices"][0]["finish_reason"] == "length"


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    with Client() as client:
        chat(client)
        room = 4096 - len(client.engine.prompt())
        assert client.engine.requests[0].limits.max_new_tokens == room


def test_one_call_is_let_through_if_several_are_not_allowed() -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    with Client(call * 3) as client:
        found = message(chat(client, tools=[WEATHER], parallel_tool_calls=False))
        assert len(found["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [1]}, "stop"),
        ({"stop": [""]}, None),
        ({"stop": ["a"] * 100}, "stop"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "clock"}},
            },
            "tool_choice",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(body: dict[str, Any], param: str) -> None:
    with Client() as client:
        response = chat(client, **body)
        error = response.json["error"]
        assert response.status == 400
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert not client.engine.requests


def test_fields_that_nobody_knows_are_ignored_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Client() as client:
        assert chat(client, frobnicate=1).status == 200
        assert chat(client, frobnicate=2).status == 200
        assert sum("frobnicate" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'{"messages": NaN}', b"\xff", b"[" * 9999]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with Client() as client:
        response = client.post("/v1/chat/completions", body)
        assert response.status == 400
        assert "body" in response.json["error"]["message"]


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested = b"[" * 850 + b"]" * 850
    with Client() as client:
        for field in (b'"chat_template_kwargs": {"a": %s}', b'"messages": %s', b'"x": %s'):
            body = b'{"messages": [{"role": "user", "content": "x"}], ' + field % nested + b"}"
            assert client.post("/v1/chat/completions", body).status in (200, 400)
        tool = b'{"type": "function", "function": {"name": "f", "parameters": {"a": %s}}}' % nested
        body = b'{"messages": [{"role": "user", "content": "x"}], "tools": [' + tool + b"]}"
        assert client.post("/v1/chat/completions", body).status in (200, 400)


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers() -> None:
    with Client() as client:
        response = chat(client, messages=[{"role": "user", "content": "x" * 5000}])
        error = response.json["error"]
        assert response.status == 400
        assert error["code"] == "context_length_exceeded"
        assert "5018" in error["message"]
        assert "4096" in error["message"]
        for length, status in ((4078, 400), (4077, 200)):  # with room for no token, and for one
            messages = [{"role": "user", "content": "x" * length}]
            assert chat(client, messages=messages).status == status


def test_a_failure_after_the_beginning_is_an_event_of_the_stream() -> None:
    with Client(Say("Half", error=MemoryError(), error_waits=True)) as client:

        def goes_on(response: Response) -> bool:
            if response.pieces:
                client.engine.go.set()
            return False

        body = {"messages": HELLO, "stream": True}
        response = client.post("/v1/chat/completions", body, leaves_after=goes_on)
        assert response.status == 200
        assert response.data[-1]["error"]["code"] == "out_of_memory"
        assert b"[DONE]" not in response.body


def test_a_failure_before_the_beginning_has_its_status() -> None:
    with Client(Say(error=RuntimeError("secret"))) as client:
        response = chat(client)
        assert response.status == 500
        assert "secret" not in response.body.decode()


# ---- completions --------------------------------------------------------------------------------


def complete(client: Client, **more: Any) -> Response:
    return client.post("/v1/completions", {"prompt": "Once", "max_tokens": 100, **more})


def texts(chunks: list[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            at = choice["index"]
            found[at] = found.get(at, "") + choice["text"]
    return found


def test_a_text_is_continued_as_it_is() -> None:
    with Client(" <think>upon</think>\n") as client:
        choice = complete(client).json["choices"][0]
        assert choice["text"] == " <think>upon</think>\n"
        assert choice["finish_reason"] == "stop"
        assert client.engine.prompt() == "Once"


def test_tokens_are_continued() -> None:
    with Client() as client:
        assert complete(client, prompt=[65, 66]).status == 200
        assert client.engine.prompt() == "AB"
        response = complete(client, prompt=[999])
        assert response.status == 400
        assert response.json["error"]["param"] == "prompt"


def test_several_prompts_have_n_choices_each() -> None:
    with Client(" upon") as client:
        response = complete(client, prompt=["One", "Two"], n=2, echo=True)
        found = [choice["text"] for choice in response.json["choices"]]
        assert found == ["One upon", "One upon", "Two upon", "Two upon"]
        assert response.json["usage"]["prompt_tokens"] == 6
        assert response.json["usage"]["completion_tokens"] == 20
        chunks = complete(client, prompt=["One", "Two"], n=2, echo=True, stream=True).data
        assert texts(chunks) == dict(enumerate(found))


def test_logprobs_of_the_prompt_come_with_an_echo() -> None:
    with Client("cd") as client:
        asked: dict[str, Any] = {"prompt": "ab", "echo": True, "logprobs": 1}
        logprobs = complete(client, **asked).json["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["a", "b", "c", "d"]
        assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
        assert logprobs["text_offset"] == [0, 1, 2, 3]
        assert logprobs["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}, {"d": -0.5}]
        chunks = complete(client, **asked, stream=True).data
        assert texts(chunks) == {0: "abcd"}
        tokens = [
            token
            for chunk in chunks
            for choice in chunk["choices"]
            for token in (choice["logprobs"] or {"tokens": []})["tokens"]
        ]
        assert tokens == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a"] * 1000}, "prompt"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 100}, "logprobs"),
    ],
)
def test_a_completion_that_makes_no_sense_is_refused(body: dict[str, Any], param: str) -> None:
    with Client() as client:
        response = complete(client, **body)
        assert response.status == 400
        assert response.json["error"]["param"] == param


# ---- responses ----------------------------------------------------------------------------------


def respond(client: Client, **more: Any) -> Response:
    return client.post("/v1/responses", {"input": "Hello?", **more})


RESPONSE_TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


def without_ids(value: Any) -> Any:
    """A response without what differs in each."""
    if isinstance(value, dict):
        hidden = ("id", "call_id", "created_at", "item_id")
        return {key: without_ids(item) for key, item in value.items() if key not in hidden}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_a_response_has_items_for_thoughts_text_and_calls() -> None:
    with Client(CALL) as client:
        body = respond(client, tools=[RESPONSE_TOOL]).json
        kinds = [item["type"] for item in body["output"]]
        assert kinds == ["reasoning", "message", "function_call"]
        assert body["output"][1]["content"][0]["text"] == "I look."
        assert body["output"][2]["arguments"] == '{"city": "Rome"}'
        assert body["status"] == "completed"
        assert body["usage"]["output_tokens"] == len(CALL)


@pytest.mark.parametrize("cut", [1, 5, 1000])
def test_a_streamed_response_ends_with_the_whole_response(cut: int) -> None:
    with Client(Say(CALL, cut=cut)) as client:
        whole = respond(client, tools=[RESPONSE_TOOL]).json
        events = respond(client, tools=[RESPONSE_TOOL], stream=True).events
        assert [name for name, _ in events] == [data["type"] for _, data in events]
        assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
        assert events[0][0] == "response.created"
        name, last = events[-1]
        assert name == "response.completed"
        assert without_ids(last["response"]) == without_ids(whole)
        text = "".join(
            data["delta"] for name, data in events if name == "response.output_text.delta"
        )
        assert text == "I look."


def test_a_response_goes_on_from_an_earlier_one() -> None:
    with Client("First.", "Second.") as client:
        first = respond(client, instructions="Be brief.").json
        respond(client, input="More?", previous_response_id=first["id"])
        assert client.engine.prompt() == "<user>Hello?\n<assistant>First.\n<user>More?\n<assistant>"
        assert client.get(f"/v1/responses/{first['id']}").json["id"] == first["id"]
        assert client.call("DELETE", f"/v1/responses/{first['id']}").json["deleted"] is True
        assert client.get(f"/v1/responses/{first['id']}").status == 404


def test_a_response_that_is_not_stored_is_forgotten() -> None:
    with Client() as client:
        id = respond(client, store=False).json["id"]
        response = respond(client, previous_response_id=id)
        assert response.status == 404
        assert response.json["error"]["param"] == "previous_response_id"


def test_items_of_a_conversation_become_messages() -> None:
    with Client() as client:
        items = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {
                "type": "reasoning",
                "id": "r",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "Sun."},
        ]
        assert respond(client, input=items, tools=[RESPONSE_TOOL]).status == 200
        prompt = client.engine.prompt()
        assert "<system>Be brief.\n<user>Weather?\n<assistant><thought>Hm.</thought>" in prompt
        assert "<tool>Sun.(weather 1)" in prompt


def test_tools_that_are_no_functions_are_left_out_of_a_response() -> None:
    with Client() as client:
        assert respond(client, tools=[{"type": "web_search"}, RESPONSE_TOOL]).status == 200


def test_a_response_that_is_cut_off_is_incomplete() -> None:
    with Client("Hello, world.") as client:
        body = respond(client, max_output_tokens=5).json
        assert body["status"] == "incomplete"
        assert body["incomplete_details"] == {"reason": "max_output_tokens"}


# ---- what an answer must look like ---------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class Wanted:
    """Notes which grammars are asked for."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, **given: Any) -> Any:
        self.seen.append(given)
        return "the grammar"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "tools"),
    ],
)
def test_without_the_library_of_grammars_a_request_for_one_is_refused(
    body: dict[str, Any], param: str
) -> None:
    with Client() as client:
        response = chat(client, **body)
        assert response.status == 501
        assert response.json["error"]["param"] == param
        assert response.json["error"]["code"] == "no_grammars"
        assert not client.engine.requests


def test_a_schema_becomes_the_grammar_of_the_request() -> None:
    wanted = Wanted()
    with Client('{"a": 5}', grammar=wanted) as client:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        assert chat(client, response_format=form).status == 200
        assert client.engine.requests[0].grammar == "the grammar"
        [given] = wanted.seen
        assert '"properties": {"a": {"type": "integer"}}' in given["lark"]


def test_a_tool_that_is_named_is_the_only_one_in_the_grammar() -> None:
    wanted = Wanted()
    clock = {"type": "function", "function": {"name": "clock"}}
    with Client(grammar=wanted) as client:
        choice = {"type": "function", "function": {"name": "clock"}}
        chat(client, tools=[WEATHER, clock], tool_choice=choice)
        assert "clock" in wanted.seen[0]["lark"]
        assert "weather" not in wanted.seen[0]["lark"]
        chat(client, tools=[WEATHER, clock], tool_choice="required")
        assert "weather" in wanted.seen[1]["lark"]


def test_a_free_choice_of_tools_has_no_grammar() -> None:
    with Client() as client:
        assert chat(client, tools=[WEATHER]).status == 200
        assert client.engine.requests[0].grammar is None


def test_what_cannot_be_enforced_is_refused_by_its_name() -> None:
    def refusing(**given: Any) -> Any:
        raise ValueError("the JSON schema cannot be enforced: x")

    with Client(grammar=refusing) as client:
        response = chat(client, response_format={"type": "json_object"})
        assert response.status == 400
        assert response.json["error"]["param"] == "response_format"
        assert "cannot be enforced" in response.json["error"]["message"]


def test_two_forms_of_an_answer_exclude_each_other() -> None:
    with Client(grammar=Wanted()) as client:
        response = chat(client, response_format={"type": "json_object"}, guided_regex="a+")
        assert response.status == 400


def test_the_text_of_a_completion_can_have_a_form() -> None:
    wanted = Wanted()
    with Client(grammar=wanted) as client:
        complete(client, guided_json=SCHEMA)
        assert wanted.seen == [{"json_schema": SCHEMA}]
        complete(client, guided_regex="a+")
        assert wanted.seen[1] == {"regex": "a+"}

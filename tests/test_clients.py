"""Real clients, which nobody here wrote: the packages of the extra `test-clients`, each against a
real model. Each test is skipped where its client or the model is not installed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from running_server import RunningServer

from airllm.hub import find_model

QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    found = find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if found is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`, or set AIRLLM_TEST_MODEL")
    with RunningServer(found, context=1024) as server:
        yield server


# ---- openai --------------------------------------------------------------------------------------


@pytest.fixture
def openai(server: RunningServer) -> Any:
    package = pytest.importorskip("openai")
    return package.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_openai_chats_whole_and_streamed(openai: Any) -> None:
    whole = openai.chat.completions.create(model="any", messages=MESSAGES, **GREEDY)
    assert "Paris" in whole.choices[0].message.content
    stream = openai.chat.completions.create(
        model="any",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_openai_gets_logprobs(openai: Any) -> None:
    whole = openai.chat.completions.create(
        model="any", messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY
    )
    content = whole.choices[0].logprobs.content
    assert "".join(one.token for one in content) == whole.choices[0].message.content
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)


def test_openai_completes_texts(openai: Any) -> None:
    whole = openai.completions.create(model="any", prompt="Once upon a time", **GREEDY)
    stream = openai.completions.create(
        model="any", prompt="Once upon a time", stream=True, **GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.choices[0].text


def test_openai_uses_responses(openai: Any) -> None:
    asked: dict[str, Any] = {"model": "any", "temperature": 0, "max_output_tokens": 40}
    whole = openai.responses.create(input=QUESTION, **asked)
    assert "Paris" in whole.output_text
    with openai.responses.stream(input=QUESTION, **asked) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == whole.output_text
    more = openai.responses.create(input="And of Italy?", previous_response_id=whole.id, **asked)
    assert "Rome" in more.output_text


def test_openai_embeds_as_numbers_and_as_base64(openai: Any) -> None:
    asked: dict[str, Any] = {"model": "any", "input": ["Paris", "the capital of France", "a cat"]}
    decoded = [one.embedding for one in openai.embeddings.create(**asked).data]  # asks for base64
    numbers = openai.embeddings.create(encoding_format="float", **asked)
    assert numbers.usage.prompt_tokens > 3
    assert [one.index for one in numbers.data] == [0, 1, 2]
    for one, other in zip(decoded, numbers.data, strict=True):
        assert one == pytest.approx(other.embedding, abs=1e-6)
        assert sum(value * value for value in one) == pytest.approx(1.0, abs=1e-4)
    assert decoded[0] != decoded[1]


WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_openai_gets_a_call_that_it_requires_whole_and_streamed(openai: Any) -> None:
    pytest.importorskip("llguidance")
    asked: dict[str, Any] = {
        "model": "any",
        "messages": [{"role": "user", "content": "How is the weather in Rome?"}],
        "tools": [{"type": "function", "function": WEATHER}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    whole = openai.chat.completions.create(**asked).choices[0]
    [call] = whole.message.tool_calls
    assert whole.finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    deltas = [
        one
        for chunk in openai.chat.completions.create(stream=True, **asked)
        for one in chunk.choices[0].delta.tool_calls or ()
    ]
    assert deltas[0].function.name == "weather"
    streamed = "".join(one.function.arguments for one in deltas)
    assert streamed == call.function.arguments
    messages = [
        *asked["messages"],
        whole.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 20 degrees."},
    ]
    more = openai.chat.completions.create(
        model="any", messages=messages, tools=asked["tools"], **GREEDY
    )
    assert more.choices[0].message.content


def test_openai_gets_json_of_a_schema(openai: Any) -> None:
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Person(pydantic.BaseModel):  # type: ignore[name-defined, misc]
        name: str = pydantic.Field(max_length=20)
        age: int = pydantic.Field(ge=0, le=150)

    asked: dict[str, Any] = {
        "model": "any",
        "messages": [{"role": "user", "content": "Ada is 36 years old. Who is it?"}],
        "temperature": 0,
        "max_tokens": 200,
    }
    parsed = openai.chat.completions.parse(response_format=Person, **asked)
    assert 0 <= parsed.choices[0].message.parsed.age <= 150
    free = openai.chat.completions.create(response_format={"type": "json_object"}, **asked)
    assert free.choices[0].finish_reason == "length" or json.loads(free.choices[0].message.content)


def test_openai_is_told_of_a_schema_that_cannot_be_enforced(openai: Any) -> None:
    pytest.importorskip("llguidance")
    package = pytest.importorskip("openai")
    schema = {"type": "object", "minProperties": 3, "unevaluatedProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(package.BadRequestError, match="cannot be enforced") as refused:
        openai.chat.completions.create(model="any", messages=MESSAGES, response_format=form)
    assert refused.value.param == "response_format.json_schema.schema"


def test_openai_is_told_which_parameter_is_wrong(openai: Any) -> None:
    package = pytest.importorskip("openai")
    with pytest.raises(package.BadRequestError) as refused:
        openai.chat.completions.create(model="any", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"


def test_openai_lists_the_model(openai: Any) -> None:
    assert [model.id for model in openai.models.list()] == ["tiny"]


# ---- anthropic -----------------------------------------------------------------------------------


def test_anthropic_sends_messages_whole_and_streamed(server: RunningServer) -> None:
    package = pytest.importorskip("anthropic")
    client = package.Anthropic(base_url=server.url, api_key="none")
    asked: dict[str, Any] = {
        "model": "any",
        "max_tokens": 40,
        "messages": MESSAGES,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**asked)
    assert "Paris" in whole.content[0].text
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [block.text for block in final.content] == [text] == [whole.content[0].text]
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(
        model="any", messages=MESSAGES, system=asked["system"]
    ).input_tokens
    usage = whole.usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_anthropic_gets_a_call_that_it_requires_whole_and_streamed(server: RunningServer) -> None:
    pytest.importorskip("llguidance")
    package = pytest.importorskip("anthropic")
    client = package.Anthropic(base_url=server.url, api_key="none")
    tool = {key: WEATHER[key] for key in ("name", "description")}
    asked: dict[str, Any] = {
        "model": "any",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "How is the weather in Rome?"}],
        "tools": [{**tool, "input_schema": WEATHER["parameters"]}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**asked)
    [block] = whole.content
    assert (whole.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
    assert block.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [one.input for one in final.content] == [block.input]


# ---- ollama --------------------------------------------------------------------------------------


def test_ollama_chats_whole_and_streamed(server: RunningServer) -> None:
    package = pytest.importorskip("ollama")
    client = package.Client(server.url)
    name = client.list().models[0].model
    options = {"temperature": 0, "num_predict": 40}
    whole = client.chat(name, messages=MESSAGES, options=options)
    assert "Paris" in whole.message.content
    parts = list(client.chat(name, messages=MESSAGES, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count
    raw = client.generate(name, "Once upon a time", raw=True, options=options)
    pieces = client.generate(name, "Once upon a time", raw=True, options=options, stream=True)
    assert "".join(piece.response for piece in pieces) == raw.response
    assert client.show(name).capabilities == ["completion", "tools"]
    assert len(client.embed(name, ["one", "two"]).embeddings) == 2
    assert client.ps().models[0].model == name


def test_ollama_gets_json_of_a_schema(server: RunningServer) -> None:
    pytest.importorskip("llguidance")
    package = pytest.importorskip("ollama")
    client = package.Client(server.url)
    answer = client.chat(
        "any",
        messages=[{"role": "user", "content": "Ada is 36 years old. Who is it?"}],
        format=PERSON,
        options={"temperature": 0},
    )
    assert set(json.loads(answer.message.content)) == {"name", "age"}


# ---- litellm, langchain, llm ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path"), [("openai/any", "/v1"), ("ollama_chat/any", ""), ("anthropic/any", "")]
)
def test_litellm_speaks_each_protocol(
    server: RunningServer, model: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    asked = {"model": model, "api_base": server.url + path, "api_key": "none", **GREEDY}
    whole = litellm.completion(messages=MESSAGES, **asked)
    assert "Paris" in whole.choices[0].message.content
    stream = litellm.completion(messages=MESSAGES, stream=True, **asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_langchain_chats_whole_and_streamed(server: RunningServer) -> None:
    package = pytest.importorskip("langchain_openai")
    chat = package.ChatOpenAI(
        model="any", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=40
    )
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.content
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole.content


def test_llm_chats_whole_and_streamed(server: RunningServer, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    models = [{"model_id": "here", "model_name": "any", "api_base": f"{server.url}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # YAML knows JSON
    command = [sys.executable, "-m", "llm", "-m", "here", "-o", "temperature", "0", "--no-log"]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    answers = [
        subprocess.run(
            [*command, *more, QUESTION],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more in ([], ["--no-stream"])
    ]
    assert "Paris" in answers[0]
    assert answers[0] == answers[1]

"""The chat templates of real models say what they say in Hugging Face's library.

    AIRLLM_TEST_TEMPLATES=llama.cpp/models/templates pytest tests/test_real_templates.py

AIRLLM_TEST_TEMPLATES: a folder of templates, *.jinja. It needs `transformers` (no torch).
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from airllm.text.answer import (
    AnswerFormat,
    AnswerParser,
    CallArguments,
    CallBegin,
    Tool,
    format_of,
)
from airllm.text.answer.call_grammars import call_grammars
from airllm.text.answer.told_tools import tool_variables
from airllm.text.chat_template import ChatTemplate, ChatTemplateError

FOLDER = os.environ.get("AIRLLM_TEST_TEMPLATES")
TEMPLATES = sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else []

pytestmark = pytest.mark.skipif(not TEMPLATES, reason="AIRLLM_TEST_TEMPLATES names no templates")

Messages = list[dict[str, Any]]

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"weather{at}",
            "description": "The weather in a city, as it is now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Name, in English"}},
                "required": ["city"],
            },
        },
    }
    for at in range(3)
]


def talk(n_messages: int) -> Messages:
    """Questions and answers in turn; the last is a question."""
    return [
        {"role": "user", "content": f"What is {at} + {at}? <b>Is it & <é> 漢?</b>\n"}
        if at % 2 == 0
        else {"role": "assistant", "content": f"It is {2 * at}.\n\n"}
        for at in range(n_messages - 1 + n_messages % 2)
    ]


def with_system(messages: Messages) -> Messages:
    return [{"role": "system", "content": "Be brief."}, *messages]


def with_thoughts(messages: Messages) -> Messages:
    return [
        {**message, "reasoning_content": "Let me think."}
        if message["role"] == "assistant"
        else message
        for message in messages
    ]


def with_tool_calls(n_calls: int, *, as_text: bool) -> Messages:
    """as_text: arguments are a text of JSON, as OpenAI has them."""
    messages: Messages = [{"role": "user", "content": "What is the weather like?"}]
    for at in range(n_calls):
        arguments: Any = {"city": f"City {at}"}
        call = {
            "id": f"call{at:05}",
            "type": "function",
            "function": {
                "name": "weather0",
                "arguments": json.dumps(arguments) if as_text else arguments,
            },
        }
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "name": "weather0", "content": "Sun"},
        ]
    return messages


def conversations() -> Iterator[tuple[str, Messages, dict[str, Any]]]:
    """Name, messages and variables."""
    for n in (1, 2, 3, 10, 101, 400):
        yield f"{n} messages", talk(n), {}
        yield f"{n} messages and system", with_system(talk(n)), {}
        yield f"{n} messages, to think", with_thoughts(talk(n)), {"enable_thinking": True}
        yield f"{n} messages, not to think", with_thoughts(talk(n)), {"enable_thinking": False}
    for n in (1, 10, 100, 200):
        yield f"{n} tool calls", with_tool_calls(n, as_text=False), {"tools": TOOLS}
        yield f"{n} tool calls as text", with_tool_calls(n, as_text=True), {"tools": TOOLS}
    for_functions = {"functions": json.dumps(TOOLS), "datetime": "today"}
    yield "tools and no calls", talk(3), {"tools": TOOLS, "reasoning_effort": "high"}
    yield "functions", with_system(talk(3)), for_functions
    yield "documents", talk(3), {"documents": [{"title": "T", "text": "Text", "content": "C"}]}


CONVERSATIONS = list(conversations())


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their library lets templates change lists, too, which Kimi K2's must."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    allows = sandbox.SandboxedEnvironment.is_safe_attribute
    monkeypatch.setattr(sandbox.ImmutableSandboxedEnvironment, "is_safe_attribute", allows)


def theirs(source: str, messages: Messages, variables: dict[str, Any]) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    values = {"tools": None, "documents": None, **SPECIAL_TOKENS, **variables}
    text: str = utils._compile_jinja_template(source).render(
        messages=messages, add_generation_prompt=True, **values
    )
    return text


@pytest.mark.usefixtures("changes")
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_renders_as_in_transformers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    source = path.read_text()
    template = ChatTemplate(source, SPECIAL_TOKENS)
    n_rendered = 0
    for name, messages, variables in CONVERSATIONS:
        try:
            expected = theirs(source, messages, variables)
        except Exception:  # the template refuses it, or cannot
            with pytest.raises(ChatTemplateError):
                template.render(messages, variables=variables)
            continue
        assert template.render(messages, variables=variables) == expected, name
        n_rendered += 1
    assert n_rendered, "no conversation was rendered"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_content_in_parts_is_content_joined(path: Path) -> None:
    template = ChatTemplate(path.read_text(), SPECIAL_TOKENS)
    in_parts = [
        {**message, "content": [{"type": "text", "text": part} for part in message["content"]]}
        for message in talk(3)
    ]
    try:
        expected = template.render(talk(3))
    except ChatTemplateError:
        pytest.skip("the template renders no conversation without tools")
    assert template.render(in_parts) == expected


WEATHER = Tool(
    "weather0",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
)
ARGUMENTS = {"city": "Xi'an", "days": 2}
UNKNOWN = ("muse-glimmer",)  # their calls are not read


def written_call(path: Path) -> tuple[AnswerFormat, str, str]:
    """The format, the template, and a call as it writes one; skips a template that writes none."""
    source = path.read_text()
    form, template = format_of(source), ChatTemplate(source, SPECIAL_TOKENS)
    if not form.shows_tools or path.stem in UNKNOWN:
        pytest.skip("it has no tools, or those of a format that is not known")
    asked: Messages = [{"role": "user", "content": "What is the weather like?"}]
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS)):
        function = {"name": "weather0", "arguments": arguments}
        id = "abcdefghij" if form.name == "solar" else "abcdefghi"  # as long as their ids are
        call = {"id": id, "type": "function", "function": function}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        variables = tool_variables(form, [WEATHER])
        try:
            before = template.render(asked, variables=variables)
            after = template.render([*asked, answer], False, variables=variables)
        except ChatTemplateError:
            continue  # some want the arguments as text
        said = after[_shared(before, after, form.marks) :].removesuffix("<|calls|>")  # an end
        if "weather0" in said:
            return form, source, said
    pytest.skip("it does not write calls")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_call_that_a_real_template_writes_is_read_as_that_call(path: Path) -> None:
    form, _, said = written_call(path)
    parser = AnswerParser(form, [WEATHER])
    parts = [*parser.push(said), *parser.finish()]
    begin = [part for part in parts if isinstance(part, CallBegin)]
    text = "".join(part.text for part in parts if isinstance(part, CallArguments))
    assert [part.name for part in begin] == ["weather0"]
    assert json.loads(text) == ARGUMENTS


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_call_that_a_real_template_writes_is_allowed_by_the_grammar_of_calls(path: Path) -> None:
    llguidance = pytest.importorskip("llguidance")
    form, source, said = written_call(path)
    tokenizer = llguidance.LLTokenizer("byte")
    found = call_grammars(form, json.dumps, [WEATHER], template=source)
    begun = [(said.find(one.mark), one) for one in found if one.mark in said]
    assert begun, said
    at, first = min(begun, key=lambda pair: pair[0])
    matcher = llguidance.LLMatcher(
        tokenizer, llguidance.LLMatcher.grammar_from_lark(first.lark), log_level=0
    )
    rest = said[at + len(first.mark) :].encode()
    for n, byte in enumerate(rest):
        if matcher.is_stopped():
            break
        assert matcher.consume_token(byte), rest[: n + 1].decode(errors="replace")
    assert matcher.is_accepting()


def _shared(before: str, after: str, marks: Sequence[str]) -> int:
    """How much of the prompt both have, without the beginning of a mark."""
    pairs = enumerate(zip(before, after, strict=False))
    n = next((at for at, (a, b) in pairs if a != b), len(before))
    sizes = (
        size
        for size in range(min(n, 40), 0, -1)
        if any(len(mark) > size and mark.startswith(after[n - size : n]) for mark in marks)
    )
    return n - next(sizes, 0)

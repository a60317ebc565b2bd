"""Anthropic's messages, as its SDKs and Claude Code speak them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.server.answer import (
    AnswerChoice,
    AnswerEvent,
    ChoiceEnded,
    Collected,
    TokenCounts,
    Told,
)
from airllm.server.body_fields import BodyFields
from airllm.server.chat import MOST_STOPS, ChatRequest, OutputForm, ToolChoice, read_sampling
from airllm.server.errors import ApiError, bad, unsupported
from airllm.server.openai_messages import (
    MOST_MESSAGES,
    UNSEEN_IMAGE,
    called,
    checked_tools,
    read_effort,
    schema_form,
)
from airllm.server.wire import sse
from airllm.server.writer import Reply, TokenTexts, Writer
from airllm.text.answer import AnswerText, AnswerThought, CallArguments, CallBegin, Tool
from airllm.text.answer.json_calls import is_name

__all__ = ["MessageWriter", "error_body", "read_message_request"]

# Claude Code puts a line before its system prompt that differs in each request. With it, nothing
# that was evaluated of the system prompt and the tools could be used again.
_AGENT_HEADERS = ("x-anthropic-billing-header:",)

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_message_request(
    body: object,
    defaults: Mapping[str, object],
    *,
    keeps_headers: bool = False,
    counts: bool = False,
) -> ChatRequest:
    """keeps_headers: see ServerSettings. counts: whether only the prompt's tokens are counted, for
    which max_tokens need not be there."""
    given = BodyFields(body)
    tools, deferred = _tools(given)
    choice, parallel = _tool_choice(given, tools)
    system = _system(given, keeps_headers)
    messages = _messages(given, {tool.name: tool for tool in tools})
    if system:
        messages.insert(0, {"role": "system", "content": system})
    prefill = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
        if prefill != prefill.rstrip():
            raise bad("messages", "the last message of the assistant ends with white space")
    thinks, variables = _thinking(given, dict(defaults))
    given.refuse("mcp_servers", "this server connects to no others", unless=([],))
    given.refuse("container", "this server runs no code")
    given.without_effect(
        *("metadata", "service_tier", "context_management", "betas", "inference_geo"),
        *("cache_control", "anthropic_version"),
        "safeguards",  # asks for a verdict on calls; without one Claude Code runs none by itself
    )
    most = given.count("max_tokens", 1)
    if most is None and not counts:
        raise given.wrong("max_tokens", "an integer of at least 1")
    request = ChatRequest(
        messages=messages,
        prefill=prefill,
        tools=tools if choice.kind != "none" else (),
        deferred_tools=deferred,
        tool_choice=choice,
        parallel_calls=parallel,
        variables=variables,
        form=_form(given),
        sampling=read_sampling(given),
        max_tokens=most,
        stop=given.texts("stop_sequences", MOST_STOPS),
        thinks=thinks,
        stream=given.flag("stream"),
        model=given.text("model", ""),
    )
    given.log_unknown("messages")
    return request


def _system(given: BodyFields, keeps_headers: bool) -> str:
    value = given.raw("system")
    if value is None or isinstance(value, str):
        texts = [value or ""]
    else:
        texts = [_text_of(BodyFields(item, path)) for path, item in given.items("system")]
    if not keeps_headers:
        texts = [text for text in texts if not text.startswith(_AGENT_HEADERS)]
    return "\n\n".join(text for text in texts if text)


def _text_of(block: BodyFields) -> str:
    kind = block.text("type")
    if kind != "text":
        raise unsupported(block.name("type"), f"this server reads text, and not {kind[:40]!r}")
    block.without_effect("cache_control", "citations")
    return block.text("text")


def _messages(given: BodyFields, tools: Mapping[str, Tool]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the tools by the ids of their calls
    for path, item in given.items("messages", required=True):
        if len(messages) >= MOST_MESSAGES:
            raise bad("messages", f"messages has more than {MOST_MESSAGES:,}")
        message = BodyFields(item, path)
        role = message.choice("role", ("user", "assistant", "system"))
        if isinstance(message.raw("content"), str):
            messages.append({"role": role, "content": message.text("content")})
        else:
            blocks = [
                BodyFields(block, where) for where, block in message.items("content", required=True)
            ]
            if role == "assistant":
                messages.append(_assistant(blocks, names))
            else:
                messages += _user(role, blocks, names, tools)
    if not messages:
        raise bad("messages", "messages is empty; expected at least one message")
    return messages


def _assistant(blocks: Sequence[BodyFields], names: dict[str, str]) -> dict[str, Any]:
    text, thought, calls = "", "", []
    for block in blocks:
        match block.text("type"):
            case "thinking":
                thought += block.text("thinking")
                block.without_effect("signature")
            case "redacted_thinking":
                block.without_effect("data")
            case "tool_use":
                id, name = block.text("id"), block.text("name")
                names[id] = name
                calls.append(called(id, name, json.dumps(block.mapping("input"))))
                block.without_effect("cache_control")
            case _:
                text += _text_of(block)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thought:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _user(
    role: str,
    blocks: Sequence[BodyFields],
    names: Mapping[str, str],
    tools: Mapping[str, Tool],
) -> list[dict[str, Any]]:
    """Results of tools are messages of their own, before the user's words."""
    results, texts = [], []
    for block in blocks:
        if block.text("type") != "tool_result":
            texts.append(_text_of(block))
            continue
        id = block.text("tool_use_id")
        content = block.raw("content")
        if content is None or isinstance(content, str):
            text = content or ""
        else:
            text = "".join(
                _text_of_result(BodyFields(item, path), tools)
                for path, item in block.items("content")
            )
        if block.flag("is_error"):
            text = f"Error: {text}"
        block.without_effect("cache_control")
        result = {"role": "tool", "tool_call_id": id, "content": text}
        results.append({**result, "name": names[id]} if id in names else result)
    if texts or not results:
        return [*results, {"role": role, "content": "\n\n".join(texts)}]
    return results


def _text_of_result(block: BodyFields, tools: Mapping[str, Tool]) -> str:
    """A part of a tool's result. A reference to a deferred tool becomes the tool's definition."""
    match block.text("type"):
        case "image":
            return UNSEEN_IMAGE
        case "tool_reference":
            name = block.text("tool_name")
            if name not in tools:
                return f"There is no function {name}.\n"
            return json.dumps(tools[name].as_json(), ensure_ascii=False) + "\n"
    return _text_of(block)


def _tools(given: BodyFields) -> tuple[list[Tool], frozenset[str]]:
    """The tools, and the names of those that the model sees only where a result refers to them."""
    tools, deferred = [], set[str]()
    for path, item in given.items("tools"):
        tool = BodyFields(item, path)
        kind = tool.text("type", "custom")
        if kind != "custom":
            why = f"this server has no tools of its own, such as {kind[:40]!r}"
            raise unsupported(f"{path}.type", why)
        name = tool.text("name")
        if not is_name(name):
            raise tool.wrong("name", "letters, digits, and _ - . : /, at most 256")
        description, schema = tool.text("description", ""), tool.mapping("input_schema")
        tools.append(Tool(name, description, schema, tool.flag("strict")))
        if tool.flag("defer_loading"):
            deferred.add(name)
    return checked_tools(tools), frozenset(deferred)


def _tool_choice(given: BodyFields, tools: Sequence[Tool]) -> tuple[ToolChoice, bool]:
    """The choice, and whether several calls are allowed."""
    if not given.has("tool_choice"):
        return ToolChoice(), True
    choice = given.fields("tool_choice")
    kind = choice.choice("type", ("auto", "any", "tool", "none"))
    parallel = not choice.flag("disable_parallel_tool_use")
    if kind in ("any", "tool") and not tools:
        raise bad("tool_choice", "tool_choice asks for a call, and there are no tools")
    if kind == "tool":
        name = choice.text("name")
        if name not in {tool.name for tool in tools}:
            raise bad("tool_choice.name", f"tool_choice names {name!r}, which is none of the tools")
        return ToolChoice("named", name), parallel
    kinds = {"any": ToolChoice("required"), "none": ToolChoice("none")}
    return kinds.get(kind, ToolChoice()), parallel


def _thinking(given: BodyFields, variables: dict[str, object]) -> tuple[bool, dict[str, object]]:
    """Whether thoughts are shown, and the template's variables. Thinking is off unless it is asked
    for, as in Anthropic's API."""
    thinking = given.fields("thinking")
    kind = thinking.choice("type", ("enabled", "disabled", "adaptive"), "disabled")
    thinking.without_effect("budget_tokens", "display")
    effort = given.fields("output_config").maybe_text("effort")
    if kind == "disabled":
        off = {"enable_thinking": False, "thinking": False}
        return False, {**off, **variables} if given.has("thinking") else variables
    return True, read_effort(effort, {"enable_thinking": True, "thinking": True, **variables})


def _form(given: BodyFields) -> OutputForm | None:
    for field in ("output_format", "output_config"):
        outer = given.fields(field)
        form = outer.fields("format") if field == "output_config" else outer
        if form.has("type"):
            form.choice("type", ("json_schema",))
            return schema_form(form.mapping("schema"), form.name("schema"))
    return None


def error_body(error: ApiError) -> dict[str, Any]:
    kind = "api_error" if error.kind in ("server_error", "not_supported_error") else error.kind
    return {"type": "error", "error": {"type": kind, "message": error.message}}


class MessageWriter(Writer):
    """Writes messages, whole and as events. A message is a list of blocks, one after another."""

    def __init__(self, request: ChatRequest, reply: Reply, texts: TokenTexts) -> None:
        self._request, self._reply = request, reply
        self._n_blocks = 0
        self._open: str | None = None  # the type of the block that is being written
        self._end: ChoiceEnded | None = None

    def begin(self) -> bytes:
        usage = {"input_tokens": self._reply.prompt_tokens, "output_tokens": 0}
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        body = {"type": "message_start", "message": {**message, "usage": usage}}
        return sse(body, "message_start")

    def write(self, event: AnswerEvent) -> bytes:
        match event:
            case Told():
                return b"".join(self._part(part) for part in event.parts)
            case ChoiceEnded():
                self._end = event
                return self._close()
        return b""

    def end(self) -> bytes:
        assert self._end is not None
        delta = {"stop_reason": self._reason(self._end), "stop_sequence": self._end.stop}
        usage = _usage(TokenCounts.of([self._end]))
        body = {"type": "message_delta", "delta": delta, "usage": usage}
        return sse(body, "message_delta") + sse({"type": "message_stop"}, "message_stop")

    def failed(self, error: ApiError) -> bytes:
        return sse(error_body(error), "error")

    def heartbeat(self) -> bytes:
        return sse({"type": "ping"}, "ping")

    def whole(self, answer: Collected) -> dict[str, Any]:
        choice = answer.choices[0]
        assert choice.end is not None
        return {
            **self._head(),
            "content": self._blocks(choice),
            "stop_reason": self._reason(choice.end),
            "stop_sequence": choice.end.stop,
            "usage": _usage(answer.usage),
        }

    def _blocks(self, choice: AnswerChoice) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if choice.thought and self._request.thinks:
            blocks.append({"type": "thinking", "thinking": choice.thought, "signature": ""})
        if choice.text:
            blocks.append({"type": "text", "text": choice.text})
        for call in choice.calls:
            use = {"type": "tool_use", "id": call.id, "name": call.name}
            blocks.append({**use, "input": _input(call.arguments)})
        return blocks

    def _reason(self, end: ChoiceEnded) -> str:
        return "stop_sequence" if end.stop is not None else _STOP_REASONS[end.finish]

    def _part(self, part: object) -> bytes:
        match part:
            case AnswerText(text):
                start = self._start("text", {"text": ""})
                return start + self._delta({"type": "text_delta", "text": text})
            case AnswerThought(text) if self._request.thinks:
                start = self._start("thinking", {"thinking": "", "signature": ""})
                return start + self._delta({"type": "thinking_delta", "thinking": text})
            case CallBegin(_, name, id):
                closed = self._close()
                return closed + self._start("tool_use", {"id": id, "name": name, "input": {}})
            case CallArguments(_, text):
                return self._delta({"type": "input_json_delta", "partial_json": text})
        return b""

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        closed, self._open = self._close(), kind
        body = {
            "type": "content_block_start",
            "index": self._n_blocks,
            "content_block": {"type": kind, **block},
        }
        return closed + sse(body, "content_block_start")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        body = {"type": "content_block_delta", "index": self._n_blocks, "delta": delta}
        return sse(body, "content_block_delta")

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open, index = None, self._n_blocks
        self._n_blocks += 1
        return sse({"type": "content_block_stop", "index": index}, "content_block_stop")

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self._reply.id}",
            "type": "message",
            "role": "assistant",
            "model": self._reply.model,
        }


def _usage(usage: TokenCounts) -> dict[str, Any]:
    """Anthropic counts what was reused beside the input, not in it."""
    return {
        "input_tokens": usage.prompt_tokens - usage.reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.reused_tokens,
        "output_tokens": usage.answer_tokens,
    }


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; what a model has written wrongly, as a text in it."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {"_text": arguments}
    return value if isinstance(value, dict) else {"_value": value}

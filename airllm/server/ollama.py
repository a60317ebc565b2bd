"""Ollama's API: chats, texts, embeddings, and what it says of models."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
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
from airllm.server.chat import (
    MOST_STOPS,
    MOST_TOP_LOGPROBS,
    ChatRequest,
    OutputForm,
    read_sampling,
)
from airllm.server.errors import ApiError, bad
from airllm.server.openai_messages import (
    MOST_MESSAGES,
    called,
    read_effort,
    read_tools,
    schema_form,
)
from airllm.server.wire import json_line
from airllm.server.writer import Reply, TokenTexts, Writer
from airllm.text.answer import AnswerText, AnswerThought, CallArguments, CallBegin

__all__ = [
    "OllamaChatWriter",
    "OllamaTextWriter",
    "error_body",
    "is_load_request",
    "loaded_body",
    "read_keep_alive",
    "read_ollama_chat",
    "read_ollama_text",
    "timestamp",
]

_NS = 1e9
# "90", "1h30m", "500ms"
_DURATION_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|h|m|s|$)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern}){{1,4}}")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
# Options about how the model is loaded, which was decided when the server started.
_LOADING = (
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock"),
    *("num_keep", "numa", "low_vram", "f16_kv", "vocab_only", "draft_num_predict"),
)


def read_ollama_chat(body: object, defaults: Mapping[str, object]) -> ChatRequest:
    given = BodyFields(body)
    tools = read_tools(given)
    messages: list[dict[str, Any]] = []
    names: list[str] = []  # of the tools that were called
    for path, item in given.items("messages"):
        if len(messages) == MOST_MESSAGES:
            raise bad("messages", f"messages has more than {MOST_MESSAGES:,}")
        messages.append(_message(BodyFields(item, path), names))
    if not messages:
        raise bad("messages", "messages is empty; this model is always loaded")
    request = _request(given, defaults, messages=messages, tools=tools)
    given.log_unknown("/api/chat")
    return request


def read_ollama_text(body: object, defaults: Mapping[str, object]) -> ChatRequest:
    """/api/generate: a question for the chat template; with `raw` a text to continue, and with a
    suffix a gap to fill."""
    given = BodyFields(body)
    prompt, suffix = given.text("prompt", ""), given.text("suffix", "")
    for field in ("images", "template", "context"):
        given.refuse(field, "this server does not know it", unless=("", []))
    if given.flag("raw") or suffix:
        request = _request(given, defaults, prompts=(prompt,), suffix=suffix)
    else:
        system = given.text("system", "")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        request = _request(given, defaults, messages=messages)
    given.log_unknown("/api/generate")
    return request


def is_load_request(body: object) -> bool:
    """Whether a client only asks for the model to be loaded."""
    says = ("prompt", "suffix", "messages")
    return isinstance(body, Mapping) and not any(body.get(name) for name in says)


def loaded_body(model: str, *, is_chat: bool, reason: str = "load") -> dict[str, Any]:
    """The answer to such a request. reason: "load" or "unload"."""
    said = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    body = {"model": model, "created_at": timestamp(), **said}
    return {**body, "done": True, "done_reason": reason}


def read_keep_alive(given: BodyFields) -> float | None:
    """How long the model stays loaded after the answer, in seconds; below 0 for ever; None if the
    request does not say. A number, or Ollama's "1h30m"."""
    value = given.raw("keep_alive")
    if isinstance(value, str):
        sign, rest = (-1, value[1:]) if value[:1] == "-" else (1, value)
        if _DURATION.fullmatch(rest):
            parts = _DURATION_PART.findall(rest)
            return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
        raise given.wrong("keep_alive", "seconds, or a text such as '5m'")
    return given.number("keep_alive")


def _message(given: BodyFields, names: list[str]) -> dict[str, Any]:
    role = given.choice("role", ("system", "user", "assistant", "tool"))
    message: dict[str, Any] = {"role": role, "content": given.text("content", "")}
    given.refuse("images", "this server reads text only", unless=([],))
    if given.has("thinking"):
        message["reasoning_content"] = given.text("thinking")
    if role == "assistant" and given.has("tool_calls"):
        calls: list[dict[str, Any]] = []
        for path, item in given.items("tool_calls"):
            function = BodyFields(item, path).fields("function")
            name, number = function.text("name"), len(names) + len(calls)
            arguments = json.dumps(function.mapping("arguments"))
            calls.append(called(f"call_{number}", name, arguments))
        names += [call["function"]["name"] for call in calls]
        message["tool_calls"] = calls
    if role == "tool":
        # Results name their tools, not their calls.
        tool = given.maybe_text("tool_name") or given.maybe_text("name")
        number = names.index(tool) if tool in names else max(len(names) - 1, 0)
        message["tool_call_id"] = f"call_{number}"
        if tool is not None:
            message["name"] = tool
    return message


def _request(given: BodyFields, defaults: Mapping[str, object], **more: Any) -> ChatRequest:
    options = given.fields("options")
    most = options.count("num_predict", -2)
    options.without_effect(*_LOADING)
    options.refuse("mirostat", "this server does not have it", unless=(0,))
    options.without_effect("mirostat_tau", "mirostat_eta", "penalize_newline", "tfs_z")
    logprobs = given.flag("logprobs")
    thinks, variables = _think(given, dict(defaults))
    given.without_effect("truncate", "shift")
    return ChatRequest(
        variables=variables,
        form=_form(given),
        sampling=read_sampling(options),
        max_tokens=None if most is None or most < 0 else most,
        stop=options.texts("stop", MOST_STOPS),
        logprobs=logprobs,
        top_logprobs=given.count("top_logprobs", 0, MOST_TOP_LOGPROBS) or 0,
        thinks=thinks,
        stream=given.flag("stream", True),
        model=given.text("model", ""),
        keep_alive=read_keep_alive(given),
        **more,
    )


def _think(given: BodyFields, variables: dict[str, object]) -> tuple[bool, dict[str, object]]:
    value = given.raw("think")
    if value is None:
        return True, variables
    if isinstance(value, bool):
        return value, {**variables, "enable_thinking": value, "thinking": value}
    return True, read_effort(given.choice("think", ("low", "medium", "high", "max")), variables)


def _form(given: BodyFields) -> OutputForm | None:
    value = given.raw("format")
    if value is None or value == "":
        return None
    if value == "json":
        return OutputForm("json", param="format")
    if isinstance(value, dict):
        return schema_form(value, "format")
    raise given.wrong("format", "'json' or a JSON schema")


def error_body(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


def timestamp(seconds: float | None = None) -> str:
    """Of seconds since 1970; without them, now."""
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return when.isoformat().replace("+00:00", "Z")


class _OllamaWriter(Writer):
    """Lines of JSON; the last has done: true."""

    content_type = "application/x-ndjson"

    def __init__(self, request: ChatRequest, reply: Reply, texts: TokenTexts) -> None:
        self._request, self._reply, self._texts = request, reply, texts
        self._call: dict[str, Any] | None = None  # that is being written; told when it is complete
        self._arguments = ""
        self._end: ChoiceEnded | None = None

    def write(self, event: AnswerEvent) -> bytes:
        match event:
            case Told():
                told = [self._part(part) for part in event.parts]
                lines = [line for line in told if line is not None]
                if self._request.logprobs and event.logprobs:
                    lines = lines or [self._said("", "")]
                    lines[-1]["logprobs"] = self._logprobs(event.logprobs)
                return b"".join(json_line(line) for line in lines)
            case ChoiceEnded():
                self._end = event
                call = self._called()
                return json_line(call) if call is not None else b""
        return b""

    def end(self) -> bytes:
        assert self._end is not None
        return json_line({**self._said("", ""), **self._done(self._end)})

    def failed(self, error: ApiError) -> bytes:
        return json_line(error_body(error))

    def whole(self, answer: Collected) -> dict[str, Any]:
        choice = answer.choices[0]
        assert choice.end is not None
        body = {**self._said(choice.text, choice.thought), **self._done(choice.end)}
        if self._request.logprobs:
            body["logprobs"] = self._logprobs(choice.logprobs)
        return self._with_calls(body, choice)

    def _with_calls(self, body: dict[str, Any], choice: AnswerChoice) -> dict[str, Any]:
        return body

    def _said(self, text: str, thought: str) -> dict[str, Any]:
        raise NotImplementedError

    def _part(self, part: object) -> dict[str, Any] | None:
        match part:
            case AnswerText(text):
                return self._said(text, "")
            case AnswerThought(text):
                return self._said("", text) if self._request.thinks else None
            case CallBegin(_, name, id):
                told = self._called()
                self._call = {"id": id, "function": {"name": name}}
                return told
            case CallArguments(_, text):
                self._arguments += text
        return None

    def _called(self) -> dict[str, Any] | None:
        """The line of the call that is complete now, if there is one."""
        if self._call is None:
            return None
        call, self._call = _with_arguments(self._call, self._arguments), None
        self._arguments = ""
        line = self._said("", "")
        if "message" in line:
            line["message"]["tool_calls"] = [call]
        return line

    def _logprobs(self, logprobs: Any) -> list[dict[str, Any]]:
        return [
            {
                **self._texts.described(one.token, one.logprob),
                "top_logprobs": [self._texts.described(id, value) for id, value in one.top],
            }
            for one in logprobs
        ]

    def _head(self) -> dict[str, Any]:
        return {"model": self._reply.model, "created_at": timestamp()}

    def _done(self, end: ChoiceEnded) -> dict[str, Any]:
        usage = TokenCounts.of([end])
        return {
            "done": True,
            "done_reason": "length" if end.finish == "length" else "stop",
            "total_duration": int((usage.prompt_seconds + usage.answer_seconds) * _NS),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(usage.prompt_seconds * _NS),
            "eval_count": usage.answer_tokens,
            "eval_duration": int(usage.answer_seconds * _NS),
        }


class OllamaChatWriter(_OllamaWriter):
    def _said(self, text: str, thought: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought and self._request.thinks:
            message["thinking"] = thought
        return {**self._head(), "message": message, "done": False}

    def _with_calls(self, body: dict[str, Any], choice: AnswerChoice) -> dict[str, Any]:
        if choice.calls:
            body["message"]["tool_calls"] = [
                _with_arguments({"id": call.id, "function": {"name": call.name}}, call.arguments)
                for call in choice.calls
            ]
        return body


class OllamaTextWriter(_OllamaWriter):
    def _said(self, text: str, thought: str) -> dict[str, Any]:
        body = {**self._head(), "response": text, "done": False}
        return {**body, "thinking": thought} if thought and self._request.thinks else body


def _with_arguments(call: dict[str, Any], arguments: str) -> dict[str, Any]:
    """Ollama's arguments are an object; what a model has written wrongly is a text in it."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = {"_text": arguments}
    value = value if isinstance(value, dict) else {"_value": value}
    return {**call, "function": {**call["function"], "arguments": value}}

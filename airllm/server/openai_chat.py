"""OpenAI's chat completions."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from airllm.engine.requests import TokenLogprob
from airllm.server.answer import (
    AnswerChoice,
    AnswerEvent,
    ChoiceEnded,
    Collected,
    Evaluated,
    TokenCounts,
    Told,
)
from airllm.server.body_fields import BodyFields
from airllm.server.chat import (
    MOST_CHOICES,
    MOST_STOPS,
    MOST_TOP_LOGPROBS,
    ChatRequest,
    OutputForm,
    read_sampling,
)
from airllm.server.errors import ApiError, bad
from airllm.server.openai_messages import (
    read_effort,
    read_messages,
    read_response_format,
    read_tool_choice,
    read_tools,
)
from airllm.server.wire import HEARTBEAT, as_json, sse
from airllm.server.writer import Reply, TokenTexts, Writer
from airllm.text.answer import AnswerText, AnswerThought, CallArguments, CallBegin

__all__ = ["ChatWriter", "ChunkWriter", "error_body", "read_chat", "usage_body"]

_NO_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "verbosity", "prediction", "cache_prompt", "timings_per_token"),
    *("add_generation_prompt", "stream", "id_slot"),
)


def read_chat(body: object, defaults: Mapping[str, object]) -> ChatRequest:
    """The request in a body. defaults: the server's variables for the chat template."""
    given = BodyFields(body)
    tools = read_tools(given)
    choice = read_tool_choice(given, tools)
    messages = read_messages(given)
    variables = {**defaults, **given.mapping("chat_template_kwargs")}
    variables = read_effort(given.maybe_text("reasoning_effort"), variables)
    stream_options = given.fields("stream_options")
    stream = given.flag("stream")
    if given.has("stream_options") and not stream:
        raise bad("stream_options", "stream_options is only for stream: true")
    logprobs = given.flag("logprobs")
    top_logprobs = given.count("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top_logprobs and not logprobs:
        raise bad("top_logprobs", "top_logprobs needs logprobs: true")
    for name in ("functions", "function_call"):
        given.refuse(name, "it is the old form of tools", unless=("none", "auto", []))
    given.refuse("audio", "this server writes text only")
    given.refuse("modalities", "this server writes text only", unless=(["text"],))
    given.refuse("web_search_options", "this server does not search")
    prefill = ""
    if given.flag("continue_final_message"):
        if messages[-1]["role"] != "assistant":
            text = "continue_final_message needs messages that end with the assistant's"
            raise bad("continue_final_message", text)
        prefill = messages.pop()["content"]
    most = given.count("max_completion_tokens", 1)
    if most is None:
        most = given.count("max_tokens", -1)
    given.without_effect("max_tokens", *_NO_EFFECT)
    request = ChatRequest(
        messages=messages,
        prefill=prefill,
        tools=tools if choice.kind != "none" else (),
        tool_choice=choice,
        parallel_calls=given.flag("parallel_tool_calls", True),
        variables=variables,
        form=read_form(given),
        sampling=read_sampling(given),
        max_tokens=None if most in (None, -1, 0) else most,
        stop=given.texts("stop", MOST_STOPS),
        n=given.count("n", 1, MOST_CHOICES) or 1,
        logprobs=logprobs,
        top_logprobs=top_logprobs or 0,
        thinks=True,
        stream=stream,
        stream_usage=stream_options.flag("include_usage"),
        stream_progress=given.flag("return_progress"),
        model=given.text("model", ""),
    )
    stream_options.without_effect("include_obfuscation")
    stream_options.log_unknown("chat completions")
    given.log_unknown("chat completions")
    return request


def read_form(given: BodyFields) -> OutputForm | None:
    """response_format, or what other servers call it: json_schema, grammar, guided_regex..."""
    forms = [read_response_format(given)]
    for field in ("json_schema", "guided_json"):
        if given.has(field):
            schema = given.mapping(field)
            from airllm.server.openai_messages import schema_form

            forms.append(schema_form(schema, field))
    if given.has("guided_regex"):
        forms.append(OutputForm("regex", given.text("guided_regex"), "guided_regex"))
    if given.has("grammar"):
        forms.append(OutputForm("gbnf", given.text("grammar"), "grammar"))
    found = [form for form in forms if form is not None]
    if len(found) > 1:
        raise bad(found[1].param, f"{found[0].param} and {found[1].param} exclude each other")
    return found[0] if found else None


def usage_body(usage: TokenCounts) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.answer_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.thought_tokens},
    }


def timings_body(usage: TokenCounts) -> dict[str, Any]:
    """llama.cpp's names for how fast it was."""
    n_evaluated = usage.prompt_tokens - usage.reused_tokens
    prompt, answer = usage.prompt_seconds, usage.answer_seconds
    n_answer = max(usage.answer_tokens - 1, 0)
    return {
        "cache_n": usage.reused_tokens,
        "prompt_n": n_evaluated,
        "prompt_ms": 1e3 * prompt,
        "prompt_per_second": n_evaluated / prompt if prompt else 0.0,
        "predicted_n": usage.answer_tokens,
        "predicted_ms": 1e3 * answer,
        "predicted_per_second": n_answer / answer if answer else 0.0,
    }


def error_body(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


class ChunkWriter(Writer):
    """What streams of chat completions and of completions have in common."""

    def __init__(self, request: ChatRequest, reply: Reply, texts: TokenTexts) -> None:
        self._request, self._reply, self._texts = request, reply, texts
        self._ends: list[ChoiceEnded] = []

    @property
    @abstractmethod
    def chunk_head(self) -> dict[str, Any]:
        """The first fields of each chunk."""

    def _sse(self, choice: dict[str, Any]) -> bytes:
        """A chunk with this choice."""
        before, after = self._around
        return before + as_json(choice) + after

    @cached_property
    def _around(self) -> tuple[bytes, bytes]:
        """What all chunks have before and after their choice."""
        usage = {"usage": None} if self._request.stream_usage else {}
        before, _, after = sse({**self.chunk_head, "choices": [0], **usage}).rpartition(b"0]")
        return before, b"]" + after

    def end(self) -> bytes:
        last = b""
        if self._request.stream_usage:
            usage = TokenCounts.of(self._ends, self._request.n)
            counted = {"usage": usage_body(usage), "timings": timings_body(usage)}
            last = sse({**self.chunk_head, "choices": [], **counted})
        return last + b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> bytes:
        return sse(error_body(error))

    def heartbeat(self) -> bytes:
        return HEARTBEAT


class ChatWriter(ChunkWriter):
    """Writes chat completions, whole and as chunks."""

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(at, role) for at in range(self._request.n))

    def write(self, event: AnswerEvent) -> bytes:
        match event:
            case Evaluated() if self._request.stream_progress:
                progress = {
                    "total": event.total,
                    "cache": event.reused,
                    "processed": event.done,
                }
                return sse({**self.chunk_head, "choices": [], "prompt_progress": progress})
            case Told():
                return self._told(event)
            case ChoiceEnded():
                self._ends.append(event)
                return self._chunk(event.choice, {}, finish=event.finish)
        return b""

    def whole(self, answer: Collected) -> dict[str, Any]:
        usage = answer.usage
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": at,
                    "message": self._message(choice),
                    "logprobs": self._logprobs(choice.logprobs),
                    "finish_reason": choice.finish,
                }
                for at, choice in enumerate(answer.choices)
            ],
            "usage": usage_body(usage),
            "timings": timings_body(usage),
        }

    def _message(self, choice: AnswerChoice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.thought:
            message["reasoning_content"] = choice.thought
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [call.as_json() for call in choice.calls]
        return message

    def _told(self, event: Told) -> bytes:
        deltas = [self._delta(part) for part in event.parts] or [{}]
        logprobs = [self._logprobs(event.logprobs), *[None] * len(deltas)]
        return b"".join(
            self._chunk(event.choice, delta, logprobs=of_delta)
            for delta, of_delta in zip(deltas, logprobs, strict=False)
        )

    def _delta(self, part: object) -> dict[str, Any]:
        match part:
            case AnswerText(text):
                return {"content": text}
            case AnswerThought(text):
                return {"reasoning_content": text}
            case CallBegin(index, name, id):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": id, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        raise TypeError(f"{type(part).__name__} is no part of an answer")

    def _logprobs(self, logprobs: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return {"content": [self._logprob(one) for one in logprobs], "refusal": None}

    def _logprob(self, one: TokenLogprob) -> dict[str, Any]:
        top = [self._texts.described(token, logprob) for token, logprob in one.top]
        return {**self._texts.described(one.token, one.logprob), "top_logprobs": top}

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        *,
        finish: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        return self._sse(
            {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        )

    @property
    def chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk")

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._reply.id}",
            "object": kind,
            "created": self._reply.created,
            "model": self._reply.model,
        }

"""OpenAI's Responses API: items in, items out, and the last responses remembered."""

from collections.abc import Mapping, Sequence
from typing import Any

from airllm.server.answer import AnswerEvent, ChoiceEnded, Collected, TokenCounts, Told, collect
from airllm.server.body_fields import BodyFields
from airllm.server.chat import ChatRequest, read_sampling
from airllm.server.errors import ApiError, bad
from airllm.server.openai_messages import (
    called,
    read_effort,
    read_response_format,
    read_tool_choice,
)
from airllm.server.openai_response_items import (
    ResponseTool,
    plain_tool,
    read_items,
    read_response_tools,
)
from airllm.server.remembered import Remembered
from airllm.server.wire import HEARTBEAT, sse
from airllm.server.writer import Reply, TokenTexts, Writer
from airllm.text.answer import AnswerText, AnswerThought, CallArguments, CallBegin

__all__ = ["ResponseWriter", "read_response"]

_NO_EFFECT = (
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "include"),
    *("prompt_cache_retention", "max_tool_calls", "stream_options", "client_metadata"),
)
_ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
}


def read_response(
    body: object, defaults: Mapping[str, object], remembered: Remembered
) -> ChatRequest:
    given = BodyFields(body)
    offered = read_response_tools(given)
    tools = [one.tool for one in offered]
    choice = read_tool_choice(given, tools)
    messages = read_items(given)
    before = given.maybe_text("previous_response_id")
    if before is not None:
        messages = [*remembered.messages(before), *messages]
    instructions = given.text("instructions", "")
    history = list(messages)
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    if not messages:
        raise bad("input", "input is empty; expected a text or items")
    reasoning = given.fields("reasoning")
    effort = reasoning.maybe_text("effort")
    reasoning.without_effect("summary", "generate_summary", "context")
    text = given.fields("text")
    text.without_effect("verbosity")
    given.refuse("background", "answers come while the client waits", unless=(False,))
    given.refuse("conversation", "this server keeps responses, and no conversations")
    given.refuse("prompt", "this server keeps no prompts")
    given.choice("truncation", ("auto", "disabled"), "disabled")
    top_logprobs = given.count("top_logprobs", 0, 20)
    given.without_effect(*_NO_EFFECT)
    request = ChatRequest(
        messages=messages,
        tools=tools if choice.kind != "none" else (),
        tool_choice=choice,
        parallel_calls=given.flag("parallel_tool_calls", True),
        variables=read_effort(effort, dict(defaults)),
        form=read_response_format(text, "format"),
        sampling=read_sampling(given),
        max_tokens=given.count("max_output_tokens", 1),
        logprobs=bool(top_logprobs),
        top_logprobs=top_logprobs or 0,
        stream=given.flag("stream"),
        model=given.text("model", ""),
        said={
            "history": history,
            "store": given.flag("store", True),
            "tools": {one.tool.name: one for one in offered},
            "shown": {
                "instructions": instructions or None,
                "previous_response_id": before,
                "max_output_tokens": given.raw("max_output_tokens"),
                "reasoning": {"effort": effort, "summary": None},
                "temperature": given.raw("temperature"),
                "top_p": given.raw("top_p"),
                "text": {"format": text.raw("format") or {"type": "text"}},
                "tool_choice": given.raw("tool_choice") or "auto",
                "tools": given.raw("tools") or [],
                "metadata": given.raw("metadata") or {},
            },
        },
    )
    given.log_unknown("responses")
    return request


class ResponseWriter(Writer):
    """Writes responses, whole and as events.

    An answer is items in order: reasoning, a message, calls. The stream tells of the beginning, the
    growth and the end of each.
    """

    def __init__(
        self,
        request: ChatRequest,
        reply: Reply,
        texts: TokenTexts,
        remembered: Remembered | None = None,
    ) -> None:
        self._request, self._reply, self._texts = request, reply, texts
        self._remembered = remembered
        self._number = 0
        self._events: list[AnswerEvent] = []
        self._items: list[dict[str, Any]] = []  # the last of them is open
        self._is_open = False
        self._tools: Mapping[str, ResponseTool] = request.said["tools"]
        self._called: ResponseTool  # of the open item, with the arguments that came
        self._arguments = ""

    def begin(self) -> bytes:
        body = self._body("in_progress", [])
        return self._sse("response.created", response=body) + self._sse(
            "response.in_progress", response=body
        )

    def write(self, event: AnswerEvent) -> bytes:
        self._events.append(event)
        match event:
            case Told():
                return b"".join(self._part(part) for part in event.parts)
            case ChoiceEnded():
                return self._close()
        return b""

    def end(self) -> bytes:
        whole = self._complete(collect(self._events, 1), self._items)
        return self._sse(f"response.{whole['status']}", response=whole)

    def failed(self, error: ApiError) -> bytes:
        body = self._body("failed", self._items)
        body["error"] = {"code": error.code or error.kind, "message": error.message}
        return self._sse("response.failed", response=body)

    def heartbeat(self) -> bytes:
        return HEARTBEAT

    def whole(self, answer: Collected) -> dict[str, Any]:
        """The items of a stream of the same events."""
        choice = answer.choices[0]
        if choice.thought:
            self._part(AnswerThought(choice.thought))
        if choice.text:
            self._part(AnswerText(choice.text))
        for at, call in enumerate(choice.calls):
            self._part(CallBegin(at, call.name, call.id))
            self._part(CallArguments(at, call.arguments))
        self._close()
        return self._complete(answer, self._items)

    # ---- items ---------------------------------------------------------------------------------

    def _part(self, part: object) -> bytes:
        match part:
            case AnswerText(text):
                start = self._open("message", {"role": "assistant", "content": []})
                self._items[-1]["content"][0]["text"] += text
                return start + self._delta("response.output_text.delta", delta=text, logprobs=[])
            case AnswerThought(text):
                start = self._open("reasoning", {"summary": [], "content": []})
                self._items[-1]["content"][0]["text"] += text
                return start + self._delta("response.reasoning_text.delta", delta=text)
            case CallBegin(_, name, id):
                closed = self._close()  # the call before, while its arguments are known
                self._called, self._arguments = self._tools.get(name) or plain_tool(name), ""
                item = self._called.item(id or "", "")
                return closed + self._open(item.pop("type"), item)
            case CallArguments(_, text):
                self._arguments += text
                if not self._called.is_custom:  # whose text is known when all arguments are
                    event = "response.function_call_arguments.delta"
                    return self._sse(event, **self._place(), delta=text)
        return b""

    def _open(self, kind: str, body: dict[str, Any]) -> bytes:
        if self._is_open and self._items[-1]["type"] == kind:
            return b""
        closed, self._is_open = self._close(), True
        id = f"{_ID_PREFIXES[kind]}_{self._reply.id}{len(self._items):02}"
        self._items.append({"id": id, "type": kind, "status": "in_progress", **body})
        added = self._sse(
            "response.output_item.added",
            output_index=len(self._items) - 1,
            item={**self._items[-1], **({"content": []} if "content" in body else {})},
        )
        if "content" not in body:
            return closed + added
        part = _empty_part(kind)
        self._items[-1]["content"] = [part]
        return closed + added + self._delta("response.content_part.added", part=dict(part))

    def _close(self) -> bytes:
        if not self._is_open:
            return b""
        self._is_open, item = False, self._items[-1]
        item["status"] = "completed"
        if "call_id" in item:
            item.update(self._called.item(item["call_id"], self._arguments))
            done = self._called_done(item)
        else:
            part = item["content"][0]
            kind = "output_text" if item["type"] == "message" else "reasoning_text"
            more: dict[str, Any] = {"logprobs": []} if item["type"] == "message" else {}
            done = self._delta(f"response.{kind}.done", text=part["text"], **more)
            done += self._delta("response.content_part.done", part=part)
        place = len(self._items) - 1
        return done + self._sse("response.output_item.done", output_index=place, item=item)

    def _called_done(self, item: Mapping[str, Any]) -> bytes:
        place, kind = self._place(), "response.custom_tool_call_input"
        if self._called.is_custom:
            told = self._sse(f"{kind}.delta", **place, delta=item["input"])
            return told + self._sse(f"{kind}.done", **place, input=item["input"])
        more = {"name": item["name"], "arguments": item["arguments"]}
        return self._sse("response.function_call_arguments.done", **place, **more)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _delta(self, kind: str, **more: Any) -> bytes:
        return self._sse(kind, **self._place(), content_index=0, **more)

    def _sse(self, kind: str, **more: Any) -> bytes:
        body = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return sse(body, kind)

    # ---- the response --------------------------------------------------------------------------

    def _complete(self, answer: Collected, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        choice = answer.choices[0]
        status = "incomplete" if choice.finish == "length" else "completed"
        if status == "incomplete" and items:
            items[-1]["status"] = status
        body = self._body(status, items)
        if status == "incomplete":
            body["incomplete_details"] = {"reason": "max_output_tokens"}
        body["usage"] = _usage(answer.usage)
        if self._remembered is not None and self._request.said.get("store"):
            message: dict[str, Any] = {"role": "assistant", "content": choice.text}
            if choice.calls:
                message["tool_calls"] = [
                    called(call.id, call.name, call.arguments) for call in choice.calls
                ]
            self._remembered.add(body, [*self._request.said["history"], message])
        return body

    def _body(self, status: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self._reply.id}",
            "object": "response",
            "created_at": self._reply.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._reply.model,
            "output": list(items),
            "parallel_tool_calls": self._request.parallel_calls,
            "truncation": "disabled",
            "store": bool(self._request.said.get("store")),
            **self._request.said.get("shown", {}),
            "usage": None,
        }


def _empty_part(kind: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}


def _usage(usage: TokenCounts) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.reused_tokens},
        "output_tokens": usage.answer_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
    }

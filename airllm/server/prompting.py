"""From a ChatRequest to the tokens of its prompt, in the way that the model's template expects."""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airllm.server.chat import ChatRequest
from airllm.server.errors import ApiError, bad
from airllm.server.served_model import ServedModel
from airllm.text.answer.python_calls import with_written_calls
from airllm.text.answer.told_thoughts import PROMPT_END, with_thought
from airllm.text.answer.told_tools import tool_variables, with_told_tools
from airllm.text.chat_template import ChatTemplateError
from airllm.text.fill_in import NoFillInError
from airllm.text.prompts import Chat

__all__ = ["ReadPrompt", "read_prompts"]


@dataclass(frozen=True)
class ReadPrompt:
    """tokens: of the prompt. in_thought: whether the answer begins inside a thought."""

    tokens: list[int]
    in_thought: bool = False


def read_prompts(request: ChatRequest, model: ServedModel) -> list[ReadPrompt]:
    """The prompts of a request, one for a chat. ApiError, or another error that becomes one."""
    if request.prompts:
        return [
            ReadPrompt(
                _code_tokens(prompt, request.suffix, model)
                if isinstance(prompt, str)
                else _checked_tokens(prompt, model)
            )
            for prompt in request.prompts
        ]
    tokens = _chat_tokens(request, model)
    end = model.prompts.tokenizer.decode(tokens[-PROMPT_END:])
    return [ReadPrompt(tokens, model.format.begins_in_thought(end, request.prefill))]


def _code_tokens(prompt: str, suffix: str, model: ServedModel) -> list[int]:
    try:
        return model.prompts.code_tokens(prompt, suffix)
    except NoFillInError as error:
        raise bad("suffix", str(error)) from None


def _checked_tokens(tokens: Sequence[int], model: ServedModel) -> list[int]:
    size = model.prompts.tokenizer.vocab_size
    wrong = next((token for token in tokens if not 0 <= token < size), None)
    if wrong is not None:
        raise bad("prompt", f"prompt has the token {wrong}; this model has 0 to {size - 1}")
    if not tokens:
        raise bad("prompt", "prompt has no tokens")
    return list(tokens)


def _chat_tokens(request: ChatRequest, model: ServedModel) -> list[int]:
    messages: Sequence[Mapping[str, Any]] = _joined_systems(request.messages)
    messages = _with_results_in_order(messages)
    variables = dict(request.variables)
    has_calls = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    tools = [tool for tool in request.tools if tool.name not in request.deferred_tools]
    if model.format.shows_tools:
        variables |= tool_variables(model.format, tools)
    elif tools or has_calls:
        guard = model.prompts.tokenizer.guarded
        messages = with_told_tools(model.format, messages, tools, guard)
    if model.format.name == "lfm2" and "tool_calls" not in model.template.source:
        messages = with_written_calls(messages)
    messages = [with_thought(message, model.template.source) for message in messages]
    if model.format.name == "mistral":
        messages = [_with_short_ids(message) for message in messages]
    messages = model.roles.ordered(messages)

    def tokens(messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return model.prompts.some_tokens(Chat(messages, variables, request.prefill))

    try:
        return tokens(messages)
    except ChatTemplateError:
        # Some templates join the arguments of calls to text, and fail on an object.
        if not has_calls or not model.format.shows_calls:
            raise
        return tokens([_with_argument_texts(message) for message in messages])
    except TypeError as error:
        raise ApiError(400, str(error), "chat_template_kwargs") from None


def _joined_systems(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """System messages at the beginning become a single one; most templates refuse a second."""
    n = next((at for at, one in enumerate(messages) if one["role"] != "system"), len(messages))
    if n < 2:
        return list(messages)
    texts = [message["content"] for message in messages[:n] if message["content"]]
    return [{**messages[0], "content": "\n\n".join(texts)}, *messages[n:]]


def _with_results_in_order(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results of parallel calls in the order of the calls. Claude Code sends them in the order
    in which they ended. Most templates show no ids, so the model would mistake one for another."""
    ordered: list[Mapping[str, Any]] = []
    places: dict[str, int] = {}
    for role, group in itertools.groupby(messages, lambda message: message["role"]):
        run = list(group)
        if role == "assistant":
            calls = [call for message in run for call in message.get("tool_calls", ())]
            places = {call.get("id", ""): at for at, call in enumerate(calls)}
        elif role == "tool":
            run.sort(key=lambda result: places.get(result.get("tool_call_id", ""), len(places)))
        ordered += run
    return ordered


def _with_short_ids(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mistral's templates refuse ids that are not nine letters and digits."""
    changed = dict(message)
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "id": _short_id(call["id"])} for call in message["tool_calls"]
        ]
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    return changed


def _short_id(id: str) -> str:
    if len(id) == 9 and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def _with_argument_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_argument_text(call) for call in message["tool_calls"]]}


def _with_argument_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}

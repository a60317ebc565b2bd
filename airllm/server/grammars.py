"""What an answer must look like: schemas and calls as grammars of the engine."""

import json
import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from airllm.engine.grammar import GrammarLibraryError
from airllm.engine.marked_grammar import Marked, MarkedGrammars
from airllm.server.chat import ChatRequest
from airllm.server.errors import ApiError
from airllm.server.served_model import ServedModel
from airllm.text.answer import Tool
from airllm.text.answer.call_grammars import answer_grammar, call_grammars
from airllm.text.answer.call_rules import Mark
from airllm.util.printable import printable

if TYPE_CHECKING:
    from airllm.engine.grammar import AnswerForm, Grammar

__all__ = ["form_of_answer"]

_log = logging.getLogger("airllm")


def form_of_answer(
    request: ChatRequest, in_thought: bool, model: ServedModel
) -> "AnswerForm | None":
    """What the answer must look like. ApiError, which names the field: 501 without llguidance, 400
    for what cannot be enforced."""
    must_call = request.tool_choice.kind in ("required", "named")
    if request.form is None and not must_call:
        return _calls_at_will(request, in_thought, model) if request.tools else None
    param = request.form.param if request.form is not None else "tools"
    try:
        return _grammar(request, in_thought, model)
    except GrammarLibraryError as error:
        raise ApiError(501, str(error), param, "no_grammars") from None
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param, "grammar") from None


def _grammar(request: ChatRequest, in_thought: bool, model: ServedModel) -> "Grammar":
    form, choice = request.form, request.tool_choice
    if form is not None and form.kind not in ("json", "json_schema"):
        if in_thought:
            raise ValueError("the model thinks first, which no such grammar allows; turn that off")
        return model.grammar(**{form.kind: form.text})
    schema = None
    if form is not None:
        schema = json.loads(form.text) if form.kind == "json_schema" else {"type": "object"}
    if request.prompts:
        return model.grammar(json_schema=schema)
    is_forced = choice.kind in ("required", "named")
    tools = [tool for tool in request.tools if choice.kind != "named" or tool.name == choice.name]
    text = answer_grammar(
        model.format,
        _marks_of(model),
        tools=tools,
        schema=None if is_forced else schema,
        several=request.parallel_calls,
        in_thought=in_thought,
        template=model.template_source or "",
    )
    return model.lark_grammar(text)


def _calls_at_will(
    request: ChatRequest, in_thought: bool, model: ServedModel
) -> MarkedGrammars | None:
    """Calls that are right where the model begins one, in an answer that is free. Of a tool whose
    schema cannot be enforced, unless it is strict, any arguments. None without llguidance."""
    try:
        try:
            return _marked(request, request.tools, in_thought, model)
        except ValueError:
            tools = [_enforceable(tool, request, model) for tool in request.tools]
            return _marked(request, tools, in_thought, model)
    except GrammarLibraryError:
        return None
    except ValueError as error:
        _log_once(f"tool calls are not held to a grammar: {error}")
        return None


def _enforceable(tool: Tool, request: ChatRequest, model: ServedModel) -> Tool:
    try:
        _marked(request, [tool], False, model)
    except ValueError as error:
        text = f"the parameters of the tool {tool.name!r}: {error}"
        if tool.strict:
            raise ApiError(400, f"tools: {text}", "tools", "grammar") from None
        _log_once(f"{text}; its calls may have any arguments")
        return Tool(tool.name)
    return tool


def _marked(
    request: ChatRequest, tools: Sequence[Tool], in_thought: bool, model: ServedModel
) -> MarkedGrammars:
    found = call_grammars(
        model.format,
        _marks_of(model),
        tools,
        several=request.parallel_calls,
        template=model.template_source or "",
    )
    thought = model.format.thought
    return MarkedGrammars(
        [
            Marked(one.mark.encode(), model.lark_grammar(one.lark), one.at_start, one.ends)
            for one in found
        ],
        model.prompts.tokenizer.token_bytes,
        thought=(thought[0].encode(), thought[1].encode()) if thought is not None else None,
        in_thought=in_thought,
    )


def _marks_of(model: ServedModel) -> Mark:
    """A grammar asks for the same few marks again and again, and to look one up takes as long as
    there are control tokens: the calls of 30 tools took 16 ms without a cache, and 2 ms with it."""

    @cache
    def mark(text: str) -> str:
        for id in model.prompts.tokenizer.control_ids((text,)):
            return f"<[{id}]>"
        return json.dumps(text, ensure_ascii=False)

    return mark


@lru_cache(maxsize=100)
def _log_once(text: str) -> None:
    _log.warning("%s", printable(text))

"""What an answer must look like: schemas and forced calls as grammars of the engine."""

import json
from typing import TYPE_CHECKING

from airllm.engine.grammar import GrammarLibraryError
from airllm.server.chat import ChatRequest
from airllm.server.errors import ApiError
from airllm.server.served_model import ServedModel
from airllm.text.answer.call_grammars import answer_grammar

if TYPE_CHECKING:
    from airllm.engine.grammar import Grammar

__all__ = ["grammar_of", "needs_grammar"]


def needs_grammar(request: ChatRequest) -> bool:
    return request.form is not None or request.tool_choice.kind in ("required", "named")


def grammar_of(request: ChatRequest, in_thought: bool, model: ServedModel) -> "Grammar":
    """The grammar of a request that needs one. ApiError, which names the field: 501 without
    llguidance, 400 for what cannot be enforced."""
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
    tokenizer = model.prompts.tokenizer

    def mark(text: str) -> str:
        for id in tokenizer.control_ids((text,)):
            return f"<[{id}]>"
        return json.dumps(text, ensure_ascii=False)

    is_forced = choice.kind in ("required", "named")
    tools = [tool for tool in request.tools if choice.kind != "named" or tool.name == choice.name]
    text = answer_grammar(
        model.format,
        mark,
        tools=tools,
        schema=None if is_forced else schema,
        several=request.parallel_calls,
        in_thought=in_thought,
        template=model.template_source or "",
    )
    return model.grammar(lark=text)

"""Grammars of answers, in Lark as llguidance reads it: tool calls that must come, and JSON.

A call has the format of the model's family, and arguments that the tool's schema allows. If the
model thinks, a thought may come first. What a grammar matches, the format's reader reads.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airllm.text.answer.formats import AnswerFormat
from airllm.text.answer.gemma_calls import QUOTE
from airllm.text.answer.parts import Tool
from airllm.util.errors import AirllmError

__all__ = ["NoGrammarError", "answer_grammar"]

# Of JSON: nothing of a schema may be ignored, and white space is bounded, so that a model that has
# lost its way does not write spaces to the end.
_JSON_OPTIONS = {"lenient": False, "whitespace_pattern": r"[ \t\n\r]{1,40}"}
_ANYTHING = "/(?s:.*)/"

# Makes the Lark of a mark: a control token, or the text of one that is none.
Mark = Callable[[str], str]


class NoGrammarError(AirllmError, ValueError):
    """What a request wants cannot be written as a grammar."""


def answer_grammar(
    form: AnswerFormat,
    mark: Mark,
    *,
    tools: Sequence[Tool] = (),
    schema: Mapping[str, Any] | None = None,
    several: bool = True,
    in_thought: bool = False,
    template: str = "",
) -> str:
    """A grammar of calls of the tools, at least one, or of JSON that a schema allows; of either if
    there are both.

    several: whether more than one call may come. in_thought: whether the prompt has begun a
    thought. template: the model's, which tells variants of a format apart. NoGrammarError for what
    cannot be enforced.
    """
    rules, bodies = _Rules(mark), []
    if tools:
        if form.name not in _WRITERS:
            raise NoGrammarError(f"tool calls in the format {form.name!r} cannot be enforced")
        first, between, last = _sections(form, mark, template)
        calls = [_WRITERS[form.name](tool, rules, template) for tool in tools]
        rules.add("call", " | ".join(calls))
        more = f"({between} call)*" if several and between is not None else ""
        bodies.append(" ".join(filter(None, (first, "call", more, last))))
    if schema is not None:
        value = rules.json(schema)
        if form.name == "harmony":
            value = f'{mark("<|channel|>")} "final" {mark("<|message|>")} {value}'
        bodies.append(value)
    rules.add("body", " | ".join(bodies))
    return rules.text(form, in_thought)


class _Rules:
    """The rules of a grammar."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self._rules: dict[str, str] = {}

    def add(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def new(self, body: str, attribute: str = "") -> str:
        """A rule with a name of its own."""
        name = f"r{len(self._rules)}"
        self._rules[name + attribute] = body
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        return self.new(f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}")

    def text_before(self, end: str) -> str:
        """Any text, and a mark at its end."""
        mark = self.mark(end)
        if mark.startswith("<"):
            return self.new(f"{_ANYTHING} {mark}")
        return self.new(_ANYTHING, f"[suffix={mark}]")

    def text(self, form: AnswerFormat, in_thought: bool) -> str:
        before = self._thought(form, in_thought)
        lines = [f"{name}: {body}" for name, body in self._rules.items()]
        return "\n".join([f"start: {before} body", *lines, ""])

    def _thought(self, form: AnswerFormat, in_thought: bool) -> str:
        """What may come before the body."""
        if form.name == "harmony":
            thought = self.text_before("<|end|>")
            begin = f'{self.mark("<|channel|>")} "analysis" {self.mark("<|message|>")}'
            return f'({begin} {thought} {self.mark("<|start|>")} "assistant")*'
        if form.thought is None:
            return ""
        space, thought = r"/[ \n]{0,4}/", self.text_before(form.thought[1])
        if in_thought:
            return f"{thought} {space}"
        return f"({space} {self.mark(form.thought[0])} {thought} {space})?"


def _sections(form: AnswerFormat, mark: Mark, template: str) -> tuple[str, str | None, str]:
    """What stands before the calls, between two of them (None: there is only one), and after."""
    match form.name:
        case "deepseek" | "kimi":
            return mark(form.drops[0]), "", mark(form.drops[1])
        case "dsml" | "minimax":
            section = next(iter(form.calls))
            return f'{mark(section)} "\\n"', "", _quoted(section.replace("<", "</"))
        case "mistral" if "[ARGS]" not in template:
            return f'{mark("[TOOL_CALLS]")} "["', '", "', '"]"'
        case "cohere":
            return f'{mark("<|START_ACTION|>")} "["', '", "', f'"]" {mark("<|END_ACTION|>")}'
        case "apriel":
            return '"<tool_calls>["', '", "', '"]</tool_calls>"'
        case "nemotron":
            return f'{mark("<TOOLCALL>")} "["', '", "', f'"]" {mark("</TOOLCALL>")}'
        case "list":
            return f'{mark("<|tool_call|>")} "["', '", "', '"]"'
        case "harmony":
            return "", None, ""
        case "llama3":
            return "", '"; "', ""
        case "mistral" | "gemma":
            return "", "", ""
        case _:
            return "", '"\\n"', ""


# ---- calls in JSON -------------------------------------------------------------------------------


def _object(tool: Tool, rules: _Rules, arguments: str = "arguments") -> str:
    head = f'{{"name": {json.dumps(tool.name)}, "{arguments}": '
    return f'{_quoted(head)} {rules.json(_schema(tool))} "}}"'


def _hermes(tool: Tool, rules: _Rules, template: str) -> str:
    begin, end = rules.mark("<tool_call>"), rules.mark("</tool_call>")
    return f'{begin} "\\n" {_object(tool, rules)} "\\n" {end}'


def _in_list(tool: Tool, rules: _Rules, template: str) -> str:
    return _object(tool, rules)


def _cohere(tool: Tool, rules: _Rules, template: str) -> str:
    head = f'{{"tool_call_id": "0", "tool_name": {json.dumps(tool.name)}, "parameters": '
    return f'{_quoted(head)} {rules.json(_schema(tool))} "}}"'


def _llama3(tool: Tool, rules: _Rules, template: str) -> str:
    return _object(tool, rules, "parameters")


def _mistral(tool: Tool, rules: _Rules, template: str) -> str:
    if "[ARGS]" not in template:
        return _object(tool, rules)
    name = _quoted(tool.name)
    arguments = rules.json(_schema(tool))
    return f"{rules.mark('[TOOL_CALLS]')} {name} {rules.mark('[ARGS]')} {arguments}"


def _deepseek(tool: Tool, rules: _Rules, template: str) -> str:
    begin, end = rules.mark("<｜tool▁call▁begin｜>"), rules.mark("<｜tool▁call▁end｜>")
    between, arguments = rules.mark("<｜tool▁sep｜>"), rules.json(_schema(tool))
    if "```json" not in template:
        return f"{begin} {_quoted(tool.name)} {between} {arguments} {end}"
    name = _quoted(f"{tool.name}\n```json\n")
    return f'{begin} "function" {between} {name} {arguments} "\\n```" {end}'


def _kimi(tool: Tool, rules: _Rules, template: str) -> str:
    begin, end = rules.mark("<|tool_call_begin|>"), rules.mark("<|tool_call_end|>")
    name = _quoted(f"functions.{tool.name}:")
    between, arguments = rules.mark("<|tool_call_argument_begin|>"), rules.json(_schema(tool))
    return f"{begin} {name} /[0-9]{{1,3}}/ {between} {arguments} {end}"


def _harmony(tool: Tool, rules: _Rules, template: str) -> str:
    """Up to <|call|>, which ends the answer."""
    name = _quoted(f"commentary to=functions.{tool.name} ")
    constrained = f'{rules.mark("<|constrain|>")} "json" {rules.mark("<|message|>")}'
    return f"{rules.mark('<|channel|>')} {name} {constrained} {rules.json(_schema(tool))}"


# ---- calls in tags -------------------------------------------------------------------------------


def _function_tags(tool: Tool, rules: _Rules, template: str) -> str:
    values = _values(
        tool,
        rules,
        lambda name, kind: (f"<parameter={name}>\n", "\n</parameter>\n"),
    )
    wrapper = "seed:tool_call" if "<seed:tool_call>" in template else "tool_call"
    begin, end = rules.mark(f"<{wrapper}>"), rules.mark(f"</{wrapper}>")
    head = _quoted(f"\n<function={tool.name}>\n")
    return f'{begin} {head} {values} "</function>\\n" {end}'


def _glm(tool: Tool, rules: _Rules, template: str) -> str:
    values = _values(
        tool,
        rules,
        lambda name, kind: (
            f"<arg_key>{name}</arg_key>\n<arg_value>",
            "</arg_value>\n",
        ),
    )
    begin, end = rules.mark("<tool_call>"), rules.mark("</tool_call>")
    return f"{begin} {_quoted(tool.name + chr(10))} {values} {end}"


def _minimax(tool: Tool, rules: _Rules, template: str) -> str:
    values = _values(
        tool, rules, lambda name, kind: (f'<parameter name="{name}">', "</parameter>\n")
    )
    head = _quoted(f'<invoke name="{tool.name}">\n')
    return f'{head} {values} "</invoke>\\n"'


def _dsml(tool: Tool, rules: _Rules, template: str) -> str:
    def tags(name: str, is_text: bool) -> tuple[str, str]:
        kind = "true" if is_text else "false"
        return f'<｜DSML｜parameter name="{name}" string="{kind}">', "</｜DSML｜parameter>\n"

    head = _quoted(f'<｜DSML｜invoke name="{tool.name}">\n')
    return f'{head} {_values(tool, rules, tags)} "</｜DSML｜invoke>\\n"'


_KEYS_OF_OBJECTS = {
    *("type", "properties", "required", "additionalProperties", "title", "description"),
    *("$schema", "$defs", "definitions", "strict"),
}
_KEYS_OF_TEXTS = {"type", "enum", "const", "title", "description", "default", "examples"}


def _values(tool: Tool, rules: _Rules, tags: Callable[[str, bool], tuple[str, str]]) -> str:
    """The values of a tool's parameters, those that need not be there in optional parts. tags: what
    stands before and after a value by the parameter's name and whether it is a text."""
    schema = _schema(tool)
    if unknown := schema.keys() - _KEYS_OF_OBJECTS:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {tool.name!r} cannot be enforced")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts = []
    for name, one in schema.get("properties", {}).items():
        is_text = isinstance(one, Mapping) and one.get("type") == "string"
        before, after = tags(name, is_text)
        if is_text:
            value = _text(tool, one, after, rules)
        else:
            whole = {**one, **shared} if isinstance(one, Mapping) else {}
            value = f"{rules.json(whole)} {_quoted(after)}"
        part = f"{_quoted(before)} {value}"
        parts.append(part if name in schema.get("required", ()) else f"({part})?")
    return " ".join(parts)


def _text(tool: Tool, schema: Mapping[str, Any], after: str, rules: _Rules) -> str:
    """The text of a parameter, and what stands after it."""
    if unknown := schema.keys() - _KEYS_OF_TEXTS:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {tool.name!r} cannot be enforced")
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is None:
        return rules.new(_ANYTHING, f"[suffix={_quoted(after)}]")
    choices = " | ".join(_quoted(str(one)) for one in allowed)
    return f"({choices}) {_quoted(after)}"


# ---- Gemma ---------------------------------------------------------------------------------------


def _gemma(tool: Tool, rules: _Rules, template: str) -> str:
    value = _gemma_value(_schema(tool), rules, tool.name)
    begin, end = rules.mark("<|tool_call>"), rules.mark("<tool_call|>")
    return f"{begin} {_quoted('call:' + tool.name)} {value} {end}"


def _gemma_value(schema: Mapping[str, Any], rules: _Rules, where: str) -> str:
    kind = schema.get("type")
    known = _KEYS_OF_TEXTS if kind == "string" else _KEYS_OF_OBJECTS | {"items", "enum"}
    if unknown := schema.keys() - known - {"default", "examples"}:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {where!r} cannot be enforced")
    quote = rules.mark(QUOTE)
    match kind:
        case "string":
            allowed = [schema["const"]] if "const" in schema else schema.get("enum")
            if allowed is None:
                return f"{quote} {rules.text_before(QUOTE)}"
            choices = " | ".join(_quoted(str(one)) for one in allowed)
            return f"{quote} ({choices}) {quote}"
        case "integer" | "number" | "boolean" | "null":
            return rules.json(schema)
        case "array":
            item = rules.new(_gemma_value(schema.get("items", {}), rules, where))
            return rules.new(f'"[" ({item} ("," {item})*)? "]"')
        case "object":
            return rules.new(f'"{{" {_gemma_fields(schema, rules, where)} "}}"')
    raise NoGrammarError(f"the type {kind!r} of the tool {where!r} cannot be enforced")


def _gemma_fields(schema: Mapping[str, Any], rules: _Rules, where: str) -> str:
    """Fields in the order of the schema, with commas between those that are there."""
    required = schema.get("required", ())
    fields = [
        (name in required, f"{_quoted(name + ':')} {_gemma_value(one, rules, where)}")
        for name, one in schema.get("properties", {}).items()
    ]
    # `rest` is what may follow when something stands before; `alone`, when nothing does.
    rest, alone = "", ""
    for is_needed, field in reversed(fields):
        after = f"{field} {rest}".strip()
        if is_needed:
            alone, rest = rules.new(after), rules.new(f'"," {after}')
        else:
            skipped = f" | {alone}" if alone else ""
            optional = "" if alone else "?"
            alone = rules.new(f"({after}{skipped}){optional}")
            skipped = f" | {rest}" if rest else ""
            optional = "" if rest else "?"
            rest = rules.new(f'("," {after}{skipped}){optional}')
    return alone


_WRITERS: dict[str, Callable[[Tool, _Rules, str], str]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
    "nemotron": _in_list,
    "list": _in_list,
    "apriel": _in_list,
    "cohere": _cohere,
    "deepseek": _deepseek,
    "kimi": _kimi,
    "harmony": _harmony,
    "qwen3-coder": _function_tags,
    "seed": _function_tags,
    "glm": _glm,
    "minimax": _minimax,
    "dsml": _dsml,
    "gemma": _gemma,
}


def _schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, which are always an object."""
    return {"type": "object", **tool.parameters}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

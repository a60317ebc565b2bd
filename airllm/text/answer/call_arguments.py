"""Grammars of the arguments of tool calls: JSON, and what families write in its place.

What cannot be enforced is refused by its name. A tool that says nothing of its arguments may have
any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airllm.text.answer.call_rules import NoGrammarError, Rules, quoted
from airllm.text.answer.gemma_calls import QUOTE
from airllm.text.answer.json_calls import is_name
from airllm.text.answer.minimax3_calls import NAMESPACE
from airllm.text.answer.parts import Tool

__all__ = [
    "elements",
    "gemma_object",
    "harmony_json",
    "json_object",
    "named_parameters",
    "python_keywords",
    "tagged",
]

_ABOUT = {"title", "description", "default", "examples"}  # keywords that allow or forbid nothing
_SHARED = {"$defs", "definitions"}
_KEYS_OF_OBJECTS = {
    *("type", "properties", "required", "additionalProperties"),
    *("$schema", "strict"),
    *_SHARED,
    *_ABOUT,
}
_KEYS_OF_TEXTS = {"type", "enum", "const", *_ABOUT}
_SCALARS = {"string", "integer", "number", "boolean", "null"}
_NO_TEXT = {"type": ["number", "array", "object"]}
_NAME = "/[a-zA-Z0-9_.-]{1,64}/"  # of an argument that no schema names


def json_object(tool: Tool, rules: Rules) -> str:
    return rules.json(_schema(tool))


def harmony_json(tool: Tool, rules: Rules) -> str:
    """The rest of a header after the function's name, and its arguments. The channel stands before
    the name or behind it."""
    channel, constrain = rules.mark("<|channel|>"), rules.mark("<|constrain|>")
    message = rules.mark("<|message|>")
    header = f'({channel} ("commentary" | "analysis"))? (" json" | " "? {constrain} "json")?'
    return f"{header} {message} {json_object(tool, rules)}"


# ---- tags ----------------------------------------------------------------------------------------

# What stands around the value of a parameter, "%s": the opening and the closing tag. The argument
# says whether the value is a text.
Tags = Callable[[bool], tuple[str, str]]
ReadText = Callable[[Rules, str], str]


@dataclass(frozen=True)
class _Style:
    """text: the rule of a text and the closing tag behind it. line: what may stand around a text
    and is no part of it, as in Rules.written."""

    tags: Tags
    text: ReadText
    line: str


def tagged(
    tags: Tags, text: ReadText = Rules.text_until, line: str = "⏎"
) -> Callable[[Tool, Rules], str]:
    """See _Style."""
    style = _Style(tags, text, line)

    def arguments(tool: Tool, rules: Rules) -> str:
        """The parameters in the order of the schema; those that need not be there in optional
        parts."""
        schema = _schema(tool)
        if unknown := schema.keys() - _KEYS_OF_OBJECTS:
            raise NoGrammarError(f"{min(unknown)!r} of the tool {tool.name!r} cannot be enforced")
        if _is_open(schema):
            opening, closing = tags(True)
            before, after = map(rules.written, opening.split("%s"))
            return f"({before} {_NAME} {after} {text(rules, closing)})*"
        parts = []
        for name, one, is_needed in _fields(schema, tool.name):
            part = _tagged(tool, name, one, style, rules)
            parts.append(part if is_needed else f"({part})?")
        return " ".join(parts)

    return arguments


def _tagged(tool: Tool, name: str, schema: Any, style: _Style, rules: Rules) -> str:
    """A parameter between its tags."""

    def between(is_text: bool, value: Callable[[str], str]) -> str:
        opening, closing = style.tags(is_text)
        before, after = map(rules.written, opening.split("%s"))
        return f"{before} {quoted(name)} {after} {value(closing)}"

    if not isinstance(schema, Mapping):
        schema = {}
    if schema.get("type") == "string":
        return between(True, lambda closing: _text(tool, schema, closing, style, rules))
    if _is_any_text(schema):
        any_text = between(True, lambda closing: style.text(rules, closing))
        if style.tags(True) == style.tags(False):
            return any_text
        return f"({any_text} | {between(False, lambda closing: _json(schema, closing, rules))})"
    return between(False, lambda closing: _json(schema, closing, rules))


def _json(schema: Mapping[str, Any], closing: str, rules: Rules) -> str:
    return f"{rules.written('␣')} {rules.json(schema)} {rules.written('␣' + closing)}"


def _text(tool: Tool, schema: Mapping[str, Any], closing: str, style: _Style, rules: Rules) -> str:
    """A text, and the closing tag."""
    if unknown := schema.keys() - _KEYS_OF_TEXTS - _SHARED:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {tool.name!r} cannot be enforced")
    choices = _choices(schema)
    if choices is None:
        return style.text(rules, closing)
    return f"{rules.written(style.line)} {choices} {rules.written(style.line + closing)}"


def _is_any_text(schema: Mapping[str, Any]) -> bool:
    """Whether every text stands for a value that the schema allows: a text among other scalars."""
    kinds: list[object] = []
    choices = schema.get("anyOf", [schema])
    for one in choices if isinstance(choices, list) else [None]:
        if not isinstance(one, Mapping) or one.keys() - {"type", *_ABOUT, *_SHARED}:
            return False
        kind = one.get("type")
        kinds += kind if isinstance(kind, list) else [kind]
    if "anyOf" in schema and schema.keys() - {"anyOf", *_ABOUT, *_SHARED}:
        return False
    return "string" in kinds and all(isinstance(kind, str) and kind in _SCALARS for kind in kinds)


def _text_or_cdata(rules: Rules, closing: str) -> str:
    """A text that begins with < is in <![CDATA[...]]>, and any other may be."""
    cdata = f'"<![CDATA[" {rules.text_until("]]>")} {rules.written(closing)}'
    plain = rules.new("/[^<](?s:.*)/", f"[suffix={quoted(closing)}]")
    return f"({cdata} | {plain} | {rules.written(closing)})"


named_parameters = tagged(lambda is_text: ('<param name="%s">', "</param>"), _text_or_cdata)


# ---- Python --------------------------------------------------------------------------------------

# A text in either kind of quotation marks. One that is not escaped may stand in it where the text
# cannot end.
_PYTHON_TEXT = " | ".join(
    rf"""/{quote}([^{quote}\\]|\\['"\\nrt]|{quote}[^ \t\n\r,)\]}}:'"\\])*{quote}/"""
    for quote in ("'", '"')
)


def python_keywords(tool: Tool, rules: Rules) -> str:
    """LFM2's arguments: city='Paris', days=2."""
    schema = _schema(tool)
    if unknown := schema.keys() - _KEYS_OF_OBJECTS:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {tool.name!r} cannot be enforced")
    if _is_open(schema):
        item = f'{_NAME} "=" ({_python_anything(rules)})'
        return f'({item} (", " {item})*)?'
    fields = [
        (is_needed, f"{quoted(name + '=')} {_python_value(one, rules, tool.name)}")
        for name, one, is_needed in _fields(schema, tool.name)
    ]
    return _separated(fields, '", "', rules)


def _python_value(schema: Any, rules: Rules, where: str) -> str:
    if not isinstance(schema, Mapping) or not schema.keys() - _ABOUT - _SHARED:
        return f"({_python_anything(rules)})"
    match schema.get("type"):
        case "string":
            if unknown := schema.keys() - _KEYS_OF_TEXTS - _SHARED:
                raise NoGrammarError(f"{min(unknown)!r} of the tool {where!r} cannot be enforced")
            found = _listed(schema)
            texts = [quoted(repr(str(one))) for one in found or ()]
            return f"({' | '.join(texts) if texts else _PYTHON_TEXT})"
        case "boolean" if not schema.keys() - {"type", *_ABOUT, *_SHARED}:
            return '("True" | "False")'
        case "array" if not schema.keys() - {"type", "items", *_ABOUT, *_SHARED}:
            shared = {key: schema[key] for key in _SHARED if key in schema}
            items = schema.get("items", {})
            items = {**items, **shared} if isinstance(items, Mapping) else items
            item = rules.new(_python_value(items, rules, where))
            return rules.new(f'"[" ({item} (", " {item})*)? "]"')
    return rules.json(schema)


def _python_anything(rules: Rules) -> str:
    return f'{_PYTHON_TEXT} | "True" | "False" | "None" | {rules.json(_NO_TEXT)}'


# ---- Gemma ---------------------------------------------------------------------------------------


def gemma_object(tool: Tool, rules: Rules) -> str:
    return _gemma_value(_schema(tool), rules, tool.name)


def _gemma_value(schema: Any, rules: Rules, where: str) -> str:
    if not isinstance(schema, Mapping) or not schema.keys() - _ABOUT - _SHARED:
        return _gemma_anything(rules)
    kind = schema.get("type")
    known = _KEYS_OF_TEXTS if kind == "string" else _KEYS_OF_OBJECTS | {"items", "enum"}
    if unknown := schema.keys() - known - _SHARED:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {where!r} cannot be enforced")
    quote = rules.mark(QUOTE)
    match kind:
        case "string":
            choices = _choices(schema)
            return f"{quote} {rules.text_until(QUOTE) if choices is None else f'{choices} {quote}'}"
        case "integer" | "number" | "boolean" | "null":
            return rules.json(schema)
        case "array":
            item = rules.new(_gemma_value(schema.get("items", {}), rules, where))
            return rules.new(f'"[" ({item} ("," {item})*)? "]"')
        case "object" if _is_open(schema):
            return _gemma_any_object(rules)
        case "object":
            return rules.new(f'"{{" {_gemma_fields(schema, rules, where)} "}}"')
    raise NoGrammarError(f"the type {kind!r} of the tool {where!r} cannot be enforced")


def _gemma_fields(schema: Mapping[str, Any], rules: Rules, where: str) -> str:
    """Fields in the order of the schema."""
    fields = [
        (is_needed, f"{quoted(name + ':')} {_gemma_value(one, rules, where)}")
        for name, one, is_needed in _fields(schema, where)
    ]
    return _separated(fields, '","', rules)


def _separated(fields: list[tuple[bool, str]], comma: str, rules: Rules) -> str:
    """Fields in their order, with commas between those that are there. fields: whether the field
    must be there, and its rule. comma: a rule, too."""
    # `rest` is what may follow when something stands before; `alone`, when nothing does.
    rest, alone = "", ""
    for is_needed, field in reversed(fields):
        after = f"{field} {rest}".strip()
        if is_needed:
            alone, rest = rules.new(after), rules.new(f"{comma} {after}")
        else:
            skipped = f" | {alone}" if alone else ""
            optional = "" if alone else "?"
            alone = rules.new(f"({after}{skipped}){optional}")
            skipped = f" | {rest}" if rest else ""
            optional = "" if rest else "?"
            rest = rules.new(f"({comma} {after}{skipped}){optional}")
    return alone


def _gemma_anything(rules: Rules) -> str:
    quote, scalar = rules.mark(QUOTE), {"type": ["number", "boolean", "null"]}
    return rules.once(
        "any_value",
        lambda: (
            f"{quote} {rules.text_until(QUOTE)} | {rules.json(scalar)} | {_gemma_any_object(rules)}"
            ' | "[" (any_value ("," any_value)*)? "]"'
        ),
    )


def _gemma_any_object(rules: Rules) -> str:
    _gemma_anything(rules)
    field = f'{_NAME} ":" any_value'
    return rules.once("any_object", lambda: f'"{{" ({field} ("," {field})*)? "}}"')


# ---- MiniMax-M3 ----------------------------------------------------------------------------------


def elements(tool: Tool, rules: Rules) -> str:
    """An element for each value, within objects and lists as well."""
    return _elements(_schema(tool), rules, tool.name)


def _elements(schema: Mapping[str, Any], rules: Rules, where: str) -> str:
    """The elements of an object's values."""
    if unknown := schema.keys() - _KEYS_OF_OBJECTS:
        raise NoGrammarError(f"{min(unknown)!r} of the tool {where!r} cannot be enforced")
    if _is_open(schema):
        opening, value = rules.written(f"{NAMESPACE}<"), rules.text_until(f"{NAMESPACE}</")
        return f'({opening} {_NAME} ">" {value} {_NAME} ">")*'
    parts = []
    for name, one, is_needed in _fields(schema, where):
        part = _element(name, one, rules, where)
        parts.append(part if is_needed else f"({part})?")
    return " ".join(parts)


def _element(name: str, schema: Any, rules: Rules, where: str) -> str:
    if not is_name(name):
        raise NoGrammarError(f"{name!r} of the tool {where!r} is no name of an element")
    opening, end = rules.written(f"{NAMESPACE}<{name}>"), f"{NAMESPACE}</{name}>"
    closing = rules.written(end)
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    kind = kind if isinstance(kind, str) else None
    if kind == "string" and not schema.keys() - _KEYS_OF_TEXTS - _SHARED:
        choices = _choices(schema)
        if choices is None:
            return f"{opening} {rules.text_until(end)}"
        return f"{opening} {choices} {closing}"
    if kind in _SCALARS - {"string"}:
        return f"{opening} {rules.json(schema)} {closing}"
    if kind == "object":
        return f"{opening} {_elements(schema, rules, where)} {closing}"
    if kind == "array" and not schema.keys() - {"type", "items", *_SHARED, *_ABOUT}:
        shared = {key: schema[key] for key in _SHARED if key in schema}
        item = _element(
            "item", {"type": "string", **schema.get("items", {}), **shared}, rules, where
        )
        return f"{opening} ({item})* {closing}"
    raise NoGrammarError(f"{name!r} of the tool {where!r} cannot be enforced")


# ---- schemas -------------------------------------------------------------------------------------


def _schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, which are always an object."""
    return {"type": "object", **tool.parameters}


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Whether an object's schema says nothing of its fields."""
    says = schema.get("properties") or schema.get("required")
    return not says and schema.get("additionalProperties") in (None, True, {})


def _fields(schema: Mapping[str, Any], where: str) -> list[tuple[str, Any, bool]]:
    """Name, schema and whether it must be there, of the properties of an object."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, Mapping):
        raise NoGrammarError(f"'properties' of the tool {where!r} is no object")
    if not isinstance(required, list) or any(name not in properties for name in required):
        raise NoGrammarError(f"'required' of the tool {where!r} cannot be enforced")
    shared = {key: schema[key] for key in _SHARED if key in schema}
    return [
        (name, {**one, **shared} if isinstance(one, Mapping) else one, name in required)
        for name, one in properties.items()
    ]


def _choices(schema: Mapping[str, Any]) -> str | None:
    """The values that a schema lists, as texts to choose from."""
    found = _listed(schema)
    return None if found is None else f"({' | '.join(quoted(str(one)) for one in found)})"


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, at least one; None if it lists none."""
    found = [schema["const"]] if "const" in schema else schema.get("enum")
    if found is not None and not (isinstance(found, list) and found):
        raise NoGrammarError("an 'enum' is no list of values")
    return found

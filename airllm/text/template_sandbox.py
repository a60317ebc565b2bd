"""Jinja, set up as in Hugging Face's library for chat templates, with a restricted str.format.

Nothing here limits the time and memory of a template; `template_child`, which runs this, does.
"""

import json
import string
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Sandbox"]

# What Hugging Face's library refuses, but templates in use need: Kimi K2's keeps a queue of ids.
_CHANGES: dict[type, tuple[str, ...]] = {
    list: ("append", "extend", "insert", "pop"),
    dict: ("pop", "setdefault", "update"),
}


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates. A template cannot read an attribute that begins with an underscore,
    or include a file. It can change lists and dicts in the ways of `_CHANGES`: each rendering has
    its own copies."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def template(self, source: str) -> Template:
        """Compile a template. A faulty one can raise any exception."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about generated code
            return self.from_string(source)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in _CHANGES.get(type(obj), ()) or super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The replacement of a string's `format` or `format_map`; None for any other value."""
        text = getattr(value, "__self__", None)
        name = getattr(value, "__name__", None)
        if not isinstance(text, str) or name not in ("format", "format_map"):
            return None
        if name == "format_map":
            return lambda values: _FORMATTER.vformat(text, (), values)
        return lambda *args, **kwargs: _FORMATTER.vformat(text, args, kwargs)


class _Formatter(string.Formatter):
    """Formats '{} {name:>8}' but refuses '{0.x}' and '{0[x]}', which would bypass the sandbox."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if "." in field_name or "[" in field_name:
            raise SecurityError(f"format may not look into a value, as '{{{field_name}}}' does")
        return super().get_field(field_name, args, kwargs)


_FORMATTER = _Formatter()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's filter, which escapes characters for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


class _Generation(Extension):
    """`{% generation %}` marks the model's own words for training. Here it has no effect."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.CallBlock(self.call_method("_as_it_is"), [], [], body)
        return call.set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()

"""Tool calls that are JSON: Hermes and Qwen, Llama 3, Mistral, DeepSeek, Kimi, Solar and others.

Each reader begins after the mark that announces the call, and ends after the call.
"""

from collections.abc import Mapping

from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading, Say

__all__ = [
    "read_actions",
    "read_apertus",
    "read_deepseek",
    "read_hermes",
    "read_kimi",
    "read_list",
    "read_llama3",
    "read_mistral",
    "read_plain",
    "read_solar",
]

Tools = Mapping[str, Tool]

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")


def read_hermes(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """{"name": "f", "arguments": {"x": 1}}</tool_call>"""
    yield from read_object(source, parts)
    yield from skip_to("</tool_call>", source)


def read_list(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """[{"name": "f", "arguments": {"x": 1}}, ...]; or an object in each line, without brackets and
    commas."""
    yield from _objects(source, parts)


def read_plain(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """GigaChat: {"name": "f", "arguments": {"x": 1}}, and nothing behind it."""
    yield from read_object(source, parts)


def read_actions(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """Command R: a list in a fence of Markdown. `directly-answer`, which its template offers the
    model beside the tools, is none of them, and stays in the text."""
    yield from source.skip_space()
    yield from source.expect("```json")
    yield from _objects(source, parts, only=tools)
    yield from source.skip_space()
    yield from source.take("```")


def _objects(source: AnswerSource, parts: Parts, only: Tools | None = None) -> Reading[None]:
    yield from source.skip_space()
    in_list = yield from source.take("[")
    while True:
        yield from read_object(source, parts, only)
        yield from source.skip_space()
        if not (yield from source.take(",")) and (in_list or (yield from source.peek()) != "{"):
            break
    if in_list:
        yield from source.take("]")


def read_apertus(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """[{"f": {"x": 1}}, ...]"""
    yield from source.skip_space()
    yield from source.expect("[")
    while True:
        yield from source.skip_space()
        yield from source.expect("{")
        yield from source.skip_space()
        name = yield from source.json_string()
        yield from source.skip_space()
        if not is_name(name) or not (yield from source.take(":")):
            raise NotACallError
        parts.begin_call(name)
        yield from source.skip_space()
        yield from read_arguments(source, parts.arguments)
        yield from source.skip_space()
        yield from source.expect("}")
        yield from source.skip_space()
        if not (yield from source.take(",")):
            break
    yield from source.take("]")


def read_llama3(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """{"name": "f", "parameters": {"x": 1}}, more of them after a semicolon.

    A call has no mark of its own, so an object counts as a call only if it names one of the tools.
    """
    yield from source.skip_space()
    yield from read_object(source, parts, only=tools)
    yield from source.skip_space()
    while (yield from source.take(";", "<|python_tag|>")):
        yield from source.skip_space()
        yield from read_object(source, parts, only=tools)
        yield from source.skip_space()


def read_mistral(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """A list of objects; or, in later models, f[CALL_ID]123456789[ARGS]{"x": 1}."""
    yield from source.skip_space()
    if (yield from source.peek()) == "[":
        yield from read_list(source, parts, tools)
        return
    name, mark = yield from source.text_until("[CALL_ID]", "[ARGS]", "{")
    name, id = name.strip(), None
    if mark == "[CALL_ID]":
        id, mark = yield from source.text_until("[ARGS]")
    if not mark or not is_name(name):
        raise NotACallError
    parts.begin_call(name, id.strip() if id else None)
    if mark == "{":
        source.unread(mark)
    yield from source.skip_space()
    yield from read_arguments(source, parts.arguments)


def read_deepseek(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """function<｜tool▁sep｜>f, then {"x": 1} in a fence of Markdown; or f<｜tool▁sep｜>{"x": 1}."""
    end = "<｜tool▁call▁end｜>"
    name, mark = yield from source.text_until("<｜tool▁sep｜>", end)
    if mark is None or mark == end:
        raise NotACallError
    name = name.strip()
    if (yield from source.peek()) != "{":
        line, mark = yield from source.text_until("\n", end)
        if mark != "\n" or name != "function":
            raise NotACallError
        name = line.strip()
        yield from source.skip_space()
        yield from source.take("```json", "```")
        yield from source.skip_space()
    if not is_name(name):
        raise NotACallError
    parts.begin_call(name)
    yield from read_arguments(source, parts.arguments)
    yield from skip_to(end, source)


def read_kimi(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """functions.f:0<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>"""
    end = "<|tool_call_end|>"
    id, mark = yield from source.text_until("<|tool_call_argument_begin|>", end)
    id = id.strip()
    name = id.removeprefix("functions.").rpartition(":")[0] or id
    if mark is None or mark == end or not is_name(name):
        raise NotACallError
    parts.begin_call(name, id)
    yield from source.skip_space()
    yield from read_arguments(source, parts.arguments)
    yield from skip_to(end, source)


def read_solar(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """a1b2c3d4e5<|tool_call:name|>f<|tool_call:args|>{"x": 1}<|tool_call:end|>"""
    name_mark, arguments_mark, end = (f"<|tool_call:{it}|>" for it in ("name", "args", "end"))
    id, mark = yield from source.text_until(name_mark, end)
    name = ""
    if mark == name_mark:
        name, mark = yield from source.text_until(arguments_mark, end)
    if mark != arguments_mark or not is_name(name.strip()):
        raise NotACallError
    parts.begin_call(name.strip(), id.strip() or None)
    yield from source.skip_space()
    yield from read_arguments(source, parts.arguments)
    yield from skip_to(end, source)


def read_object(source: AnswerSource, parts: Parts, only: Tools | None = None) -> Reading[None]:
    """{"name": "f", "arguments": {"x": 1}}, in any order, the arguments as they are written.

    only: names that count. NotACallError before the call has begun; what is wrong later stays in
    the arguments.
    """
    name, id, early, begun = "", None, "", False
    yield from source.skip_space()
    yield from source.expect("{")
    yield from source.skip_space()
    while not (yield from source.take("}")):
        key = yield from source.json_string()
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        if key in _NAMES and not name:
            name = yield from source.json_string()
            if not is_name(name) or (only is not None and name not in only):
                raise NotACallError
        elif key in _ARGUMENTS and not begun and not early:
            if name:
                parts.begin_call(name, id)
                begun = True
                yield from read_arguments(source, parts.arguments)
            else:
                held: list[str] = []
                yield from read_arguments(source, held.append)
                early = "".join(held)
        elif key == "id":
            id = yield from source.json_string()
        else:
            yield from source.json_value(_drop)
        yield from source.skip_space()
        if not (yield from source.take(",")) and (yield from source.peek()) != "}":
            raise NotACallError
        yield from source.skip_space()
    if begun:
        return
    if not name or (only is not None and not early):
        raise NotACallError
    parts.begin_call(name, id)
    parts.arguments(early or "{}")


def read_arguments(source: AnswerSource, say: Say) -> Reading[None]:
    """Arguments as they are written. A string is decoded, because it holds the JSON text."""
    first = yield from source.peek()
    if first == '"':
        say((yield from source.json_string()))
    elif first == "{":
        yield from source.json_value(say)
    else:
        held: list[str] = []
        yield from source.json_value(held.append)
        value = "".join(held)
        say("{}" if value in ("", "null") else value)


def skip_to(end: str, source: AnswerSource) -> Reading[None]:
    """Read past a mark, and drop what a model wrote between the call and its end."""
    yield from source.until((end,), _drop)


def is_name(text: str) -> bool:
    """Whether a function can have this name."""
    return 0 < len(text) <= 256 and all(char.isalnum() or char in "_-.:/" for char in text)


def _drop(text: str) -> None:
    pass

"""How each format of tool calls is written: what its grammars are made of.

A call is `mark head arguments tail`, and calls may stand in a section:

    begin opened call (between call)* end

The texts are those of the families' own chat templates. In them ␣ is optional white space, № a
number, § and ¶ ids and † a type, see Rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from airllm.text.answer.call_arguments import (
    elements,
    gemma_object,
    harmony_json,
    json_object,
    named_parameters,
    python_keywords,
    tagged,
)
from airllm.text.answer.call_rules import Rules
from airllm.text.answer.formats import AnswerFormat
from airllm.text.answer.kimi3_calls import closing, opening
from airllm.text.answer.minimax3_calls import NAMESPACE
from airllm.text.answer.parts import Tool
from airllm.text.answer.python_calls import BEGIN, END
from airllm.text.answer.recipients import NEXT

__all__ = ["CallLayout", "layout_of"]


@dataclass(frozen=True)
class CallLayout:
    """head: up to the arguments, with %s for the tool's name. between: two calls; None where an
    answer has one call, and ends with it. starts: in the place of the mark at the beginning of an
    answer. other: marks of calls that models of the family write, too. before: one of these stands
    before `begin` where an answer has nothing but calls. named: a call begins with this and a line
    with the tool's name, without this at the beginning of an answer.
    """

    head: str
    tail: str
    arguments: Callable[[Tool, Rules], str] = json_object
    mark: str = ""
    begin: str = ""
    opened: str = ""
    between: str | None = "␣"
    end: str = ""
    starts: Sequence[str] = ()
    other: "Sequence[tuple[str, CallLayout]]" = ()
    before: Sequence[str] = ("",)
    named: str = ""


_OBJECT = '{"name": "%s", "arguments": '
_FUNCTION = CallLayout(
    "%s>␣",
    "</function>",
    tagged(lambda is_text: ("<parameter=%s>", "</parameter>␣")),
    mark="<function=",
)


def layout_of(form: AnswerFormat, template: str) -> CallLayout | None:
    """The layout of a format; None if it has none. template: the model's, which tells variants of
    a format apart."""
    layout = _layout(form, template)
    if layout is not None and layout.mark != _FUNCTION.mark and _FUNCTION.mark in form.calls:
        return replace(layout, other=((_FUNCTION.mark, _FUNCTION),))
    return layout


def _layout(form: AnswerFormat, template: str) -> CallLayout | None:
    match form.name:
        case "hermes":
            return CallLayout(f"␣{_OBJECT}", "}␣</tool_call>", mark="<tool_call>")
        case "qwen3-coder" | "seed":
            name = "seed:tool_call" if form.name == "seed" else "tool_call"
            return CallLayout(
                f"␣<function={_FUNCTION.head}",
                f"</function>␣</{name}>",
                _FUNCTION.arguments,
                mark=f"<{name}>",
            )
        case "glm":
            tags = "<arg_key>%s</arg_key>␣<arg_value>", "</arg_value>␣"
            arguments = tagged(lambda is_text: tags)
            return CallLayout("␣%s␣", "</tool_call>", arguments, mark="<tool_call>")
        case "functionary":
            return CallLayout("%s>", "</function>", mark="<function=")
        case "llama3":
            return CallLayout('{"name": "%s", "parameters": ', "}", between=";␣")
        case "mistral" if "[ARGS]" in template:
            id = "[CALL_ID]§" if "[CALL_ID]" in template else ""
            return CallLayout(f"%s{id}[ARGS]", "", mark="[TOOL_CALLS]")
        case "harmony":
            return CallLayout(
                "%s",
                "",
                harmony_json,
                mark="<|channel|>commentary to=functions.",
                between=None,
                starts=("to=functions.",),
                other=tuple(
                    (f"{before} to=functions.", CallLayout("%s", "", harmony_json))
                    for before in ("<|channel|>analysis", "<|start|>assistant")
                ),
            )
        case "gemma":
            return CallLayout("call:%s", "<tool_call|>", gemma_object, mark="<|tool_call>")
        case "functionary3":
            return CallLayout("%s\n", "", between=NEXT, named=NEXT)
        case "minicpm":
            tail, mark = "</function>", "<function name="
            return CallLayout('"%s">', tail, named_parameters, mark=mark)
        case "gigachat":
            return CallLayout(_OBJECT, "}", mark="<|function_call|>", between=None)
        case "gigachat3":
            before = ("<|message_sep|>\n\n", "")
            mark = "function call<|role_sep|>"
            return CallLayout(f"\n{_OBJECT}", "}", mark=mark, between=None, before=before)
    return _section(form, template)


def _section(form: AnswerFormat, template: str) -> CallLayout | None:
    """Of the formats with a section around the calls."""
    match form.name:
        case "deepseek":
            is_fenced = "```json" in template
            begin, end = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
            return CallLayout(
                "function<｜tool▁sep｜>%s\n```json\n" if is_fenced else "%s<｜tool▁sep｜>",
                f"\n```{end}" if is_fenced else end,
                mark=begin,
                begin=form.drops[0],
                end=form.drops[1],
            )
        case "kimi":
            return CallLayout(
                "functions.%s:№<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                mark="<|tool_call_begin|>",
                begin=form.drops[0],
                between="",
                end=form.drops[1],
            )
        case "minimax" | "dsml":
            (begin,) = form.calls
            prefix = "｜DSML｜" if form.name == "dsml" else ""

            def tags(is_text: bool) -> tuple[str, str]:
                kind = f' string="{"true" if is_text else "false"}"' if prefix else ""
                return f'<{prefix}parameter name="%s"{kind}>', f"</{prefix}parameter>␣"

            return CallLayout(
                f'<{prefix}invoke name="%s">␣',
                f"</{prefix}invoke>␣",
                tagged(tags),
                begin=begin,
                opened="␣",
                between="",
                end=begin.replace("<", "</"),
            )
        case "minimax3":
            return CallLayout(
                f'{NAMESPACE}<invoke name="%s">',
                f"{NAMESPACE}</invoke>␣",
                elements,
                begin=f"{NAMESPACE}<tool_call>",
                opened="␣",
                between="",
                end=f"{NAMESPACE}</tool_call>",
            )
        case "apriel" if "<tool_calls>\\n" in template and "<tool_calls>[" not in template:
            return CallLayout(_OBJECT, "}", begin="<tool_calls>", opened="␣", end="␣</tool_calls>")
        case "kimi3":
            empty = opening("response") + closing("response")
            return CallLayout(
                '<|open|>call tool="%s" index="№"<|sep|>',
                closing("call"),
                tagged(_kimi3_tags, line=""),
                begin=opening("tools"),
                between="",
                end=closing("tools"),
                before=(empty, closing("response")),
            )
        case "solar":
            return CallLayout(
                "¶<|tool_call:name|>%s<|tool_call:args|>",
                "<|tool_call:end|>",
                mark="<|tool_call:begin|>",
                begin="<|tool_calls|>",
                between="",
                before=("<|begin|>assistant", ""),
            )
        case "hy3":
            begin, end = form.drops
            separator, after_call, before_key, after_key, before_value, after_value = (
                form.other_marks
            )
            pair = f"{before_key}%s{after_key}␣{before_value}", f"{after_value}␣"
            return CallLayout(
                f"%s{separator}␣",
                after_call,
                tagged(lambda is_text: pair),
                mark=next(iter(form.calls)),
                begin=begin,
                opened="␣",
                end=f"␣{end}",
            )
        case "lfm2":
            return CallLayout(
                "%s(", ")", python_keywords, begin=BEGIN, opened="[", between=", ", end=f"]{END}"
            )
        case "apertus":
            return _list("<|tools_prefix|>", "<|tools_suffix|>", head='{"%s": ')
        case "firefunction":
            return _list("functools")
        case "command-r":
            head = '{␣"tool_name": "%s",␣"parameters": '
            return _list("Action:\n```json\n", "```", head=head, tail="␣}")
        case "cohere":
            head = '{"tool_call_id": "№", "tool_name": "%s", "parameters": '
            return _list("<|START_ACTION|>", "<|END_ACTION|>", head=head)
        case "mistral":
            tail = ', "id": "§"}' if '"id": "' in template else "}"
            return _list("[TOOL_CALLS]", tail=tail)
        case "apriel":
            return _list("<tool_calls>", "␣</tool_calls>")
        case "nemotron":
            return _list("<TOOLCALL>", "␣</TOOLCALL>")
        case "list":
            return _list("<|tool_call|>")
    return None


def _kimi3_tags(is_text: bool) -> tuple[str, str]:
    kind = "string" if is_text else "†"
    return f'<|open|>argument key="%s" type="{kind}"<|sep|>', closing("argument")


def _list(begin: str, end: str = "", *, head: str = _OBJECT, tail: str = "}") -> CallLayout:
    return CallLayout(head, tail, begin=begin, opened="␣[␣", between=",␣", end=f"␣]{end}")

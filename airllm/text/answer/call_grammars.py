"""Grammars of answers: tool calls that must come, calls wherever the model begins one, and JSON.

A call has the format of the model's family, and arguments that the tool's schema allows. If the
model thinks, a thought may come first. What a grammar matches, the format's reader reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airllm.text.answer.call_layouts import CallLayout, layout_of
from airllm.text.answer.call_rules import Mark, NoGrammarError, Rules
from airllm.text.answer.formats import AnswerFormat
from airllm.text.answer.parts import Tool

__all__ = ["MarkedGrammar", "NoGrammarError", "answer_grammar", "call_grammars"]


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
    rules, bodies = Rules(mark, form.marks), []
    if tools:
        layout = _layout(form, template)
        begin = f"{rules.one_of(layout.before)} {rules.written(layout.begin)}"
        bodies.append(f"{begin} {_calls(layout, tools, rules, several)}")
    if schema is not None:
        bodies.append(f"{rules.one_of(form.before_text)} {rules.json(schema)}")
    rules.add("body", " | ".join(bodies))
    return rules.lark(f"{_thought(form, in_thought, rules)} body")


@dataclass(frozen=True)
class MarkedGrammar:
    """lark: of what follows a mark, up to the end of a call or of a section of calls. at_start:
    whether the mark counts only at the beginning of an answer, or of what follows its thought.
    ends: whether the answer ends with it."""

    mark: str
    lark: str
    at_start: bool = False
    ends: bool = False


def call_grammars(
    form: AnswerFormat,
    mark: Mark,
    tools: Sequence[Tool],
    *,
    several: bool = True,
    template: str = "",
) -> list[MarkedGrammar]:
    """A grammar for each mark with which a model of the format may begin a call, see
    answer_grammar."""
    layout = _layout(form, template)
    ends = not several or layout.between is None
    found: list[MarkedGrammar] = []

    def add(texts: Sequence[str], calls: Callable[[Rules], str], *, at_start: bool = False) -> None:
        """The same grammar behind each of the texts."""
        if texts:
            rules = Rules(mark, form.marks)
            lark = rules.lark(calls(rules))
            found.extend(MarkedGrammar(text, lark, at_start, ends) for text in texts)

    def call(layout: CallLayout, tools: Sequence[Tool] = tools) -> Callable[[Rules], str]:
        return lambda rules: _after_mark(layout, tools, rules)

    if layout.begin:
        add([layout.begin], lambda rules: _calls(layout, tools, rules, several))
    if layout.mark:
        add([layout.mark], call(layout))
    add(layout.starts, call(layout), at_start=True)
    for text, other in layout.other:
        add([text], call(other))
    for tool in tools if layout.named else ():
        named = call(replace(layout, head=""), [tool])
        add([f"{layout.named}{tool.name}\n"], named)
        add([f"{tool.name}\n"], named, at_start=True)
    if form.bare:
        # Such a call has no mark but its beginning, up to the name of a tool.
        add(list(form.calls), call(layout))
        before, rest = layout.head.split('%s"')
        for tool in tools:
            begin, named = f'{before}{tool.name}"', call(replace(layout, head=rest), [tool])
            typed = begin.replace("{", '{"type": "function", ', 1)
            add([begin, typed], named, at_start=True)
    return found


def _layout(form: AnswerFormat, template: str) -> CallLayout:
    layout = layout_of(form, template)
    if layout is None:
        raise NoGrammarError(f"tool calls in the format {form.name!r} cannot be enforced")
    return layout


def _calls(layout: CallLayout, tools: Sequence[Tool], rules: Rules, several: bool) -> str:
    """What follows the beginning of a section of calls; without a section, the calls."""
    mark = rules.written(layout.mark)
    rules.add("call", f"{mark} ({_after_mark(layout, tools, rules)})")
    between = layout.between
    more = f"({rules.written(between)} call)*" if several and between is not None else ""
    return f"{rules.written(layout.opened)} call {more} {rules.written(layout.end)}"


def _after_mark(layout: CallLayout, tools: Sequence[Tool], rules: Rules) -> str:
    def call(tool: Tool) -> str:
        head = rules.written(layout.head.replace("%s", tool.name))
        return f"{head} {layout.arguments(tool, rules)} {rules.written(layout.tail)}"

    return " | ".join(map(call, tools))


def _thought(form: AnswerFormat, in_thought: bool, rules: Rules) -> str:
    """What may come before the body."""
    if form.name == "harmony":
        begin = rules.written("<|channel|>analysis<|message|>")
        return f"({begin} {rules.text_until('<|end|>')} {rules.written('<|start|>assistant')})*"
    if form.thought is None:
        return ""
    thought = f"{rules.text_until(form.thought[1])} {rules.written('␣')}"
    return thought if in_thought else f"({rules.written('␣' + form.thought[0])} {thought})?"

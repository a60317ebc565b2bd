"""Which format a model writes its answers in, as its chat template tells."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from airllm.text.answer import harmony
from airllm.text.answer.gemma_calls import QUOTE, read_gemma
from airllm.text.answer.json_calls import (
    read_actions,
    read_apertus,
    read_deepseek,
    read_hermes,
    read_kimi,
    read_list,
    read_llama3,
    read_mistral,
    read_plain,
    read_solar,
)
from airllm.text.answer.kimi3_calls import closing, opening, read_kimi3
from airllm.text.answer.minimax3_calls import NAMESPACE, read_minimax3
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.python_calls import BEGIN, END, read_python
from airllm.text.answer.recipients import TO_ALL, read_recipients
from airllm.text.answer.source import AnswerSource, Reading
from airllm.text.answer.tagged_calls import (
    InvokeTags,
    KeyValueTags,
    read_function,
    read_function_tags,
    read_named_function,
)

__all__ = ["AnswerFormat", "format_of"]

ReadCalls = Callable[[AnswerSource, Parts, Mapping[str, Tool]], Reading[None]]


@dataclass(frozen=True)
class AnswerFormat:
    """How a family writes what is not plain text.

    name: of the format of its tool calls. calls: a reader for what follows each mark. bare: whether
    a call may be the whole answer, without a mark. thought: the marks around thinking. drops: marks
    that mean nothing beside calls, such as those around a list of them; layout: marks that mean
    nothing anywhere. shows_tools: whether the template tells the model about tools; if not, the
    caller has to. shows_calls: whether it has the calls of earlier answers, and their results.
    other_marks: of the insides of calls. whole: a reader of whole answers, in place
    of all that. before_text: what may stand before an answer that is text.
    """

    name: str
    calls: Mapping[str, ReadCalls]
    thought: tuple[str, str] | None = None
    bare: bool = False
    drops: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    shows_tools: bool = True
    shows_calls: bool = True
    other_marks: tuple[str, ...] = ()
    whole: ReadCalls | None = None
    before_text: tuple[str, ...] = ("",)

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that the parser must see, even where they are control tokens."""
        return (
            *self.calls,
            *(self.thought or ()),
            *self.drops,
            *self.layout,
            *self.other_marks,
        )

    @property
    def thinks(self) -> bool:
        """Whether there may be thoughts in an answer."""
        return self.thought is not None or self.name == "harmony"

    def begins_in_thought(self, prompt_end: str, prefill: str = "") -> bool:
        """Whether a prompt has begun a thought, as the templates of some models do. prompt_end: its
        last words, prefill among them, with which the caller begins the answer."""
        if self.thought is None:
            return False
        _, begin, rest = prompt_end.rpartition(self.thought[0])
        # What a user says of the mark does not begin a thought: the end of the turn comes after it.
        return bool(begin) and prefill.rstrip().endswith(rest.strip())


def _hermes_or_tags(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """<tool_call> announces JSON in most models, and tags in some."""
    yield from source.skip_space()
    first = yield from source.peek()
    read = {"{": read_hermes, "<": read_function_tags}.get(first, KeyValueTags().read)
    yield from read(source, parts, tools)


_TAGS: dict[str, ReadCalls] = {"<tool_call>": _hermes_or_tags, "<function=": read_function}
_DEEPSEEK = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
_DEEPSEEK_CALLS = AnswerFormat(
    "deepseek",
    {_DEEPSEEK[1]: read_deepseek},
    drops=(_DEEPSEEK[0], _DEEPSEEK[4]),
    other_marks=_DEEPSEEK[2:4],
)
_KIMI = (
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    *("<|tool_call_end|>", "<|tool_calls_section_end|>"),
)
_COHERE_TEXT = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")

# (texts that the template has, all of them; the format). The first row that fits counts.
_FORMATS: tuple[tuple[tuple[str, ...], AnswerFormat], ...] = (
    (
        ("<|channel|>", "<|message|>"),
        AnswerFormat(
            "harmony",
            {},
            other_marks=harmony.MARKS,
            whole=harmony.read_harmony,
            before_text=("<|channel|>final<|message|>",),
        ),
    ),
    (
        ("<|open|>", "<|close|>", "<|sep|>"),
        AnswerFormat(
            "kimi3",
            {opening("tools"): read_kimi3},
            thought=(opening("think"), closing("think")),
            layout=(opening("response"), closing("response"), closing("message")),
            other_marks=("<|open|>", "<|close|>", "<|sep|>"),
            before_text=(opening("response"), ""),  # the prompt may have begun it
        ),
    ),
    (
        ("<|tool_call:begin|>", "<|tool_call:args|>"),
        AnswerFormat(
            "solar",
            {"<|tool_call:begin|>": read_solar},
            thought=("<|think|>", "<|end|>"),
            drops=("<|tool_calls|>", "<|calls|>"),
            layout=("<|begin|>assistant", "<|content|>", "<|end|>"),
            other_marks=(
                *("<|begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"),
            ),
            before_text=("<|content|>", "<|begin|>assistant<|content|>"),
        ),
    ),
    (
        ("｜DSML｜", "tool_calls>"),
        AnswerFormat(
            "dsml",
            {"<｜DSML｜tool_calls>": InvokeTags("tool_calls", "｜DSML｜").read},
            other_marks=("｜DSML｜",),
        ),
    ),
    (
        ("｜DSML｜",),
        AnswerFormat(
            "dsml",
            {"<｜DSML｜function_calls>": InvokeTags("function_calls", "｜DSML｜").read},
            other_marks=("｜DSML｜",),
        ),
    ),
    ((_DEEPSEEK[0], "tools"), _DEEPSEEK_CALLS),
    (
        (_KIMI[0],),
        AnswerFormat(
            "kimi",
            {_KIMI[1]: read_kimi},
            drops=(_KIMI[0], _KIMI[4]),
            other_marks=_KIMI[2:4],
        ),
    ),
    (
        ("<|tool_call>call:",),
        AnswerFormat(
            "gemma",
            {"<|tool_call>": read_gemma},
            thought=("<|channel>thought", "<channel|>"),
            other_marks=(QUOTE, "<tool_call|>", "<|channel>"),
        ),
    ),
    (
        (NAMESPACE,),
        AnswerFormat(
            "minimax3",
            {f"{NAMESPACE}<tool_call>": read_minimax3},
            thought=("<mm:think>", "</mm:think>"),
            layout=("</mm:think>",),  # before an answer without a thought
            other_marks=(NAMESPACE,),
        ),
    ),
    (
        ("<minimax:tool_call>",),
        AnswerFormat(
            "minimax",
            {"<minimax:tool_call>": InvokeTags("minimax:tool_call").read},
            other_marks=("</minimax:tool_call>",),
        ),
    ),
    (
        ("[TOOL_CALLS]",),
        AnswerFormat(
            "mistral", {"[TOOL_CALLS]": read_mistral}, other_marks=("[ARGS]", "[CALL_ID]")
        ),
    ),
    (
        ("<seed:tool_call>",),
        AnswerFormat(
            "seed", {"<seed:tool_call>": read_function_tags}, other_marks=("</seed:tool_call>",)
        ),
    ),
    (
        ("<tool_calls>",),
        AnswerFormat("apriel", {"<tool_calls>": read_list}, drops=("</tool_calls>",)),
    ),
    (("<arg_key>",), AnswerFormat("glm", _TAGS, other_marks=("</tool_call>",))),
    (
        ("<function=", "<parameter="),
        AnswerFormat("qwen3-coder", _TAGS, other_marks=("</tool_call>",)),
    ),
    (("<tool_call>",), AnswerFormat("hermes", _TAGS, other_marks=("</tool_call>",))),
    (
        ("<TOOLCALL>",),
        AnswerFormat("nemotron", {"<TOOLCALL>": read_list}, drops=("</TOOLCALL>",)),
    ),
    (
        ("<|tool_call|>",),
        AnswerFormat("list", {"<|tool_call|>": read_list}, drops=("<|/tool_call|>",)),
    ),
    (
        ("<|START_ACTION|>",),
        AnswerFormat(
            "cohere",
            {"<|START_ACTION|>": read_list},
            thought=("<|START_THINKING|>", "<|END_THINKING|>"),
            drops=("<|END_ACTION|>",),
            layout=_COHERE_TEXT,
        ),
    ),
    (("<function=", "</function>"), AnswerFormat("functionary", {"<function=": read_function})),
    (
        (">>>all",),
        AnswerFormat("functionary3", {}, whole=read_recipients, before_text=(f"{TO_ALL}\n",)),
    ),
    (
        ("<function name=", "<param name="),
        AnswerFormat("minicpm", {"<function name=": read_named_function}),
    ),
    (
        ("<|im_start|>", "List of tools: "),
        AnswerFormat("lfm2", {BEGIN: read_python}, other_marks=(END,)),
    ),
    (
        ("<|tools_prefix|>",),
        AnswerFormat(
            "apertus",
            {"<|tools_prefix|>": read_apertus},
            thought=("<|inner_prefix|>", "<|inner_suffix|>"),
            drops=("<|tools_suffix|>",),
        ),
    ),
    (("<|function_call|>",), AnswerFormat("gigachat", {"<|function_call|>": read_plain})),
    (
        ("function call", "<|role_sep|>"),
        AnswerFormat(
            "gigachat3",
            {"function call<|role_sep|>": read_plain},
            layout=("<|message_sep|>",),  # after a text, before a call
            other_marks=("<|role_sep|>",),
        ),
    ),
    (("functools[",), AnswerFormat("firefunction", {"functools": read_list})),
    (("Action:", "```json", '"tool_name"'), AnswerFormat("command-r", {"Action:": read_actions})),
    (
        ("<|python_tag|>",),
        AnswerFormat("llama3", {"<|python_tag|>": read_llama3}, bare=True),
    ),
    (
        ('"parameters":', '"name":'),
        AnswerFormat("llama3", {"<|python_tag|>": read_llama3}, bare=True),
    ),
)

# Models whose templates know no tools are told about them as Hermes's are.
_PLAIN = AnswerFormat("hermes", _TAGS, shows_tools=False, shows_calls=False)

_HY3 = re.compile(r"set HYTK = '([^'<>{}%]{0,40})'")


def _hy3(template: str) -> AnswerFormat | None:
    """Hy3's tags have names that end in a word which the template sets."""
    found = _HY3.search(template)
    if found is None:
        return None
    word = found[1]
    tags = KeyValueTags(word, f"<tool_sep{word}>")
    return AnswerFormat(
        "hy3",
        {tags.tag("tool_call"): tags.read},
        thought=(tags.tag("think"), tags.tag("/think")),
        drops=(tags.tag("tool_calls"), tags.tag("/tool_calls")),
        other_marks=(
            tags.separator,
            *map(tags.tag, ("/tool_call", "arg_key", "/arg_key", "arg_value", "/arg_value")),
        ),
    )


def _deepseek31(template: str) -> AnswerFormat | None:
    """DeepSeek V3.1 has words of its own for tools, which its template leaves to the caller. The
    templates of R1 and what was distilled from it leave tools out, too, but write calls in fences;
    these models were taught no words for tools."""
    if _DEEPSEEK[0] not in template or "tools" in template or "```" in template:
        return None
    return replace(_DEEPSEEK_CALLS, shows_tools=False)


_THOUGHTS = (
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<think>", "</think>"),
)


def format_of(template: str) -> AnswerFormat:
    """The format of the model that has this chat template."""
    found = (_hy3(template) or _deepseek31(template)) or next(
        (form for texts, form in _FORMATS if all(text in template for text in texts)), _PLAIN
    )
    if found.thinks:
        return found
    thought = next((pair for pair in _THOUGHTS if pair[1] in template), None)
    return replace(found, thought=thought)

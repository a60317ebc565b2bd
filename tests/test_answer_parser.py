"""Answers taken apart: thinking, text and tool calls of each family, wherever they are cut."""

import json
import re
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airllm.text.answer import (
    AnswerParser,
    AnswerPart,
    AnswerText,
    AnswerThought,
    CallArguments,
    CallBegin,
    Tool,
    format_of,
)
from airllm.text.answer.python_calls import with_written_calls
from airllm.text.answer.source import AnswerSource
from airllm.text.answer.told_thoughts import with_thought
from airllm.text.answer.told_tools import tool_variables, with_told_tools
from airllm.text.control_guard import ControlGuard

TOOLS = [
    Tool(
        "weather",
        "The weather in a city.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "hours": {"type": "array"},
                "exact": {"type": "boolean"},
                "limit": {"type": ["integer", "null"]},
            },
        },
    ),
    Tool("clock"),
]


class Told(NamedTuple):
    """An answer, joined from its parts."""

    text: str
    thought: str
    calls: list[tuple[str, str | None, str]]  # name, id, arguments

    def arguments(self) -> list[Any]:
        return [json.loads(arguments) for _, _, arguments in self.calls]

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def joined(parts: list[AnswerPart]) -> Told:
    text, thought, calls = "", "", []
    for part in parts:
        match part:
            case AnswerText(more):
                text += more
            case AnswerThought(more):
                thought += more
            case CallBegin(index, name, id):
                assert index == len(calls)
                calls.append((name, id, ""))
            case CallArguments(index, more):
                assert index == len(calls) - 1
                calls[index] = (*calls[index][:2], calls[index][2] + more)
    return Told(text, thought, calls)


def told(template: str, *pieces: str, tools: list[Tool] = TOOLS, in_thought: bool = False) -> Told:
    parser = AnswerParser(format_of(template), tools, in_thought=in_thought)
    parts = [part for piece in pieces for part in parser.push(piece)]
    return joined([*parts, *parser.finish()])


HERMES = "<tool_call> <think></think>"
QWEN_CODER = "<tool_call><function=f><parameter=x></think>"
GLM = "<tool_call>f<arg_key>k</arg_key></think>"
LLAMA = "<|python_tag|>"
MISTRAL = "[TOOL_CALLS] [THINK][/THINK]"
HARMONY = "<|channel|><|message|>"
DEEPSEEK = "<｜tool▁calls▁begin｜></think> tools"
DEEPSEEK31 = DEEPSEEK.removesuffix(" tools")  # its template shows calls, and no tools
DSML = "｜DSML｜function_calls </think>"
KIMI = "<|tool_calls_section_begin|></think>"
GEMMA = "<|tool_call>call:"
MINIMAX = "<minimax:tool_call></think>"
MINIMAX3 = "]<]minimax[>[ </mm:think>"
SEED = "<seed:tool_call></seed:think>"
KIMI3 = "<|open|> <|close|> <|sep|>"
SOLAR = "<|tool_call:begin|> <|tool_call:args|>"
HY3 = "{%- set HYTK = ':opensource' %} '<think{}>'"
MINICPM = '<function name="f"><param name="x"> </think>'
LFM2 = "<|im_start|> List of tools: [ </think>"
APERTUS = "<|tools_prefix|>"
GIGACHAT = "function call <|role_sep|> <|function_call|>"
GIGACHAT3 = "function call <|role_sep|>"
FUNCTIONARY3 = ">>>all"
FIREFUNCTION = "functools["
COMMAND_R = 'Action: ```json "tool_name"'

# Name: template, answer, text, thought, (name, arguments) of the calls.
RECORDED: dict[str, tuple[str, str, str, str, list[tuple[str, Any]]]] = {
    "hermes": (
        HERMES,
        "<think>\nThe user wants\nthe weather.\n</think>\n\nI will look.\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Paris \\u00e9 }{", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "I will look.",
        "The user wants\nthe weather.",
        [("weather", {"city": "Paris é }{", "days": 2}), ("clock", {})],
    ),
    "minimax m1, a call in each line": (
        "<tool_calls>",
        '<tool_calls>\n{"name": "weather", "arguments": {"city": "Rome"}}\n'
        '{"name": "clock", "arguments": {}}\n</tool_calls>',
        "",
        "",
        [("weather", {"city": "Rome"}), ("clock", {})],
    ),
    "hermes, arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"days": [1, {"a": "]"}]}, "name": "weather"}</tool_call>',
        "",
        "",
        [("weather", {"days": [1, {"a": "]"}]})],
    ),
    "hermes, arguments as text, and a bracket too many": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}}\n</tool_call>',
        "",
        "",
        [("weather", {"city": "Rome"})],
    ),
    "qwen3-coder": (
        QWEN_CODER,
        'Yes.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nNew\nYork "NY"\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n<parameter=hours>\n[1, 2]\n</parameter>\n"
        "<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>",
        "Yes.",
        "",
        [("weather", {"city": 'New\nYork "NY"', "days": 3, "hours": [1, 2], "exact": True})],
    ),
    "qwen3-coder without its tool_call": (
        QWEN_CODER,
        "<function=weather>\n<parameter=city>\n12\n</parameter>\n</function>\n</tool_call>",
        "",
        "",
        [("weather", {"city": "12"})],
    ),
    "glm": (
        GLM,
        "<think>Hm.</think>\nSure.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo"
        "</arg_value>\n<arg_key>limit</arg_key>\n<arg_value>null</arg_value>\n</tool_call>\n"
        "<tool_call>clock\n</tool_call>",
        "Sure.",
        "Hm.",
        [("weather", {"city": "Oslo", "limit": None}), ("clock", {})],
    ),
    "llama 3": (
        LLAMA,
        '{"name": "weather", "parameters": {"city": "Lima"}}',
        "",
        "",
        [("weather", {"city": "Lima"})],
    ),
    "llama 3, with its mark, twice": (
        LLAMA,
        '<|python_tag|>{"type": "function", "name": "weather", "parameters": {"city": "Lima"}}; '
        '{"name": "clock", "parameters": {}}',
        "",
        "",
        [("weather", {"city": "Lima"}), ("clock", {})],
    ),
    "llama 3, an object that is no call": (
        LLAMA,
        '{"name": "Ada", "age": 36} is an object.',
        '{"name": "Ada", "age": 36} is an object.',
        "",
        [],
    ),
    "mistral, a list": (
        MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Nice"}, "id": "123456789"}, '
        '{"name": "clock", "arguments": {}}]',
        "",
        "",
        [("weather", {"city": "Nice"}), ("clock", {})],
    ),
    "mistral, names before arguments": (
        MISTRAL,
        '[THINK]Which?[/THINK]Two.[TOOL_CALLS]weather[ARGS]{"city": "Nice"}'
        "[TOOL_CALLS]clock[CALL_ID]abcdefghi[ARGS]{}",
        "Two.",
        "Which?",
        [("weather", {"city": "Nice"}), ("clock", {})],
    ),
    "gpt-oss": (
        HARMONY,
        "<|channel|>analysis<|message|>They want\nweather.<|end|><|start|>assistant<|channel|>"
        "commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city":"Bonn"}<|call|>',
        "I look.",
        "They want\nweather.",
        [("weather", {"city": "Bonn"})],
    ),
    "gpt-oss, recipient before its channel": (
        HARMONY,
        "<|start|>assistant to=functions.clock<|channel|>commentary json<|message|>{}<|call|>",
        "",
        "",
        [("clock", {})],
    ),
    "gpt-oss, an answer": (
        HARMONY,
        "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>4.",
        "4.",
        "2+2",
        [],
    ),
    "deepseek v3": (
        DEEPSEEK,
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        '```json\n{"city": "Bern"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
        "<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Let me see.",
        "",
        [("weather", {"city": "Bern"}), ("clock", {})],
    ),
    "deepseek v3.1": (
        DEEPSEEK,
        "<think>So.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Bern"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "",
        "So.",
        [("weather", {"city": "Bern"})],
    ),
    "deepseek v3.1, several calls": (
        DEEPSEEK31,
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Zürich", "days": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        "",
        [("weather", {"city": "Zürich", "days": 2}), ("clock", {})],
    ),
    "deepseek v3.2": (
        DSML,
        '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter '
        'name="city" string="true">12</｜DSML｜parameter>\n<｜DSML｜parameter name="days" '
        'string="false">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "",
        "",
        [("weather", {"city": "12", "days": 2}), ("clock", {})],
    ),
    "kimi": (
        KIMI,
        "Looking.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Xi\'an"}<|tool_call_end|><|tool_call_begin|>'
        "functions.clock:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        "Looking.",
        "",
        [("weather", {"city": "Xi'an"}), ("clock", {})],
    ),
    "gemma": (
        GEMMA,
        '<|channel>thought\nHm.\n<channel|>Now.<|tool_call>call:weather{city:<|"|>A "b", {c<|"|>,'
        'days:2,hours:[1,<|"|>x<|"|>,{a:true}],exact:false}<tool_call|><|tool_call>call:clock{}'
        "<tool_call|>",
        "Now.",
        "Hm.",
        [
            (
                "weather",
                {
                    "city": 'A "b", {c',
                    "days": 2,
                    "hours": [1, "x", {"a": True}],
                    "exact": False,
                },
            ),
            ("clock", {}),
        ],
    ),
    "minimax": (
        MINIMAX,
        '<think>\nA\n</think>\n\n<minimax:tool_call>\n<invoke name="weather">\n<parameter '
        'name="city">San "F"</parameter>\n<parameter name="days">4</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        "",
        "A",
        [("weather", {"city": 'San "F"', "days": 4})],
    ),
    "seed": (
        SEED,
        "<seed:think>B</seed:think><seed:tool_call>\n<function=weather>\n<parameter=city>Ulm"
        "</parameter>\n</function>\n</seed:tool_call>",
        "",
        "B",
        [("weather", {"city": "Ulm"})],
    ),
    "gpt-oss, recipient right after the prompt": (
        HARMONY,
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Bonn"}<|call|>',
        "",
        "",
        [("weather", {"city": "Bonn"})],
    ),
    "cohere": (
        "<|START_ACTION|>",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    "
        '{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Ulm"}}\n'
        "]<|END_ACTION|>",
        "",
        "Hm.",
        [("weather", {"city": "Ulm"})],
    ),
    "cohere, a text": (
        "<|START_ACTION|>",
        "<|START_RESPONSE|>Sunny.<|END_RESPONSE|>",
        "Sunny.",
        "",
        [],
    ),
    "apriel": (
        "<tool_calls>",
        'Now.\n<tool_calls>[{"name": "clock", "arguments": {}}]</tool_calls>',
        "Now.",
        "",
        [("clock", {})],
    ),
    "minimax m3": (
        MINIMAX3,
        '</mm:think>Now.]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="weather">'
        "]<]minimax[>[<city>Ulm <x>]<]minimax[>[</city>]<]minimax[>[<days>2]<]minimax[>[</days>"
        "]<]minimax[>[<hours>]<]minimax[>[<item>1]<]minimax[>[</item>]<]minimax[>[<item>"
        "]<]minimax[>[<a>true]<]minimax[>[</a>]<]minimax[>[</item>]<]minimax[>[</hours>"
        ']<]minimax[>[</invoke>\n]<]minimax[>[<invoke name="clock">]<]minimax[>[</invoke>\n'
        "]<]minimax[>[</tool_call>",
        "Now.",
        "",
        [("weather", {"city": "Ulm <x>", "days": 2, "hours": [1, {"a": True}]}), ("clock", {})],
    ),
    "functionary": (
        "<function=f></function>",
        'So.<function=weather>{"city": "Ulm"}</function><function=clock>{}</function>',
        "So.",
        "",
        [("weather", {"city": "Ulm"}), ("clock", {})],
    ),
    "kimi k3": (
        KIMI3,
        "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>I will look.<|close|>"
        'response<|sep|><|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>'
        'argument key="city" type="string"<|sep|>\n<b>\n<|close|>argument<|sep|><|open|>argument '
        'key="hours" type="array"<|sep|>[1, "2"]<|close|>argument<|sep|><|close|>call<|sep|>'
        '<|open|>call tool="weather" index="2"<|sep|><|open|>json type="object"<|sep|>{"days": 2}'
        '<|close|>json<|sep|><|close|>call<|sep|><|open|>call tool="clock" index="3"<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        "I will look.",
        "Hm.",
        [
            ("weather", {"city": "\n<b>\n", "hours": [1, "2"]}),
            ("weather", {"days": 2}),
            ("clock", {}),
        ],
    ),
    "kimi k3, a text": (
        KIMI3,
        "Sunny, <|open|>.<|close|>response<|sep|><|close|>message<|sep|>",
        "Sunny, <|open|>.",
        "",
        [],
    ),
    "solar": (
        SOLAR,
        "<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5"
        '<|tool_call:name|>weather<|tool_call:args|>{"city": "Ulm"}<|tool_call:end|>'
        "<|tool_call:begin|>a1b2c3d4e6<|tool_call:name|>clock<|tool_call:args|>{}<|tool_call:end|>",
        "",
        "Hm.",
        [("weather", {"city": "Ulm"}), ("clock", {})],
    ),
    "solar, a text": (
        SOLAR,
        "<|think|>Hm.<|end|><|begin|>assistant<|content|>Sunny.<|end|>",
        "Sunny.",
        "Hm.",
        [],
    ),
    "hy3": (
        HY3,
        "<think:opensource>Hm.</think:opensource>So.<tool_calls:opensource>\n<tool_call:opensource>"
        "weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n"
        '<arg_value:opensource>Xi\'an "x"</arg_value:opensource>\n<arg_key:opensource>days'
        "</arg_key:opensource>\n<arg_value:opensource>2</arg_value:opensource>\n"
        "</tool_call:opensource>\n<tool_call:opensource>clock<tool_sep:opensource>\n"
        "</tool_call:opensource>\n</tool_calls:opensource>",
        "So.",
        "Hm.",
        [("weather", {"city": 'Xi\'an "x"', "days": 2}), ("clock", {})],
    ),
    "minicpm5": (
        MINICPM,
        'So.\n<function name="weather"><param name="city"><![CDATA[a < b\n</param>]]></param>'
        '<param name="hours">[\'1\', None, True]</param><param name="days">2</param></function>\n'
        '<function name="clock"></function>',
        "So.",
        "",
        [
            ("weather", {"city": "a < b\n</param>", "hours": ["1", None, True], "days": 2}),
            ("clock", {}),
        ],
    ),
    "lfm2": (
        LFM2,
        "<think>Hm.</think>So.<|tool_call_start|>[weather(city='Xi'an \"x\", [it's]', days=2, "
        "hours=[1, 'a', {\"b\": [null, True,]}]), clock()]<|tool_call_end|>",
        "So.",
        "Hm.",
        [
            (
                "weather",
                {"city": "Xi'an \"x\", [it's]", "days": 2, "hours": [1, "a", {"b": [None, True]}]},
            ),
            ("clock", {}),
        ],
    ),
    "lfm2, escapes": (
        LFM2,
        '<|tool_call_start|>[weather(city="a\\n\\"b\\" \\\\d \\w", exact=False)]<|tool_call_end|>',
        "",
        "",
        [("weather", {"city": 'a\n"b" \\d \\w', "exact": False})],
    ),
    "apertus": (
        APERTUS,
        "<|inner_prefix|>Hm.<|inner_suffix|>So."
        '<|tools_prefix|>[{"weather": {"city": "Ulm"}}, {"clock": {}}]<|tools_suffix|>',
        "So.",
        "Hm.",
        [("weather", {"city": "Ulm"}), ("clock", {})],
    ),
    "gigachat 3.1": (
        GIGACHAT,
        'So.<|function_call|>{"name": "weather", "arguments": {"city": "Ulm"}}',
        "So.",
        "",
        [("weather", {"city": "Ulm"})],
    ),
    "gigachat 3": (
        GIGACHAT3,
        "So.<|message_sep|>\n\nfunction call<|role_sep|>\n"
        '{"name": "weather", "arguments": {"city": "Ulm"}}',
        "So.",
        "",
        [("weather", {"city": "Ulm"})],
    ),
    "functionary v3.2": (
        FUNCTIONARY3,
        'all\nSo: >>> 1 + 1\n2>>>weather\n{"city": ">>>clock\\n"}>>>clock\n{}',
        "So: >>> 1 + 1\n2",
        "",
        [("weather", {"city": ">>>clock\n"}), ("clock", {})],
    ),
    "functionary v3.2, a call first": (
        FUNCTIONARY3,
        'weather\n{"city": "Ulm"}',
        "",
        "",
        [("weather", {"city": "Ulm"})],
    ),
    "functionary v3.2, a text without its recipient": (
        FUNCTIONARY3,
        "weather is nice.",
        "weather is nice.",
        "",
        [],
    ),
    "firefunction": (
        FIREFUNCTION,
        'With functools it is:  functools[{"name": "weather", "arguments": {"city": "Ulm"}}, '
        '{"name": "clock", "arguments": {}}]',
        "With functools it is:",
        "",
        [("weather", {"city": "Ulm"}), ("clock", {})],
    ),
    "command r": (
        COMMAND_R,
        'So.\nAction:\n```json\n[\n    {\n        "tool_name": "weather",\n        "parameters": '
        '{\n            "city": "Ulm"\n        }\n    },\n    {\n        "tool_name": "clock",\n'
        '        "parameters": {}\n    }\n]```\n',
        "So.",
        "",
        [("weather", {"city": "Ulm"}), ("clock", {})],
    ),
    "command r, an answer without a tool": (
        COMMAND_R,
        'Action: ```json\n[{"tool_name": "directly-answer", "parameters": {}}]```',
        'Action: ```json\n[{"tool_name": "directly-answer", "parameters": {}}]```',
        "",
        [],
    ),
    "a list between tags": (
        "<TOOLCALL>",
        '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Ur"}}]</TOOLCALL>',
        "",
        "",
        [("weather", {"city": "Ur"})],
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_an_answer_of_each_family_is_taken_apart(name: str) -> None:
    template, answer, text, thought, calls = RECORDED[name]
    found = told(template, answer)
    assert (found.text, found.thought) == (text, thought)
    assert list(zip(found.names(), found.arguments(), strict=True)) == calls


@pytest.mark.parametrize("name", RECORDED)
def test_where_an_answer_is_cut_changes_nothing(name: str) -> None:
    template, answer, *_ = RECORDED[name]
    whole = told(template, answer)
    assert told(template, *answer) == whole
    for at in range(len(answer)):
        assert told(template, answer[:at], answer[at:]) == whole


@pytest.mark.parametrize("name", RECORDED)
def test_an_answer_that_ends_anywhere_is_taken_apart_in_the_same_way(name: str) -> None:
    template, answer, *_ = RECORDED[name]
    for end in range(len(answer)):
        assert told(template, *answer[:end]) == told(template, answer[:end])


@pytest.mark.parametrize(
    "template",
    [
        *(HERMES, LLAMA, MISTRAL, DEEPSEEK, KIMI, GEMMA, GLM, KIMI3, LFM2, COMMAND_R),
        *(GIGACHAT3, ""),
    ],
)
@given(st.text('<>{}[]"\\:,\n ab/|_thinktoolcall', max_size=60))
def test_text_without_markup_stays_as_it_is(template: str, text: str) -> None:
    marks = format_of(template).marks
    if any(mark in text for mark in marks):
        return
    assert told(template, text, tools=[]) == Told(text, "", [])


PIECES = st.lists(
    st.sampled_from(
        [
            *("<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "weather"', "{", "}"),
            *(', "arguments": ', "<function=weather>", "<parameter=city>", "</parameter>", "\n"),
            *("</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "weather"),
            *(
                "[TOOL_CALLS]",
                "[ARGS]",
                "<|tool_call>call:",
                '<|"|>',
                "<tool_call|>",
                "x",
                ":",
                "[",
            ),
            *("<|channel|>", "analysis", "<|message|>", "<|end|>", " to=functions.weather", '"'),
            *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>", ",", "é"),
            *("<|tool_call_start|>[weather(", "city=", "'", "\\", ")"),
            *(">>>weather\n", "all\n", ">>>"),
            *('<|open|>tools<|sep|><|open|>call tool="weather"', '<|open|>argument key="x"'),
            *("<|sep|>", "<|close|>argument<|sep|>", '<function name="weather">', "<![CDATA["),
            *("]]>", '<param name="x">', "</param>"),
        ]
    ),
    max_size=25,
).map("".join)


@pytest.mark.parametrize(
    "template",
    [
        *(HERMES, LLAMA, MISTRAL, GEMMA, GLM, KIMI, HARMONY, LFM2, FUNCTIONARY3, KIMI3, MINICPM),
    ],
)
@given(PIECES, st.lists(st.integers(0, 400), max_size=5))
def test_nonsense_is_taken_apart_in_the_same_way_however_it_is_cut(
    template: str, answer: str, cuts: list[int]
) -> None:
    ends = sorted(min(cut, len(answer)) for cut in cuts)
    starts = [0, *ends]
    pieces = [answer[a:b] for a, b in zip(starts, [*ends, len(answer)], strict=True)]
    assert told(template, *pieces) == told(template, answer)


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>{"nam": "weather"}</tool_call>',
        "<tool_call>\nI call the weather.</tool_call>",
        '<tool_call>{"name": 5, "arguments": {}}',
        '<tool_call>{"name": "wea',
    ],
)
def test_what_is_not_a_call_stays_in_the_text(answer: str) -> None:
    assert told(HERMES, answer) == Told(answer, "", [])


def test_half_of_a_mark_at_the_end_is_text() -> None:
    call = '{"name": "clock", "parameters": {}}'
    assert told(LLAMA, f"{call} <|py") == Told("<|py", "", [("clock", None, "{}")])


def test_without_tools_a_call_is_text() -> None:
    answer = 'Look: <tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert told(HERMES, answer, tools=[]).text == answer


def test_arguments_are_handed_over_while_they_come() -> None:
    parser = AnswerParser(format_of(HERMES), TOOLS)
    assert parser.push('<tool_call>{"name": "weather", "argum') == []
    assert parser.push('ents": {"ci') == [CallBegin(0, "weather"), CallArguments(0, '{"ci')]
    assert parser.push('ty": "Rome"') == [CallArguments(0, 'ty": "Rome"')]


def test_layout_is_no_text_without_tools_either() -> None:
    answer = "<|START_RESPONSE|>Sunny.<|END_RESPONSE|>"
    assert told("<|START_ACTION|>", answer, tools=[]) == Told("Sunny.", "", [])


def test_an_answer_can_begin_inside_a_thought() -> None:
    found = told(HERMES, "So.\n</think>\n\nYes.", in_thought=True)
    assert found == Told("Yes.", "So.", [])


def test_kimi_names_its_calls() -> None:
    template, answer, *_ = RECORDED["kimi"]
    assert [id for _, id, _ in told(template, answer).calls] == [
        "functions.weather:0",
        "functions.clock:1",
    ]


def test_a_template_that_shows_calls_but_no_tools_leaves_telling_of_them_to_the_server() -> None:
    """R1's distillates have no words for tools: tools and calls are Hermes's then."""
    form = format_of(DEEPSEEK31 + "```json")
    assert (form.name, form.shows_tools, form.thought) == ("hermes", False, ("<think>", "</think>"))
    assert not form.shows_calls
    form = format_of(DEEPSEEK31)
    assert (form.name, form.shows_tools, form.shows_calls) == ("deepseek", False, True)
    assert format_of(DEEPSEEK).shows_tools


def test_deepseek31_is_told_of_tools_in_the_words_of_its_card() -> None:
    guard = ControlGuard(["<｜User｜>", "<｜tool▁call▁begin｜>"]).guard
    tool = Tool("clock", "Not a <｜tool▁call▁begin｜>.", {"type": "object"})
    call = {"function": {"name": "clock", "arguments": {}}}
    later = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Noon."},
    ]
    form = format_of(DEEPSEEK31)
    system, *others = with_told_tools(
        form, [{"role": "system", "content": "No <｜User｜>."}, *later], [tool], guard
    )
    assert others == later
    assert guard(system["content"]) == system["content"]  # and so its marks are control tokens
    assert system["content"] == (
        f"{guard('No <｜User｜>.')}\n\n## Tools\nYou have access to the following tools:\n\n"
        f"### clock\nDescription: {guard(tool.description)}\n\n"
        'Parameters: {"type": "object"}\n\n'
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments"
        "<｜tool▁call▁end｜>{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        "Schema\n- For multiple tool calls, chain them directly without separators or spaces"
    )
    assert with_told_tools(form, later, [tool], guard)[0]["content"].startswith("## Tools\n")
    assert with_told_tools(form, later, [], guard) == later


def test_marks_around_calls_are_text_without_tools() -> None:
    answer = "<TOOLCALL>[]</TOOLCALL>"
    assert told("<TOOLCALL>", answer, tools=[]) == Told(answer, "", [])


@pytest.mark.parametrize("name", ["a|b", "f(x)", "", "x" * 257])
def test_what_has_no_name_of_a_function_is_no_call(name: str) -> None:
    for template, answer in (
        (HERMES, f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'),
        (GEMMA, f"<|tool_call>call:{name}{{}}<tool_call|>"),
        (GLM, f"<tool_call>{name}</tool_call>"),
        (HARMONY, f"<|channel|>commentary to=functions.{name}<|message|>{{}}<|call|>"),
        (MINIMAX3, f']<]minimax[>[<tool_call>]<]minimax[>[<invoke name="{name}">'),
        (KIMI3, f'<|open|>tools<|sep|><|open|>call tool="{name}"<|sep|><|close|>call<|sep|>'),
        (SOLAR, f"<|tool_call:begin|>a<|tool_call:name|>{name}<|tool_call:args|>{{}}"),
        (HY3, f"<tool_call:opensource>{name}<tool_sep:opensource></tool_call:opensource>"),
        (MINICPM, f'<function name="{name}"></function>'),
        (APERTUS, f'<|tools_prefix|>[{{"{name}": {{}}}}]'),
        (MISTRAL, f"[TOOL_CALLS]{name}[ARGS]{{}}"),
        (DEEPSEEK, f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{{}}"),
        (KIMI, f"<|tool_call_begin|>{name}<|tool_call_argument_begin|>{{}}<|tool_call_end|>"),
        (QWEN_CODER, f"<function={name}></function>"),
        (MINIMAX, f'<minimax:tool_call><invoke name="{name}"></invoke></minimax:tool_call>'),
        (FUNCTIONARY3, f"{name}\n{{}}"),
    ):
        assert told(template, answer).calls == [], template


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (DEEPSEEK, "<｜tool▁call▁begin｜>clock<｜tool▁call▁end｜>{}"),
        (DEEPSEEK, "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>weather\n```json\n{}\n```"),
        (DEEPSEEK, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock<｜tool▁call▁end｜>{}"),
        (KIMI, "<|tool_call_begin|>functions.clock:0<|tool_call_end|>{}"),
        (MISTRAL, "[TOOL_CALLS]clock"),
        (GLM, "<tool_call>clock"),
        (MINIMAX, '<minimax:tool_call><invoke name="clock"'),
        (QWEN_CODER, "<function=clock\n></function>"),
        (MINICPM, '<function name="clock"\n></function>'),
        (LLAMA, '{"name": "clock"}'),
        (LLAMA, '{"name": "other", "parameters": {}}'),
        (HERMES, '<tool_call>{"name": "clock" "arguments": {}}</tool_call>'),
    ],
)
def test_what_is_not_written_as_a_call_is_no_call(template: str, answer: str) -> None:
    assert told(template, answer).calls == []


@pytest.mark.parametrize(
    ("template", "answer", "arguments"),
    [
        (HERMES, '<tool_call>{"name": "clock", "tool_name": "x", "arguments": {}}', "{}"),
        (HERMES, '<tool_call>{"name": "clock", "arguments": {}, "parameters": {"x": 1}}', "{}"),
        (HERMES, '<tool_call>{"arguments": {}, "parameters": {"x": 1}, "name": "clock"}', "{}"),
        (HERMES, '<tool_call>{"name": "clock", "arguments": "{\n}"}', "{\n}"),
        (HERMES, '<tool_call>{"name": "clock", "arguments": 5}', "5"),
        (
            DSML,
            '<｜DSML｜function_calls><｜DSML｜invoke name="clock"><｜DSML｜parameter name="x" '
            'string="true">12</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>',
            '{"x": "12"}',
        ),
    ],
)
def test_a_call_has_its_first_name_and_its_first_arguments_as_they_are_written(
    template: str, answer: str, arguments: str
) -> None:
    assert told(template, answer).calls == [("clock", None, arguments)]


def test_what_can_only_be_the_end_of_a_call_is_told_at_once_and_in_one_part() -> None:
    parser = AnswerParser(format_of(GEMMA), TOOLS)
    found = parser.push("<|tool_call>call:clock{x:1}")
    assert found == [CallBegin(0, "clock"), CallArguments(0, '{"x": 1}')]


def test_what_was_read_is_not_the_beginning_of_a_mark() -> None:
    source, said = AnswerSource(), list[str]()
    source.feed("<tool")
    with pytest.raises(StopIteration):
        next(source.take("<"))
    next(source.until(("<tool_call>",), said.append))
    assert said == ["tool"]


def test_white_space_before_a_thought_is_layout() -> None:
    assert told(HERMES, "So. \n<think>Hm.</think>\nYes.") == ("So.Yes.", "Hm.", [])


def test_a_call_without_text_is_told_in_words_without_an_empty_line() -> None:
    calls = [{"function": {"name": "clock", "arguments": {}}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    (said,) = with_told_tools(format_of(""), [message], [], str)
    assert said["content"].startswith("<tool_call>")


def test_a_template_gets_tools_in_the_shape_that_it_reads() -> None:
    tool = Tool("f", "", {"properties": {"x": {"type": "object"}, "y": {"description": "Y"}}})
    assert tool_variables(format_of(HERMES), []) == {}
    assert tool_variables(format_of(HERMES), [tool]) == {"tools": [tool.as_json()]}
    found = tool_variables(format_of(FIREFUNCTION), [tool])
    assert json.loads(str(found["functions"])) == [tool.as_json()]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(found["datetime"]))
    assert tool_variables(format_of(FIREFUNCTION), [])["functions"] == "[]"
    found = tool_variables(format_of(COMMAND_R), [tool])
    assert found["tools"][0]["function"]["parameters"]["properties"] == {  # type: ignore[index]
        "x": {"type": "object", "description": "", "additionalProperties": {}},
        "y": {"description": "Y", "additionalProperties": {}},
    }


def test_calls_that_a_template_leaves_out_are_written_as_the_model_writes_them() -> None:
    arguments = {"city": 'Xi\'an\n"x"', "days": 2, "hours": [1, None], "exact": True}
    calls = [{"function": {"name": "weather", "arguments": arguments}}] * 2
    asked = {"role": "user", "content": "Well?"}
    answer = {"role": "assistant", "content": "So.", "tool_calls": calls}
    first, written = with_written_calls([asked, answer])
    assert first == asked
    assert written.keys() == {"role", "content"}
    found = told(LFM2, written["content"])
    assert (found.text, found.arguments()) == ("So.", [arguments, arguments])


def test_a_thought_has_the_name_that_the_template_reads() -> None:
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert with_thought(message, "{{ message.reasoning_content }}") == message
    said = {"role": "assistant", "content": "Yes."}
    assert with_thought(message, "{{ message.reasoning }}") == {**said, "reasoning": "Hm."}
    assert with_thought(message, "{{ message.content }}") == said
    assert with_thought(message, "{{ message.thinking }}") == {**said, "thinking": "Hm."}
    calls = {"tool_calls": [{}]}  # a template may refuse all three at once
    assert with_thought(message | calls, "{{ message.thinking }}") == said | calls


def test_values_within_values_have_an_end() -> None:
    deep = "".join(f"]<]minimax[>[<v{at}>" for at in range(5000))
    answer = f']<]minimax[>[<tool_call>]<]minimax[>[<invoke name="clock">{deep}'
    assert told(MINIMAX3, answer).names() == ["clock"]
    for opening in ("[", "{a:"):
        answer = "<|tool_call>call:clock{x:" + opening * 5000
        assert told(GEMMA, answer).names() == ["clock"]
    assert told(LFM2, "<|tool_call_start|>[clock(x=" + "[" * 5000).names() == ["clock"]
    deep = "[" * 100_000
    answer = f"<tool_call><function=clock><parameter=x>{deep}</parameter></function></tool_call>"
    assert told(HERMES, answer).arguments() == [{"x": deep}]


def test_text_that_was_read_is_forgotten() -> None:
    parser = AnswerParser(format_of(HERMES), TOOLS)
    parser.push('<tool_call>{"name": "clock", "arguments": {}}</tool_call>')
    for _ in range(100):
        parser.push("some words, and more of them. " * 10)
    assert len(parser._source._text) < 1000


def test_a_call_of_gemmas_ends_where_a_value_is_missing() -> None:
    found = told(GEMMA, "<|tool_call>call:weather{city:,days:1}<tool_call|>")
    assert found.calls == [("weather", None, '{"city": ')]


def test_a_parameter_that_may_be_anything_is_read_as_json() -> None:
    schema = {"properties": {"x": {"anyOf": [{"type": "string"}, {}]}}}
    answer = "<tool_call><function=f><parameter=x>12</parameter></function></tool_call>"
    found = told(HERMES, answer, tools=[Tool("f", "", schema)])
    assert found.arguments() == [{"x": 12}]


def test_an_integer_is_a_number() -> None:
    schema = {"properties": {"x": {"type": ["number", "string"]}}}
    answer = "<tool_call><function=f><parameter=x>12</parameter></function></tool_call>"
    assert told(HERMES, answer, tools=[Tool("f", "", schema)]).arguments() == [{"x": 12}]


def test_what_is_wrong_after_a_calls_name_is_told_once() -> None:
    found = told(GEMMA, "So. <|tool_call>call:clock{x}")
    assert found == ("So.", "", [("clock", None, "{")])


def test_of_a_value_without_a_schema_items_are_a_list() -> None:
    tag = "]<]minimax[>["
    items = "".join(f"{tag}<item>{at}{tag}</item>" for at in range(2))
    answer = f'{tag}<tool_call>{tag}<invoke name="clock">{tag}<x>{items}{tag}</x>{tag}</invoke>'
    assert told(MINIMAX3, answer).arguments() == [{"x": [0, 1]}]


def test_white_space_after_a_thought_of_gpt_oss_is_layout() -> None:
    answer = (
        "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>final<|message|> A"
    )
    assert told(HARMONY, answer) == ("A", "Hm.", [])

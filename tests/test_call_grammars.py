"""Grammars of tool calls: what they match is what the format's reader reads, and nothing else."""

import json
from typing import Any

import pytest
from test_answer_parser import (
    APERTUS,
    COMMAND_R,
    DEEPSEEK,
    DEEPSEEK31,
    DSML,
    FIREFUNCTION,
    FUNCTIONARY3,
    GEMMA,
    GIGACHAT,
    GIGACHAT3,
    GLM,
    HARMONY,
    HERMES,
    HY3,
    KIMI,
    KIMI3,
    LFM2,
    LLAMA,
    MINICPM,
    MINIMAX,
    MINIMAX3,
    QWEN_CODER,
    SEED,
    SOLAR,
    told,
)

from airllm.text.answer import Tool, format_of
from airllm.text.answer.call_grammars import NoGrammarError, answer_grammar
from airllm.text.answer.call_rules import Rules

llguidance = pytest.importorskip("llguidance")

WEATHER = Tool(
    "weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
CLOCK = Tool("clock")
OLD_MISTRAL, NEW_MISTRAL = "[TOOL_CALLS]", "[TOOL_CALLS] [ARGS]"
FENCED_DEEPSEEK = DEEPSEEK + "```json"

# Template: (an answer with one call, with a call of the wrong kind).
ANSWERS: dict[str, tuple[str, str, str]] = {
    "hermes": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"days": 2}}\n</tool_call>',
    ),
    "llama 3": (
        LLAMA,
        '{"name": "weather", "parameters": {"city": "Rome", "unit": "C"}}',
        '{"name": "weather", "parameters": {"city": "Rome", "unit": "K"}}',
    ),
    "mistral, a list": (
        OLD_MISTRAL,
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]',
        '[TOOL_CALLS][{"name": "wind", "arguments": {"city": "Rome"}}]',
    ),
    "mistral, a list with ids": (
        OLD_MISTRAL + '"id": ""',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}, "id": "123456789"}]',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]',
    ),
    "mistral with ids": (
        NEW_MISTRAL + "[CALL_ID]",
        '[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Rome"}',
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}',
    ),
    "mistral": (
        NEW_MISTRAL,
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}',
        '[TOOL_CALLS]weather[ARGS]{"city": 5}',
    ),
    "deepseek v3": (
        FENCED_DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
    ),
    "deepseek v3.1": (
        DEEPSEEK31,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
    ),
    "kimi": (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        "<|tool_calls_section_begin|><|tool_call_begin|>weather:0",
    ),
    "gpt-oss": (
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}',
        "<|channel|>final<|message|>No.",
    ),
    "qwen3-coder": (
        QWEN_CODER,
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2"
        "\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=days>\n2\n</parameter>\n",
    ),
    "glm": (
        GLM,
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>unit</arg_key>\n<arg_value>F</arg_value>\n</tool_call>",
        "<tool_call>weather\n</tool_call>",
    ),
    "seed": (
        SEED,
        "<seed:tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n"
        "</seed:tool_call>",
        "<tool_call>",
    ),
    "minimax": (
        MINIMAX,
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n'
        '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
        '<minimax:tool_call>\n<invoke name="weather">\n</invoke>\n',
    ),
    "deepseek v3.2": (
        DSML,
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" '
        'string="true">Rome</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n</｜DSML｜invoke>',
    ),
    "gemma": (
        GEMMA,
        '<|tool_call>call:weather{city:<|"|>Rome<|"|>,unit:<|"|>C<|"|>}<tool_call|>',
        '<|tool_call>call:weather{unit:<|"|>C<|"|>}<tool_call|>',
    ),
    "cohere": (
        "<|START_ACTION|>",
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": '
        '{"city": "Rome"}}]<|END_ACTION|>',
        "<|START_ACTION|>[]<|END_ACTION|>",
    ),
    "apriel": (
        "<tool_calls>",
        '<tool_calls>[{"name": "weather", "arguments": {"city": "Rome"}}]</tool_calls>',
        "<tool_calls>[]</tool_calls>",
    ),
    "minimax m1, a call in each line": (
        "<tool_calls>\\n",
        '<tool_calls>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_calls>',
        '<tool_calls>[{"name": "weather", "arguments": {"city": "Rome"}}]</tool_calls>',
    ),
    "functionary": (
        "<function=f></function>",
        '<function=weather>{"city": "Rome"}</function>',
        "<function=weather><parameter=city>Rome</parameter></function>",
    ),
    "kimi k3": (
        KIMI3,
        "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|><|close|>response<|sep|>"
        '<|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|><|open|>argument '
        'key="city" type="string"<|sep|>Rome<|close|>argument<|sep|><|open|>argument key="days" '
        'type="number"<|sep|>2<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
        '<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
    ),
    "kimi k3, within its response": (
        KIMI3,
        '<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Rome<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
        "<|open|>response<|sep|>No.<|close|>response<|sep|>",
    ),
    "solar": (
        SOLAR,
        "<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5"
        '<|tool_call:name|>weather<|tool_call:args|>{"city": "Rome"}<|tool_call:end|>',
        "<|content|>No.<|end|>",
    ),
    "hy3": (
        HY3,
        "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n<arg_key:"
        "opensource>city</arg_key:opensource>\n<arg_value:opensource>Rome</arg_value:opensource>\n"
        "</tool_call:opensource>\n</tool_calls:opensource>",
        "<tool_calls:opensource>\n<tool_call:opensource>weather<tool_sep:opensource>\n"
        "</tool_call:opensource>\n</tool_calls:opensource>",
    ),
    "minicpm5": (
        MINICPM,
        '<function name="weather"><param name="city">Rome</param><param name="days">2</param>'
        "</function>",
        '<function name="weather"><param name="city"><b></param></function>',
    ),
    "minicpm5, a text in a section": (
        MINICPM,
        '<function name="weather"><param name="city"><![CDATA[Rome]]></param></function>',
        '<function name="weather"><param name="days">2</param></function>',
    ),
    "lfm2": (
        LFM2,
        "<|tool_call_start|>[weather(city='Rome', unit='C')]<|tool_call_end|>",
        "<|tool_call_start|>[weather(city='Rome', unit='K')]<|tool_call_end|>",
    ),
    "lfm2, without what need not be there": (
        LFM2,
        '<|tool_call_start|>[weather(city="Rome")]<|tool_call_end|>',
        "<|tool_call_start|>[weather(days=2)]<|tool_call_end|>",
    ),
    "apertus": (
        APERTUS,
        '<|tools_prefix|>[{"weather": {"city": "Rome"}}]<|tools_suffix|>',
        '<|tools_prefix|>[{"weather": {}}]<|tools_suffix|>',
    ),
    "gigachat 3.1": (
        GIGACHAT,
        '<|function_call|>{"name": "weather", "arguments": {"city": "Rome"}}',
        '<|function_call|>{"name": "weather", "arguments": {}}',
    ),
    "gigachat 3": (
        GIGACHAT3,
        "<|message_sep|>\n\nfunction call<|role_sep|>\n"
        '{"name": "weather", "arguments": {"city": "Rome"}}',
        'function call<|role_sep|>\n{"name": "weather", "arguments": {}}',
    ),
    "functionary v3.2": (
        FUNCTIONARY3,
        'weather\n{"city": "Rome"}',
        "all\nNo.",
    ),
    "firefunction": (
        FIREFUNCTION,
        'functools[{"name": "weather", "arguments": {"city": "Rome"}}]',
        "functools[]",
    ),
    "command r": (
        COMMAND_R,
        'Action:\n```json\n[\n    {"tool_name": "weather", "parameters": {"city": "Rome"}}\n]```',
        'Action:\n```json\n[{"tool_name": "directly-answer", "parameters": {}}]```',
    ),
    "a list between tags": (
        "<TOOLCALL>",
        '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Rome"}}]</TOOLCALL>',
        "<TOOLCALL>[]</TOOLCALL>",
    ),
}


def as_text(mark: str) -> str:
    return json.dumps(mark, ensure_ascii=False)


def matches(grammar: str, text: str) -> bool:
    """Whether a grammar matches a text as a whole."""
    tokenizer = llguidance.LLTokenizer("byte")
    source = llguidance.LLMatcher.grammar_from_lark(grammar)
    matcher = llguidance.LLMatcher(tokenizer, source, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    assert not matcher.get_grammar_warnings()
    tokens = tokenizer.tokenize_str(text)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


def grammar(template: str, *tools: Tool, **more: Any) -> str:
    return answer_grammar(
        format_of(template),
        as_text,
        tools=tools or (WEATHER, CLOCK),
        template=template,
        **more,
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_that_a_grammar_allows_is_read_as_that_call(name: str) -> None:
    template, answer, _ = ANSWERS[name]
    assert matches(grammar(template), answer)
    found = told(template, answer, tools=[WEATHER, CLOCK])
    assert found.names() == ["weather"]
    assert found.arguments()[0]["city"] == "Rome"
    assert found.text == ""


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_call_of_a_tool_is_not_allowed(name: str) -> None:
    template, _, wrong = ANSWERS[name]
    assert not matches(grammar(template), wrong)
    assert not matches(grammar(template), "I would rather talk.")
    assert not matches(grammar(template), "")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_of_another_tool_than_the_one_that_was_named_is_not_allowed(name: str) -> None:
    template, answer, _ = ANSWERS[name]
    assert matches(grammar(template, WEATHER), answer)
    assert not matches(grammar(template, CLOCK), answer)


def test_one_call_or_several() -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert matches(grammar(HERMES), f"{call}\n{call}")
    assert not matches(grammar(HERMES, several=False), f"{call}\n{call}")


def test_a_thought_may_come_before() -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert matches(grammar(HERMES), f"<think>\nHm <b>\n</think>\n\n{call}")
    assert not matches(grammar(HERMES), f"Hm.\n</think>\n\n{call}")
    within = grammar(HERMES, in_thought=True)
    assert matches(within, f"Hm.\n</think>\n\n{call}")
    assert not matches(within, call)
    assert not matches(within, f"Hm.\n</think>\n\nNo. </think>{call}")


def test_json_may_follow_a_thought() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = answer_grammar(format_of(HERMES), as_text, schema=schema)
    assert matches(grammar, '<think>\nHm.</think>\n\n{"a": 5}')
    assert matches(grammar, '{"a": 5}')
    assert not matches(grammar, '{"a": "5"}')
    grammar = answer_grammar(format_of(HERMES), as_text, schema=schema, in_thought=True)
    assert not matches(grammar, '{"a": 5}')


@pytest.mark.parametrize(
    ("template", "before"),
    [
        (HARMONY, "<|channel|>final<|message|>"),
        (KIMI3, "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>"),
        (KIMI3, ""),
        (SOLAR, "<|think|>Hm.<|end|><|begin|>assistant<|content|>"),
        (SOLAR, "<|content|>"),
        (FUNCTIONARY3, "all\n"),
    ],
)
def test_json_has_the_marks_of_a_text_before_it(template: str, before: str) -> None:
    grammar = answer_grammar(format_of(template), as_text, schema={"type": "integer"})
    assert matches(grammar, f"{before}5")
    assert not matches(grammar, f"{before}five")
    assert told(template, f"{before}5").text == "5"


def test_a_call_or_json_may_come_if_both_are_wanted() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    both = grammar(HERMES, CLOCK, schema=schema)
    assert matches(both, "{}")
    assert matches(both, '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>')
    assert not matches(both, "clock")


def test_control_tokens_come_as_tokens() -> None:
    text = answer_grammar(format_of(LLAMA), as_text, tools=[CLOCK])
    assert "<[" not in text
    text = answer_grammar(format_of(KIMI), lambda mark: f"<[{len(mark)}]>", tools=[CLOCK])
    assert '"<|tool_call' not in text


@pytest.mark.parametrize(
    ("template", "schema", "right", "wrong"),
    [
        (
            MINIMAX3,
            {"type": "array", "items": {"type": "integer", "$ref": "#/$defs/digit"}},
            "]<]minimax[>[<item>5]<]minimax[>[</item>",
            "]<]minimax[>[<item>12]<]minimax[>[</item>",
        ),
        (QWEN_CODER, {"$ref": "#/$defs/digit"}, "5", "12"),
        (QWEN_CODER, {"type": ["string", "array"]}, '["a"]', "a"),
    ],
)
def test_a_value_in_tags_obeys_all_of_its_schema(
    template: str, schema: Any, right: str, wrong: str
) -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    parameters = {"properties": {"x": schema}, "required": ["x"], "$defs": {"digit": digit}}
    found = grammar(template, Tool("f", "", parameters))
    for value, is_right in ((right, True), (wrong, False)):
        if template == QWEN_CODER:
            answer = (
                f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n"
                "</tool_call>"
            )
        else:
            tag = "]<]minimax[>["
            answer = (
                f'{tag}<tool_call>\n{tag}<invoke name="f">{tag}<x>{value}{tag}</x>{tag}</invoke>\n'
                f"{tag}</tool_call>"
            )
        assert matches(found, answer) == is_right


def test_a_first_argument_that_need_not_be_there_may_be_left_out() -> None:
    parameters = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    found = grammar(LFM2, Tool("f", "", {**parameters, "required": ["b"]}))
    for arguments, is_right in (("a=1, b=2", True), ("b=2", True), ("a=1", False)):
        assert matches(found, f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>") == is_right


def test_a_text_ends_where_all_of_its_end_comes() -> None:
    rules = Rules(lambda mark: "<[7]>", ["<|sep|>"])
    source = llguidance.LLMatcher.grammar_from_lark(rules.lark(rules.text_until("</x><|sep|>")))
    tokenizer = llguidance.LLTokenizer("byte")
    for text, ends in (("a</x>b</x>", True), ("a</x>b", False)):
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        assert matcher.consume_tokens([*tokenizer.tokenize_str(text), 7])
        assert matcher.is_accepting() == ends


def test_of_marks_that_begin_alike_the_longest_is_meant() -> None:
    marks = ["<|open|>", "<|open|>tools<|sep|>"]
    rules = Rules(lambda mark: f"<[{marks.index(mark)}]>", marks)
    assert rules.written("<|open|>tools<|sep|>") == "<[1]>"


def test_what_cannot_be_enforced_in_tags_is_refused_by_its_name() -> None:
    for schema, word in (
        ({"properties": {"x": {"type": "string", "pattern": "a+"}}}, "pattern"),
        ({"anyOf": [{}]}, "anyOf"),
    ):
        with pytest.raises(NoGrammarError, match=word):
            grammar(QWEN_CODER, Tool("f", "", schema))
    for schema in ({"properties": ["x"]}, {"properties": {}, "required": ["x"]}):
        for template in (QWEN_CODER, GEMMA):
            with pytest.raises(NoGrammarError, match=r"cannot be enforced|is no object"):
                grammar(template, Tool("f", "", schema))
    with pytest.raises(NoGrammarError, match="minimum"):
        grammar(GEMMA, Tool("f", "", {"properties": {"x": {"type": "integer", "minimum": 3}}}))

"""Chat templates: what templates in use need, and that a hostile one ends, soon and small."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from airllm.text import template_process
from airllm.text.chat_template import ChatTemplate, ChatTemplateError
from airllm.text.template_process import TemplateFaultError, TemplateProcess
from airllm.util.metadata import FormatError, Metadata

HELLO = [{"role": "user", "content": "Hello"}]


def render(
    source: str, messages: list[dict[str, object]] | None = None, **variables: object
) -> str:
    given = HELLO if messages is None else messages
    return ChatTemplate(source).render(given, variables=variables)


# What templates in use need.


def test_messages_become_text() -> None:
    template = ChatTemplate(
        "{% for message in messages %}<|{{ message.role }}|>{{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert template.render(HELLO) == "<|user|>Hello\n<|assistant|>"
    assert template.render(HELLO, add_generation_prompt=False) == "<|user|>Hello\n"


def test_a_block_takes_its_newline_and_the_spaces_before_it() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_special_tokens_are_known_to_the_template() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<s>"})
    assert template.render(HELLO) == "<s>Hello"


def test_the_template_can_refuse_a_conversation() -> None:
    with pytest.raises(ChatTemplateError, match="the model's chat template: no system role here"):
        render("{{ raise_exception('no system role here') }}")


def test_tools_are_none_unless_given() -> None:
    source = "{% if tools is not none %}{{ tools | length }}{% else %}none{% endif %}"
    assert render(source) == "none"
    assert render(source, tools=[{}, {}]) == "2"


def test_tojson_writes_plain_json() -> None:
    value = {"text": "<b> & é"}
    assert render("{{ value | tojson }}", value=value) == '{"text": "<b> & é"}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"


def test_today_is_known_in_the_layout_asked_for() -> None:
    assert render("{{ strftime_now('%Y') }}") == f"{datetime.now():%Y}"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "0user"),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}"
         "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}"
         "{{ ns.n }}", "3"),
        ("{% macro f(x, y='!') %}{{ x }}{{ y }}{% endmacro %}{{ f('a') ~ f('b', y='?') }}", "a!b?"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for i in [1, 2] %}{{ loop.index }}{{ ',' if not loop.last }}{% endfor %}", "1,2"),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n').startswith('b') }}", "True"),
        ("{{ ' x ' | trim }}{{ 'a' | default('b') }}{{ missing | default('c') }}", "xac"),
        ("{{ ['b', 'a'] | sort | join('+') }}{{ 'aXa'.replace('X', '-') }}", "a+ba-a"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "Hello"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages | map(attribute='content') | join(',') }}", "Hello"),
        ("{{ 'a\\nb' | indent(2) }}{{ 'hello world' | title }}", "a\n  bHello World"),
        ("{{ '<b>' }}{{ none }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 'ab' * 2 }}", "<b>None38abab"),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}", "A1"),
        ("{{ missing }}{{ messages[0].missing }}", ""),
        ("{% for a in [[1, [2]], [3]] recursive %}"
         "{{ loop(a) if a is iterable else a }}{% endfor %}", "123"),
        ("{{ 'a{}'.format('b') }}{{ '{x:>3}{0!r}'.format('é', x=1) }}"
         "{{ '{a}'.format_map({'a': 2}) }}",
         "ab  1'é'2"),
        ("{{ 'a b' | wordcount }}{{ [1, 2, 3] | batch(2) | list }}{{ {'a': [1]} | pprint }}",
         "2[[1, 2], [3]]{'a': [1]}"),
        ("{{ 'x' | urlize }}{{ 'abc def' | wordwrap(3) }}{{ '%s!' | format('a') }}{{ '%d' % 3 }}",
         "xabc\ndefa!3"),
    ],
)  # fmt: skip
def test_what_templates_use_works(source: str, text: str) -> None:
    assert render(source) == text


QUEUE = """\
{%- set queue = namespace(ids=[], seen={}) -%}
{%- for message in messages -%}
  {%- for call in message.calls or [] -%}
    {%- set id = call ~ ':' ~ loop.index0 -%}
    {%- set _ = queue.ids.append(id) -%}
    {%- set _ = queue.seen.update({id: queue.seen.setdefault('n', 0)}) -%}
    <{{ id }}>
  {%- endfor -%}
  {%- if message.role == 'tool' -%}({{ queue.ids.pop(0) }}){%- endif -%}
{%- endfor -%}
{%- set _ = queue.ids.extend(['x', 'z']) -%}{%- set _ = queue.ids.insert(1, 'y') -%}
{{ queue.ids | join }}{{ queue.seen.pop('n') }}{{ queue.seen | length }}"""


def test_a_template_may_change_its_lists_and_dicts_and_the_next_rendering_sees_nothing() -> None:
    """Kimi K2's template gives each result of a tool the id of its call from such a queue."""
    messages = [{"role": "assistant", "calls": ["f", "g"]}, {"role": "tool"}, {"role": "tool"}]
    template = ChatTemplate(QUEUE)
    assert template.render(messages) == template.render(messages) == "<f:0><g:1>(f:0)(g:1)xyz02"
    source = "{% set _ = messages.append(messages[0]) %}{{ messages | length }}"
    assert ChatTemplate(source).render(messages) == "4"
    assert len(messages) == 3


def test_variables_reach_the_template() -> None:
    source = "{{ enable_thinking }} {{ tools[0].function.name }} {{ effort | default('none') }}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert render(source, enable_thinking=False, tools=tools) == "False f none"
    assert render(source, enable_thinking=True, tools=tools, effort="high") == "True f high"


def test_variables_stand_before_special_tokens() -> None:
    template = ChatTemplate("{{ bos_token }}", {"bos_token": "<s>"})
    assert template.render(HELLO, variables={"bos_token": "<b>"}) == "<b>"


def test_a_guard_goes_through_all_that_is_given() -> None:
    template = ChatTemplate(
        "{{ messages | tojson }}{{ tools | tojson }}{{ bos_token }}", {"bos_token": "b"}
    )
    text = template.render(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
            }
        ],
        variables={"tools": [{"name": ["t"]}]},
        guard=str.upper,
    )
    assert text == '[{"ROLE": "USER", "CONTENT": "XY"}][{"NAME": ["T"]}]b'


# What messages may be.


def test_the_texts_of_a_content_in_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a cat?"}]
    messages: list[dict[str, object]] = [{"role": "user", "content": parts}]
    assert render("{{ 'User: ' + messages[0]['content'] }}", messages) == "User: What is a cat?"
    assert messages[0]["content"] is parts


def test_a_message_without_content_stays_without() -> None:
    messages: list[dict[str, object]] = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert render("{{ messages[0] }}", messages) == str(messages[0])


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ({"role": "user", "content": "x"}, r"messages is a single message; expected a list"),
        ("Hello", "messages is a str; expected a list"),
        (3, "messages is a int; expected a list"),
        (["Hello"], r"messages\[0\] is 'Hello'; expected a mapping"),
        ([*HELLO, {"content": "x"}], r"messages\[1\] has no 'role'"),
        ([{"role": "user", "content": {1, 2}}], "must be JSON values: .*set"),
    ],
)
def test_what_is_no_message_is_refused_by_name(messages: object, fault: str) -> None:
    with pytest.raises(TypeError, match=fault):
        ChatTemplate("x").render(messages)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [{"type": "image_url"}, "x", {"type": "text", "text": 1}, None])
def test_a_part_that_is_no_text_is_refused_by_its_place(part: object) -> None:
    messages: list[dict[str, object]] = [*HELLO, {"role": "user", "content": [part]}]
    with pytest.raises(ChatTemplateError, match=r"messages\[1\] has the part .*reads text"):
        render("x", messages)


def test_variables_that_json_has_not_are_refused() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (object(), {(1, 2): 3}, deep):
        with pytest.raises(TypeError, match="must be JSON values"):
            render("x", value=value)
    with pytest.raises(ChatTemplateError, match="characters; expected at most"):
        render("x", value=cycle)


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt"])
def test_the_conversation_is_no_variable(name: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' cannot be set as a template variable"):
        ChatTemplate("x").render(HELLO, variables={name: []})


def test_a_long_conversation_has_budget_enough() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and not loop.last %}"
        "{{ '<|user|>' + m.content | trim + '\n' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages: list[dict[str, object]] = [{"role": "user", "content": "word " * 2000}] * 500
    assert len(render(source, messages)) > 500 * 9999


def test_a_template_that_goes_through_all_messages_for_each_has_budget_enough() -> None:
    source = (
        "{% for m in messages %}{% set ns = namespace(last='') %}{% for other in messages %}"
        "{% if other.role == m.role %}{% set ns.last = other.content %}{% endif %}{% endfor %}"
        "{{ ns.last }}{% endfor %}"
    )
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hello"}] * 400
    assert render(source, messages) == "Hello" * 400


def test_what_a_template_is_given_buys_it_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.4 to 2 s of work, of a template that has 0.1 s for one message and 10 s for 3,300."""
    monkeypatch.setattr(template_process, "SECONDS", 0.1)
    source = "{% for i in range(200) %}{% set x = range(100000) | list | sum %}{% endfor %}x"
    with pytest.raises(ChatTemplateError, match="it takes too long"):
        render(source)
    assert render(source, HELLO * 3300) == "x"


def test_what_a_template_is_given_buys_it_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CHARACTERS", 1000)
    source = "{% for i in range(7) %}{{ messages | tojson }}{% endfor %}"
    message = {"role": "user", "content": "x" * 10_000}
    assert len(render(source, [message])) > 70_000
    with pytest.raises(ChatTemplateError, match="it writes more than 8"):
        render(source.replace("7", "9"), [message] * 10)


# From a file.


def metadata(**values: object) -> dict[str, object]:
    return {f"tokenizer.{key.replace('__', '.')}": value for key, value in values.items()}


def test_a_files_template_knows_its_special_tokens() -> None:
    template = ChatTemplate.from_gguf(
        metadata(
            chat_template="{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}",
            ggml__tokens=["<s>", "</s>"],
            ggml__bos_token_id=0,
            ggml__eos_token_id=1,
        )
    )
    assert template.render(HELLO) == "<s></s>False"


def test_without_a_template_chatml_is_used_where_the_vocabulary_has_it() -> None:
    template = ChatTemplate.from_gguf(metadata(ggml__tokens=["a", "<|im_start|>", "<|im_end|>"]))
    assert template.render(HELLO) == ("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (metadata(ggml__tokens=["a"]), "has no chat template, so the model cannot chat"),
        (metadata(ggml__tokens=["a"], chat_template=3), "tokenizer.chat_template is int 3"),
        (metadata(chat_template="x"), "tokenizer.ggml.tokens is missing"),
        (metadata(ggml__tokens=["a"], chat_template="x", ggml__bos_token_id=1), "expected 0 to 0"),
        (metadata(ggml__tokens=["a"], chat_template="{% if %}"), "Expected an expression"),
    ],
)
def test_a_file_without_a_usable_template_is_refused(
    values: Mapping[str, object], fault: str
) -> None:
    with pytest.raises(FormatError, match=f"^model.gguf: .*{fault}"):
        ChatTemplate.from_gguf(Metadata("model.gguf", values))


# Hostile templates.


def loops(n: int, body: str) -> str:
    opening = "".join(f"{{% for i{k} in range(1000) %}}" for k in range(n))
    return opening + body + "{% endfor %}" * n


def doubling(value: str, step: str) -> str:
    return f"{{% set x = {value} %}}" + f"{{% set x = {step} %}}" * 60 + "{{ x }}"


ENDLESS = {
    "nested loops": loops(4, "x"),
    "nested empty loops": loops(4, ""),
    "loops inside a macro": "{% macro m() %}" + loops(4, "y") + "{% endmacro %}{{ m() }}",
    "two calls in each call": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "sums of a range": loops(2, "{{ range(100000) | sum }}"),
    "the largest of a range": loops(2, "{{ range(100000) | max }}"),
    "searches in a range": loops(2, "{{ 1.5 in range(100000) }}"),
    "searches in a text": "{% set a = 'a' * 1000000 %}"
    + loops(2, "{{ ('b' in a) or a.count('a') }}"),
    "searches from the end": "{% set a = 'a' * 1000000 %}{% set b = 'b' ~ 'a' * 500000 %}"
    + loops(2, "{{ a.rfind(b) }}"),
    "copies": "{% set a = 'a' * 1000000 %}" + loops(2, "{% set b = a[1:] %}"),
    "a long set to strip": "{{ ('a' * 4000000).strip('b' * 4000000 ~ 'a') }}",
    "a long set to trim": "{{ ('a' * 4000000) | trim('b' * 4000000 ~ 'a') }}",
    "a long path": "{% set x = ['a'] * 100000 %}"
    + "{{ x | map(attribute='0.' * 400000 ~ '0') | list }}",
    "sorting by a long path": "{{ (['a'] * 100000) | sort(attribute='0.' * 400000 ~ '0') }}",
    "selecting by a long path": "{{ (['a'] * 9999) | selectattr('0.' * 400000 ~ '0') | list }}",
    "a large power": "{% set x = 7 ** 9999999 %}" + loops(1, "{% set y = x * x %}"),
    "insertions at the front": "{% set l = [1] * 1000000 %}"
    + loops(2, "{% set _ = l.insert(0, 1) %}{% set _ = l.pop() %}"),
    "while it is compiled": "{{ 7 ** 9999999 * 7 ** 9999999 % 3 ** 999999 }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of its own process: a busy machine changes nothing."""
    monkeypatch.setattr(template_process, "SECONDS", 0.1)
    with pytest.raises(ChatTemplateError, match="it takes too long; it may loop without end"):
        render(ENDLESS[name])


LARGE = {
    "'a' * 10**10": "{{ 'a' * 10**10 }}",
    "10**10 * 'a'": "{{ 10**10 * 'a' }}",
    "a long list": "{{ [0] * 10**10 }}",
    "squares of squares": doubling("9 ** 99", "x * x"),
    "text twice by +": doubling("'aaaa'", "x + x"),
    "text twice by ~": doubling("'aaaa'", "x ~ x"),
    "a list twice": doubling("[1]", "x + x"),
    "a list of itself twice": doubling("[1]", "[x, x]"),
    "a dict of itself twice": doubling("{'a': 1}", "{'a': x, 'b': x}"),
    "appending": "{% set l = [1] %}{% for i in l %}{% set _ = l.append([i]) %}{% endfor %}",
    "a list extended by itself": "{% set l = [1] %}" + "{% set _ = l.extend(l) %}" * 60,
    "a list extended by what is read from it": "{% set l = [1] %}"
    "{% for i in l %}{% set _ = l.extend(l) %}{% endfor %}",
    "a list that holds itself, copied": "{% set l = [1] %}{% set _ = l.append(l) %}"
    + doubling("l", "x + x"),
    "a dict that grows": "{% set d = {} %}" + loops(3, "{% set _ = d.update({d | length: 1}) %}"),
    "join": "{{ (['a' * 1000000] * 1000) | join }}",
    "str.join": "{{ ('b' * 100000).join(['a'] * 10000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "indent": "{{ 'a\\nb' | indent(10**9) }}",
    "tojson with indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "tojson of repeats": "{{ (['a' * 1000000] * 10000) | tojson }}",
    "str.center": "{{ 'a'.center(10**9) }}",
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "formatting with %": "{{ '%1000000000d' % 1 }}",
    "many pieces": loops(3, "y" * 10_000),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_makes_too_much_is_refused(name: str) -> None:
    with pytest.raises(
        ChatTemplateError, match=r"it takes more memory than|it writes more than|it takes too long"
    ):
        render(LARGE[name])


def test_a_template_gets_no_more_memory_than_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "MEMORY_BYTES", 64 << 20)
    assert render("{{ ('a' * 40000000) | length }}") == "40000000"
    with pytest.raises(ChatTemplateError, match="it takes more memory than a chat template needs"):
        render("{{ ('a' * 80000000) | length }}")


def test_after_a_template_that_was_ended_the_next_one_is_rendered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    for source in (loops(4, ""), "{{ 'a' * 10**10 }}"):
        monkeypatch.setattr(template_process, "SECONDS", 0.1)
        with pytest.raises(ChatTemplateError):
            render(source)
        monkeypatch.undo()
        assert template.render(HELLO) == "Hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.clear() }}",
        "{{ messages[0].clear() }}",
        "{{ [2, 1].sort() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0[role]}'.format(messages[0]) }}",
        "{{ '{0.x}'.format(1) }}",
        "{{ '{a[0]}'.format_map({'a': [1]}) }}",
        "{{ '{:{0.x}}'.format(1) }}",
        "{{ ('' | attr('format'))() ~ ('{0.x}' | attr('format'))(1) }}",
        "{{ ['{0.x}'] | map('attr', 'format') | first | string ~ messages.clear() }}",
        "{{ pay(-10**9) }}",
        "{{ range(10**9) }}",
        "{{ 1.5 | round(10**9, 'ceil') }}",
        "{{ 5() }}",
        "{{ 1 / 0 }}",
        "{{ 9 ** 9999 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% set n = namespace() %}{% set n.n = n %}{{ [n] | tojson }}",
        "{% set l = [] %}{% set _ = l.append(l) %}{{ l | tojson }}",
        "{% set a, b = [], [] %}{% set _ = a.append(b) %}{% set _ = b.append(a) %}{{ a == b }}",
        "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}"
        "{% set _ = n.l.append(n.l) %}{{ n.l }}",
    ],
)
def test_what_no_template_needs_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="the model's chat template: "):
        render(source)


def test_a_list_that_holds_itself_is_written_as_python_writes_it() -> None:
    assert render("{% set l = [1] %}{% set _ = l.append(l) %}{{ l }}") == "[1, [...]]"


def test_internals_read_as_nothing() -> None:
    """As Jinja has it, a forbidden attribute is an error in use and no text when written."""
    assert render("{{ messages.__class__ }}{{ ''['__class__'] }}{{ self.__init__ }}") == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{{ " + "-" * 20_000 + "1 }}",
        "{{ a" + ".b" * 19_000 + " }}",
        "{% if 1 %}" * 1200 + "{% endif %}" * 1200,
        loops(25, ""),
        "x" * (2**20 + 1),
        "{{ " + "1" * 30_000 + " }}",
        "{% if",
        "{{ 'a",
        "{% endfor %}",
    ],
    ids=lambda source: f"{source[:12]}...",
)
def test_a_template_too_large_or_deep_to_compile_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="the model's chat template"):
        ChatTemplate(source)


# The process that templates run in.

OPENS = """
import os, sys
from airllm.text import template_child
from airllm.text.template_sandbox import Sandbox

def attempt(what):
    try:
        return repr({"read": lambda: open("/etc/hostname"), "write": lambda: open("/tmp/x", "w"),
                     "pipe": os.pipe}[what]())
    except OSError as error:
        return error.strerror

class Broken(Sandbox):
    def __init__(self):
        super().__init__()
        self.globals["attempt"] = attempt

template_child.Sandbox = Broken
template_child.main()
"""


@pytest.mark.parametrize("what", ["read", "write", "pipe"])
def test_a_template_that_got_out_of_the_sandbox_opens_nothing(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n" + OPENS
    monkeypatch.setattr(template_process, "_BOOT", boot)
    process = TemplateProcess()
    try:
        assert process.ask(f"{{{{ attempt('{what}') }}}}", {}) == "Too many open files"
    finally:
        process.close()


def test_a_crash_ends_the_template_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = template_process._BOOT.replace("main()", "sys")
    for end, said in (
        (
            "import os; os.kill(os.getpid(), 11)",
            "it crashed the process that renders it .signal 11",
        ),
        ("sys.exit(3)", "ended with status 3; is that Python"),
    ):
        monkeypatch.setattr(template_process, "_BOOT", f"{boot}; {end}")
        process = TemplateProcess()
        with pytest.raises(TemplateFaultError, match=said):
            process.ask("x", None)


def test_a_process_that_does_not_run_is_ended_by_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = TemplateProcess()
    process.ask("x", None)
    os.kill(process.process_id or 0, signal.SIGSTOP)
    monkeypatch.setattr(template_process, "_WALL_SECONDS", 0.01)
    monkeypatch.setattr(template_process, "_WALL_PER_CPU", 0.0)
    with pytest.raises(TemplateFaultError, match="signal 9"):
        process.ask("x", None)


def test_an_answer_longer_than_it_may_be_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = (
        "import sys, time; sys.stdout.buffer.write(b'\\xff' * 8); sys.stdout.flush();"
        " sys.stdin.read()"
    )
    monkeypatch.setattr(template_process, "_BOOT", boot)
    with pytest.raises(TemplateFaultError, match="it has taken over the process"):
        TemplateProcess().ask("x", None)


def test_threads_get_their_own_answers() -> None:
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        said[number] = render("{{ n }}", n=number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: str(number) for number in range(8)}


def test_an_interrupted_question_leaves_no_answer_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = TemplateProcess()

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(template_process, "read_frame", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.ask("first", {})
    assert process.ask("second", {}) == "second"
    process.close()


def test_a_forked_process_has_a_renderer_of_its_own() -> None:
    code = (
        "import os, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from airllm.text.chat_template import ChatTemplate\n"
        "template = ChatTemplate('{{ n }}')\n"
        "ours = template.render([], variables={'n': 1})\n"
        "child = os.fork()\n"
        "said = template.render([], variables={'n': 2 if child else 3})\n"
        "if not child: os._exit(int(said))\n"
        "print(ours, said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert (done.stdout, done.stderr) == ("1 2 3\n", "")


def test_the_process_ends_with_the_program() -> None:
    code = (
        "from airllm.text import template_process\n"
        "template_process.render('x', None)\n"
        "print(template_process._shared.process_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)

"""Chat templates: what templates in use need, and that a hostile one ends, soon and small."""

import gc
import time
from collections.abc import Mapping
from datetime import datetime

import pytest
from traced_memory import traced_memory

from airllm.text.chat_template import ChatTemplate, ChatTemplateError
from airllm.util.metadata import FormatError, Metadata

HELLO = [{"role": "user", "content": "Hello"}]


def render(
    source: str, messages: list[dict[str, object]] | None = None, **variables: object
) -> str:
    return ChatTemplate(source).render(HELLO if messages is None else messages, **variables)


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
    ],
)  # fmt: skip
def test_what_templates_use_works(source: str, text: str) -> None:
    assert render(source) == text


def test_a_long_conversation_has_budget_enough() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and not loop.last %}"
        "{{ '<|user|>' + m.content | trim + '\n' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages: list[dict[str, object]] = [{"role": "user", "content": "word " * 2000}] * 500
    assert len(render(source, messages)) > 500 * 9999


def test_each_rendering_has_its_own_budget() -> None:
    template = ChatTemplate("{% for i in range(50000) %}x{% endfor %}")
    assert [len(template.render(HELLO)) for _ in range(4)] == [50_000] * 4


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
    "loops of much text": loops(2, "y" * 30_000),
    "loops inside a macro": "{% macro m() %}" + loops(2, "y" * 30_000) + "{% endmacro %}{{ m() }}",
    "loops inside a set": "{% set x %}" + loops(2, "y" * 30_000) + "{% endset %}",
    "loops over conditions": loops(
        1, "{% for i in range(9999) if " + "a or " * 99 + "b %}{% endfor %}"
    ),
    "loops over branches": loops(2, "{% if 0 %}" + "{% elif a or b %}" * 900 + "{% endif %}"),
    "loops over calls": "{% macro m(a="
    + "b or " * 99
    + "c) %}{% endmacro %}"
    + loops(2, "{{ m() }}"),
    "two calls in each call": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "two calls in each macro": "".join(
        f"{{% macro m{i}() %}}{{{{ m{i + 1}() }}}}{{{{ m{i + 1}() }}}}{{% endmacro %}}"
        for i in range(40)
    )
    + "{% macro m40() %}{% endmacro %}{{ m0() }}",
    "long comparisons": "{% set a = 'a' * 1000000 %}{% set b = 'a' * 1000000 %}"
    + loops(2, "{{ a == b }}"),
    "long searches": "{% set a = 'a' * 1000000 %}" + loops(2, "{{ ('b' in a) or a.count('a') }}"),
    "long copies": "{% set a = 'a' * 1000000 %}" + loops(2, "{% set b = a[1:] %}"),
    "long lists": "{% set a = range(20000) | list %}" + loops(2, "{% set b = a | sort %}"),
    "long maps": loops(2, "{% set b = range(9999) | map('string') | list %}"),
    "long words": loops(2, "{% set b = ('a ' * 99999) | title %}"),
    "loop.changed": loops(3, "{% if loop.changed(i0) %}{% endif %}"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_ends_within_a_second(name: str) -> None:
    taken = []
    gc.freeze()  # what all tests have made: to collect that takes longer than the template
    try:
        for _ in range(3):  # the best of them, as the machine may be busy
            started = time.thread_time()
            with pytest.raises(ChatTemplateError, match="it takes too long; it may loop without"):
                render(ENDLESS[name])
            taken.append(time.thread_time() - started)
    finally:
        gc.unfreeze()
    assert min(taken) < 1


LARGE = {
    "'a' * 10**10": "{{ 'a' * 10**10 }}",
    "10**10 * 'a'": "{{ 10**10 * 'a' }}",
    "a long list": "{{ [0] * 10**10 }}",
    "a large power": "{{ 2 ** (10**9) }}",
    "powers of powers": "{{ (2 ** 4000) ** 4000 }}",
    "squares of squares": doubling("9 ** 99", "x * x"),
    "text twice by +": doubling("'aaaa'", "x + x"),
    "text twice by ~": doubling("'aaaa'", "x ~ x"),
    "a list twice": doubling("[1]", "x + x"),
    "a list of itself twice": doubling("[1]", "[x, x]"),
    "a tuple of itself twice": doubling("(1,)", "(x, x)"),
    "a dict of itself twice": doubling("{'a': 1}", "{'a': x, 'b': x}"),
    "dict() of itself twice": doubling("1", "dict(a=x, b=x)"),
    "join": "{{ (['a' * 1000000] * 1000) | join }}",
    "str.join": "{{ ('b' * 100000).join(['a'] * 10000) }}",
    "join filter": "{{ (['a'] * 10000) | join('b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "str.replace": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "indent": "{{ 'a\\nb' | indent(10**9) }}",
    "tojson with indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "tojson of repeats": "{{ (['a' * 1000000] * 10000) | tojson }}",
    "split": "{{ ('a ' * 500000).split() }}",
    "a number in hexadecimal": "{{ ('f' * 1000000) | int(0, 16) }}",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_value_is_refused_before_it_is_made(name: str) -> None:
    template = ChatTemplate(LARGE[name])
    refused = pytest.raises(ChatTemplateError, match=r"it (would make|has made) a ")
    with traced_memory() as traced, refused:
        template.render(HELLO)
    assert traced.peak < 32 * 2**20


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'.zfill(10**9) }}",
        "{{ 'a'.encode() }}",
        "{{ (5).to_bytes(10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ '' | attr('__class__') }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [1] | batch(10**9, 0) | list }}",
        "{{ lipsum(n=10**9) }}",
        "{{ cycler(1) }}",
        "{{ pay(-10**9) }}",
        "{{ environment.pay(-10**9) }}",
        "{{ range(10**9) }}",
        "{{ 1.5 | round(10**9, 'ceil') }}",
        "{{ strftime_now('%c' * 1000) }}",
        "{{ dict(*messages) }}",
        "{{ 5() }}",
        "{{ 1 / 0 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% set n = namespace() %}{% set n.n = n %}{{ [n] | tojson }}",
    ],
)
def test_what_no_template_needs_is_refused(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="the model's chat template: "):
        render(source)


def test_internals_read_as_nothing() -> None:
    """As Jinja has it, a forbidden attribute is an error in use and no text when written."""
    assert render("{{ messages.__class__ }}{{ ''['__class__'] }}{{ self.__init__ }}") == ""


def test_a_namespace_that_holds_itself_is_written_without_end() -> None:
    assert render("{% set n = namespace() %}{% set n.n = n %}{{ n }}") == "<namespace>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{{ " + "-" * 20_000 + "1 }}",
        "{{ " + "+".join("1" * 10_000) + " }}",
        "{{ 1" + "|abs" * 8000 + " }}",
        "{{ a" + ".b" * 19_000 + " }}",
        "{% if 1 %}" * 1200 + "{% endif %}" * 1200,
        loops(25, ""),
        "{{ {" + ",".join(f"{i}:1" for i in range(5000)) + "} }}",
        "x" * 40_001,
        "{{ " + "1" * 30_000 + " }}",
        "{% if",
        "{{ 'a",
        "{% endfor %}",
    ],
    ids=lambda source: f"{source[:12]}...",
)
def test_a_template_too_large_or_deep_to_compile_is_refused(source: str) -> None:
    started = time.process_time()
    with pytest.raises(ChatTemplateError, match="the model's chat template: "):
        ChatTemplate(source)
    assert time.process_time() - started < 1

"""Tool calls wherever a model begins one: from the mark on a random model writes a right call, and
without a mark its answer is untouched.
"""

import json
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from sequence_states import heads_of, new_state
from test_answer_parser import (
    APERTUS,
    COMMAND_R,
    DEEPSEEK,
    DSML,
    FUNCTIONARY3,
    GEMMA,
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
)
from tiny_model import MERGES, SPECIAL, vocabulary_tokens

from airllm.backends.numpy_backend import NumpyBackend
from airllm.engine.continuation import Continuation, Generation
from airllm.engine.grammar import Grammars
from airllm.engine.marked_grammar import Marked, MarkedGrammars
from airllm.engine.settings import Limits, Sampling
from airllm.text.answer import AnswerParser, AnswerText, CallArguments, CallBegin, Tool, format_of
from airllm.text.answer.call_grammars import call_grammars
from airllm.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="`pip install .[test]` brings llguidance")

FORMATS = {
    "hermes": HERMES,
    "llama 3": LLAMA,
    "mistral, a list": "[TOOL_CALLS]",
    "mistral, a list with ids": '[TOOL_CALLS] "id": "',
    "mistral": "[TOOL_CALLS] [ARGS]",
    "mistral with ids": "[TOOL_CALLS] [ARGS] [CALL_ID]",
    "deepseek v3": DEEPSEEK + "```json",
    "deepseek v3.1": DEEPSEEK,
    "deepseek v3.2": DSML,
    "deepseek v4": "｜DSML｜tool_calls>",
    "kimi": KIMI,
    "gpt-oss": HARMONY,
    "qwen3-coder": QWEN_CODER,
    "glm": GLM,
    "seed": SEED,
    "minimax": MINIMAX,
    "minimax m3": MINIMAX3,
    "gemma": GEMMA,
    "kimi k3": KIMI3,
    "solar": SOLAR,
    "hy3": HY3,
    "minicpm5": MINICPM,
    "lfm2": LFM2,
    "apertus": APERTUS,
    "gigachat 3": GIGACHAT3,
    "functionary v3.2": FUNCTIONARY3,
    "command r": COMMAND_R,
    "cohere": "<|START_ACTION|>",
    "apriel": "<tool_calls>",
    "minimax m1": "<tool_calls>\\n",
    "nemotron": "<TOOLCALL>",
    "granite": "<|tool_call|>",
    "functionary": "<function=</function>",
}
TOOLS = [
    Tool(
        "weather",
        "The weather in a city.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Rome", "Xi'an"]},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
            },
            "required": ["city", "exact"],
            "additionalProperties": False,
        },
    ),
    Tool("clock", "", {"type": "object", "properties": {}, "additionalProperties": False}),
]
CLOCK = [TOOLS[1]]
EOS = 2


def is_right(name: str, arguments: str) -> bool:
    """Whether a call is that of a tool, by its schema."""
    value = json.loads(arguments)
    if name == "clock":
        return bool(value == {})
    kinds = {"city": str, "days": int, "exact": bool}
    return (
        name == "weather"
        and {"city", "exact"} <= value.keys() <= kinds.keys()
        and all(type(one) is kinds[key] for key, one in value.items())
        and value["city"] in ("Rome", "Xi'an")
    )


def tokenizer_with(control: Sequence[str] = (), plain: Sequence[str] = ()) -> Tokenizer:
    """A token for each byte, and these."""
    texts = [*vocabulary_tokens(), *control, *plain]
    types = [3] * len(SPECIAL) + [1] * (len(vocabulary_tokens()) - len(SPECIAL))
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": np.array([*types, *[3] * len(control), *[4] * len(plain)]),
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.eos_token_id": EOS,
        }
    )


class Speaker:
    """Answers of a model that begins with a script and goes on at random."""

    def __init__(
        self, template: str, tools: Sequence[Tool] = TOOLS, *, control: bool = False, **more: Any
    ) -> None:
        """control: whether the format's marks are control tokens."""
        self.format, self.tools, self.template = format_of(template), tools, template
        own = [one for one in dict.fromkeys(self.format.marks) if one not in SPECIAL]
        self.tokenizer = tokenizer_with(own if control else ())
        grammars, thought = Grammars(self.tokenizer), self.format.thought
        self.found = call_grammars(
            self.format, self._mark, tools, template=template, several=more.pop("several", True)
        )
        self.form = MarkedGrammars(
            [
                Marked(one.mark.encode(), grammars.lark(one.lark), one.at_start, one.ends)
                for one in self.found
            ],
            self.tokenizer.token_bytes,
            thought=(thought[0].encode(), thought[1].encode()) if thought else None,
            **more,
        )

    def _mark(self, text: str) -> str:
        for id in self.tokenizer.control_ids((text,)):
            return f"<[{id}]>"
        return json.dumps(text, ensure_ascii=False)

    def say(
        self,
        script: str,
        seed: int = 0,
        *,
        form: bool = True,
        most: int = 600,
        sampling: Sampling | None = None,
        then: Sequence[int] = (),
        never: Sequence[int] = (),
    ) -> Generation:
        """script: what the model begins with. then: tokens that it likes most after that, in this
        order. never: tokens that it does not say in free text."""
        begin = self.tokenizer.encode(script, add_special=False, parse_special=True)
        state = new_state(NumpyBackend(), [heads_of(1, 1)], most + 10)
        shown = self.tokenizer.control_ids(self.format.marks)
        answer = Continuation(
            [5],
            state,
            self.tokenizer,
            sampling or Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed),
            Limits(max_new_tokens=most),
            self.form if form else None,
            shown=shown,
        )
        random = np.random.default_rng(seed)
        while answer.goes_on():
            state.advance(answer.pending)
            logits = random.normal(size=self.tokenizer.vocab_size).astype(np.float32)
            logits[[0, 1]] = -50.0
            matcher = answer._matcher
            if matcher is None or matcher.mask() is None:
                logits[list(never)] = -50.0
            if answer.n_answer < len(begin):
                logits[begin[answer.n_answer]] = 100.0
            elif answer.n_answer == len(begin):
                for at, token in enumerate(then):
                    logits[token] = 90.0 - 20 * at
            answer.pending = []
            answer.take(logits, perf_counter())
        answer.rest()
        return answer.result()

    def read(self, text: str) -> list[tuple[str, str]]:
        """Names and arguments of the calls in an answer."""
        parser = AnswerParser(self.format, self.tools, in_thought=self.form.in_thought)
        calls: list[tuple[str, str]] = []
        for part in (*parser.push(text), *parser.finish()):
            if isinstance(part, CallBegin):
                calls.append((part.name, ""))
            elif isinstance(part, CallArguments):
                calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
        return calls


@pytest.mark.parametrize("control", [False, True], ids=["as text", "as tokens"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_follows_the_mark_of_a_call_is_a_right_call(name: str, control: bool) -> None:
    speaker = Speaker(FORMATS[name], control=control)
    assert speaker.found
    assert len({(one.mark, one.at_start) for one in speaker.found}) == len(speaker.found)
    controls = [
        id for id in range(speaker.tokenizer.vocab_size) if speaker.tokenizer.is_control(id)
    ]
    for one in speaker.found:
        n_right = 0
        for seed in range(4):
            said = "" if one.at_start else "Let me see.\n"
            # It ends the answer where it may.
            most = 600 if name == "hy3" else 300  # whose tags are long
            answer = speaker.say(said + one.mark, seed, never=set(controls) - {EOS}, most=most)
            calls = speaker.read(answer.text)
            assert calls, (one.mark, answer.text)
            if answer.finish_reason == "length":
                calls.pop()  # it may be cut
            assert all(is_right(*call) for call in calls), (one.mark, answer.text)
            n_right += len(calls)
        assert n_right, one.mark


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_that_begins_no_call_is_untouched(name: str) -> None:
    speaker = Speaker(FORMATS[name], control=True)
    marks = speaker.tokenizer.control_ids(speaker.format.marks)
    greedy = Sampling(temperature=0.0)
    for seed, sampling in ((0, greedy), (1, None), (2, None)):
        given: dict[str, Any] = {"never": list(marks), "sampling": sampling, "most": 200}
        held = speaker.say("Hello <tool", seed, **given)
        free = speaker.say("Hello <tool", seed, form=False, **given)
        assert held.tokens == free.tokens
        assert held.passes == free.passes


def test_what_must_come_takes_no_pass_of_its_own() -> None:
    answer = Speaker(HERMES, CLOCK).say("<tool_call>", never=[EOS])
    assert answer.text.startswith("<tool_call>")
    assert '"clock", "arguments": ' in answer.text
    assert answer.accepted_tokens > 20


def test_after_a_call_the_answer_is_free_again_and_may_call_again() -> None:
    speaker = Speaker(HERMES, CLOCK)
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    answer = speaker.say(f"{call} And {call} {{ or <tool_call>", most=250)
    assert len(speaker.read(answer.text)) == 3
    assert " { or " in answer.text


def test_without_parallel_calls_the_answer_ends_with_the_first() -> None:
    for name in ("hermes", "kimi", "granite", "mistral"):
        speaker = Speaker(FORMATS[name], CLOCK, several=False)
        answer = speaker.say(speaker.found[0].mark, never=[EOS])
        assert answer.finish_reason == "stop"
        assert [is_right(*call) for call in speaker.read(answer.text)] == [True]


def test_gpt_oss_ends_its_answer_with_a_call() -> None:
    speaker = Speaker(HARMONY, CLOCK, control=True)
    for begin in (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.",
        " to=functions.",
    ):
        answer = speaker.say(begin, never=[EOS])
        assert answer.finish_reason == "stop"
        assert [is_right(*call) for call in speaker.read(answer.text)] == [True]


def test_a_mark_within_a_thought_begins_no_call() -> None:
    thinks = "<think>I could <tool_call> now"
    for script, more in ((thinks, {}), (thinks.removeprefix("<think>"), {"in_thought": True})):
        speaker = Speaker(HERMES, CLOCK, **more)
        assert speaker.say(script, most=150).accepted_tokens == 0
        answer = speaker.say(f"{script}</think>\n<tool_call>", most=150)
        assert answer.accepted_tokens > 20
        assert is_right(*speaker.read(answer.text)[0])


def test_an_object_that_names_a_tool_is_a_call_only_at_the_beginning() -> None:
    speaker = Speaker(LLAMA, CLOCK)
    assert speaker.say('\n {"name": "clock"', never=[EOS]).accepted_tokens > 10
    assert speaker.say('{"type": "function", "name": "clock"').accepted_tokens > 10
    assert speaker.say('So {"name": "clock"').accepted_tokens == 0
    assert speaker.say('{"name": "Ada"').accepted_tokens == 0
    after = Speaker(LLAMA.replace(">", "></think>"), CLOCK, in_thought=True)
    assert after.say('Hm.</think>\n{"name": "clock"').accepted_tokens > 10


def test_a_token_that_brings_what_may_not_follow_the_mark_does_not_come() -> None:
    """Tokens do not end where marks do."""
    speaker = Speaker(HERMES, CLOCK)
    speaker.tokenizer = tokenizer_with(plain=[">x", ">\n{", '>\n{"name": "weather'])
    wrong, right, other = range(len(vocabulary_tokens()), speaker.tokenizer.vocab_size)
    grammars = Grammars(speaker.tokenizer)
    speaker.form = MarkedGrammars(
        [Marked(one.mark.encode(), grammars.lark(one.lark)) for one in speaker.found],
        speaker.tokenizer.token_bytes,
    )
    answer = speaker.say("<tool_call", then=[other, wrong, right])
    n = len(speaker.tokenizer.encode("<tool_call", add_special=False))
    assert answer.tokens[n] == right
    assert is_right(*speaker.read(answer.text)[0])
    n = len(speaker.tokenizer.encode("<tool_cal", add_special=False))
    assert speaker.say("<tool_cal", then=[wrong, right]).tokens[n] == wrong


def test_each_answer_has_a_state_of_its_own() -> None:
    speaker = Speaker(HERMES, CLOCK)
    one, other = speaker.form.matcher(), speaker.form.matcher()
    for token in speaker.tokenizer.encode("<tool_call>", add_special=False):
        assert one.allows(token)
        one.accept(token)
    assert one.mask() is not None
    assert other.mask() is None
    assert not one.ended


def test_a_token_is_taken_whichever_one_was_asked_about_before() -> None:
    form = MarkedGrammars(
        [Marked(b"<<", Grammars(tokenizer_with()).regex("a"))], [b"<", b"x"].__getitem__
    )
    matcher = form.matcher()
    assert matcher.allows(1)
    matcher.accept(0)
    matcher.accept(0)
    assert matcher.mask() is not None


def test_of_the_marks_that_a_token_brings_the_first_counts() -> None:
    texts = [b"<call><think>", b"<call><other>", b"<think><call>"]
    grammar = Grammars(tokenizer_with()).regex("a")
    matcher = MarkedGrammars(
        [Marked(b"<other>", grammar), Marked(b"<call>", grammar)],
        texts.__getitem__,
        thought=(b"<think>", b"</think>"),
    ).matcher()
    assert not matcher.allows(0)  # the rest of the token is no "a"
    assert not matcher.allows(1)
    matcher.accept(2)
    assert matcher.mask() is None


@pytest.mark.parametrize(
    ("text", "holds"),
    [("x<c>", True), ("<think><c>", False), ("<think></think><c>", True), ("<c>a{", False)],
)
def test_marks_may_come_in_pieces_and_count_at_their_place(text: str, holds: bool) -> None:
    tokenizer = tokenizer_with()
    grammar = Grammars(tokenizer).regex("a")
    marked = [Marked(b"<c>", grammar), Marked(b"{", grammar, at_start=True)]
    matcher = MarkedGrammars(
        marked, tokenizer.token_bytes, thought=(b"<think>", b"</think>")
    ).matcher()
    for char in text:
        matcher.accept(tokenizer.encode(char, add_special=False)[0])
    assert (matcher.mask() is not None) == holds


@pytest.mark.parametrize(("mark", "at_start", "most"), [(b"<c>", False, 2), (b"{", True, 0)])
def test_no_more_of_free_text_is_kept_than_may_begin_a_mark(
    mark: bytes, at_start: bool, most: int
) -> None:
    grammar = Grammars(tokenizer_with()).regex("a")
    marked = [Marked(mark, grammar, at_start=at_start)]
    matcher = MarkedGrammars(marked, lambda token: b"x").matcher()
    for _ in range(9):
        matcher.accept(0)
    assert len(matcher._free.tail) == most  # type: ignore[attr-defined]


class TooComplex:
    """A grammar, and its state, that says so wherever it is asked."""

    ended = False

    def matcher(self) -> "TooComplex":
        return self

    def mask(self) -> np.ndarray:
        raise ValueError("too complex")

    def accept(self, token: int) -> None:
        raise ValueError("too complex")


def test_a_grammar_that_becomes_too_complex_holds_no_longer() -> None:
    form = MarkedGrammars([Marked(b"<call>", TooComplex())], lambda token: b"<call>")  # type: ignore[arg-type]
    matcher = form.matcher()
    matcher.accept(0)
    assert matcher.mask() is None
    matcher.accept(0)  # no error, and free text up to the next mark
    assert matcher.mask() is None


def test_calls_that_no_schema_bounds_may_have_any_arguments() -> None:
    for name, text in (
        ("hermes", '<tool_call>\n{"name": "any", "arguments": {"x": [1]}}\n</tool_call>'),
        ("qwen3-coder", "<tool_call>\n<function=any>\n<parameter=x>\n[1]\n</parameter>\n"
         "</function>\n</tool_call>"),
        ("gemma", "<|tool_call>call:any{x:[1]}<tool_call|>"),
        ("minimax m3", "]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name=\"any\">"
         "]<]minimax[>[<x>[1]]<]minimax[>[</x>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>"),
    ):  # fmt: skip
        speaker = Speaker(FORMATS[name], [Tool("any")])
        matcher = speaker.form.matcher()
        for token in speaker.tokenizer.encode(text, add_special=False):
            assert matcher.allows(token)
            matcher.accept(token)
        assert matcher.mask() is None  # the call has ended
        assert [(one, json.loads(its)) for one, its in speaker.read(text)] == [("any", {"x": [1]})]


def test_text_around_calls_stays_text() -> None:
    speaker = Speaker(HERMES, CLOCK)
    answer = speaker.say("I look. <tool_call>", never=[EOS], most=100)
    parser = AnswerParser(speaker.format, CLOCK)
    first = [*parser.push(answer.text), *parser.finish()][0]
    assert first == AnswerText("I look.")

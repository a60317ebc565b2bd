"""Grammars: whatever a random model likes, its answer is what the schema or grammar allows."""

import json
import re
import sys

import numpy as np
import pytest
from extension import require_cpp
from scheduling import GREEDY, ask, run
from test_tokenizer import llama
from tiny_model import Sizes, write_tiny_model

from airllm.engine.grammar import Grammar, GrammarLibraryError, Grammars
from airllm.engine.requests import Piece
from airllm.engine.settings import Sampling
from airllm.layer_engine import LayerWiseInferenceEngine as Engine
from airllm.text.tokenizer import Tokenizer

llguidance = pytest.importorskip("llguidance", reason="`pip install .[test]` brings llguidance")

HOT = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.5}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["circle", "square"]},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 99}},
        "deep": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
    "required": ["name", "kind", "sizes", "deep"],
    "additionalProperties": False,
}
SCHEMA["properties"]["sizes"]["maxItems"] = 3
SCHEMA["properties"]["deep"]["additionalProperties"] = False


@pytest.fixture(scope="module", params=["numpy", "cpp"])
def engine(request, tmp_path_factory):
    if request.param == "cpp":
        require_cpp()
    folder = tmp_path_factory.mktemp("model")
    path = write_tiny_model(folder, "q8_0", sizes=Sizes(context=600)).path
    with Engine(path, backend=request.param) as engine:
        yield engine


def answers(engine, grammar, n=10, **settings):
    settings = {"max_new_tokens": 500, **HOT, **settings}
    return [
        engine.generate("say", grammar=grammar, **{"seed": seed, **settings}) for seed in range(n)
    ]


# ---- what an answer looks like -------------------------------------------------------------------


def test_answers_obey_a_json_schema(engine):
    for answer in answers(engine, engine.grammar(json_schema=SCHEMA)):
        assert answer.finish_reason == "stop"
        value = json.loads(answer.text)
        assert value.keys() == SCHEMA["properties"].keys()
        assert len(value["name"]) <= 5
        assert value["kind"] in ("circle", "square")
        assert len(value["sizes"]) <= 3
        assert all(type(each) is int and -9 <= each <= 99 for each in value["sizes"])
        assert type(value["deep"]["ok"]) is bool


def test_a_schema_may_be_a_text_or_allow_everything(engine):
    (answer,) = answers(engine, engine.grammar(json_schema='{"const": [1, "x"]}'), 1)
    assert json.loads(answer.text) == [1, "x"]
    grammar = engine.grammar(json_schema={"type": ["null", "boolean"]})
    assert {json.loads(each.text) for each in answers(engine, grammar)} <= {None, True, False}
    assert engine.grammar(json_schema=True)


def test_answers_match_a_regular_expression(engine):
    pattern = r"[a-f]{2,4}-[0-9]+(\.[0-9]{2})?|never"
    for answer in answers(engine, engine.grammar(regex=pattern), max_new_tokens=60):
        if answer.finish_reason == "stop":
            assert re.fullmatch(pattern, answer.text)
    short = engine.grammar(regex="[ab]{2,3}")
    texts = {each.text for each in answers(engine, short, 40)}
    assert texts <= {a + b + c for a in "ab" for b in "ab" for c in ("", "a", "b")}
    assert {len(text) for text in texts} == {2, 3}  # it ends where it may, and where it must


def test_answers_are_texts_of_a_gbnf_grammar(engine):
    grammar = engine.grammar(gbnf='root ::= "yes" | "no" (" " [a-c]){2}')
    for answer in answers(engine, grammar):
        assert re.fullmatch("yes|no [a-c] [a-c]", answer.text)


def test_answers_are_texts_of_a_lark_grammar(engine):
    grammar = engine.grammar(lark='start: "<" WORD ">"\nWORD: /[xyz]{1,3}/')
    for answer in answers(engine, grammar):
        assert re.fullmatch("<[xyz]{1,3}>", answer.text)


def test_characters_of_several_bytes_are_spelled_whole(engine):
    grammar = engine.grammar(regex="[äöü€😀]{3}")
    for answer in answers(engine, grammar, 5):
        assert re.fullmatch("[äöü€😀]{3}", answer.text)


def test_markup_is_never_a_part_of_a_text(engine):
    control = [id for id in range(engine.tokenizer.vocab_size) if engine.tokenizer.is_control(id)]
    matcher = engine.grammar(regex="(?s:.{3,99})").matcher()  # as long as the longest of them
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    assert control
    assert not bits[control].any()
    for token in engine.tokenize("abc"):
        matcher.accept(token)
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    assert bits[sorted(engine.tokenizer.eos_ids)].all()  # it may end here


def test_white_space_in_json_has_an_end(engine):
    matcher = engine.grammar(json_schema={"type": "object"}).matcher()
    matcher.accept_text(b"{" + b" " * 40)
    with pytest.raises(ValueError, match="the grammar cannot be followed"):
        matcher.accept_text(b" ")


# ---- how it is generated -------------------------------------------------------------------------


def test_what_must_come_takes_no_pass_of_its_own(engine):
    grammar = engine.grammar(regex='\\{"name": "[xy]", "another name": [0-9]\\}')
    answer = answers(engine, grammar, 1)[0]
    assert json.loads(answer.text)["name"] in ("x", "y")
    assert answer.passes <= 6
    assert len(answer.tokens) > 25
    assert answer.passes + answer.accepted_tokens == len(answer.tokens)


def test_what_must_come_has_no_space_that_the_tokenizer_puts_in_front():
    tokenizer = Tokenizer.from_gguf(llama())
    assert tokenizer.token_bytes(tokenizer.encode("hello", add_special=False)[0]) == b" hello"
    for text, fewest in (("hello", 1), ("<s>", 3)):  # which is no control token
        forced = Grammars(tokenizer).regex(text).matcher().forced()
        assert b"".join(map(tokenizer.token_bytes, forced)) == text.encode()
        assert len(forced) == fewest


@pytest.mark.parametrize("n", [0, 1, 5, 20])
def test_forced_tokens_count_and_end_with_the_others(engine, n):
    grammar = engine.grammar(regex="abcdefghijklmnopqrstuvwxyz")
    answer = answers(engine, grammar, 1, max_new_tokens=n)[0]
    assert len(answer.tokens) == n
    assert "abcdefghijklmnopqrstuvwxyz".startswith(answer.text)
    assert answer.finish_reason == "length"


def test_a_stop_string_ends_an_answer_with_a_grammar_too(engine):
    grammar = engine.grammar(regex="abcdefghijklmnopqrstuvwxyz")
    answer = answers(engine, grammar, 1, stop="fg")[0]
    assert (answer.text, answer.finish_reason) == ("abcde", "stop")


def test_a_scheduler_gives_the_answers_of_generate_beside_others(engine):
    grammars = [
        engine.grammar(json_schema=SCHEMA),
        None,
        engine.grammar(regex="[a-z]{5,30}"),
        engine.grammar(gbnf='root ::= "x"+ "y"'),
    ]
    prompt = engine.tokenize("say something")
    expected = []
    for grammar in grammars:
        engine.reset()
        expected.append(
            engine.generate("say something", grammar=grammar, temperature=0, max_new_tokens=60)
        )
    engine.reset()
    with engine.scheduler(lanes=8, piece_tokens=70) as scheduler:
        for _ in range(2):
            told = [
                ask(scheduler, prompt, GREEDY, 60, grammar=grammar)[1] for grammar in grammars * 2
            ]
            run(scheduler)
            for each, its in zip(told, expected * 2, strict=True):
                assert each.answer.tokens == its.tokens
                assert (each.text(), each.tokens()) == (its.text, its.tokens)


def test_several_answers_have_a_grammars_state_each(engine):
    grammar = engine.grammar(json_schema=SCHEMA)
    with engine.scheduler() as scheduler:
        _, told = ask(scheduler, [5, 6], Sampling(**HOT, seed=1), 500, grammar=grammar, n=4)
        run(scheduler)
    texts = [told.answers[index].text for index in range(4)]
    assert len(set(texts)) == 4
    assert all(json.loads(text)["kind"] in ("circle", "square") for text in texts)


def test_with_logprobs_each_token_has_one_of_the_models_distribution(engine):
    grammar = engine.grammar(regex="abcdef[gh]")
    with engine.scheduler() as scheduler:
        _, told = ask(scheduler, [5, 6], grammar=grammar, logprobs=True)
        run(scheduler)
    found = [each for piece in told.of(Piece) for each in piece.logprobs]
    assert tuple(each.token for each in found) == told.answer.tokens
    assert all(each.logprob < 0 for each in found)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"type": "array", "contains": {"const": 1}},
        {"not": {"type": "string"}},
        {"if": {"const": 1}, "then": {"const": 2}},
        {"type": "object", "propertyNames": {"maxLength": 3}},
        {"oneOf": [{"type": "integer"}, {"minimum": 2}]},
        {"type": "string", "format": "a-format-of-our-own"},
        {"type": "strange"},
        {"type": "string", "pattern": "("},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/schema.json"},
        {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"oneOf": [{"type": "integer"}, {"minimum": 2}], "x-guidance": {"coerce_one_of": True}},
        False,
    ],
)
def test_a_schema_that_cannot_be_enforced_is_an_error_and_never_ignored(engine, schema):
    with pytest.raises(ValueError, match=r"the JSON schema cannot be enforced: .{5,}"):
        engine.grammar(json_schema=schema)


def test_what_the_library_only_warns_of_is_an_error(engine):
    tokenizer = Grammars(engine.tokenizer)._tokenizer
    lenient = llguidance.LLMatcher.grammar_from_json_schema(
        {"type": "array", "uniqueItems": True}, overrides={"lenient": True}
    )
    with pytest.raises(ValueError, match=r"it cannot be enforced: .*uniqueItems"):
        Grammar(tokenizer, lenient, "it")


def test_a_grammar_that_an_answer_left_is_an_error_that_tells_nothing_of_the_parser(engine):
    matcher = engine.grammar(regex="abc").matcher()
    (x,) = engine.tokenizer.encode("x", add_special=False)
    for call in (lambda: matcher.accept(x), matcher.mask, lambda: matcher.ended):
        with pytest.raises(ValueError, match="the grammar cannot be followed") as error:
            call()
        assert "<state>" not in str(error.value)


ID_BESIDE_REF = {
    "$id": "http://example.com/base/",
    "definitions": {
        "text": {"$id": "http://example.com/elsewhere/x.json", "type": "string"},
        "number": {"$id": "http://example.com/base/x.json", "type": "number"},
    },
    "allOf": [{"$id": "http://example.com/elsewhere/", "$ref": "x.json"}],
}


def test_a_ref_that_drafts_read_in_two_ways_is_refused_unless_the_schema_names_its_draft(engine):
    with pytest.raises(ValueError, match=r"'\$id' beside '\$ref' in #/allOf/0 .* '\$schema'"):
        engine.grammar(json_schema=ID_BESIDE_REF)
    for draft, kind in (
        ("http://json-schema.org/draft-07/schema#", float),
        ("https://json-schema.org/draft/2020-12/schema", str),
    ):
        grammar = engine.grammar(json_schema={"$schema": draft, **ID_BESIDE_REF})
        found = [each.text for each in answers(engine, grammar, 8) if each.finish_reason == "stop"]
        assert found
        assert all(isinstance(json.loads(text), (kind, int)) for text in found)
        assert {text.startswith('"') for text in found} == {kind is str}


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "http://example.com/x", "$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
        {"properties": {"$id": {"type": "null"}, "$ref": {"type": "null"}}},
        {"const": {"$id": "a", "$ref": "b"}},
    ],
)
def test_an_id_beside_a_ref_that_means_the_same_in_all_drafts_is_enforced(engine, schema):
    assert engine.grammar(json_schema=schema)


ENDLESS: dict[str, object] = {}
ENDLESS["not"] = ENDLESS


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"json_schema": "{"}, ValueError, "the JSON schema is no JSON"),
        ({"json_schema": "[1]"}, ValueError, r"the JSON schema is \[1\]; expected an object"),
        ({"json_schema": {"a": {1}}}, ValueError, "the JSON schema is no JSON"),
        ({"json_schema": ENDLESS}, ValueError, "the JSON schema is no JSON"),
        ({"regex": "("}, ValueError, "the regular expression cannot be enforced"),
        ({"regex": 5}, TypeError, "the regular expression is 5; expected a string"),
        ({"regex": "x" * (1 << 21)}, ValueError, "has 2,097,152 characters"),
        ({"gbnf": "root := x"}, ValueError, "the GBNF grammar cannot be"),
        ({"lark": "start: WORD"}, ValueError, "the Lark grammar cannot be enforced"),
        ({}, TypeError, "nothing given; expected one of json_schema"),
        ({"regex": "a", "gbnf": "b"}, TypeError, "regex and gbnf given"),
    ],
)
def test_a_grammar_that_is_none_is_an_error_that_says_why(engine, given, error, message):
    with pytest.raises(error, match=message):
        engine.grammar(**given)


def test_without_the_library_there_is_one_clear_error(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarLibraryError, match=r"pip install 'llguidance>=1.9'"):
        Grammars(engine.tokenizer)


def test_a_grammar_and_guesses_exclude_each_other(engine):
    grammar = engine.grammar(regex="a")
    with pytest.raises(ValueError, match="a grammar takes no guesses"):
        engine.generate("x", grammar=grammar, lookahead=3)

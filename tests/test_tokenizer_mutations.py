"""Whatever is wrong with a vocabulary is a FormatError when it is opened, or it works."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer import BYTE, NORMAL, USER_DEFINED, gpt2, llama

from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import FormatError

TEXT = "hello <|im_end|> hé</s>\n日本 <0x0A> x\ud800"
KEY = "tokenizer.ggml."

small = st.integers(-2, 300)
kinds = st.integers(-1, 8)
words = st.sampled_from(["", " ", "▁", "h", "hello", "<0x0A>", "<0xZZ>", "\0", "\x001", "é", "l o"])


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A vocabulary in which a few things are not what they were."""
    found: dict[str, Any] = dict(draw(st.sampled_from([gpt2(), llama()])))
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from(["types", "type", "token", "tokens", "merge", "id", "score",
                                       "missing", "length", "twice"]))  # fmt: skip
        tokens = list(found.get(f"{KEY}tokens", []))
        n = max(len(tokens), 1)
        at = draw(st.integers(0, n - 1))
        if change == "types":
            found[f"{KEY}token_type"] = np.full(len(tokens), draw(kinds))
        elif change == "type" and f"{KEY}token_type" in found:
            types = np.array(found[f"{KEY}token_type"])
            types[at % max(len(types), 1) :][:1] = draw(kinds)
            found[f"{KEY}token_type"] = types
        elif change == "token" and tokens:
            tokens[at] = draw(words)
            found[f"{KEY}tokens"] = tokens
        elif change == "twice" and tokens:
            tokens[at] = tokens[draw(st.integers(0, n - 1))]
            found[f"{KEY}tokens"] = tokens
        elif change == "tokens":
            found[f"{KEY}tokens"] = [draw(words)] * len(tokens)
        elif change == "merge":
            merge = draw(st.builds("{} {}".format, words, words) | words)
            found[f"{KEY}merges"] = [merge, *found.get(f"{KEY}merges", [])]
        elif change == "id":
            name = draw(st.sampled_from(["bos", "eos", "eot", "unknown", "padding"]))
            found[f"{KEY}{name}_token_id"] = draw(small)
        elif change == "score" and f"{KEY}scores" in found:
            scores = np.array(found[f"{KEY}scores"], np.float32)
            scores[at % max(len(scores), 1) :][:1] = draw(st.floats(width=32))
            found[f"{KEY}scores"] = scores
        elif change == "missing":
            found.pop(draw(st.sampled_from(sorted(found))), None)
        elif change == "length":
            key = draw(st.sampled_from(["tokens", "token_type", "scores"]))
            if f"{KEY}{key}" in found:
                found[f"{KEY}{key}"] = found[f"{KEY}{key}"][: draw(st.integers(0, n))]
    return found


def check(metadata: Mapping[str, object]) -> None:
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    except FormatError:
        return
    for parse_special in (False, True):
        text = tokenizer.guarded(TEXT) if parse_special else TEXT
        try:
            ids = tokenizer.encode(text, parse_special=parse_special)
        except ValueError as error:
            if "has no tokens for" not in str(error):  # a text that this vocabulary cannot write
                raise
            continue
        assert all(0 <= id < tokenizer.vocab_size for id in ids)
        own = {tokenizer.bos_id} if tokenizer.add_bos else set()
        unknown = metadata.get(f"{KEY}unknown_token_id")
        assert not [id for id in set(ids) - own - {unknown} if tokenizer.is_control(id)]
        tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size))
    tokenizer.decode(range(tokenizer.vocab_size), skip_special=True)


@settings(max_examples=150, deadline=None)
@given(mutated())
def test_a_damaged_vocabulary_is_refused_by_name_or_works(metadata: dict[str, Any]) -> None:
    check(metadata)


@pytest.mark.parametrize("kind", range(-1, 8))
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_vocabulary_whose_tokens_are_all_of_one_type(make: Any, kind: int) -> None:
    n = len(make()[f"{KEY}tokens"])
    check(make(token_type=np.full(n, kind)))


def test_an_unknown_token_that_no_type_declares_is_unknown_all_the_same() -> None:
    metadata = llama()
    types = np.array(metadata[f"{KEY}token_type"])
    types[:] = np.where(types == BYTE, NORMAL, types)
    types[0] = NORMAL
    tokens = [text.replace("<0x", "<") for text in metadata[f"{KEY}tokens"]]
    tokenizer = Tokenizer.from_gguf(llama(token_type=types, tokens=tokens))
    assert tokenizer.is_control(0)
    assert tokenizer.encode("日", add_special=False)[1:] == [0]


def test_types_that_are_all_undefined_say_nothing() -> None:
    undefined = Tokenizer.from_gguf(llama(token_type=np.zeros(272, np.int32)))
    without = Tokenizer.from_gguf(llama(token_type=None))
    assert undefined.encode(TEXT) == without.encode(TEXT)
    assert undefined.decode(undefined.encode("日")) == "<s>日"
    assert undefined.eos_ids == {2}


def test_a_text_that_is_two_tokens_is_one_of_them() -> None:
    """The library has a number of its own for it, beyond the vocabulary's."""
    metadata = gpt2()
    tokens, types = list(metadata[f"{KEY}tokens"]), np.array(metadata[f"{KEY}token_type"])
    tokens[260], types[260], tokens[264], types[264] = "<h1>", USER_DEFINED, "<h1>", NORMAL
    changed = {**metadata, f"{KEY}tokens": tokens, f"{KEY}token_type": types, f"{KEY}merges": []}
    ids = Tokenizer.from_gguf(changed).encode("<h1>")
    assert ids in ([260], [264])

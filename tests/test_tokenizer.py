"""The tokeniser: both schemes on small vocabularies made here, and known facts of a real one."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airllm.formats.gguf import FormatError, GGUFFile
from airllm.text.chat_template import ChatTemplate
from airllm.text.pre_tokenizers import RULES
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte, by its own rule."""
    visible = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopq"
    visible += "rstuvwxyz{|}~" + "".join(map(chr, [*range(161, 173), *range(174, 256)]))
    characters, others = [], 256
    for byte in range(256):
        if chr(byte) in visible:
            characters.append(chr(byte))
        else:
            characters.append(chr(others))
            others += 1
    return characters


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["lo", "he", "hel", "hello", "Ġhello", "hello1"]
MERGES = ["l o", "h e", "he l", "hel lo", "Ġ hello", "hello 1"]


def gpt2(**changes: object) -> dict[str, object]:
    """Metadata of a byte-level vocabulary: three control tokens, the 256 bytes, a few words."""
    tokens = [*SPECIALS, *byte_characters(), *WORDS]
    metadata: dict[str, object] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": np.array([CONTROL] * 3 + [NORMAL] * (len(tokens) - 3), np.int32),
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return prefixed(metadata)


def llama(**changes: object) -> dict[str, object]:
    """Metadata of a SentencePiece vocabulary, in which the longer pieces have the better scores."""
    pieces = ["▁", "h", "e", "l", "o", "é", "he", "ll", "hell", "hello", "▁hello", "▁he", "lo"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * 259 + [-100.0] * 6 + [-6.0, -5.0, -4.0, -3.0, -2.0, -7.0, -8.0]
    metadata: dict[str, object] = {
        "model": "llama",
        "tokens": tokens,
        "token_type": np.array(kinds, np.int32),
        "scores": np.array(scores, np.float32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return prefixed(metadata)


def prefixed(metadata: dict[str, object]) -> dict[str, object]:
    """Keys as the file has them; None takes a key away."""
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def texts(tokenizer: Tokenizer, text: str, **options: bool) -> list[bytes]:
    return [tokenizer.token_bytes(id) for id in tokenizer.encode(text, **options)]


# Byte-level BPE.


def test_merges_join_in_their_order() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    assert texts(tokenizer, "hello hello helo") == [b"hello", b" hello", b" ", b"he", b"lo"]


def test_words_are_cut_before_merges() -> None:
    assert texts(Tokenizer.from_gguf(gpt2()), "hello1") == [b"hello", b"1"]


def test_any_text_comes_back() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    text = "hello, wörld! 日本語 👨‍👩‍👧 \x00\x07\t\r\n ﷽"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    assert ROUND_TRIP.decode(ROUND_TRIP.encode(text)) == text


ROUND_TRIP = Tokenizer.from_gguf(gpt2())


def test_a_token_may_be_a_part_of_a_character() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    pieces = texts(tokenizer, "é")
    assert pieces == [b"\xc3", b"\xa9"]
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_half_of_a_surrogate_pair_becomes_the_replacement_character() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_a_byte_that_no_token_has_becomes_the_replacement_character() -> None:
    tokens = [*SPECIALS, *(char for char in byte_characters() if char != "z"), "\x00z"]
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=None, merges=[]))
    assert tokenizer.decode(tokenizer.encode("azb")) == "a\ufffdb"


def test_a_vocabulary_that_cannot_spell_even_that_says_what_it_lacks() -> None:
    few = {"tokens": ["a", "b"], "token_type": None, "merges": []}
    none = dict.fromkeys(["bos_token_id", "eos_token_id", "unknown_token_id"])
    tokenizer = Tokenizer.from_gguf(gpt2(**few, **none))
    assert tokenizer.encode("ab") == [0, 1]
    with pytest.raises(ValueError, match="no tokens for 'c'"):
        tokenizer.encode("abc")


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["Hello", " World", "'s", " 1234", "  ", " x", "?!", "\n\n"]),
        ("smollm", ["Hello", " World", "'s", " ", "1", "2", "3", "4", "  ", " x", "?!", "\n\n"]),
        ("llama-bpe", ["Hello", " World", "'s", " ", "123", "4", "  ", " x", "?!\n\n"]),
        ("qwen2", ["Hello", " World", "'s", " ", "1", "2", "3", "4", "  ", " x", "?!\n\n"]),
        ("tekken", ["Hello", " World", "'s", " ", "1", "2", "3", "4", "  ", " x", "?!\n\n"]),
        ("gpt-4o", ["Hello", " World's", " ", "123", "4", "  ", " x", "?!\n\n"]),
        ("deepseek-v3", ["Hello", " World", "'s", " ", "123", "4", "  ", " x", "?!\n\n"]),
        ("spark2_5", ["Hello", " World", "'s", " ", *"1234", "  ", " x", "?!", "\n", "\n"]),
        ("kimi-k2", ["Hello", " World's", " ", "123", "4", "  ", " x", "?!\n\n"]),
        ("exaone-moe", ["Hello World", "'s", " ", "1", "2", "3", "4", "  ", " x", "?!\n", "\n"]),
        ("afmoe", ["Hello", " World", "'s", " ", "1", "234", "  ", " x", "?!\n\n"]),
        ("minicpm5", ["Hello", " World", "'s", " ", "123", "4", "  ", " x", "?!\n\n"]),
        (
            "deepseek-llm",
            ["Hello", " World", "'", "s", " ", "1", "2", "3", "4", "  ", " x", "?!", "\n", "\n"],
        ),
        (
            "seed-coder",
            ["Hello", " World", "'s", " ", "1", "2", "3", "4", "  ", " x", "?!", "\n\n"],
        ),
        ("bloom", ["Hello", " World's", " 1234", "  ", " x", "?!\n\n"]),
        ("falcon", ["Hello", " World", "'", "s", " ", "123", "4", "  ", " x", "?!", "\n\n"]),
        (
            "deepseek-coder",
            ["Hello", " World", "'", "s", " ", "1", "2", "3", "4", "  ", " x", "?!", "\n", "\n"],
        ),
    ],
)
def test_each_rule_cuts_text_its_own_way(pre: str, words: list[str]) -> None:
    byte_of = {char: byte for byte, char in enumerate(byte_characters())}
    pieces = RULES[pre].build().pre_tokenize_str("Hello World's 1234   x?!\n\n")
    assert [bytes(byte_of[char] for char in piece).decode() for piece, _ in pieces] == words


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("1", ["1"]),
        ("12", ["12"]),
        ("123", ["123"]),
        ("a1234b", ["a", "1", "234", "b"]),
        ("12345", ["12", "345"]),
        ("123456", ["123", "456"]),
        ("1234567 12", ["1", "234", "567", " ", "12"]),
        ("\u0661\u0662\u0663\u0664", ["\u0661", "\u0662\u0663\u0664"]),
    ],
)
def test_afmoe_counts_digits_from_the_right(digits: str, words: list[str]) -> None:
    byte_of = {char: byte for byte, char in enumerate(byte_characters())}
    pieces = RULES["afmoe"].build().pre_tokenize_str(digits)
    assert [bytes(byte_of[char] for char in piece).decode() for piece, _ in pieces] == words


def test_afmoe_cuts_a_million_digits_in_time() -> None:
    started = time.process_time()
    pieces = RULES["afmoe"].build().pre_tokenize_str("7" * 1_000_001)
    assert [len(piece) for piece, _ in pieces[:2]] == [2, 3]
    assert time.process_time() - started < 5.0


def test_a_capital_letter_begins_a_word_for_some_rules() -> None:
    def count(pre: str) -> int:
        return len(RULES[pre].build().pre_tokenize_str("HelloWorld"))

    assert (count("tekken"), count("gpt-4o"), count("llama-bpe"), count("gpt-2")) == (2, 2, 1, 1)


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("deepseek-llm", ["éß", "日本가", "É", "，", "ა"]),
        ("kimi-k2", ["éß", "日本", "가", "É", "，ა"]),
    ],
)
def test_some_rules_part_scripts(pre: str, words: list[str]) -> None:
    byte_of = {char: byte for byte, char in enumerate(byte_characters())}
    pieces = RULES[pre].build().pre_tokenize_str("".join(words))
    assert [bytes(byte_of[char] for char in piece).decode() for piece, _ in pieces] == words


def test_qwen_composes_letters_and_accents_first() -> None:
    decomposed = "cafe\u0301"
    assert Tokenizer.from_gguf(gpt2(pre="gpt-2")).decode(encode("gpt-2", decomposed)) == decomposed
    for name in ("qwen2", "qwen35"):
        assert encode(name, decomposed) == encode(name, "caf\u00e9")


def encode(pre: str, text: str) -> list[int]:
    return Tokenizer.from_gguf(gpt2(pre=pre)).encode(text, add_special=False)


def test_llama_3_takes_a_word_that_is_a_token_whatever_the_merges() -> None:
    """No merge makes "abc", so only a rule that looks words up first finds it."""
    tokens = [*SPECIALS, *byte_characters(), "abc"]
    kinds = np.array([CONTROL] * 3 + [NORMAL] * 257, np.int32)
    changes = {"tokens": tokens, "token_type": kinds, "merges": [], "add_bos_token": False}
    assert texts(Tokenizer.from_gguf(gpt2(pre="llama-bpe", **changes)), "abc") == [b"abc"]
    assert texts(Tokenizer.from_gguf(gpt2(pre="gpt-2", **changes)), "abc") == [b"a", b"b", b"c"]


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match=r"pre-tokenizer 'klingon'.*use a model with one of: "):
        Tokenizer.from_gguf(gpt2(pre="klingon"))


# SentencePiece.


def test_the_pair_with_the_best_score_joins_first() -> None:
    tokenizer = Tokenizer.from_gguf(llama())
    assert texts(tokenizer, "hello", add_special=False) == [b" hello"]
    assert texts(tokenizer, "hellhe", add_special=False) == [b" ", b"hell", b"he"]


def test_a_character_without_a_token_falls_back_to_its_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(llama(add_space_prefix=False))
    assert texts(tokenizer, "é", add_special=False) == ["é".encode()]
    assert texts(tokenizer, "ü", add_special=False) == [b"\xc3", b"\xbc"]


def test_the_space_in_front_is_taken_away_again() -> None:
    tokenizer = Tokenizer.from_gguf(llama())
    for text in ("hello", " hello", "  hello  ", "", " ", "日本\n"):
        assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text
    assert tokenizer.decode(tokenizer.encode("hello")) == "<s>hello"


def test_a_model_may_want_no_space_in_front() -> None:
    tokenizer = Tokenizer.from_gguf(llama(add_space_prefix=False))
    assert texts(tokenizer, "hello", add_special=False) == [b"hello"]
    assert tokenizer.decode(tokenizer.encode(" hello", add_special=False)) == " hello"


def test_bytes_written_as_text_are_text() -> None:
    tokenizer = Tokenizer.from_gguf(llama())
    assert tokenizer.decode(tokenizer.encode("<0x0A>", add_special=False)) == "<0x0A>"


# Control tokens.


@pytest.mark.parametrize("metadata", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_text_never_becomes_a_control_token(metadata: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in ("<|im_end|>", "a<|im_start|>b", "</s>", "<s>hello</s>", "<unk>"):
        ids = tokenizer.encode(text, add_special=False)
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == text


def test_text_never_becomes_a_control_token_by_a_merge_that_makes_one() -> None:
    """A file whose merges spell a control token is refused: nothing else would stop it."""
    with pytest.raises(FormatError, match="two tokens that make a third"):
        Tokenizer.from_gguf(gpt2(tokens=[*SPECIALS, *byte_characters(), "<|", "im_end|>"],
                                 token_type=np.array([CONTROL] * 3 + [NORMAL] * 258, np.int32),
                                 merges=["< |", "<| im_end|>"]))  # fmt: skip


def test_text_never_becomes_a_control_token_that_is_a_common_word() -> None:
    kinds = np.array([NORMAL] * 3 + [NORMAL] * 256 + [NORMAL] * 3 + [CONTROL] + [NORMAL] * 2)
    tokenizer = Tokenizer.from_gguf(gpt2(pre="llama-bpe", token_type=kinds, merges=MERGES[:3]))
    assert tokenizer.is_control(262)
    assert tokenizer.token_bytes(262) == b"hello"
    assert 262 not in tokenizer.encode("hello")
    assert 262 in tokenizer.encode("hello", parse_special=True)


def test_templates_may_write_control_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    assert tokenizer.encode("<|im_start|>hello<|im_end|>", parse_special=True) == [1, 262, 2]
    assert tokenizer.decode([1, 262, 2]) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.decode([1, 262, 2], skip_special=True) == "hello"


def test_user_defined_tokens_are_text_that_is_one_token() -> None:
    tokens = [*SPECIALS, *byte_characters(), "<h1>", "<|tool|>"]
    kinds = np.array([CONTROL] * 3 + [NORMAL] * 256 + [USER_DEFINED] * 2, np.int32)
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=kinds, merges=[]))
    assert texts(tokenizer, "a<h1>b") == [b"a", b"<h1>", b"b"]
    assert not tokenizer.is_control(259)
    assert not tokenizer.is_control(260)
    assert tokenizer.encode("<|tool|>") == [260]


def test_the_types_in_a_file_decide_what_is_markup_and_not_its_names() -> None:
    """Gemma's <s> and </s> are tags of HTML."""
    tokens = [*SPECIALS, *byte_characters(), "<s>", "</s>"]
    kinds = np.array([CONTROL] * 3 + [NORMAL] * 256 + [USER_DEFINED] * 2, np.int32)
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=kinds, merges=[]))
    x = tokens.index("x")
    assert tokenizer.encode("<s>x</s>", add_special=False) == [259, x, 260]
    assert tokenizer.decode([259, x, 260], skip_special=True) == "<s>x</s>"
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.guarded("<s>x</s>") == "<s>x</s>"


def test_where_a_file_has_no_types_names_decide() -> None:
    tokens = [*SPECIALS, *byte_characters(), "<s>", "</s>", "<h1>"]
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=None, merges=[]))
    assert [id for id in range(len(tokens)) if tokenizer.is_control(id)] == [0, 1, 2, 259, 260]
    assert tokenizer.eos_ids == {0, 2, 260}
    assert not set(tokenizer.encode("<|im_end|></s>")) & {2, 260}


def test_where_a_file_has_no_types_its_bytes_are_known_by_name() -> None:
    tokenizer = Tokenizer.from_gguf(llama(token_type=None))
    assert texts(tokenizer, "ü", add_special=False) == [b" ", b"\xc3", b"\xbc"]


@pytest.mark.parametrize("kind", [0, UNKNOWN, CONTROL, USER_DEFINED, UNUSED])
def test_a_token_that_the_file_names_as_the_end_is_markup(kind: int) -> None:
    kinds = np.array([CONTROL, CONTROL, kind] + [NORMAL] * 262)
    tokenizer = Tokenizer.from_gguf(gpt2(token_type=kinds))
    assert tokenizer.is_control(2)
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [2]


def test_a_file_without_its_rule_of_words_is_read_by_a_guess_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = Tokenizer.from_gguf(Metadata("model.gguf", gpt2(pre=None)))
    assert tokenizer.encode("hello1 'll") == encode("gpt-2", "hello1 'll")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("airllm", "WARNING")
    assert "model.gguf: tokenizer.ggml.pre is missing" in record.getMessage()
    assert "GPT-2's way is a guess" in record.getMessage()


def test_a_file_with_its_rule_of_words_is_read_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Tokenizer.from_gguf(gpt2(pre="gpt-2"))
    Tokenizer.from_gguf(llama())  # SentencePiece cuts no words
    assert not caplog.records


@pytest.mark.parametrize("nothing", [-1, 2**32 - 1])
@pytest.mark.parametrize("name", ["bos", "eos", "eot", "eom", "unknown", "padding"])
def test_an_id_may_say_that_there_is_no_such_token(name: str, nothing: int) -> None:
    metadata = gpt2(**{f"{name}_token_id": nothing})
    without = gpt2(**{f"{name}_token_id": None})
    tokenizer, expected = Tokenizer.from_gguf(metadata), Tokenizer.from_gguf(without)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (expected.bos_id, expected.eos_ids)
    source = {"tokenizer.chat_template": f"{{{{ {name[:3]}_token is defined }}}}"}
    assert ChatTemplate.from_gguf({**metadata, **source}).render([]) == "False"


def test_unused_tokens_are_no_text() -> None:
    tokens = [*SPECIALS, *byte_characters(), "xy"]
    kinds = np.array([CONTROL] * 3 + [NORMAL] * 256 + [UNUSED], np.int32)
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=kinds, merges=[]))
    assert texts(tokenizer, "xy", parse_special=True) == [b"x", b"y"]


@pytest.mark.parametrize(
    ("metadata", "adds"),
    [
        (gpt2(), False),
        (gpt2(add_bos_token=True), True),
        (gpt2(pre="llama-bpe"), True),
        (gpt2(pre="llama-bpe", add_bos_token=False), False),
        (gpt2(add_bos_token=True, bos_token_id=None), False),
        (llama(), True),
        (llama(add_bos_token=False), False),
    ],
)
def test_a_text_begins_with_bos_as_the_model_wants(metadata: dict[str, object], adds: bool) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.add_bos is adds
    assert (tokenizer.encode("hello")[:1] == [1]) is adds
    assert tokenizer.encode("hello", add_special=False)[:1] != [1]


def test_a_template_that_writes_bos_gets_no_second_one() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2(add_bos_token=True))
    assert tokenizer.encode("<|im_start|>hello", parse_special=True) == [1, 262]


def test_answers_end_with_the_declared_tokens_and_those_known_by_name() -> None:
    assert Tokenizer.from_gguf(gpt2()).eos_ids == {0, 2}
    assert Tokenizer.from_gguf(gpt2(eot_token_id=5)).eos_ids == {0, 2, 5}
    assert Tokenizer.from_gguf(llama()).eos_ids == {2}


@pytest.mark.parametrize("last", ["<|call|>", "<|calls|>"], ids=["gpt-oss", "solar"])
def test_an_answer_in_messages_ends_with_a_call_but_not_with_each_message(last: str) -> None:
    names = ["<|return|>", "<|end|>", last]
    metadata = gpt2(tokens=[*names, *byte_characters(), *WORDS], eos_token_id=0)
    assert Tokenizer.from_gguf(metadata).eos_ids == {0, 2}


def test_control_tokens_are_found_by_their_spelling() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    assert tokenizer.control_ids(("<|im_start|>", "hello")) == {1}


def test_a_token_that_is_not_in_the_vocabulary_is_named() -> None:
    tokenizer = Tokenizer.from_gguf(gpt2())
    for id in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token {id} is not in the vocabulary of 265"):
            tokenizer.token_bytes(id)


def test_only_text_is_encoded() -> None:
    with pytest.raises(TypeError, match="expected a str, got bytes"):
        Tokenizer.from_gguf(gpt2()).encode(b"hello")  # type: ignore[arg-type]


# Metadata that is no tokeniser.


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({}, "tokenizer.ggml.model is missing"),
        (gpt2(model="t5"), "tokenizer 't5' is not supported"),
        (gpt2(model=3), "tokenizer.ggml.model is int 3; expected a string"),
        (gpt2(tokens=None), "tokenizer.ggml.tokens is missing"),
        (gpt2(tokens=[]), "tokenizer.ggml.tokens is empty"),
        (gpt2(tokens="abc"), "tokens is the string 'abc'; expected a list of strings"),
        (gpt2(tokens=np.arange(3)), "tokens is an array of 3 int64; expected a list of strings"),
        (gpt2(token_type=np.zeros(3)), "token_type has 3 entries for 265 tokens"),
        (gpt2(token_type=["a"]), "token_type is a list of 1; expected an array of numbers"),
        (gpt2(merges=None), "tokenizer.ggml.merges is missing"),
        (gpt2(merges=["hello"]), "merges has 'hello'; expected two tokens that make a third"),
        (gpt2(merges=["h q"]), "merges has 'h q'; expected two tokens"),
        (gpt2(bos_token_id=265), "bos_token_id is 265; expected 0 to 264"),
        (gpt2(eos_token_id=-2), "eos_token_id is -2; expected 0 to 264"),
        (gpt2(token_type=np.full(265, BYTE)), "token 0 is declared a byte but is '<|endoft"),
        (gpt2(eos_token_id="2"), "eos_token_id is the string '2'; expected an integer"),
        (gpt2(add_bos_token=1), "add_bos_token is int 1; expected true or false"),
        (llama(scores=None), "tokenizer.ggml.scores is missing"),
        (llama(scores=np.zeros(3, np.float32)), "scores has 3 entries for 272 tokens"),
        (llama(token_type=np.full(272, BYTE)), "token 0 is declared a byte but is '<unk>'"),
        (
            llama(token_type=np.full(272, NORMAL), unknown_token_id=None),
            "neither tokens for all bytes nor an unknown token",
        ),
        (
            llama(tokens=["x" * 300] * 272, token_type=np.full(272, NORMAL)),
            r"too large to be a vocabulary \(longest token: 300 characters\)",
        ),
    ],
)
def test_broken_metadata_is_refused_by_its_fault(metadata: dict[str, object], fault: str) -> None:
    with pytest.raises(FormatError, match=f"^model.gguf: .*{fault}"):
        Tokenizer.from_gguf(Metadata("model.gguf", metadata))


def test_repeated_texts_keep_every_id() -> None:
    tokens = [*SPECIALS, *byte_characters(), "dup", "dup"]
    tokenizer = Tokenizer.from_gguf(gpt2(tokens=tokens, token_type=None, merges=[]))
    assert tokenizer.token_bytes(259) == tokenizer.token_bytes(260) == b"dup"
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [2]


# A real model. The ids are llama.cpp's.


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    from airllm.hub import find_model

    path = find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if path is None:
        pytest.skip("the demo model is not here: run `airllm pull smollm2-135m`")
    metadata = GGUFFile.open(Path(path)).metadata
    if metadata.get("tokenizer.ggml.pre") != "smollm":
        pytest.skip("AIRLLM_TEST_MODEL is another model than smollm2-135m")
    return Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("Hello world", [19556, 905]),
        (" leading", [2899]),
        ("  two  spaces   three", [216, 827, 216, 5600, 256, 1296]),
        ("3.14159 1,234", [35, 30, 33, 36, 33, 37, 41, 216, 33, 28, 34, 35, 36]),
        ("don't I'LL we'Ve", [12420, 982, 339, 23, 16421, 392, 23, 25917]),
        ("Привет, мир!", [155, 249, 46879, 16464, 32547, 28, 41337, 7872, 9175, 17]),
        ("tab\tend\t", [15999, 197, 486, 197]),
        ("\n\n\n", [16506]),
        ("½ 2²", [16738, 216, 34, 19133]),
        ("<|im_start|>", [44, 108, 306, 79, 3738, 108, 46]),
    ],
)
def test_the_demo_models_tokens(smollm: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm.encode(text) == ids


def test_the_demo_model_splits_numbers_into_digits(smollm: Tokenizer) -> None:
    assert texts(smollm, "12345") == [b"1", b"2", b"3", b"4", b"5"]


def test_the_demo_models_chat_markup(smollm: Tokenizer) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>"
    assert smollm.encode(prompt, parse_special=True) == [1, 4093, 198, 26843, 2]
    assert (smollm.vocab_size, smollm.bos_id, smollm.add_bos) == (49152, 1, False)
    assert smollm.eos_ids == {0, 2}


@pytest.mark.parametrize(
    "text",
    [
        "日本語のテキストです。",
        "한국어 텍스트",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "👋🏽 emoji 👨‍👩‍👧‍👦 flags 🇫🇷",
        "e\u0301 a\u0300 \u200bzero\u200dwidth\ufeff",
        "def f(x):\r\n\treturn x**2  # ok",
        "<|im_end|> in a text is text",
    ],
)
def test_any_language_comes_back_from_the_demo_model(smollm: Tokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text)) == text

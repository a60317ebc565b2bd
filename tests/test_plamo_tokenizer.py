"""The "plamo2" tokeniser: of all ways to cut a text, the one whose scores have the largest sum."""

import functools
import random

import numpy as np
import pytest

from airllm.text.tokenizer import Tokenizer
from airllm.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN
from airllm.util.metadata import FormatError

MARKUP = ["<|plamo:unk|>", "<|plamo:bos|>", "<|plamo:eos|>", "<|plamo:pad|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*"abcdefg \n<0x4>あいう🙂"]  # and characters that only words have
_random = random.Random(5)
WORDS = sorted(
    {"".join(_random.choices([*LETTERS, "h", "漢"], k=_random.randint(2, 5))) for _ in range(300)}
)
TOKENS = [*MARKUP, *BYTES, *LETTERS, *WORDS]
FIRST = len(MARKUP) + len(BYTES)  # whose score counts
SCORES = [0.0] * FIRST + [-_random.uniform(3, 9) * len(text) ** 0.7 for text in TOKENS[FIRST:]]
UNKNOWN_SCORE = -1000.0


def metadata(**changes: object) -> dict[str, object]:
    kinds = [UNKNOWN] + [CONTROL] * 3 + [BYTE] * 256 + [NORMAL] * (len(TOKENS) - FIRST)
    found: dict[str, object] = {
        "tokenizer.ggml.model": "plamo2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.scores": np.array(SCORES, np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return found | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def tokens_of(text: str) -> list[str]:
    return [TOKENS[id] for id in Tokenizer.from_gguf(metadata()).encode(text)]


def best_score(text: str) -> float:
    """Of all ways to cut the text; an unknown character is one, too."""
    scores = dict(zip(TOKENS[FIRST:], SCORES[FIRST:], strict=True))

    @functools.cache
    def of_rest(at: int) -> float:
        if at == len(text):
            return 0.0
        ends = range(at + 1, min(at + 5, len(text)) + 1)
        known = {end: scores[text[at:end]] for end in ends if text[at:end] in scores}
        return max(score + of_rest(end) for end, score in ({at + 1: UNKNOWN_SCORE} | known).items())

    return of_rest(0)


def score_of(tokens: list[str]) -> float:
    """Bytes are of unknown characters; those here have three."""
    n_bytes = sum(token in BYTES for token in tokens)
    known = [SCORES[TOKENS.index(token)] for token in tokens if token not in BYTES]
    return sum(known) + n_bytes / 3 * UNKNOWN_SCORE


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_has_the_best_score(seed: int) -> None:
    text = "".join(random.Random(seed).choices([*LETTERS, "漢", "字"], k=60))
    tokens = tokens_of(text)
    assert score_of(tokens) == pytest.approx(best_score(text), abs=0.01)
    assert Tokenizer.from_gguf(metadata()).decode(map(TOKENS.index, tokens)) == text


@pytest.mark.parametrize("n", range(2, 8))
def test_of_equal_cuts_the_one_with_the_longer_first_token_is_taken(n: int) -> None:
    names = [*TOKENS, "ttt", "tt", "t"]
    kinds = metadata()["tokenizer.ggml.token_type"]
    own = {
        "tokens": names,
        "scores": np.array([*SCORES, -5.0, -4.0, -3.0], np.float32),
        "token_type": np.array([*kinds, NORMAL, NORMAL, NORMAL], np.int32),
    }
    ids = Tokenizer.from_gguf(metadata(**own)).encode("t" * n)
    lengths = [len(names[id]) for id in ids]
    assert lengths == [3] * (n // 3) + [n % 3] * (n % 3 > 0)


def test_a_character_without_a_token_becomes_its_bytes() -> None:
    assert tokens_of("字") == ["<0xE5>", "<0xAD>", "<0x97>"]


def test_the_name_of_a_byte_or_of_markup_in_a_text_is_cut() -> None:
    for name in ("<0x44>", "<|plamo:bos|>", "\0001", "1\0", "a\0001\0b"):
        assert not {name, *MARKUP} & set(tokens_of(name))
        assert Tokenizer.from_gguf(metadata()).decode(map(TOKENS.index, tokens_of(name))) == name


def test_markup_of_a_template_becomes_its_token() -> None:
    ids = Tokenizer.from_gguf(metadata()).encode("a<|plamo:eos|>", parse_special=True)
    assert ids == [TOKENS.index("a"), 2]


def test_a_mark_of_byte_order_in_front_is_dropped() -> None:
    assert tokens_of("\ufeffa\n\ufeff") == [*"a\n", "<0xEF>", "<0xBB>", "<0xBF>"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": np.full(len(TOKENS), np.nan)}, "values that are no finite numbers"),
        ({"scores": np.zeros(3)}, "has 3 entries for"),
        ({"token_type": np.full(len(TOKENS), NORMAL, np.int32)}, "has not tokens for all bytes"),
        ({"tokens": [*TOKENS[:-1], "\0001"]}, "a token of NUL and a number"),  # the name of BOS
        ({"tokens": [*TOKENS[:-1], "<0x41>"]}, "has not tokens for all bytes"),  # hides that of A
        ({"tokens": [*TOKENS[:-1], "x" * 300]}, "too large to be a vocabulary"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        Tokenizer.from_gguf(metadata(**changes))

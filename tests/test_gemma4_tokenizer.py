"""The "gemma4" tokeniser: SentencePiece's characters, with the list of merges of the file."""

import random

import numpy as np
import pytest

from airllm.text.tokenizer import Tokenizer
from airllm.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from airllm.util.metadata import FormatError

MARKUP = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*"▁abcde\n"]
# The second merge makes the third impossible where it comes first.
MERGES = ["a b", "b c", "ab c", "▁ ▁", "▁▁ ▁▁", "▁ ab", "d e", "\n \n", "\n\n \n\n", "c ▁"]
WORDS = [*dict.fromkeys(merge.replace(" ", "") for merge in MERGES)]
TOKENS = [*MARKUP, "<|channel>", *BYTES, *LETTERS, *WORDS]


def metadata(**changes: object) -> dict[str, object]:
    kinds = [CONTROL] * 3 + [UNKNOWN, CONTROL, USER_DEFINED]
    kinds += [BYTE] * 256 + [NORMAL] * len([*LETTERS, *WORDS])
    found: dict[str, object] = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        # As llama.cpp's converter writes them: they say nothing
        "tokenizer.ggml.scores": np.full(len(TOKENS), -1000.0, np.float32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": True,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in found.items() if value is not None}


def tokens_of(text: str, **changes: object) -> list[str]:
    tokenizer = Tokenizer.from_gguf(metadata(**changes))
    return [TOKENS[id] for id in tokenizer.encode(text)]


def pipeline():
    """What the model's tokenizer.json describes."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    vocabulary = {token: id for id, token in enumerate(TOKENS)}
    pairs = [tuple(merge.split(" ", 1)) for merge in MERGES]
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_tokens(["<|channel>"])
    return made


def test_any_text_has_the_tokens_of_the_models_own_pipeline():
    reference, ours = pipeline(), Tokenizer.from_gguf(metadata())
    draw = random.Random(4)
    for _ in range(200):
        text = "".join(draw.choices("abcde \n▁é🙂", k=draw.randrange(30)))
        expected = reference.encode(text).ids
        assert ours.encode(text) == [2, *expected], text
        assert ours.decode(expected) == text.replace("▁", " ")


def test_merges_count_and_scores_do_not():
    scores = np.zeros(len(TOKENS), np.float32)
    scores[TOKENS.index("bc")] = 1.0
    assert tokens_of("abc", scores=scores) == ["<bos>", "abc"]
    assert tokens_of("abc", scores=None) == ["<bos>", "abc"]
    assert tokens_of("abc", merges=MERGES[1:]) == ["<bos>", "a", "bc"]


def test_a_text_begins_with_bos_whatever_the_file_says_and_with_no_space():
    assert tokens_of("ab", add_bos_token=False, add_space_prefix=True) == ["<bos>", "ab"]


def test_newlines_are_joined():
    assert tokens_of("a\n\n\n\n\nb") == ["<bos>", "a", "\n\n\n\n", "\n", "b"]


def test_the_end_of_a_turn_ends_an_answer():
    assert Tokenizer.from_gguf(metadata()).eos_ids == {1, MARKUP.index("<turn|>")}


def test_a_list_of_merges_is_needed():
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.merges is missing"):
        Tokenizer.from_gguf(metadata(merges=None))

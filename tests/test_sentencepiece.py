"""The "llama" tokeniser against the sentencepiece library, on vocabularies trained here."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm.text.tokenizer import Tokenizer
from airllm.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

sentencepiece = pytest.importorskip(
    "sentencepiece", reason="`pip install .[test]` brings sentencepiece"
)

ROOT = Path(__file__).parent.parent
TEXTS = [
    "Hello world",
    " a space in front",
    "two  and   three spaces, and one behind ",
    "   ",
    "\n\nlines\n\tand tabs\r\n",
    "in the year 2024, 12345.678 times",
    "Grüße, naïve café, ελληνικά, русский, 日本語, 🙂🙃",
    "def f(x):\n    return x ** 2  # squared\n",
    "▁ already there ▁▁",
    "a\0b",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


@functools.cache
def trained(space_prefix: bool):
    """sentencepiece's processor and our tokeniser, of one vocabulary."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=space_prefix,
        user_defined_symbols=["<mask>"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return processor, Tokenizer.from_gguf(_metadata(processor, space_prefix))


def _metadata(processor, space_prefix: bool) -> dict[str, object]:
    ids = range(processor.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": np.array([processor.get_score(id) for id in ids], np.float32),
        "tokenizer.ggml.token_type": np.array([_kind(processor, id) for id in ids], np.int32),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }


def _kind(processor, id: int) -> int:
    if processor.is_unknown(id):
        return UNKNOWN
    if processor.is_control(id):
        return CONTROL
    if processor.is_byte(id):
        return BYTE
    return USER_DEFINED if processor.id_to_piece(id) == "<mask>" else NORMAL


@pytest.fixture(scope="module", params=[True, False], ids=["as Llama 2", "as Gemma"])
def tokenizers(request):
    """Both, with or without a space in front of texts."""
    return trained(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_sentencepieces(tokenizers, text):
    processor, ours = tokenizers
    ids = ours.encode(text, add_special=False)
    assert ids == processor.encode(text)
    assert ours.decode(ids) == processor.decode(ids)


# With a space in front, Llama 2's tokeniser in transformers and llama.cpp put one behind each such
# token as well, and so do we; sentencepiece does not.
@pytest.mark.parametrize("text", ["one <mask> two<mask>three", "<mask>at once", "<mask><mask>"])
def test_user_defined_tokens_are_found_as_sentencepiece_finds_them(text):
    processor, ours = trained(space_prefix=False)
    assert ours.encode(text, add_special=False) == processor.encode(text)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.sampled_from(["the", " ", "  ", "model", "\n", "é", "ing", "7", "▁", "日"]))
)
def test_tokens_of_any_words_are_sentencepieces(tokenizers, words):
    processor, ours = tokenizers
    text = "".join(words)
    assert ours.encode(text, add_special=False) == processor.encode(text)

"""tokenizer.json: our tokens are those that the `tokenizers` library makes of the same file."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from airllm.formats.hf_tokenizer import translate_tokenizer
from airllm.text.chat_template import ChatTemplate
from airllm.text.pre_tokenizers import RULES
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import FormatError, Metadata

README = (Path(__file__).parents[1] / "README.md").read_text()
TEXTS = [
    "Hello, world! It's 12345 o'clock.",
    "  two  spaces\n\n and\tlines\r\n   ",
    "Größe ist's 日本語 🙂 e\u0301 ½ Ⅷ ٣",
    "def f(x):\n    return x**2  # <tool> and <|end|>",
    "DON'T CamelCaseWord's",
    "",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])


def byte_level(**model: Any) -> tokenizers.Tokenizer:
    """GPT-2's, trained on the README."""
    tokenizer = tokenizers.Tokenizer(BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def trained(tokenizer: tokenizers.Tokenizer, alphabet: list[str]) -> tokenizers.Tokenizer:
    trainer = BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(README.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def sentence_piece(*, legacy: bool, prefix: bool) -> tokenizers.Tokenizer:
    """Bytes for what it lacks, spaces as ▁; with every way to make a token as a merge, as
    transformers' converter writes them. Older files replace spaces in the normalizer."""
    tokenizer = tokenizers.Tokenizer(BPE())
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    found = json.loads(trained(tokenizer, []).to_str())
    tokens = list(found["model"]["vocab"])
    tokens = tokens[:4] + [f"<0x{byte:02X}>" for byte in range(256)] + tokens[4:]
    ids = {text: id for id, text in enumerate(tokens)}
    found["model"] |= {"vocab": ids, "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    found["model"]["merges"] = [
        [text[:at], text[at:]]
        for text in tokens[260:]
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    found["added_tokens"][-1]["id"] = len(tokens)
    if not legacy:
        scheme = "first" if prefix else "never"
        found["normalizer"] = None
        step = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        found["pre_tokenizer"] = step
    return tokenizers.Tokenizer.from_str(json.dumps(found))


def llama3() -> tokenizers.Tokenizer:
    tokenizer = byte_level(ignore_merges=True)
    tokenizer.pre_tokenizer = words(RULES["llama-bpe"].patterns[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def qwen2() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = words(RULES["qwen2"].patterns[0])
    return tokenizer


def smollm() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    return tokenizer


def falcon() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    return trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def neox() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


KINDS: dict[str, tuple[Callable[[], tokenizers.Tokenizer], str]] = {
    "gpt-2": (byte_level, "gpt-2"),
    "llama 3": (llama3, "llama-bpe"),
    "qwen 2": (qwen2, "qwen2"),
    "smollm": (smollm, "smollm"),
    "falcon": (falcon, "falcon"),
    "gpt-neox": (neox, "mpt"),
    "llama 2": (lambda: sentence_piece(legacy=True, prefix=True), "default"),
    "llama 2, newer": (lambda: sentence_piece(legacy=False, prefix=True), "default"),
    "gemma": (lambda: sentence_piece(legacy=True, prefix=False), "default"),
}


def translated(
    library: tokenizers.Tokenizer | dict[str, Any],
    settings: dict[str, object] | None = None,
    generation: dict[str, object] | None = None,
    n_tokens: int = 1200,
) -> Metadata:
    found = library if isinstance(library, dict) else json.loads(library.to_str())
    settings = settings if settings is not None else {"bos_token": "<s>", "eos_token": "</s>"}
    keys = translate_tokenizer(
        Metadata("tokenizer.json", found),
        Metadata("tokenizer_config.json", settings),
        Metadata("generation_config.json", generation or {}),
        n_tokens,
    )
    return Metadata("folder", keys)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    make, pre = KINDS[request.param]
    return make(), pre


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_the_librarys(kind, text: str) -> None:
    library, _ = kind
    ours = Tokenizer.from_gguf(translated(library))
    expected = library.encode(text, add_special_tokens=True).ids
    assert ours.encode(text, parse_special=True) == expected or text == ""
    assert ours.encode(text, add_special=False, parse_special=True) == (
        library.encode(text, add_special_tokens=False).ids
    )


def test_the_rule_has_llama_cpps_name(kind) -> None:
    library, pre = kind
    assert translated(library)["tokenizer.ggml.pre"] == pre


def test_text_comes_back(kind) -> None:
    library, _ = kind
    ours = Tokenizer.from_gguf(translated(library))
    assert ours.decode(ours.encode(TEXTS[0], add_special=False)) == TEXTS[0]


def test_a_template_with_a_token_in_front_means_bos() -> None:
    assert Tokenizer.from_gguf(translated(llama3())).encode("x")[0] == 1
    assert Tokenizer.from_gguf(translated(smollm())).add_bos is False


def test_the_settings_word_on_bos_is_the_last() -> None:
    settings = {"bos_token": "<s>", "add_bos_token": False}
    assert Tokenizer.from_gguf(translated(llama3(), settings)).add_bos is False
    settings = {"bos_token": {"content": "<s>"}, "add_bos_token": True}
    assert Tokenizer.from_gguf(translated(smollm(), settings)).encode("x")[0] == 1


def test_tokens_that_end_an_answer_come_from_settings_and_generation() -> None:
    ours = Tokenizer.from_gguf(translated(smollm(), None, {"eos_token_id": [2, 7, 9]}))
    assert ours.eos_ids >= {2, 7, 9}
    ours = Tokenizer.from_gguf(translated(smollm(), {}, {"eos_token_id": 7, "bos_token_id": 1}))
    assert 7 in ours.eos_ids
    assert ours.bos_id == 1


def test_a_template_finds_the_tokens_by_name() -> None:
    metadata = dict(translated(smollm())) | {"tokenizer.chat_template": "{{ bos_token }}!"}
    assert ChatTemplate.from_gguf(metadata).render([]) == "<s>!"


LIBRARY = json.loads(smollm().to_str())
SPM = json.loads(sentence_piece(legacy=True, prefix=True).to_str())
DIGITS_IN_A_ROW = {"type": "Digits", "individual_digits": False}
WORDS = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}


def with_change(found: dict[str, Any], *path: str, value: object) -> dict[str, Any]:
    changed = copy.deepcopy(found)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        ({}, "model is no object"),
        (with_change(LIBRARY, "model", "type", value="Unigram"), "expected 'BPE'"),
        (with_change(LIBRARY, "model", "vocab", value={}), "model.vocab is no list of tokens"),
        (with_change(LIBRARY, "model", "vocab", value={"a": -1}), "gives 'a' the id -1"),
        (with_change(LIBRARY, "model", "vocab", value={"a": 2**40}), "embedding has 1,200 rows"),
        (with_change(LIBRARY, "model", "vocab", value={"a": 1, "b": 1}), "id 1 to two tokens"),
        (with_change(LIBRARY, "model", "merges", value=None), "model.merges is no list"),
        (with_change(LIBRARY, "model", "merges", value=["abc"]), "expected two tokens"),
        (with_change(LIBRARY, "model", "merges", value=[["a"]]), "expected two tokens"),
        (with_change(LIBRARY, "model", "unk_token", value="<unk>"), "model.unk_token is '<unk>'"),
        (with_change(LIBRARY, "normalizer", value={"type": "Lowercase"}), "normalizer"),
        (with_change(LIBRARY, "normalizer", value=[]), "normalizer is no object"),
        (with_change(LIBRARY, "added_tokens", value=[{"id": 1}]), "expected an id and a content"),
        (
            with_change(LIBRARY, "added_tokens", value=[{"id": 9, "content": "x"}]),
            "a token of model.vocab, to another",
        ),
        (
            with_change(LIBRARY, "pre_tokenizer", "pretokenizers", 0, value=DIGITS_IN_A_ROW),
            "is not supported",
        ),
        (
            with_change(LIBRARY, "pre_tokenizer", "pretokenizers", 0, value=WORDS),
            "by a rule that is not known: ['x+',",
        ),
        (with_change(LIBRARY, "model", "ignore_merges", value=True), "a rule that is not known"),
        (with_change(SPM, "model", "byte_fallback", value=False), "neither byte-level BPE nor"),
        (with_change(SPM, "normalizer", value={"type": "NFKC"}), "normalizer {'type': 'NFKC'}"),
        (with_change(SPM, "pre_tokenizer", value={"type": "Whitespace"}), "is not supported"),
    ],
)
def test_what_would_give_other_tokens_is_refused(found: dict[str, Any], fault: str) -> None:
    with pytest.raises(FormatError) as error:
        translated(found)
    assert str(error.value).startswith("tokenizer.json: ")
    assert fault in str(error.value)

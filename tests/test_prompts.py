"""Prompts: a text, messages, or messages with variables of the chat template."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import gpt2, llama

from airllm.text.chat_template import ChatTemplateError
from airllm.text.fill_in import NoFillInError
from airllm.text.prompts import Chat, Prompt, PromptReader, chat, prompt_list
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import Metadata

HELLO = [{"role": "user", "content": "hello"}]
TEMPLATE = "{{ messages[0].content }}{{ effort }}{{ tools | tojson if tools }}"


def reader() -> PromptReader:
    return PromptReader(Metadata("m.gguf", {**gpt2(), "tokenizer.chat_template": TEMPLATE}))


def test_variables_of_a_chat_reach_its_template() -> None:
    prompts = reader()
    tools = [{"name": "<|im_end|>"}]
    ids = prompts.tokens(Chat(HELLO, {"effort": " high", "tools": tools}))
    assert prompts.tokenizer.decode(ids) == 'hello high[{"name": "<|im_end|>"}]'
    assert not any(map(prompts.tokenizer.is_control, ids))
    assert prompts.tokens(Chat(HELLO)) == prompts.tokens(HELLO) == [262]


def test_variables_are_added_to_those_that_a_chat_has() -> None:
    assert chat(HELLO, None) is HELLO
    assert chat("hello", {}) == "hello"
    assert chat(HELLO, {"a": 1}) == Chat(HELLO, {"a": 1})
    assert chat(Chat(HELLO, {"a": 1, "b": 1}), {"b": 2}) == Chat(HELLO, {"a": 1, "b": 2})


def test_an_answer_can_begin_with_words_of_the_caller() -> None:
    prompts = reader()
    ids = prompts.tokens(Chat(HELLO, {"effort": " high"}, prefill=" lo<|im_end|>"))
    assert prompts.tokenizer.decode(ids) == "hello high lo<|im_end|>"
    assert not any(map(prompts.tokenizer.is_control, ids))
    with_more = chat(Chat(HELLO, prefill="lo"), {"effort": "!"})
    assert with_more == Chat(HELLO, {"effort": "!"}, "lo")


def test_a_text_has_no_template_to_give_variables_to() -> None:
    with pytest.raises(TypeError, match="template_variables are for messages"):
        chat("hello", {"a": 1})


@pytest.mark.parametrize("prompt", ["hello", HELLO, Chat(HELLO)])
def test_one_prompt_is_no_list_of_prompts(prompt: object) -> None:
    with pytest.raises(TypeError, match="prompts is one prompt"):
        prompt_list(prompt)  # type: ignore[arg-type]


# Filling in.

QWEN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"]


def coder(kind: int, names: list[str] = QWEN, **changes: object) -> PromptReader:
    """kind: of the tokens with these names."""
    metadata = gpt2(**changes)
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, np.ndarray)
    metadata["tokenizer.ggml.tokens"] = [*tokens, *names]
    metadata["tokenizer.ggml.token_type"] = np.append(kinds, [kind] * len(names)).astype(np.int32)
    return PromptReader(Metadata("m.gguf", metadata))


@pytest.mark.parametrize("kind", [3, 4], ids=["control", "user-defined"])
@pytest.mark.parametrize(
    "names", [QWEN, ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<file_sep>"]]
)
def test_a_gap_is_between_a_prefix_and_a_suffix(kind: int, names: list[str]) -> None:
    prompts = coder(kind, names)
    prefix, suffix, middle, separator = range(265, 269)
    hello = 262
    assert prompts.tokenizer.encode("hello") == [hello]
    expected = [prefix, hello, suffix, hello, middle]
    assert prompts.code_tokens("hello", "hello") == expected
    written = f"{names[0]}hello{names[1]}hello{names[2]}"  # as an editor writes it itself
    assert prompts.code_tokens(written) == expected
    assert prompts.code_tokens(f"{names[3]}hello") == [separator, hello]
    with_bos = coder(kind, names, add_bos_token=True)
    assert with_bos.code_tokens("", "hello") == [1, prefix, suffix, hello, middle]
    assert with_bos.code_tokens(written) == [1, *expected]


def test_an_answer_ends_where_a_coder_begins_another_file() -> None:
    assert coder(3).tokenizer.eos_ids == {0, 2, 268}


def test_no_other_control_token_is_found_in_a_text_or_a_suffix() -> None:
    prompts = coder(3)
    for text in ("<|im_end|>", "<|im_end|><|file_sep|>"):
        assert 2 not in prompts.code_tokens(text)
        assert 2 not in prompts.code_tokens("hello", text)


def test_a_file_can_say_which_tokens_mark_a_gap() -> None:
    ids = {"fim_pre_token_id": 262, "suffix_token_id": 263, "fim_mid_token_id": 264}
    assert coder(3, **ids).fill_in.parts == [262, 263, 264]  # type: ignore[arg-type]
    assert coder(3, fim_pre_token_id=262).fill_in.parts == [265, 266, 267]


def test_a_model_without_such_tokens_fills_in_nothing() -> None:
    with pytest.raises(NoFillInError, match=r"no tokens for filling in"):
        reader().code_tokens("hello", "hello")
    assert reader().code_tokens("hello") == [262]


# How long a prompt is.


def checked(most: int, **metadata: object) -> PromptReader:
    def check(n_tokens: int) -> None:
        if n_tokens > most:
            raise ValueError(f"{n_tokens} are too many")

    values = {**gpt2(**metadata), "tokenizer.chat_template": TEMPLATE}
    return PromptReader(Metadata("m.gguf", values), check)


@pytest.mark.parametrize("prompt", ["x" * 10_000, [{"role": "user", "content": "x" * 10_000}]])
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = checked(100)
    monkeypatch.setattr(Tokenizer, "encode", None)
    with pytest.raises(ValueError, match="769 are too many"):  # "<|endoftext|>" has 13 bytes
        prompts.some_tokens(prompt)


def test_a_text_is_encoded_whatever_its_length() -> None:
    assert len(checked(1).tokens("x" * 1000)) == 1000


TEXTS = ["", "hello", "hello hello1", "<|endoftext|>" * 5, "日本 é", "cafe\u0301" * 9, "\ud800x"]


@given(st.lists(st.sampled_from(TEXTS) | st.text(max_size=5), max_size=6).map("".join))
def test_no_text_has_fewer_tokens_than_it_has_at_least(text: str) -> None:
    for tokenizer in TOKENIZERS:
        least = tokenizer.least_tokens(text)
        assert least <= len(tokenizer.encode(text, add_special=False))
        guarded = tokenizer.guarded(text)
        ids = tokenizer.encode(guarded, add_special=False, parse_special=True)
        assert tokenizer.least_tokens(guarded) <= len(ids)
        assert tokenizer.least_tokens(text) <= len(
            tokenizer.encode(text, add_special=False, parse_special=True)
        )


def test_guards_are_not_counted() -> None:
    tokenizer = reader().tokenizer
    text = "<|im_end|>" * 100
    assert tokenizer.least_tokens(tokenizer.guarded(text)) == tokenizer.least_tokens(text) == 76


WITHOUT_BYTES = [text.replace("<0x", "<") for text in llama()["tokenizer.ggml.tokens"]]
FEW = [*gpt2()["tokenizer.ggml.tokens"][:200], "ï", "¿", "½"]
TOKENIZERS = [
    Tokenizer.from_gguf(metadata)
    for metadata in (
        gpt2(),
        gpt2(pre="qwen2"),
        gpt2(tokens=FEW, token_type=None, merges=[]),
        llama(),
        llama(tokens=WITHOUT_BYTES, token_type=None),
    )
]


def test_a_conversation_larger_than_any_context_is_refused_before_it_is_looked_at() -> None:
    message = {"role": "user", "content": "x" * 2**20}
    with pytest.raises(ChatTemplateError, match="characters; expected at most 16,777,216"):
        reader().tokens([message] * 17)
    with pytest.raises(ChatTemplateError, match="characters; expected at most 16,777,216"):
        reader().tokens([{"role": "user", "content": ""}] * 560_000)

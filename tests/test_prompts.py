"""Prompts: a text, messages, or messages with variables of the chat template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import gpt2, llama

from airllm.text.chat_template import ChatTemplateError
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

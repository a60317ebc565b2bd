"""Prompts as tokens: a text, or a chat in the form that the model's template gives it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from airllm.text.chat_template import ChatTemplate, map_texts
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import Metadata

__all__ = ["Prompt", "PromptReader", "prompt_list"]

Prompt = str | Sequence[Mapping[str, str]]


class PromptReader:
    """What a model's file says of texts: its tokenizer and its chat template, made when they are
    first asked for."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self._metadata)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """FormatError if the file does not say."""
        return ChatTemplate.from_gguf(self._metadata)

    def tokens(self, prompt: Prompt) -> list[int]:
        """The ids of a text as a prompt, with the BOS token where the model wants one; or of a chat
        up to where the answer begins. Control tokens come from the chat template alone, never from
        what a text or a message says."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        guarded = map_texts(self.tokenizer.guarded, list(prompt))
        text = self.chat_template.render(guarded, add_generation_prompt=True)
        return self.tokenizer.encode(text, parse_special=True)

    def some_tokens(self, prompt: Prompt) -> list[int]:
        """tokens, at least one of them: ValueError where there is none."""
        ids = self.tokens(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and this model has no token that begins a text")
        return ids


def prompt_list(prompts: Sequence[Prompt]) -> list[Prompt]:
    """TypeError where it is a single prompt."""
    if isinstance(prompts, str) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts is one prompt; expected a list of them. generate() takes one.")
    return list(prompts)

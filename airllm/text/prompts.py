"""Prompts as tokens: a text, or a chat in the form that the model's template gives it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from airllm.text.chat_template import ChatTemplate
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import Metadata

__all__ = ["Chat", "Message", "Prompt", "PromptReader", "chat", "prompt_list"]

Message = Mapping[str, Any]  # "role", "content", and whatever else the model's template reads


@dataclass(frozen=True)
class Chat:
    """Messages, and what the model's chat template is to know beside them: `tools`,
    `enable_thinking` and the like, as JSON has them."""

    messages: Sequence[Message]
    variables: Mapping[str, object] = field(default_factory=dict)


Prompt = str | Sequence[Message] | Chat


def chat(prompt: Prompt, variables: Mapping[str, object] | None) -> Prompt:
    """The prompt with more template variables. TypeError where it is a text, which has none."""
    if not variables:
        return prompt
    if isinstance(prompt, str):
        raise TypeError("template_variables are for messages; the prompt is a text to continue")
    if not isinstance(prompt, Chat):
        prompt = Chat(prompt)
    return Chat(prompt.messages, {**prompt.variables, **variables})


class PromptReader:
    """What a model's file says of texts: its tokenizer and its chat template, made when they are
    first asked for."""

    def __init__(
        self, metadata: Metadata, check_length: Callable[[int], None] | None = None
    ) -> None:
        """check_length: called, before a prompt is encoded, with the number of tokens that it has
        at least; raises where that is too many."""
        self._metadata = metadata
        self._check_length = check_length

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
        return self._chat_tokens(prompt if isinstance(prompt, Chat) else Chat(prompt))

    def some_tokens(self, prompt: Prompt) -> list[int]:
        """tokens, at least one of them: ValueError where there is none, and where check_length
        finds them too many."""
        if isinstance(prompt, str):
            self._check(prompt)
        ids = self.tokens(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and this model has no token that begins a text")
        return ids

    def _chat_tokens(self, given: Chat) -> list[int]:
        text = self.chat_template.render(
            given.messages, variables=given.variables, guard=self.tokenizer.guarded
        )
        self._check(text)
        return self.tokenizer.encode(text, parse_special=True)

    def _check(self, text: str) -> None:
        if self._check_length is not None:
            self._check_length(self.tokenizer.least_tokens(text))


def prompt_list(prompts: Sequence[Prompt]) -> list[Prompt]:
    """TypeError where it is a single prompt."""
    if isinstance(prompts, (str, Chat)) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts is one prompt; expected a list of them. generate() takes one.")
    return list(prompts)

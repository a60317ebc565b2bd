"""Prompts to tokens. A prompt is a text to continue, or a chat for the model's chat template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from airllm.text.answer import AnswerFormat, format_of
from airllm.text.chat_template import ChatTemplate
from airllm.text.fill_in import FillIn
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import Metadata

__all__ = ["Chat", "Message", "Prompt", "PromptReader", "chat", "prompt_list"]

Message = Mapping[str, Any]  # "role", "content", and other entries that the template reads


@dataclass(frozen=True)
class Chat:
    """Messages, and further variables of the model's chat template, such as `tools` and
    `enable_thinking`: JSON values. prefill: how the answer begins; the model goes on from there."""

    messages: Sequence[Message]
    variables: Mapping[str, object] = field(default_factory=dict)
    prefill: str = ""


Prompt = str | Sequence[Message] | Chat


def chat(prompt: Prompt, variables: Mapping[str, object] | None) -> Prompt:
    """The prompt with more template variables. TypeError for a text, which has no template."""
    if not variables:
        return prompt
    if isinstance(prompt, str):
        raise TypeError("template_variables are for messages; the prompt is a text to continue")
    if not isinstance(prompt, Chat):
        prompt = Chat(prompt)
    return replace(prompt, variables={**prompt.variables, **variables})


class PromptReader:
    """Reads prompts with the tokeniser and the chat template of a model's file. Each of the two is
    made on first use."""

    def __init__(
        self, metadata: Metadata, check_length: Callable[[int], None] | None = None
    ) -> None:
        """check_length: called with a lower bound of a prompt's tokens before the prompt is
        encoded; raises if that is too many."""
        self._metadata = metadata
        self._check_length = check_length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self._metadata)

    @property
    def has_chat_template(self) -> bool:
        """Whether the file has a template of its own, which may still be broken."""
        return bool(self._metadata.text("tokenizer.chat_template", ""))

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """FormatError if the file has no usable template, see ChatTemplate.from_gguf."""
        return ChatTemplate.from_gguf(self._metadata)

    @cached_property
    def fill_in(self) -> FillIn:
        return FillIn(self._metadata, self.tokenizer)

    def code_tokens(self, text: str, suffix: str = "") -> list[int]:
        """The tokens of a text to continue, in which the marks of FillIn count, or before a suffix.
        ValueError as `some_tokens`; NoFillInError."""
        self._check(text + suffix)
        ids = self.fill_in.between(text, suffix) if suffix else self.fill_in.tokens(text)
        return self._not_empty(ids)

    @cached_property
    def answer_format(self) -> AnswerFormat:
        """How the model writes thoughts and tool calls, as its chat template tells. A model without
        a usable template writes plain text."""
        try:
            return format_of(self.chat_template.source)
        except ValueError:
            return format_of("")

    @cached_property
    def answer_marks(self) -> frozenset[int]:
        """The control tokens that the format's reader must see."""
        return self.tokenizer.control_ids(self.answer_format.marks)

    def tokens(self, prompt: Prompt) -> list[int]:
        """The token ids of a text, or of a chat up to the beginning of the answer. They begin with
        BOS if the model wants that. All other control tokens come from the chat template, never
        from the words of a text or a message."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self._chat_tokens(prompt if isinstance(prompt, Chat) else Chat(prompt))

    def some_tokens(self, prompt: Prompt) -> list[int]:
        """Like `tokens`, but ValueError if there is no token. A prompt that is too long raises the
        error of check_length."""
        if isinstance(prompt, str):
            self._check(prompt)
        return self._not_empty(self.tokens(prompt))

    def _not_empty(self, ids: list[int]) -> list[int]:
        if not ids:
            raise ValueError("the prompt is empty, and this model has no token that begins a text")
        return ids

    def _chat_tokens(self, given: Chat) -> list[int]:
        text = self.chat_template.render(
            given.messages, variables=given.variables, guard=self.tokenizer.guarded
        )
        text += self.tokenizer.guarded(given.prefill)
        self._check(text)
        return self.tokenizer.encode(text, parse_special=True)

    def _check(self, text: str) -> None:
        if self._check_length is not None:
            self._check_length(self.tokenizer.least_tokens(text))


def prompt_list(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a list. TypeError for a single prompt."""
    if isinstance(prompts, (str, Chat)) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts is one prompt; expected a list of them. generate() takes one.")
    return list(prompts)

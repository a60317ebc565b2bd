"""A conversation as the text that a model was trained to continue.

GGUF files carry a Jinja template for it, written for Hugging Face's library. It is a program from
a stranger, so it runs in a sandbox with a budget: see `template_sandbox`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from airllm.util.metadata import Metadata
from airllm.util.printable import printable

__all__ = ["ChatTemplate", "ChatTemplateError", "map_texts"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTemplateError(ValueError):
    """The template refuses this conversation, or fails at it. Its words are on one line, with
    escapes for what is not printable."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ChatTemplate:
    """A model's chat template; `ChatTemplate.from_gguf(file.metadata)` makes one.

    source: the template's text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """special_tokens: "bos_token" and the like, as the template may use them."""
        from jinja2 import TemplateError

        from airllm.text.template_sandbox import Sandbox

        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.template(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the model's chat template: {error}") from error

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Self:
        """The template of a GGUF file; ChatML for a file without one whose vocabulary has
        ChatML's tokens. Raises FormatError where there is no way to tell, or the template is
        broken."""
        checked = Metadata.of(metadata)
        source = checked.text("tokenizer.chat_template", "")
        texts = checked.texts("tokenizer.ggml.tokens")
        if not source:
            if "<|im_start|>" not in texts:
                raise checked.fault(
                    "has no chat template, so the model cannot chat (a base model?); give it text"
                    " to continue instead"
                )
            source = CHATML
        special_tokens = {}
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            key = f"tokenizer.ggml.{key}_token_id"
            if key in checked:
                special_tokens[f"{name}_token"] = texts[checked.integer(key, high=len(texts) - 1)]
        try:
            return cls(source, special_tokens)
        except ChatTemplateError as error:
            raise checked.fault(str(error)) from error

    def render(
        self,
        messages: Iterable[Mapping[str, object]],
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The text of a conversation, for `encode(text, parse_special=True)`.

        Messages can write control tokens too, unless `map_texts(tokenizer.guarded, messages)` keeps
        them from it.

        messages: mappings with "role" ("system", "user", "assistant") and "content".
        add_generation_prompt: end where the assistant's next message begins.
        variables: what else the template knows, such as `tools` or `enable_thinking`.

        Raises ChatTemplateError if the template refuses (roles that do not alternate, say), fails,
        or does not end; TypeError for messages that are none.
        """
        values: dict[str, object] = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **variables,
            "messages": [_checked(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._sandbox.run(self._template, values)
        except Exception as error:  # a template can cause any
            reason = str(error) or type(error).__name__
            raise ChatTemplateError(f"the model's chat template: {reason}") from error


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """`value` with each string in it changed: in lists and mappings too, except for keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_texts(change, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(change, item) for item in value]
    return value


def _checked(message: object) -> dict[str, object]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise TypeError(f"{message!r} is no message; expected a mapping with 'role' and 'content'")
    return dict(message)

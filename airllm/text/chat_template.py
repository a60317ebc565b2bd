"""Renders a conversation as the text that a model was trained to continue.

GGUF files carry a Jinja template for this, written for Hugging Face's library. The template is a
program from a stranger, so it runs in a sandbox, in a process that can be ended: see
`template_child`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from airllm.text import template_process
from airllm.text.vocabulary import special_id
from airllm.util.errors import AirllmError
from airllm.util.metadata import Metadata
from airllm.util.printable import printable
from airllm.util.shown import shown

__all__ = ["ChatTemplate", "ChatTemplateError", "map_texts"]

MAX_TEMPLATE = 2**20  # characters; the longest templates in use have about 20,000

# The most characters of a conversation. The longest contexts, a million tokens, hold 4 million.
MAX_CHARACTERS = 2**24

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTemplateError(AirllmError, ValueError):
    """The template refuses this conversation, or fails on it. The message is one line; characters
    that are not printable are escaped."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ChatTemplate:
    """A model's chat template; `ChatTemplate.from_gguf(file.metadata)` makes one.

    source: the template's text.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """special_tokens: texts by the template's names for them, such as "bos_token"."""
        if len(source) > MAX_TEMPLATE:
            raise ChatTemplateError(
                f"the model's chat template has {len(source):,} characters; expected"
                f" at most {MAX_TEMPLATE:,}"
            )
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._run(None)  # compiles it: ChatTemplateError for a broken one

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Self:
        """The template of a GGUF file. A file without a template gets ChatML if its vocabulary has
        the token <|im_start|>. Raises FormatError if it has neither, or a broken template."""
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
            id = special_id(checked, key, len(texts))
            if id is not None:
                special_tokens[f"{name}_token"] = texts[id]
        try:
            return cls(source, special_tokens)
        except ChatTemplateError as error:
            raise checked.fault(str(error)) from error

    def render(
        self,
        messages: Iterable[Mapping[str, object]],
        add_generation_prompt: bool = True,
        *,
        variables: Mapping[str, object] | None = None,
        guard: Callable[[str], str] | None = None,
    ) -> str:
        """The text of a conversation, for `encode(text, parse_special=True)`.

        messages: mappings with "role" ("system", "user", "assistant") and "content", a text or a
            list of {"type": "text", "text": ...}, whose texts are joined. Other entries, such as
            "tool_calls", reach the template unchanged.
        add_generation_prompt: end with the beginning of an assistant's message.
        variables: further variables of the template, such as `tools` or `enable_thinking`; JSON
            values.
        guard: applied to each text in messages and variables before rendering. Pass
            `tokenizer.guarded`; without it these texts can spell control tokens.

        Raises ChatTemplateError if the template refuses the conversation (roles that do not
        alternate, say), fails, or takes too much time or memory; if the conversation is too long;
        and if a part of a message is not text. Raises TypeError for messages or variables of
        another form.
        """
        given = dict(variables or {})
        for name in ("messages", "add_generation_prompt"):
            if name in given:
                raise TypeError(f"{name!r} cannot be set as a template variable")
        given["messages"] = _checked_messages(messages)
        n_characters = _n_characters(given)
        if n_characters > MAX_CHARACTERS:
            raise ChatTemplateError(
                f"messages and template variables have {n_characters:,} characters;"
                f" expected at most {MAX_CHARACTERS:,}"
            )
        if guard is not None:
            given = {name: map_texts(guard, value) for name, value in given.items()}
        return self._run(
            {
                "tools": None,
                "documents": None,
                **self._special_tokens,
                **given,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _run(self, values: Mapping[str, object] | None) -> str:
        try:
            return template_process.render(self.source, values)
        except template_process.TemplateFaultError as fault:
            raise ChatTemplateError(f"the model's chat template: {fault}") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"messages and template variables must be JSON values: {error}"
            ) from None


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """A copy of `value` with each string changed, also inside lists and in keys and values of
    mappings."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_texts(change, key): map_texts(change, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(change, item) for item in value]
    return value


def _n_characters(value: object) -> int:
    """The characters of all texts in lists and mappings. Every other value, a list or mapping too,
    counts as 16."""
    n, left = 0, [value]
    while left and n <= MAX_CHARACTERS:
        value = left.pop()
        n += len(value) if isinstance(value, str) else 16
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
    return n


def _checked_messages(messages: object) -> list[dict[str, object]]:
    if isinstance(messages, Mapping):
        raise TypeError("messages is a single message; expected a list of them: [message]")
    if isinstance(messages, str) or not isinstance(messages, Iterable):
        raise TypeError(f"messages is a {type(messages).__name__}; expected a list of messages")
    return [_checked(at, message) for at, message in enumerate(messages)]


def _checked(at: int, message: object) -> dict[str, object]:
    if not isinstance(message, Mapping):
        raise TypeError(
            f"messages[{at}] is {shown(message)}; expected a mapping with 'role' and 'content'"
        )
    if "role" not in message:
        raise TypeError(f"messages[{at}] has no 'role'; expected 'role' and 'content'")
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    # Most templates accept only a text. Most of those that accept a list join its texts like this.
    return {
        **message,
        "content": "".join(_text_of_part(f"messages[{at}]", part) for part in content),
    }


def _text_of_part(message: str, part: object) -> str:
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else ("", "")
    if kind == "text" and isinstance(text, str):
        return text
    raise ChatTemplateError(
        f"{message} has the part {shown(part)}; this model reads text, as in"
        ' {"type": "text", "text": "Hello"}'
    )

"""Filling in the middle: a model of code that was trained for it writes what belongs between a
prefix and a suffix.

The parts of such a prompt are marked by control tokens, which editors also write into a text of
their own. No other control token is found in a text.
"""

import re
from collections.abc import Iterator

from airllm.text.tokenizer import Tokenizer
from airllm.text.vocabulary import special_id
from airllm.util.errors import AirllmError
from airllm.util.metadata import Metadata

__all__ = ["FillIn", "NoFillInError"]

# Spellings of the marks before the prefix, before the suffix and before the middle: of Qwen and
# Granite 4, StarCoder and Granite 3, DeepSeek, CodeLlama, GLM.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
_OTHER_MARKS = (
    *("<|repo_name|>", "<|file_sep|>", "<|fim_pad|>"),
    *("<repo_name>", "<reponame>", "<file_sep>", "<fim_pad>"),
)
# The metadata of GGUF files: today's names, and older ones.
_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))


class NoFillInError(AirllmError, ValueError):
    """The model was not trained to fill in."""


class FillIn:
    """marks: ids by spelling. parts: the ids before prefix, suffix and middle; None for a model
    that has no such tokens."""

    def __init__(self, metadata: Metadata, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.marks = tokenizer.marks([*_OTHER_MARKS, *(mark for marks in _MARKS for mark in marks)])
        declared = [_declared(metadata, keys, tokenizer.vocab_size) for keys in _KEYS]
        spelled = ([self.marks.get(mark) for mark in marks] for marks in _MARKS)
        whole = (
            [id for id in ids if id is not None] for ids in (declared, *spelled) if None not in ids
        )
        self.parts = next(whole, None)
        longest_first = sorted(self.marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def between(self, prefix: str, suffix: str) -> list[int]:
        """The prompt for what belongs between the two. NoFillInError."""
        if self.parts is None:
            raise NoFillInError(
                "this model has no tokens for filling in between a prompt and a suffix; a model of "
                "code such as Qwen2.5-Coder has them"
            )
        before, after, middle = self.parts
        bos = self._tokenizer.encode("")  # BOS, if the model wants it
        return [*bos, before, *self._plain(prefix), after, *self._plain(suffix), middle]

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text in which an editor may have written the marks itself."""
        if not self._pattern.search(text):
            return self._tokenizer.encode(text)
        return [*self._tokenizer.encode(""), *self._marked(text)]

    def _marked(self, text: str) -> Iterator[int]:
        at = 0
        for mark in self._pattern.finditer(text):
            yield from self._plain(text[at : mark.start()])
            yield self.marks[mark[0]]
            at = mark.end()
        yield from self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False) if text else []


def _declared(metadata: Metadata, keys: tuple[str, ...], vocab_size: int) -> int | None:
    ids = (special_id(metadata, key, vocab_size) for key in keys)
    return next((id for id in ids if id is not None), None)

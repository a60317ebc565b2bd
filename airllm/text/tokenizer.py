"""Text to tokens and back, with the vocabulary and rules of a model's file.

`schemes` has the ways in which vocabularies make tokens of text, and the `tokenizers` library does
it. This module decides which text becomes a control token: the vocabulary for merging has none, so
without `parse_special` no text can become a control token, whatever merges a hostile file has.
"""

import operator
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Self

from airllm.text.control_guard import GUARD, REPLACEMENT, ControlGuard
from airllm.text.schemes import SCHEMES, Scheme
from airllm.util.metadata import Metadata

__all__ = ["Tokenizer"]


class Tokenizer:
    """A model's tokeniser; `Tokenizer.from_gguf(file.metadata)` makes one.

    vocab_size: the number of tokens in the file; ids are 0 to vocab_size - 1.
    bos_id: the token that begins a text, or None.
    add_bos: whether `encode` begins with bos_id.
    eos_ids: the tokens that end an answer.
    """

    def __init__(self, scheme: Scheme) -> None:
        vocabulary = scheme.vocabulary
        self.vocab_size = len(vocabulary.texts)
        self.bos_id = vocabulary.bos_id
        self.eos_ids = vocabulary.eos_ids
        self.add_bos = scheme.add_bos and self.bos_id is not None
        self._scheme = scheme
        self._vocabulary = vocabulary
        self._guard = ControlGuard(vocabulary.texts[id] for id in vocabulary.control)
        # The library gives new numbers, after the last id, to added tokens that are not in its
        # vocabulary. The mappings turn these numbers back into ids.
        self._plain, self._plain_ids = scheme.build(sorted(vocabulary.user_defined))
        self._special, self._special_ids = scheme.build(
            [*sorted(vocabulary.user_defined), *sorted(vocabulary.control)], drop=GUARD
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Self:
        """Build the tokeniser that a GGUF file's metadata describes.

        Raises FormatError, which names the key, if the metadata is incomplete or contradicts
        itself, and for an unknown tokeniser or pre-tokeniser.
        """
        checked = Metadata.of(metadata)
        name = checked.text("tokenizer.ggml.model")
        if name not in SCHEMES:
            raise checked.fault(
                f"tokenizer {name!r} is not supported, only {' and '.join(map(repr, SCHEMES))};"
                " use a model with one of these"
            )
        scheme = SCHEMES[name](checked)
        try:
            return cls(scheme)
        except Exception as error:  # the library raises plain Exception
            raise checked.fault(f"the tokenizers library rejects its tokens: {error}") from error

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The token ids of a text.

        add_special: begin with the BOS token if the model wants one and the text does not begin
            with it.
        parse_special: turn the spelling of a control token, such as "<|im_end|>", into the control
            token. Only for prompts that a chat template made of `guarded` messages.

        A character that the vocabulary cannot spell becomes U+FFFD; ValueError if the vocabulary
        cannot spell U+FFFD.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: expected a str, got {type(text).__name__}")
        text = self._spellable(text, but=GUARD if parse_special else "")
        tokenizer, own = (
            (self._special, self._special_ids) if parse_special else (self._plain, self._plain_ids)
        )
        seen = tokenizer.encode(self._scheme.for_library(text), add_special_tokens=False).ids
        ids = [own.get(id, id) for id in self._scheme.of_text(seen)]
        if add_special and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def least_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens: the text's bytes / the bytes of the longest token.

        It needs no encoding, which takes 270 times the text's size in memory.
        """
        n_bytes = len(self._scheme.composed(text).encode(errors="surrogatepass"))
        n_bytes -= len(GUARD.encode()) * text.count(GUARD)  # encoding drops guards
        return n_bytes // self._bytes_of_a_token

    @cached_property
    def _bytes_of_a_token(self) -> int:
        """The most bytes of a text for which one token can stand."""
        if self._scheme.fuses_unknown:
            return 2**20  # a run of unknown characters is one token, however long
        texts = self._vocabulary.texts
        longest = max(len(self._scheme.text_bytes(text)) for text in texts)
        markup = self._vocabulary.control | self._vocabulary.user_defined
        longest = max([longest, *(len(texts[id].encode(errors="replace")) for id in markup)])
        # An unspellable character of four bytes becomes U+FFFD, which has three.
        return longest * 2 if self._scheme.missing_bytes else longest

    def guarded(self, text: str) -> str:
        """`text` for a chat template, such that no part of it becomes a control token:
        `encode(guarded(text), parse_special=True)` is `encode(text)`. See control_guard."""
        return self._guard.guard(text)

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD.

        skip_special: leave out control tokens. By default their spelling appears in the text.
        """
        ids = list(tokens)
        pieces = [self.token_bytes(id) for id in ids if not (skip_special and self.is_control(id))]
        if self._scheme.space_prefix:
            first = next((at for at, id in enumerate(ids) if not self.is_control(id)), None)
            if first is not None:
                first -= len(ids) - len(pieces) if skip_special else 0
                pieces[first] = pieces[first].removeprefix(b" ")
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a token, maybe a part of a UTF-8 character: join tokens before decoding."""
        id = operator.index(id)
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token {id} is not in the vocabulary of {self.vocab_size:,}")
        text = self._vocabulary.texts[id]
        if id in self._vocabulary.control or id in self._vocabulary.user_defined:
            return text.encode()
        if id in self._vocabulary.bytes:
            return bytes([int(text[1:-1], 16)])
        return self._scheme.text_bytes(text)

    def has_the_tokens_of(self, other: "Tokenizer") -> bool:
        """Whether each id is the same token in both."""
        return self._vocabulary.texts == other._vocabulary.texts

    def control_ids(self, texts: Collection[str]) -> frozenset[int]:
        """The control tokens with these spellings."""
        wanted = frozenset(texts)
        control = self._vocabulary.control
        return frozenset(id for id in control if self._vocabulary.texts[id] in wanted)

    def marks(self, texts: Collection[str]) -> dict[str, int]:
        """The tokens with these spellings that are control tokens, or whole in every text."""
        wanted, vocabulary = frozenset(texts), self._vocabulary
        ids = vocabulary.control | vocabulary.user_defined
        return {text: id for id in ids if (text := vocabulary.texts[id]) in wanted}

    def is_control(self, id: int) -> bool:
        """Whether a token is markup (BOS, end of turn...) rather than text."""
        return id in self._vocabulary.control

    def is_text(self, id: int) -> bool:
        """Whether a token is a part of a text: no markup, no end, and no number without a token."""
        vocabulary = self._vocabulary
        return not (id in vocabulary.control or id in vocabulary.unused or id in vocabulary.eos_ids)

    def _spellable(self, text: str, but: str) -> str:
        """`text` with U+FFFD for each character that the vocabulary cannot spell, except `but`."""
        try:
            raw = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair is not a character
            raw = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
            text = raw.decode()
        missing = self._scheme.missing_bytes
        if len(raw.translate(None, missing)) == len(raw):
            return text
        unspellable = {char for char in set(text) - {but} if set(char.encode()) & set(missing)}
        if unspellable and set(REPLACEMENT.encode()) & set(missing):
            raise ValueError(f"the model's vocabulary has no tokens for {min(unspellable)!r}")
        return text.translate(dict.fromkeys(map(ord, unspellable), REPLACEMENT))

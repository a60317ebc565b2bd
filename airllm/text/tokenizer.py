"""Text to tokens and back, with the vocabulary and rules of a model's file.

Two schemes of byte-pair encoding cover the models that this package runs:

- "gpt2": text is cut into words (`pre_tokenizers`). Each byte of a word in UTF-8 becomes one of 256
  printable characters, and the file's list of merges joins these characters.
- "llama" (SentencePiece): spaces become "▁", and the pair whose union has the best score is joined
  first; or, in files that say "gemma4", the pair that comes first in their list of merges. A
  character that is not a token becomes the tokens of its bytes, <0x00> to <0xFF>.

The `tokenizers` library does the merging. This module decides which text becomes a control token:
the vocabulary for merging has none, so without `parse_special` no text can become a control token,
whatever merges a hostile file has.
"""

import logging
import operator
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

import numpy as np

from airllm.text.control_guard import GUARD, REPLACEMENT, ControlGuard
from airllm.text.pre_tokenizers import RULES
from airllm.text.vocabulary import Vocabulary, hidden_name
from airllm.util.metadata import Metadata

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.models import BPE
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

__all__ = ["Tokenizer"]

_log = logging.getLogger("airllm")

SPACE = "▁"  # SentencePiece writes a space like this

# Limits of a SentencePiece vocabulary, because every split of every token is tried. Gemma's 262,000
# tokens have 1.8 million splits, which take half a second. SentencePiece makes pieces of at most 16
# characters.
MAX_PIECE = 256
MAX_SPLITS = 2**22


class Tokenizer:
    """A model's tokeniser; `Tokenizer.from_gguf(file.metadata)` makes one.

    vocab_size: the number of tokens in the file; ids are 0 to vocab_size - 1.
    bos_id: the token that begins a text, or None.
    add_bos: whether `encode` begins with bos_id.
    eos_ids: the tokens that end an answer.
    """

    def __init__(self, scheme: "_Scheme") -> None:
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
        schemes = {"gpt2": _byte_level, "llama": _sentence_piece, "gemma4": _gemma4}
        if name not in schemes:
            raise checked.fault(
                f"tokenizer {name!r} is not supported, only {' and '.join(map(repr, schemes))};"
                " use a model with one of these"
            )
        scheme = schemes[name](checked)
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
        ids = [own.get(id, id) for id in tokenizer.encode(text, add_special_tokens=False).ids]
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


@dataclass(frozen=True)
class _Scheme:
    """The differences between the two schemes."""

    vocabulary: Vocabulary
    model: "BPE"
    normalizer: "Normalizer | None"
    pre_tokenizer: "PreTokenizer | None"
    text_bytes: Callable[[str], bytes]  # the bytes of an ordinary token
    missing_bytes: bytes  # bytes that no token spells
    composed: Callable[[str], str]  # the Unicode normalisation of text
    fuses_unknown: bool  # whether a run of characters may become one unknown token
    add_bos: bool
    space_prefix: bool  # whether text begins with a space that its author did not write

    def build(
        self, added: Sequence[int], drop: str = ""
    ) -> "tuple[tokenizers.Tokenizer, dict[int, int]]":
        """A tokeniser that finds the `added` tokens before anything else and then removes the
        character `drop`, and a mapping to ids for added tokens that have another number in it.

        Of added tokens with the same text, it finds the last. All tokenisers share the model.
        """
        import tokenizers
        from tokenizers.normalizers import Replace
        from tokenizers.normalizers import Sequence as Steps

        tokenizer = tokenizers.Tokenizer(self.model)
        steps: list[Normalizer] = [Replace(drop, "")] if drop else []
        steps += [self.normalizer] if self.normalizer is not None else []
        if steps:
            tokenizer.normalizer = Steps(steps)
        if self.pre_tokenizer is not None:
            tokenizer.pre_tokenizer = self.pre_tokenizer
        by_text = {self.vocabulary.texts[id]: id for id in added if self.vocabulary.texts[id]}
        tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in by_text])
        numbers = ((tokenizer.token_to_id(text), id) for text, id in by_text.items())
        return tokenizer, {n: id for n, id in numbers if n is not None and n != id}


def _byte_level(metadata: Metadata) -> _Scheme:
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC

    vocabulary = Vocabulary.from_metadata(metadata)
    ids = vocabulary.reachable()
    if "tokenizer.ggml.pre" not in metadata:
        _log.warning(
            "%s: tokenizer.ggml.pre is missing, which says how text is cut into words. GPT-2's way"
            " is a guess: with the wrong one the model sees strange tokens and answers worse. Newer"
            " conversions of the model have the key",
            metadata.source,
        )
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in RULES:
        raise metadata.fault(
            f"pre-tokenizer {name!r} is not supported, and without it the model would see text cut"
            f" wrongly; use a model with one of: {', '.join(sorted(RULES))}"
        )
    rule = RULES[name]
    merges = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise metadata.fault(
                f"tokenizer.ggml.merges has {merge[:80]!r}; expected two tokens that make a third"
            )
        merges.append((left, right))
    byte_of = {char: byte for byte, char in enumerate(_byte_characters())}

    def text_bytes(text: str) -> bytes:
        try:
            return bytes([byte_of[char] for char in text])
        except KeyError:  # not a byte-level character: somebody added the token by hand
            return text.encode()

    return _Scheme(
        vocabulary=vocabulary,
        model=BPE(vocab=ids, merges=merges, ignore_merges=rule.ignore_merges),
        normalizer=NFC() if rule.composed else None,
        pre_tokenizer=rule.build(),
        text_bytes=text_bytes,
        missing_bytes=bytes(byte for char, byte in byte_of.items() if char not in ids),
        composed=partial(unicodedata.normalize, "NFC") if rule.composed else str,
        fuses_unknown=False,
        add_bos=metadata.flag("tokenizer.ggml.add_bos_token", rule.add_bos),
        space_prefix=False,
    )


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each byte: the byte's own character if that is visible in
    Latin-1. The other 68 bytes get, in order, the characters from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _splits(text: str) -> Iterator[tuple[str, str]]:
    return ((text[:at], text[at:]) for at in range(1, len(text)))


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _gemma4(metadata: Metadata) -> _Scheme:
    """Merges in the order of the file's list, whatever the scores. A text always begins with BOS,
    and never with a space that its author did not write."""
    n_tokens = len(metadata.texts("tokenizer.ggml.tokens"))
    metadata.texts("tokenizer.ggml.merges")  # FormatError if there are none
    own: dict[str, object] = {
        "tokenizer.ggml.scores": np.zeros(n_tokens, np.float32),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": True,
    }
    return _sentence_piece(Metadata(metadata.source, {**metadata, **own}))


def _sentence_piece(metadata: Metadata) -> _Scheme:
    """SentencePiece first joins the pair whose union has the best score. Merges give the same
    result: each way to make a token from two others is a merge, in the order of the scores."""
    from tokenizers.models import BPE
    from tokenizers.normalizers import Prepend, Replace
    from tokenizers.normalizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Metaspace

    vocabulary = Vocabulary.from_metadata(metadata)
    ids = vocabulary.reachable()
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.texts):
        raise metadata.fault(
            f"tokenizer.ggml.scores has {len(scores):,} entries for"
            f" {len(vocabulary.texts):,} tokens"
        )
    longest = max(map(len, vocabulary.texts))
    if longest > MAX_PIECE or sum(map(len, vocabulary.texts)) > MAX_SPLITS:
        raise metadata.fault(
            "tokenizer.ggml.tokens is too large to be a vocabulary"
            f" (longest token: {longest:,} characters)"
        )
    n_bytes = len({vocabulary.texts[id] for id in vocabulary.bytes})
    if n_bytes < 256 and vocabulary.unknown_id is None:
        raise metadata.fault("the vocabulary has neither tokens for all bytes nor an unknown token")

    hidden = vocabulary.control | vocabulary.unused | vocabulary.bytes | vocabulary.user_defined
    if "tokenizer.ggml.merges" in metadata:  # the file has its own, maybe not of all splits
        words = {text for text, id in ids.items() if id not in hidden}
        pairs = [_pair(merge) for merge in metadata.texts("tokenizer.ggml.merges")]
        merges = [(a, b) for a, b in pairs if a in ids and b in ids and a + b in words]
    else:
        merges = [
            (left, right)
            for id in np.argsort(-scores, kind="stable").tolist()
            if id not in hidden
            for left, right in _splits(vocabulary.texts[id])
            if left in ids and right in ids
        ]
    space_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    prefix = [Prepend(SPACE)] if space_prefix else []
    metaspace = None
    if scheme := metadata.text("airllm.tokenizer.metaspace", ""):  # see formats.hf_tokenizer
        if scheme not in ("first", "always"):
            raise metadata.fault(f"airllm.tokenizer.metaspace is {scheme[:40]!r}")
        metaspace = Metaspace(SPACE, prepend_scheme=scheme, split=False)
    return _Scheme(
        vocabulary=vocabulary,
        model=BPE(
            vocab=ids,
            merges=merges,
            unk_token=None if vocabulary.unknown_id is None else hidden_name(vocabulary.unknown_id),
            fuse_unk=True,
            byte_fallback=True,
        ),
        normalizer=None if metaspace else Steps([*prefix, Replace(" ", SPACE)]),
        pre_tokenizer=metaspace,
        text_bytes=lambda text: text.replace(SPACE, " ").encode(),
        missing_bytes=b"",
        composed=str,
        fuses_unknown=n_bytes < 256,
        add_bos=metadata.flag("tokenizer.ggml.add_bos_token", True),
        space_prefix=space_prefix,
    )

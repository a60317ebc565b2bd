"""A model's vocabulary: the texts and kinds of its tokens, and which tokens end an answer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from airllm.util.metadata import Metadata

# The values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Control tokens that end an answer, in addition to those that the file declares.
END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<|return|>", "<｜end▁of▁sentence｜>", "</s>"),
    *("<turn|>", "<|tool_response>", "<|call|>", "<|calls|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),  # a coder begins another file
)

# Texts of control tokens, for a file without token types. Types in a file take precedence: in Gemma
# <s> and </s> are tags of HTML.
_MARKUP_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<start_of_", ">"), ("<end_of_", ">"))
_MARKUP = frozenset(["<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]"])

_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")

_NO_ID = (-1, 2**32 - 1)  # the values in files that mean "no such token"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `control` tokens are markup: text becomes one only with parse_special. A
    `user_defined` token is a text that always becomes this one token. No text becomes an `unused`
    token."""

    texts: list[str]
    control: frozenset[int]
    user_defined: frozenset[int]
    unused: frozenset[int]
    bytes: frozenset[int]  # "<0x00>" to "<0xFF>"
    bos_id: int | None
    unknown_id: int | None
    eos_ids: frozenset[int]

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "Vocabulary":
        """Raises FormatError for a list that is missing or has the wrong length or types, for an id
        outside the vocabulary, and for a byte token whose text is not <0x00> to <0xFF>."""
        texts = metadata.texts("tokenizer.ggml.tokens")
        if not texts:
            raise metadata.fault("tokenizer.ggml.tokens is empty")
        types = _types(metadata, len(texts))
        kinds = _kinds_by_name(texts) if types is None else types
        bytes = frozenset(_of_kind(kinds, BYTE))
        for id in bytes:
            if not _BYTE_NAME.fullmatch(texts[id]):
                raise metadata.fault(f"token {id} is declared a byte but is {texts[id][:40]!r}")

        def declared(name: str) -> int | None:
            return special_id(metadata, name, len(texts))

        ends = {declared(name) for name in ("eos", "eot", "eom")} - {None}
        bos_id, unknown_id = declared("bos"), declared("unknown")
        control = {*_of_kind(kinds, CONTROL), *_of_kind(kinds, UNKNOWN)}
        # The declared tokens are control tokens, unless the file types them as ordinary text.
        named = {id for id in (*ends, bos_id) if id is not None}
        control |= named if types is None else {id for id in named if kinds[id] != NORMAL}
        control |= {id for id in (unknown_id,) if id is not None}
        names = {texts[id]: id for id in control}
        ends |= {names[text] for text in END_TOKENS if text in names}
        if names.keys() >= {"<|call|>", "<|return|>"} or "<|calls|>" in names:
            # gpt-oss and Solar: an answer has several messages, and this token ends each of them.
            ends.discard(names.get("<|end|>"))
        return cls(
            texts=texts,
            control=frozenset(control),
            user_defined=frozenset(_of_kind(kinds, USER_DEFINED)) - control,
            unused=frozenset(_of_kind(kinds, UNUSED)) - control,
            bytes=bytes - control,
            bos_id=bos_id,
            unknown_id=unknown_id,
            eos_ids=frozenset(id for id in ends if id is not None),
        )

    def reachable(self) -> dict[str, int]:
        """Maps texts to ids, for merging: one entry for each id. Control tokens, unused tokens and
        tokens that repeat a text have names that no text can become.

        No id is left out, because the `tokenizers` library numbers added tokens from the
        vocabulary's length on.
        """
        ids = dict(zip(self.texts, range(len(self.texts)), strict=True))
        hidden = self.control | self.unused
        if len(ids) < len(self.texts):
            hidden |= {id for id, text in enumerate(self.texts) if ids[text] != id}
        for id in hidden:
            if ids.get(self.texts[id]) == id:
                del ids[self.texts[id]]
        ids.update((hidden_name(id), id) for id in hidden)
        return ids


def hidden_name(id: int) -> str:
    """A name for a token that no text can become. Byte-level text has no NUL, and no merge makes a
    name that begins with NUL."""
    return f"\0{id}"


def special_id(metadata: Metadata, name: str, n_tokens: int) -> int | None:
    """The id of the token for a purpose ("bos", "padding"); None if the file declares none."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in metadata or metadata[key] in _NO_ID:
        return None
    return metadata.integer(key, high=n_tokens - 1)


def _types(metadata: Metadata, n_tokens: int) -> np.ndarray | None:
    if "tokenizer.ggml.token_type" not in metadata:
        return None
    kinds = metadata.numbers("tokenizer.ggml.token_type")
    if len(kinds) != n_tokens:
        raise metadata.fault(
            f"tokenizer.ggml.token_type has {len(kinds):,} entries for {n_tokens:,} tokens"
        )
    return kinds if kinds.any() else None  # 0 is "undefined"


def _kinds_by_name(texts: list[str]) -> np.ndarray:
    kinds = np.full(len(texts), NORMAL)
    kinds[[id for id, text in enumerate(texts) if _looks_like_markup(text)]] = CONTROL
    bytes = [id for id, text in enumerate(texts) if _BYTE_NAME.fullmatch(text)]
    if len(bytes) == 256:
        kinds[bytes] = BYTE
    return kinds


def _of_kind(kinds: np.ndarray, kind: int) -> Iterable[int]:
    return [int(id) for id in np.flatnonzero(kinds == kind)]


def _looks_like_markup(text: str) -> bool:
    return text in _MARKUP or any(
        text.startswith(start) and text.endswith(end) for start, end in _MARKUP_SHAPES
    )

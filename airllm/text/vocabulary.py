"""A model's vocabulary: the texts of its tokens, which of them are control tokens, which end."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from airllm.util.metadata import Metadata

# The values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Tokens that end an answer, beside those that the file declares.
END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<|return|>", "<｜end▁of▁sentence｜>", "</s>"),
)

# What is markup in a file that does not say of which type its tokens are. Where it does, its types
# decide: Gemma has <s> and </s>, but as tags of HTML.
_MARKUP_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<start_of_", ">"), ("<end_of_", ">"))
_MARKUP = frozenset(["<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]"])

_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")

_NO_ID = (-1, 2**32 - 1)  # as files write that there is no such token


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `control` tokens are markup, which text never becomes unless told to;
    `user_defined` ones are text that is always one token; `unused` ones are no text at all."""

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
        """Raises FormatError for a list that is missing, of the wrong length or of wrong types, for
        ids that are no tokens, and for bytes that are none."""
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
        # What the file gives such a part is markup, unless its type says that it is ordinary text.
        named = {id for id in (*ends, bos_id) if id is not None}
        control |= named if types is None else {id for id in named if kinds[id] != NORMAL}
        control |= {id for id in (unknown_id,) if id is not None}
        names = {texts[id]: id for id in control}
        ends |= {names[text] for text in END_TOKENS if text in names}
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
        """Texts to ids for the merging of text: one entry for each id, in which control and unused
        tokens, and repeated texts, stand under names that no text can become.

        The `tokenizers` library numbers added tokens from the vocabulary's length, hence no holes.
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
    """NUL is no character of byte-level text, and no merge makes a name that begins with it."""
    return f"\0{id}"


def special_id(metadata: Metadata, name: str, n_tokens: int) -> int | None:
    """The token that plays a part ("bos", "padding"); None where the file has none, or says so."""
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

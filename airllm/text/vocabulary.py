"""A model's vocabulary: the texts of its tokens, which of them are control tokens, which end."""

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

# Some converters declare control tokens as user-defined, which text may contain. These shapes and
# names are never plain text.
CONTROL_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<start_of_", ">"), ("<end_of_", ">"))
CONTROL_NAMES = frozenset(["<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "[INST]", "[/INST]"])


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
        """Raises FormatError for a list that is missing, of the wrong length or of wrong types,
        and for ids that are no tokens."""
        texts = metadata.texts("tokenizer.ggml.tokens")
        if not texts:
            raise metadata.fault("tokenizer.ggml.tokens is empty")
        kinds = _kinds(metadata, len(texts))

        def declared(name: str) -> int | None:
            key = f"tokenizer.ggml.{name}_token_id"
            if key not in metadata:
                return None
            return metadata.integer(key, high=len(texts) - 1)

        ends = {declared(name) for name in ("eos", "eot", "eom")} - {None}
        bos_id, unknown_id = declared("bos"), declared("unknown")
        control = {*_of_kind(kinds, CONTROL), *_of_kind(kinds, UNKNOWN)}
        user_defined = set(_of_kind(kinds, USER_DEFINED))
        control |= {id for id in user_defined if _looks_like_control(texts[id])}
        if "tokenizer.ggml.token_type" not in metadata:
            control |= {id for id in (*ends, bos_id, unknown_id) if id is not None}
        names = {texts[id]: id for id in control}
        ends |= {names[text] for text in END_TOKENS if text in names}
        return cls(
            texts=texts,
            control=frozenset(control),
            user_defined=frozenset(user_defined - control),
            unused=frozenset(_of_kind(kinds, UNUSED)),
            bytes=frozenset(_of_kind(kinds, BYTE)),
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


def _kinds(metadata: Metadata, n_tokens: int) -> np.ndarray:
    if "tokenizer.ggml.token_type" not in metadata:
        return np.full(n_tokens, NORMAL)
    kinds = metadata.numbers("tokenizer.ggml.token_type")
    if len(kinds) != n_tokens:
        raise metadata.fault(
            f"tokenizer.ggml.token_type has {len(kinds):,} entries for {n_tokens:,} tokens"
        )
    return kinds


def _of_kind(kinds: np.ndarray, kind: int) -> Iterable[int]:
    return [int(id) for id in np.flatnonzero(kinds == kind)]


def _looks_like_control(text: str) -> bool:
    return text in CONTROL_NAMES or any(
        text.startswith(start) and text.endswith(end) for start, end in CONTROL_SHAPES
    )

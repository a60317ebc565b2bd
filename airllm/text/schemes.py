"""Ways in which vocabularies make tokens of text.

- "gpt2": text is cut into words (`pre_tokenizers`). Each byte of a word in UTF-8 becomes one of 256
  printable characters, and the file's list of merges joins these characters.
- "llama" (SentencePiece): spaces become "▁", and the pair whose union has the best score is joined
  first; or, in files that say "gemma4", the pair that comes first in their list of merges. A
  character that is not a token becomes the tokens of its bytes, <0x00> to <0xFF>.
- "plamo2": of all ways to cut a text into tokens, the one whose scores have the largest sum.
"""

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from airllm.text.pre_tokenizers import RULES
from airllm.text.vocabulary import Vocabulary, hidden_name
from airllm.util.metadata import Metadata

if TYPE_CHECKING:
    import tokenizers
    from tokenizers.models import Model
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

__all__ = ["SCHEMES", "Scheme"]

_log = logging.getLogger("airllm")

SPACE = "▁"  # SentencePiece writes a space like this

# Limits of a SentencePiece vocabulary, because every split of every token is tried. Gemma's 262,000
# tokens have 1.8 million splits, which take half a second. SentencePiece makes pieces of at most 16
# characters.
MAX_PIECE = 256
MAX_SPLITS = 2**22

# Scores of PLaMo's tokens are counted in these units, and an unknown character has such a score.
_UNIT, _UNKNOWN_SCORE = 1e-4, -1e7
_BELOW_LEAST = 10.0  # that unknown characters are in the library, below the least score


@dataclass(frozen=True)
class Scheme:
    """What a scheme makes of a file's vocabulary."""

    vocabulary: Vocabulary
    model: "Model"
    normalizer: "Normalizer | None"
    pre_tokenizer: "PreTokenizer | None"
    text_bytes: Callable[[str], bytes]  # the bytes of an ordinary token
    missing_bytes: bytes  # bytes that no token spells
    composed: Callable[[str], str]  # the Unicode normalisation of text
    fuses_unknown: bool  # whether a run of characters may become one unknown token
    add_bos: bool
    space_prefix: bool  # whether text begins with a space that its author did not write
    backwards: bool = False  # whether the library gets texts and tokens from their ends on

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
        texts = self.vocabulary.texts
        by_text = {self.for_library(texts[id]): id for id in added if texts[id]}
        tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in by_text])
        numbers = ((tokenizer.token_to_id(text), id) for text, id in by_text.items())
        return tokenizer, {n: id for n, id in numbers if n is not None and n != id}

    def for_library(self, text: str) -> str:
        return text[::-1] if self.backwards else text

    def of_text(self, ids: Sequence[int]) -> Sequence[int]:
        """ids: from the library. Backwards, a run of tokens of bytes is of whole characters."""
        if not self.backwards:
            return ids
        found: list[int] = []
        for of_bytes, run in groupby(reversed(ids), self.vocabulary.bytes.__contains__):
            tokens = list(run)
            if of_bytes:
                values = {self._byte(id): id for id in tokens}
                characters = bytes(self._byte(id) for id in reversed(tokens)).decode()
                tokens = [values[byte] for byte in characters[::-1].encode()]
            found += tokens
        return found

    def _byte(self, id: int) -> int:
        return int(self.vocabulary.texts[id][1:-1], 16)


def _byte_level(metadata: Metadata) -> Scheme:
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

    return Scheme(
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


def _gemma4(metadata: Metadata) -> Scheme:
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


def _scores(metadata: Metadata, vocabulary: Vocabulary) -> NDArray[Any]:
    """The score of each token. FormatError if tokens are too many or too long."""
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
    return scores


def _sentence_piece(metadata: Metadata) -> Scheme:
    """SentencePiece first joins the pair whose union has the best score. Merges give the same
    result: each way to make a token from two others is a merge, in the order of the scores."""
    from tokenizers.models import BPE
    from tokenizers.normalizers import Prepend, Replace
    from tokenizers.normalizers import Sequence as Steps
    from tokenizers.pre_tokenizers import Metaspace

    vocabulary = Vocabulary.from_metadata(metadata)
    ids, scores = vocabulary.reachable(), _scores(metadata, vocabulary)
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
    return Scheme(
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


def _plamo(metadata: Metadata) -> Scheme:
    """PLaMo 2 and 3. A byte's token, and one that no text becomes, has the least score, so that its
    name in a text is cut. Of two best cuts PLaMo takes the one whose first token is longer, and the
    library the one whose last token is: so it gets texts backwards."""
    from tokenizers import Regex
    from tokenizers.models import Unigram
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split

    vocabulary = Vocabulary.from_metadata(metadata)
    scores = np.round(_scores(metadata, vocabulary).astype(np.float64) / _UNIT)
    if not np.isfinite(scores).all():
        raise metadata.fault("tokenizer.ggml.scores has values that are no finite numbers")
    names = {id: name for name, id in vocabulary.reachable().items()}
    if len(names) < len(scores):
        raise metadata.fault("tokenizer.ggml.tokens has a token of NUL and a number")
    if sum(names[id] == vocabulary.texts[id] for id in vocabulary.bytes) < 256:
        raise metadata.fault("the vocabulary has not tokens for all bytes")
    least = _UNKNOWN_SCORE + _BELOW_LEAST
    scores[[*(vocabulary.control | vocabulary.unused | vocabulary.bytes)]] = least
    names |= {id: name[::-1] for id, name in names.items() if id not in vocabulary.bytes}
    pieces = [(names[id], max(score, least)) for id, score in enumerate(scores.tolist())]
    return Scheme(
        vocabulary=vocabulary,
        model=Unigram(pieces, unk_id=0, byte_fallback=True),
        normalizer=Replace(Regex(r"\uFEFF\z"), ""),
        pre_tokenizer=Split("\0", "isolated"),  # or a text could have the name of a hidden token
        text_bytes=str.encode,
        missing_bytes=b"",
        composed=str,
        fuses_unknown=False,
        add_bos=metadata.flag("tokenizer.ggml.add_bos_token", False),
        space_prefix=False,
        backwards=True,
    )


SCHEMES: Mapping[str, Callable[[Metadata], Scheme]] = {  # by tokenizer.ggml.model
    "gpt2": _byte_level,
    "llama": _sentence_piece,
    "gemma4": _gemma4,
    "plamo2": _plamo,
}

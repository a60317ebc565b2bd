"""Hugging Face's tokenizer.json as the metadata that GGUF has for the same tokeniser.

A tokenizer.json is a pipeline that could be anything. Two kinds are known: byte-level BPE, whose
way of cutting words must be one of `pre_tokenizers`, and SentencePiece's BPE. What is neither is
refused by the part that differs: with it ignored, the model would see strange tokens.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from airllm.text.pre_tokenizers import GPT2_WORDS, PUNCTUATION, THREE_DIGITS, rule_name
from airllm.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from airllm.util.metadata import Metadata

__all__ = ["METASPACE", "translate_tokenizer"]

# Which words get the space in front that their author did not write: "first" or "always", and only
# those without one, where GGUF's add_space_prefix adds it to all.
METASPACE = "airllm.tokenizer.metaspace"

_log = logging.getLogger("airllm")

_SPACE = "▁"
_NUMBER = r"\p{N}"


def translate_tokenizer(
    tokenizer: Metadata, settings: Metadata, generation: Metadata, n_tokens: int
) -> dict[str, object]:
    """GGUF's keys, "tokenizer.ggml.tokens" and so on.

    tokenizer: tokenizer.json. settings: tokenizer_config.json. generation: generation_config.json,
    or config.json, for tokens that end an answer. n_tokens: rows of the embedding; those that
    stand for no token get names like "[PAD7]". FormatError names what is damaged or not supported.
    """
    model = _object(tokenizer, "model")
    if model.get("type", "BPE") != "BPE":
        raise tokenizer.fault(f"model.type is {str(model.get('type'))[:40]!r}; expected 'BPE'")
    vocabulary = _ids(tokenizer, "model.vocab", model.get("vocab"), n_tokens)
    added = _added(tokenizer, n_tokens)
    texts: list[str | None] = [None] * n_tokens
    for text, id in vocabulary.items():
        if texts[id] is not None:
            raise tokenizer.fault(f"model.vocab gives id {id} to two tokens")
        texts[id] = text
    kinds = np.full(n_tokens, NORMAL, np.int32)
    for id, (text, special) in added.items():
        if texts[id] not in (None, text):
            raise tokenizer.fault(f"added_tokens gives id {id}, a token of model.vocab, to another")
        texts[id], kinds[id] = text, CONTROL if special else USER_DEFINED
    kinds[[id for id, text in enumerate(texts) if text is None]] = UNUSED
    names = [f"[PAD{id}]" if text is None else text for id, text in enumerate(texts)]

    steps = _flat(tokenizer, "pre_tokenizer", "pretokenizers")
    if any(step.get("type") == "ByteLevel" for step in steps):
        scheme = _byte_level(tokenizer, model, steps)
    else:
        scheme = _sentence_piece(tokenizer, model, steps, names, kinds)
    ids = {text: id for id, text in enumerate(names)}
    return {
        **scheme,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_bos_token": settings.get("add_bos_token") is True
        or ("add_bos_token" not in settings and _begins_with_a_token(tokenizer)),
        **_named_tokens(settings, generation, ids, n_tokens, model.get("unk_token")),
    }


def _byte_level(
    tokenizer: Metadata, model: Mapping[str, Any], steps: list[Mapping[str, Any]]
) -> dict[str, object]:
    patterns: list[str] = []
    if _cuts_as_falcon(steps):
        patterns, steps = [PUNCTUATION, GPT2_WORDS, THREE_DIGITS], []
    for at, step in enumerate(steps):
        kind = step.get("type")
        if kind == "ByteLevel" and at == len(steps) - 1 and not step.get("add_prefix_space"):
            patterns += [GPT2_WORDS] if step.get("use_regex", True) else []
        elif kind == "Digits" and step.get("individual_digits") is True:
            patterns.append(_NUMBER)
        elif kind == "Split" and _cuts_out_words(step):
            patterns.append(step["pattern"]["Regex"])
        else:
            raise tokenizer.fault(f"pre_tokenizer step {_brief(step)} is not supported")
    normalizers = [step.get("type") for step in _flat(tokenizer, "normalizer", "normalizers")]
    if set(normalizers) - {"NFC"}:
        raise tokenizer.fault(f"normalizer {_brief(normalizers)} is not supported, only NFC")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if model.get(key):
            raise tokenizer.fault(f"model.{key} is {_brief(model[key])}; expected none")
    name = rule_name(tuple(patterns), model.get("ignore_merges") is True, bool(normalizers))
    if name is None:
        raise tokenizer.fault(
            f"text is cut into words by a rule that is not known: {_brief(patterns)}"
        )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": _merges(tokenizer, model),
    }


def _sentence_piece(
    tokenizer: Metadata,
    model: Mapping[str, Any],
    steps: list[Mapping[str, Any]],
    names: list[str],
    kinds: np.ndarray,
) -> dict[str, object]:
    """Marks bytes and the unknown token in `kinds`. Scores are the merges' order."""
    prefix, metaspace = False, None
    for step in _flat(tokenizer, "normalizer", "normalizers"):
        if step.get("type") == "Prepend" and step.get("prepend") == _SPACE:
            prefix = True
        elif step.get("type") != "Replace" or step.get("content") != _SPACE:
            raise tokenizer.fault(f"normalizer {_brief(step)} is not supported")
    for step in steps:
        if step.get("type") == "Metaspace" and step.get("replacement") == _SPACE:
            metaspace = str(step.get("prepend_scheme", "always"))
            if step.get("split", True):
                raise tokenizer.fault("pre_tokenizer Metaspace with split is not supported")
        elif step.get("type") != "Split" or step.get("pattern") != {"String": " "}:
            # A split at spaces does nothing: the normalizer has replaced them.
            raise tokenizer.fault(f"pre_tokenizer step {_brief(step)} is not supported")
    if model.get("byte_fallback") is not True:
        raise tokenizer.fault("model: neither byte-level BPE nor one with byte_fallback")
    merges = _merges(tokenizer, model)
    rank: dict[str, int] = {}
    for at, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), at)
    scores = np.array([-rank.get(name, len(merges)) for name in names], np.float32)
    for id, name in enumerate(names):
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            kinds[id] = BYTE
        elif name == model.get("unk_token"):
            kinds[id] = UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_space_prefix": prefix or metaspace in ("first", "always"),
        **({METASPACE: metaspace} if metaspace in ("first", "always") else {}),
    }


def _cuts_as_falcon(steps: list[Mapping[str, Any]]) -> bool:
    """Falcon also parts digits from the space before them. That makes no difference here: its
    merges, which were learned so, never join the two."""
    if [step.get("type") for step in steps] != ["Punctuation", "ByteLevel", "Digits", "Split"]:
        return False
    punctuation, byte_level, digits, split = steps
    of_words = byte_level.get("use_regex", True) and not byte_level.get("add_prefix_space")
    of_digits = _cuts_out_words(split) and split["pattern"]["Regex"] == THREE_DIGITS
    together = punctuation.get("behavior") == "Contiguous" and not digits.get("individual_digits")
    return bool(of_words and of_digits and together)


def _cuts_out_words(step: Mapping[str, Any]) -> bool:
    """Whether a Split keeps matches and what lies between them; with "Removed" and `invert` only
    matches are kept, which is the same where a pattern matches everything, as those known do."""
    pattern = step.get("pattern")
    if not isinstance(pattern, dict) or not isinstance(pattern.get("Regex"), str):
        return False
    return (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))


def _merges(tokenizer: Metadata, model: Mapping[str, Any]) -> list[str]:
    """As "left right", which is how older files have them; newer ones have pairs."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise tokenizer.fault("model.merges is no list")
    joined = [" ".join(merge) if _is_pair(merge) else merge for merge in merges]
    for merge in joined:
        if not isinstance(merge, str) or merge.count(" ") != 1:
            raise tokenizer.fault(f"model.merges has {_brief(merge)}; expected two tokens")
    return joined


def _is_pair(merge: object) -> bool:
    return isinstance(merge, list) and len(merge) == 2 and all(type(each) is str for each in merge)


def _ids(tokenizer: Metadata, what: str, value: object, n_tokens: int) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise tokenizer.fault(f"{what} is no list of tokens with their ids")
    for text, id in value.items():
        if type(id) is not int or not 0 <= id < n_tokens:
            raise tokenizer.fault(
                f"{what} gives {_brief(text)} the id {_brief(id)}; the embedding has {n_tokens:,} "
                "rows"
            )
    return value


def _added(tokenizer: Metadata, n_tokens: int) -> dict[int, tuple[str, bool]]:
    """Text of each added token by id, and whether it is a control token."""
    entries = tokenizer.get("added_tokens") or []
    found: dict[int, tuple[str, bool]] = {}
    if not isinstance(entries, list):
        raise tokenizer.fault("added_tokens is no list")
    for entry in entries:
        id = entry.get("id") if isinstance(entry, dict) else None
        text = entry.get("content") if isinstance(entry, dict) else None
        if type(id) is not int or not isinstance(text, str) or not text:
            raise tokenizer.fault(f"added_tokens has {_brief(entry)}; expected an id and a content")
        if not 0 <= id < n_tokens:
            raise tokenizer.fault(
                f"added_tokens gives {_brief(text)} the id {id}; the embedding has {n_tokens:,} "
                "rows"
            )
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            _log.warning(
                "%s: token %s should swallow spaces beside it, and does not here",
                tokenizer.source,
                _brief(text),
            )
        found[id] = text, entry.get("special") is True
    return found


def _begins_with_a_token(tokenizer: Metadata) -> bool:
    """Whether the post-processor puts a token before a text."""
    for step in _flat(tokenizer, "post_processor", "processors"):
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            return isinstance(single[0], dict) and "SpecialToken" in single[0]
    return False


def _named_tokens(
    settings: Metadata,
    generation: Metadata,
    ids: Mapping[str, int],
    n_tokens: int,
    unknown: object,
) -> dict[str, object]:
    """The ids of BOS, EOS and so on, where the settings or the generation's name them."""
    found: dict[str, int] = {}
    if isinstance(unknown, str) and unknown in ids:
        found["unknown"] = ids[unknown]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        token = settings.get(f"{theirs}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            found[ours] = ids[text]
    for name in ("bos", "eos"):
        default = generation.get(f"{name}_token_id")
        if name not in found and type(default) is int and 0 <= default < n_tokens:
            found[name] = default
    ends = generation.get("eos_token_id")
    others = [
        id
        for id in (ends if isinstance(ends, list) else [ends])
        if type(id) is int and 0 <= id < n_tokens and id != found.get("eos")
    ]
    found |= dict(zip(("eos", "eot", "eom")[int("eos" in found) :], others, strict=False))
    return {f"tokenizer.ggml.{name}_token_id": id for name, id in found.items()}


def _flat(tokenizer: Metadata, key: str, inner: str) -> list[Mapping[str, Any]]:
    """The steps of a part of the pipeline, which is one step, a Sequence of them, or null."""
    step = tokenizer.get(key)
    if step is None:
        return []
    if not isinstance(step, dict):
        raise tokenizer.fault(f"{key} is no object")
    steps = step.get(inner) if step.get("type") == "Sequence" else [step]
    if not isinstance(steps, list) or not all(isinstance(each, dict) for each in steps):
        raise tokenizer.fault(f"{key} is no sequence of objects")
    return steps


def _object(tokenizer: Metadata, key: str) -> Mapping[str, Any]:
    value = tokenizer.get(key)
    if not isinstance(value, dict):
        raise tokenizer.fault(f"{key} is no object")
    return value


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."

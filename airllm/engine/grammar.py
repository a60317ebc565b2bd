"""Grammars that answers obey: JSON schemas, regular expressions, GBNF and Lark.

The library llguidance (the extra "grammar") says for each token of an answer which tokens may come
next. Where only one text may follow, its tokens are taken without a pass of their own. A schema or
grammar of which a part cannot be enforced is refused: no part is ignored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.text.tokenizer import Tokenizer
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

if TYPE_CHECKING:
    import llguidance

__all__ = ["AnswerForm", "Grammar", "GrammarLibraryError", "GrammarMatcher", "Grammars", "Matcher"]

# Between the parts of JSON. An unbounded pattern would let a model that has lost its way write
# spaces until max_new_tokens; 40 are enough for a line's end and an indentation.
_WHITESPACE = r"[ \t\n\r]{1,40}"
_MOST_CHARACTERS = 1 << 20  # of a schema or grammar


class GrammarLibraryError(AirllmError, RuntimeError):
    """llguidance is not installed."""


class AnswerForm(Protocol):
    """What an answer must look like."""

    def matcher(self) -> "Matcher":
        """The state at the beginning of an answer."""


class Grammar:
    """An AnswerForm for the whole answer; made by Grammars."""

    def __init__(self, tokenizer: "llguidance.LLTokenizer", source: str, what: str) -> None:
        """source: as llguidance takes it. ValueError, which begins with `what`, if it cannot be
        enforced."""
        import llguidance

        # Errors are told to clients, who need not know the state of the parser.
        limits = llguidance.LLParserLimits(verbose_errors=False)
        self._first = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
        fault = self._first.get_error() if self._first.is_error() else ""
        fault = fault or "; ".join(self._first.get_grammar_warnings())
        if fault:
            raise ValueError(f"{what} cannot be enforced: {' '.join(fault.split())[:500]}")

        self._tokenizer = tokenizer

    def matcher(self) -> "GrammarMatcher":
        """The state at the beginning of an answer."""
        return GrammarMatcher(self._first.deep_copy(), self._tokenizer)


class Matcher(Protocol):
    """The state of what an answer must look like, after some of its tokens."""

    def mask(self) -> NDArray[np.uint32] | None:
        """The tokens that may come next, a bit for each: token t is bit t % 32 of word t // 32. End
        tokens are among them only where the answer may end. None for all tokens. ValueError if the
        grammar is too complex at this place."""

    def allows(self, token: int) -> bool:
        """Whether a token of the mask may really come: the last word after `mask`."""

    def accept(self, token: int) -> None:
        """The next token of the answer. ValueError if it is not allowed."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, as far as they are certain; often none."""

    @property
    def ended(self) -> bool:
        """Whether nothing may follow but the end."""


class GrammarMatcher:
    """A Matcher of a grammar that the whole answer obeys."""

    def __init__(self, state: "llguidance.LLMatcher", tokenizer: "llguidance.LLTokenizer") -> None:
        self._state, self._tokenizer = state, tokenizer

    def mask(self) -> NDArray[np.uint32]:
        mask = np.frombuffer(self._state.compute_bitmask(), np.uint32)
        self._check()
        return mask

    def allows(self, token: int) -> bool:
        return True

    def accept(self, token: int) -> None:
        self._state.consume_token(token)
        self._check()

    def accept_text(self, text: bytes) -> None:
        """The next bytes of the answer, whatever their tokens. ValueError if they are not
        allowed."""
        for token in self._tokenizer.tokenize_bytes(text):
            self.accept(token)

    def forced(self) -> Sequence[int]:
        tokens: list[int] = self._state.compute_ff_tokens()
        return tokens

    @property
    def ended(self) -> bool:
        self._check()
        return bool(self._state.is_stopped())

    def _check(self) -> None:
        if self._state.is_error():
            fault = " ".join(self._state.get_error().split())
            raise ValueError(f"the grammar cannot be followed any further: {fault[:500]}")


class Grammars:
    """Makes grammars for a model's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """GrammarLibraryError if llguidance is not installed."""
        try:
            import llguidance
        except ImportError as error:
            raise GrammarLibraryError(
                "schemas and grammars need the library llguidance, which cannot be imported "
                f"({error}); install it with: python -m pip install 'llguidance>=1.9'"
            ) from None
        wrapper: Any = llguidance.TokenizerWrapper(_Tokens(tokenizer))
        self._tokenizer = llguidance.LLTokenizer(
            wrapper, n_vocab=tokenizer.vocab_size, eos_token=sorted(tokenizer.eos_ids)
        )

    def json_schema(self, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """JSON that a schema allows. schema: an object, or its text."""
        import llguidance

        what = "the JSON schema"
        text = schema if isinstance(schema, str) else _as_json(schema, what)
        _check_length(text, what)
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what} is no JSON: {error}") from None
        if not isinstance(parsed, (dict, bool)):
            raise ValueError(f"{what} is {shown(parsed)}; expected an object")
        if isinstance(parsed, bool):
            parsed = {} if parsed else {"not": {}}
        if "$schema" not in parsed and (place := _ambiguous_ref(parsed)):
            raise ValueError(
                f"{what} cannot be enforced: '$id' beside '$ref' in {place} changes what '$ref' "
                "means from draft 2019-09 on, and nothing before; say with '$schema' which draft "
                "it is"
            )
        # The schema itself may not ask for less than all of it.
        options: Any = {"lenient": False, "coerce_one_of": False, "whitespace_pattern": _WHITESPACE}
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(parsed, overrides=options)
        except ValueError as error:
            raise ValueError(f"{what} cannot be enforced: {error}") from None
        return Grammar(self._tokenizer, source, what)

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """Text that a regular expression, in the syntax of Rust's regex, matches as a whole."""
        import llguidance

        what = "the regular expression"
        _check_length(pattern, what)
        return Grammar(self._tokenizer, llguidance.LLMatcher.grammar_from_regex(pattern), what)

    def gbnf(self, text: str) -> Grammar:
        """Text of a grammar as llama.cpp writes it; its root is the rule "root"."""
        import llguidance

        what = "the GBNF grammar"
        _check_length(text, what)
        try:
            source = llguidance.grammar_from("gbnf", text)
        except Exception as error:
            raise ValueError(f"{what} cannot be read: {error}") from None
        return Grammar(self._tokenizer, source, what)

    def lark(self, text: str) -> Grammar:
        """Text of a grammar as Lark writes it; its root is the rule "start"."""
        import llguidance

        what = "the Lark grammar"
        _check_length(text, what)
        return Grammar(self._tokenizer, llguidance.LLMatcher.grammar_from_lark(text), what)


class _Tokens:
    """A tokeniser as llguidance takes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids, default=0)
        self.bos_token_id = tokenizer.bos_id
        ids = range(tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(id) for id in ids]
        # Markup, and numbers that stand for no token, are no text and match nothing.
        self.special_token_ids = [id for id in ids if not tokenizer.is_text(id)]

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that must come. They need not be those of the tokeniser, but they
        must spell the text: some tokenisers put a space in front."""
        raw = text if isinstance(text, bytes) else text.encode()
        try:
            ids = self._tokenizer.encode(raw.decode(), add_special=False)
        except UnicodeDecodeError:  # half of a character
            return self._greedy(raw)
        spelled = b"".join(self._tokenizer.token_bytes(id) for id in ids)
        return ids if spelled == raw else self._greedy(raw)

    def _greedy(self, text: bytes) -> list[int]:
        by_bytes, longest = self._by_bytes()
        ids, at = [], 0
        while at < len(text):
            for n in range(min(longest, len(text) - at), 0, -1):
                id = by_bytes.get(text[at : at + n])
                if id is not None:
                    ids.append(id)
                    at += n
                    break
            else:
                raise ValueError("the model's vocabulary cannot spell this text")
        return ids

    def _by_bytes(self) -> tuple[dict[bytes, int], int]:
        if not hasattr(self, "_known"):
            special = set(self.special_token_ids)
            known = {each: id for id, each in enumerate(self.tokens) if id not in special}
            self._known = known, max(map(len, known), default=0)
        return self._known


_DATA = {"const", "default", "enum", "examples"}  # no schemas


def _ambiguous_ref(schema: Mapping[str, Any]) -> str:
    """The place of a '$ref' that drafts resolve against different URIs, as "#/allOf/0"; "" if there
    is none. Draft 7 and earlier ignore what stands beside '$ref'."""
    left: list[tuple[str, Any]] = [("#", schema)]
    while left:
        place, one = left.pop()
        if isinstance(one, list):
            left += ((f"{place}/{at}", item) for at, item in enumerate(one))
        elif isinstance(one, dict):
            ref, id = one.get("$ref"), one.get("$id")
            # Within the document, the root's own URI does not matter.
            is_within = place == "#" and str(ref).startswith("#")
            if isinstance(ref, str) and isinstance(id, str) and not is_within:
                return place
            left += ((f"{place}/{key}", item) for key, item in one.items() if key not in _DATA)
    return ""


def _as_json(schema: object, what: str) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON: {error}") from None


def _check_length(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is {shown(text)}; expected a string")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{what} has {len(text):,} characters; at most {_MOST_CHARACTERS:,} do")

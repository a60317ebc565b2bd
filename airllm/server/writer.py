"""What each protocol has for writing answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airllm.server.answer import AnswerEvent, Collected
from airllm.server.errors import ApiError

__all__ = ["Reply", "TokenBytes", "TokenTexts", "Writer"]


@dataclass(frozen=True)
class Reply:
    """id: of the request. model: the name of the model that answers. created: in seconds since
    1970. prompts: their tokens."""

    id: str
    model: str
    created: int
    prompts: Sequence[Sequence[int]] = ()

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


class TokenBytes(Protocol):
    """The part of a tokenizer that shows tokens."""

    def token_bytes(self, id: int) -> bytes: ...
    def decode(self, tokens: Iterable[int]) -> str: ...


class TokenTexts:
    """Shows tokens beside their logprobs."""

    def __init__(self, tokenizer: TokenBytes) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def described(self, token: int, logprob: float) -> dict[str, Any]:
        """In OpenAI's form. A logprob of minus infinity, which JSON lacks, is -9999.0 there."""
        raw = self._tokenizer.token_bytes(token)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}


class Writer(ABC):
    """Writes the answer to one request: as a whole, or event by event as it comes.

    A stream is begin(), write() for each event, and end(), or failed() in place of what is still to
    come; with heartbeat() in between where nothing else is to be said.
    """

    content_type = "text/event-stream"

    def begin(self) -> bytes:
        return b""

    @abstractmethod
    def write(self, event: AnswerEvent) -> bytes: ...

    def end(self) -> bytes:
        return b""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes: ...

    def heartbeat(self) -> bytes:
        return b""

    @abstractmethod
    def whole(self, answer: Collected) -> dict[str, Any]: ...

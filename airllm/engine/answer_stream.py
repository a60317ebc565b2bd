"""An answer as an iterator over its text, which afterwards says how it ended."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

from airllm.engine.continuation import FinishReason, Generation

__all__ = ["AnswerStream", "Ended", "Usage"]


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens, by OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt: found in the KV cache

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Ended:
    """How an answer ended; None for each while it goes on, and if it was not read to its end."""

    generation: Generation | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.generation is None else self.generation.finish_reason

    @property
    def usage(self) -> Usage | None:
        said = self.generation
        if said is None:
            return None
        return Usage(said.prompt_tokens, len(said.tokens), said.reused_tokens)


class AnswerStream(Ended, Generator[str, None, Generation]):
    """Pieces of text, never with half a character.

        with engine.stream("Once upon a time") as stream:
            for piece in stream: ...
        print(stream.finish_reason, stream.usage)

    generation: the whole answer, once it is complete. It is also the value that the iteration
    returns (StopIteration.value). `close`, or the end of the `with`, ends an answer early.
    """

    def __init__(self, pieces: Generator[str, None, Generation]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self.generation = end.value
            raise StopIteration(self.generation) from None

    def send(self, value: None, /) -> str:
        return next(self)

    def throw(self, *error: object) -> str:
        return self._pieces.throw(*error)  # type: ignore[call-overload, no-any-return]

    def close(self) -> None:
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

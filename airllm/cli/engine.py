"""The part of LayerWiseInferenceEngine that commands use; the tests' fake engine has it, too."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from airllm.backends.profiling import OpProfile
from airllm.engine.continuation import Generation
from airllm.engine.settings import AnswerOptions, Sampling
from airllm.text.answer import AnswerFormat
from airllm.text.prompts import Prompt
from airllm.tools.benchmark import Sequences
from airllm.util.progress import OnProgress
from airllm.weights.plan import Plan

__all__ = ["Engine"]


class Tokens(Protocol):
    @property
    def bos_id(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    def encode(self, text: str) -> list[int]: ...


class Template(Protocol):
    @property
    def source(self) -> str: ...


class Dimensions(Protocol):
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...


class Measured(Protocol):
    @property
    def call_seconds(self) -> float: ...
    def ops(self) -> Sequence[OpProfile]: ...


class Engine(Protocol):
    """LayerWiseInferenceEngine documents each member."""

    @property
    def backend(self) -> str: ...
    @property
    def context(self) -> int: ...
    @property
    def config(self) -> Dimensions: ...
    @property
    def tokenizer(self) -> Tokens: ...
    @property
    def chat_template(self) -> Template: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def answer_format(self) -> AnswerFormat: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def position(self) -> int: ...

    def generate(
        self,
        prompt: Prompt,
        *,
        lookahead: int | None = None,
        draft: Self | None = None,
        markup: bool = False,
        on_token: Callable[[str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation: ...

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        markup: bool = False,
        on_token: Callable[[int, str], None] | None = None,
        on_layer: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[tuple[int, Generation], None, None]: ...

    def prompt_length(self, prompt: Prompt) -> int: ...
    def tokenize(self, prompt: Prompt) -> list[int]: ...
    def detokenize(self, ids: Sequence[int]) -> str: ...

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]: ...

    def sequences(self, n: int, capacity: int) -> AbstractContextManager[Sequences]: ...
    def reset(self) -> None: ...
    def save_session(self, path: Path, *, messages: Sequence[Mapping[str, str]] = ()) -> None: ...
    def load_session(self, path: Path) -> list[dict[str, str]]: ...
    def fingerprint(self) -> bytes: ...
    def profile(self) -> AbstractContextManager[Measured]: ...
    def memory_usage(self) -> dict[str, int]: ...
    def plan(self) -> Plan: ...
    def stream_stats(self) -> dict[str, Any] | None: ...
    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

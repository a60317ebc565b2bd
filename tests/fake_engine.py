"""An engine for the command line's tests: it answers what it was told to and notes what was asked.

Its tokens are words: "a b c" has three.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from airllm.backends.profiling import OpProfile

WORDS = ["<eos>", "a", "b", "c", "hello", "world"]


class FakeTokenizer:
    bos_id: int | None = None
    add_bos = False

    def encode(self, text: str, **_: bool) -> list[int]:
        return [WORDS.index(word) if word in WORDS else 0 for word in text.split()]


class FakeEngine:
    """answers: for each generate() its pieces; an exception among them is raised there."""

    backend = "numpy"

    def __init__(
        self,
        *answers: Sequence[str | BaseException],
        finish_reason: str = "stop",
        context: int = 1000,
    ) -> None:
        self._answers = list(answers)
        self._finish_reason = finish_reason
        self.context = context
        self.config = SimpleNamespace(vocab_size=len(WORDS), context_length=1000)
        self.tokenizer = FakeTokenizer()
        self.chat_template: str | None = "a template"
        self.requests: list[Any] = []  # prompt or messages of each generate()
        self.sampling: dict[str, Any] = {}
        self.opened_with: dict[str, Any] = {}
        self.shifted_tokens = 0
        self.resets = 0
        self.batches: list[tuple[int, int]] = []  # of each sequences(): how many, how long
        self.closed = False
        self.position = 0
        self.streamed: dict[str, Any] | None = None
        self.memory_bytes = 1000  # in all

    def generate(
        self,
        request: str | list[dict[str, str]],
        *,
        on_token: Callable[[str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> SimpleNamespace:
        self.requests.append(request if isinstance(request, str) else list(request))
        if on_progress is not None:
            on_progress(1, 2)
            on_progress(2, 2)
        self.sampling = sampling
        said = []
        for piece in self._answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            said.append(piece)
            if on_token is not None:
                on_token(piece)
        return SimpleNamespace(
            text="".join(said),
            tokens=list(range(len(said))),
            prompt_tokens=7,
            reused_tokens=0,
            shifted_tokens=self.shifted_tokens,
            finish_reason=self._finish_reason,
            prefill_seconds=0.5,
            prefill_tokens_per_second=14.0,
            decode_seconds=0.25,
            decode_tokens_per_second=8.0,
            passes=len(said),
            accepted_tokens=0,
            tokens_per_pass=1.0,
        )

    def stream_batch(
        self,
        prompts: Sequence[Any],
        *,
        batch: int,
        on_token: Callable[[int, str], None] | None = None,
        **sampling: Any,
    ) -> Generator[tuple[int, SimpleNamespace], None, None]:
        """The last prompt first, to see who relies on the order."""
        for index in reversed(range(len(prompts))):
            own = None if on_token is None else partial(on_token, index)
            yield index, self.generate(prompts[index], on_token=own, **sampling)

    def prompt_length(self, prompt: Any) -> int:
        if "too long" in str(prompt):
            raise ValueError("it is too long")
        return 7

    def tokenize(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.encode(" ".join(message["content"] for message in messages))

    def forward(
        self, tokens: Sequence[int], *, last_only: bool = True, on_progress: object = None
    ) -> np.ndarray:
        """Every token is equally likely."""
        shape = (len(WORDS),) if last_only else (len(tokens), len(WORDS))
        return np.zeros(shape, np.float32)

    def reset(self) -> None:
        self.resets += 1

    @contextmanager
    def sequences(self, n: int, capacity: int) -> Iterator[SimpleNamespace]:
        self.batches.append((n, capacity))
        logits = np.zeros((n, len(WORDS)), np.float32)
        yield SimpleNamespace(reset=lambda: None, forward=lambda tokens: logits)

    @contextmanager
    def profile(self) -> Iterator[SimpleNamespace]:
        """Two ops; half a millisecond in all."""
        ops = [
            OpProfile("linear ffn_up", 6, 3e-4, 6_000_000, 30_000_000),
            OpProfile("add", 12, 1e-4, 4000, 1000),
        ]
        yield SimpleNamespace(ops=lambda: ops, call_seconds=5e-4, op_seconds=4e-4)

    def save_session(self, path: Path, *, messages: Sequence[dict[str, str]]) -> None:
        path.write_text(json.dumps(messages))

    def load_session(self, path: Path) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = json.loads(path.read_text())
        return messages

    def stream_stats(self) -> dict[str, Any] | None:
        return self.streamed

    def plan(self) -> SimpleNamespace:
        return SimpleNamespace(
            total_bytes=self.memory_bytes,
            streams=self.streamed is not None,
            embedding="pinned",
            context=self.context,
        )

    def fingerprint(self) -> bytes:
        return b"a model"

    def memory_usage(self) -> dict[str, int]:
        return {"weights": 3 << 20, "kv_cache": 1 << 20, "buffers": 512, "resident": 5 << 20}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Self:
        """Every command opens this engine from now on."""

        def open_engine(args: Any, **options: Any) -> FakeEngine:
            self.opened_with = {"model": args.model, **options}
            return self

        monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
        return self

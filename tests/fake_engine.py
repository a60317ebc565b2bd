"""An engine for the command line's tests: it answers what it was told to and notes what was asked.

Its tokens are words: "a b c" has three.
"""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import pytest
from numpy.typing import NDArray

from airllm.backends.profiling import OpProfile
from airllm.cli.engine import Engine
from airllm.engine.continuation import FinishReason, Generation
from airllm.engine.settings import AnswerOptions, Sampling
from airllm.text.answer import AnswerFormat, format_of
from airllm.text.prompts import Chat, Prompt
from airllm.util.metadata import FormatError
from airllm.util.progress import OnProgress
from airllm.weights.plan import Plan

WORDS = ["<eos>", "a", "b", "c", "hello", "world"]


class FakeTokenizer:
    bos_id: int | None = None
    add_bos = False

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) if word in WORDS else 0 for word in text.split()]


@dataclass
class FakeConfig:
    vocab_size: int = len(WORDS)
    context_length: int = 1000


@dataclass
class FakeTemplate:
    source: str


class FakeSequences:
    def __init__(self, n: int) -> None:
        self._logits = np.zeros((n, len(WORDS)), np.float32)

    def reset(self) -> None:
        pass

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self._logits


class FakeProfile:
    """Two ops; half a millisecond in all."""

    call_seconds = 5e-4

    def ops(self) -> list[OpProfile]:
        return [
            OpProfile("linear ffn_up", 6, 3e-4, 6_000_000, 30_000_000),
            OpProfile("add", 12, 1e-4, 4000, 1000),
        ]


class FakeEngine:
    """answers: for each generate() its pieces; an exception among them is raised there."""

    backend = "numpy"

    def __init__(
        self,
        *answers: Sequence[str | BaseException],
        finish_reason: FinishReason = "stop",
        context: int = 1000,
        template: str = "",
        prompt_end: str = "",
    ) -> None:
        """template: of chats; only its marks are looked at. prompt_end: how each prompt ends."""
        self._answers = list(answers)
        self._finish_reason = finish_reason
        self.context = context
        self.config = FakeConfig()
        self.tokenizer = FakeTokenizer()
        self.has_chat_template = True
        self._template, self._prompt_end = template, prompt_end
        self.requests: list[Any] = []  # prompt or messages of each generate()
        self.sampling = Sampling()
        self.options: dict[str, Any] = {}  # of the last generate()
        self.markup = False  # likewise
        self.opened_with: dict[str, Any] = {}
        self.shifted_tokens = 0
        self.resets = 0
        self.batches: list[tuple[int, int]] = []  # of each sequences(): how many, how long
        self.closed = False
        self.position = 0
        self.streamed: dict[str, Any] | None = None
        self.memory_bytes = 1000  # in all

    @property
    def chat_template(self) -> FakeTemplate:
        if not self.has_chat_template:
            raise FormatError("m.gguf: has no chat template")
        return FakeTemplate(self._template)

    @property
    def answer_format(self) -> AnswerFormat:
        return format_of(self._template)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._prompt_end

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
    ) -> Generation:
        if not isinstance(prompt, str):
            _ = self.chat_template
        self.requests.append(prompt if isinstance(prompt, (str, Chat)) else list(prompt))
        if on_progress is not None:
            on_progress(1, 2)
            on_progress(2, 2)
        self.options = {"lookahead": lookahead, "draft": draft, **options}
        self.markup = markup
        said = []
        for piece in self._answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            said.append(piece)
            if on_token is not None:
                on_token(piece)
        return Generation(
            text="".join(said),
            tokens=tuple(range(len(said))),
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
        )

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        markup: bool = False,
        on_token: Callable[[int, str], None] | None = None,
        on_layer: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[tuple[int, Generation], None, None]:
        """The last prompt first, to see who relies on the order."""
        for index in reversed(range(len(prompts))):
            own = None if on_token is None else partial(on_token, index)
            prompt = prompts[index]
            shown = markup and not isinstance(prompt, str)
            yield index, self.generate(prompt, markup=shown, on_token=own, **options)

    def prompt_length(self, prompt: Prompt) -> int:
        if "too long" in str(prompt):
            raise ValueError("it is too long")
        return 7

    def tokenize(self, prompt: Prompt) -> list[int]:
        messages = prompt.messages if isinstance(prompt, Chat) else prompt
        texts = [messages] if isinstance(messages, str) else [each["content"] for each in messages]
        return self.tokenizer.encode(" ".join(map(str, texts)))

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]:
        """Every token is equally likely."""
        shape = (len(WORDS),) if last_only else (len(tokens), len(WORDS))
        return np.zeros(shape, np.float32)

    def reset(self) -> None:
        self.resets += 1

    @contextmanager
    def sequences(self, n: int, capacity: int) -> Iterator[FakeSequences]:
        self.batches.append((n, capacity))
        yield FakeSequences(n)

    @contextmanager
    def profile(self) -> Iterator[FakeProfile]:
        yield FakeProfile()

    def save_session(self, path: Path, *, messages: Sequence[Mapping[str, str]] = ()) -> None:
        path.write_text(json.dumps(messages))

    def load_session(self, path: Path) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = json.loads(path.read_text())
        return messages

    def stream_stats(self) -> dict[str, Any] | None:
        return self.streamed

    def plan(self) -> Plan:
        return Plan(
            budget_bytes=None,
            model_bytes=self.memory_bytes,
            context=self.context,
            batch_size=1,
            kv_cache_bytes=0,
            buffer_bytes=0,
            pinned_bytes=self.memory_bytes,
            ring_bytes=0,
            slots=0,
            pinned_layers=(0,) if self.streamed is None else (),
            streamed_layers=() if self.streamed is None else (0,),
            head="pinned",
            embedding="pinned",
            streamed_bytes_per_pass=0 if self.streamed is None else 1,
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

        def open_engine(args: Any, **options: Any) -> Engine:
            self.opened_with = {"model": args.model, **options}
            return self

        monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
        return self

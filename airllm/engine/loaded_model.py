"""A model that is ready to run, for one caller at a time."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from airllm.engine.decoder import Decoder
from airllm.engine.grammar import Grammars
from airllm.engine.settings import Limits, PromptTooLongError, Sampling, model_sampling
from airllm.text.prompts import PromptReader
from airllm.util.closing import Closing
from airllm.util.progress import OnProgress
from airllm.weights.plan_model import PlannedModel

__all__ = ["LoadedModel"]

_log = logging.getLogger("airllm")


class LoadedModel(Closing):
    """A model's open file, decoder, tokenizer and chat template.

    planned: the model's file and plan; closed with this. config: the model's hyperparameters.
    context: how many tokens fit. prompts: encodes texts and chats. sampling: what the model's file
    asks for.
    """

    def __init__(
        self,
        planned: PlannedModel,
        *,
        decode_threads: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """planned: owned by this object from now on, and closed if the constructor fails.
        decode_threads, on_progress: see LayerWiseInferenceEngine."""
        self.planned = planned
        try:
            if decode_threads is not None and planned.backend.name == "numpy":
                text = "decode_threads=%d changes nothing on the NumPy backend"
                _log.warning(text, decode_threads)
            self.config = planned.model.config
            self.context = planned.plan.context
            self.sampling = model_sampling(planned.file.metadata)
            # Not a bound method: in a reference cycle, a dropped engine would stay open until the
            # garbage collector finds it.
            check_length = partial(
                _check_length, context=self.context, most=self.config.context_length
            )
            self.prompts = PromptReader(planned.file.metadata, check_length)
            self._busy = threading.Lock()
            self._decoder: Decoder | None = Decoder(
                planned, decode_threads=decode_threads or 0, on_progress=on_progress
            )
        except BaseException:
            planned.close()
            raise
        self.closed = False

    @property
    def decoder(self) -> Decoder:
        """The decoder; to evaluate, take it from `exclusive`. RuntimeError after `close`."""
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        return self._decoder

    @contextmanager
    def exclusive(self) -> Iterator[Decoder]:
        """The decoder, for one caller at a time. RuntimeError for a second caller, and after
        `close`."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "the engine is busy: another thread uses it, or a stream() is not finished; close "
                "the stream, or open an engine for each thread"
            )
        try:
            yield self.decoder
        finally:
            self._busy.release()

    def limits_for(self, ids: Sequence[int], limits: Limits) -> Limits:
        """The limits for a prompt. ContextFullError if the prompt does not fit the context."""
        _check_length(len(ids), self.context, self.config.context_length, least="")
        tokenizer = self.prompts.tokenizer
        has_bos = tokenizer.add_bos and ids[0] == tokenizer.bos_id
        return limits.for_prompt(len(ids), has_bos, self.context)

    @cached_property
    def grammars(self) -> Grammars:
        """GrammarLibraryError if llguidance is not installed."""
        return Grammars(self.prompts.tokenizer)

    def check_sampling(self, sampling: Sampling) -> None:
        """ValueError for a bias of a token that is not in the vocabulary."""
        if sampling.logit_bias and max(sampling.logit_bias) >= self.config.vocab_size:
            raise ValueError(
                f"logit_bias has token {max(sampling.logit_bias)}; expected 0 to "
                f"{self.config.vocab_size - 1}"
            )

    def checked_ids(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        """The tokens as int32 [n]. ValueError or TypeError unless they are one or more ids of this
        model's vocabulary."""
        one = tokens[0] if type(tokens) is list and len(tokens) == 1 else None
        if type(one) is int and 0 <= one < self.config.vocab_size:
            return np.array(tokens, np.int32)  # decoding: a tenth of the time of the code below
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not ids.size:
            raise ValueError(f"tokens have shape {list(ids.shape)}; expected [n], n at least 1")
        if ids.dtype.kind not in "iu":
            raise TypeError(f"tokens are {ids.dtype}; expected integers")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"token {low if low < 0 else high} is not in the vocabulary; expected "
                f"0 to {self.config.vocab_size - 1}"
            )
        return np.ascontiguousarray(ids, dtype=np.int32)

    def release(self) -> None:
        """Closes the decoder, which may read ahead, before the file that it reads."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        self.planned.close()

    def __repr__(self) -> str:
        return f"the engine of {str(self.planned.file.path)!r}"


def _check_length(n_tokens: int, context: int, most: int, least: str = "at least ") -> None:
    """most: the longest context that the model allows."""
    if n_tokens > context:
        raise PromptTooLongError(n_tokens, context, most, least)

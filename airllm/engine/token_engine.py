"""A model that is open, beneath its texts: tokens in, logits out, its KV cache and its memory."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
from numpy.typing import NDArray

from airllm.backends import load_backend
from airllm.backends.profiling import Profile
from airllm.engine.decoder import Decoder
from airllm.engine.limits import ContextFullError
from airllm.formats.opening import open_model
from airllm.graph.graph import Activations
from airllm.graph.rewrite import fusion_wanted
from airllm.models import ModelConfig, load_model
from airllm.state.kv_cache import KVType
from airllm.text.chat_template import ChatTemplate, map_texts
from airllm.text.tokenizer import Tokenizer
from airllm.util.arguments import check_choice, check_count
from airllm.util.progress import OnProgress
from airllm.util.system import resident_bytes
from airllm.weights.budget import granted_bytes
from airllm.weights.open_weights import plan_weights
from airllm.weights.plan import Plan

if TYPE_CHECKING:
    from airllm.engine.batch_generation import ParallelSequences

Prompt = str | Sequence[Mapping[str, str]]

_log = logging.getLogger("airllm")


class TokenEngine:
    """What LayerWiseInferenceEngine is beneath its texts.

    config: what the model is made of. tokenizer, chat_template: as its file has them. backend:
    "cpp" or "numpy". context: tokens that fit. position: tokens in the KV cache.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        threads: int | None = None,
        decode_threads: int | None = None,
        context: int | None = None,
        kv_type: KVType = "f16",
        activations: Activations = "auto",
        batch_size: int | None = None,
        ram_budget: int | str | None = None,
        quantize: str | None = None,
        fusion: bool | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Open a GGUF file, the first of a split model's, or a Hugging Face folder: all is checked
        before any of it is used.

        backend: "cpp", "numpy", or None for the one that airllm.tensor_ops_hybrid chose.
        threads: of the C++ kernels, for the whole process; None for what cpu_budget() says.
        decode_threads: at most so many of them where one token is evaluated at a time, which waits
            for memory rather than for arithmetic; None for all.
        context: tokens that prompt and answer may have together, up to what the model was trained
            for; None for that, but at most 4096.
        kv_type: what keys and values are kept as: "f16"; "f32" for exact work at twice the memory;
            "q8_0", 8 bit in blocks of 32, for about half (34/64) of it, where head_dim is a
            multiple of 32.
        activations: how activations meet quantised weights. "q8" rounds them to 8 bit in blocks
            of 32, as llama.cpp does; "q16" to 16 bit, as good as exact and at most twice the work;
            "f32" does not round; "auto" is q16 for up to 64 tokens at once, else q8.
        batch_size: tokens of a prompt that are evaluated at once, at most; None for 512, or 144 on
            the C++ backend where memory is short: their buffers would take the place of layers.
        ram_budget: memory for weights, KV cache and buffers, in bytes or as "2GiB"; None for what
            AIRLLM_RAM says, or what is available. Layers that do not fit are streamed from the disk
            for each token; answers are the same, bit for bit. See `plan`.
        quantize: what the matrices of a float model become while they are read: "q8_0", "q4_0",
            "q4_1", "q5_0", "q5_1", or "f16", "bf16" or "f32"; see airllm.formats.retype.
        fusion: whether operations are combined, see airllm.graph.rewrite, which is faster and gives
            the same numbers; None for what AIRLLM_FUSION says, 1 unless set.
        on_progress: called with (done, total) layers while weights are prepared.

        Raises FormatError (a ValueError) for a file that is damaged or not supported, OSError
        where it cannot be read, ValueError for an argument that makes no sense, and as BudgetError,
        with the smallest that would do, for a budget that the model cannot run in.
        """
        check_choice("kv_type", kv_type, get_args(KVType))
        check_choice("activations", activations, get_args(Activations))
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if decode_threads is not None:
            check_count("decode_threads", decode_threads)
        budget = granted_bytes(ram_budget)
        runner = load_backend(backend, threads)
        if decode_threads is not None and runner.name == "numpy":
            _log.warning("decode_threads=%d changes nothing on the NumPy backend", decode_threads)
        self.backend = runner.name
        self._busy = threading.Lock()
        self._gguf = open_model(model_path, quantize)
        try:
            model = load_model(self._gguf, activations, fusion=fusion_wanted(fusion))
            self.config: ModelConfig = model.config
            plan, parts = plan_weights(
                self._gguf,
                model,
                runner,
                budget=budget,
                context=context,
                kv_type=kv_type,
                batch_size=batch_size,
            )
            self.context = plan.context
            self._decoder: Decoder | None = Decoder(
                self._gguf,
                model,
                runner,
                plan,
                parts,
                kv_type=kv_type,
                decode_threads=decode_threads or 0,
                on_progress=on_progress,
            )
        except BaseException:
            self._gguf.close()
            raise

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self._gguf.metadata)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How the model wants a chat written. FormatError if its file does not say."""
        return ChatTemplate.from_gguf(self._gguf.metadata)

    @property
    def position(self) -> int:
        """Tokens in the KV cache: where the next one goes."""
        return 0 if self._decoder is None else self._decoder.cache.length

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]:
        """Evaluate tokens after those in the KV cache.

        tokens: ids, at least one. Returns the logits of the last one, float32 [vocab_size], or of
        all, [n_tokens, vocab_size]. ValueError when an id is none, and as ContextFullError when
        the context has no room.
        on_progress: called with (done, total) steps; a step is a layer for a batch of tokens.
        """
        ids = self._checked_tokens(tokens)
        with self._exclusive() as decoder:
            room = self.context - decoder.cache.length
            if len(ids) > room:
                raise ContextFullError(
                    f"{len(ids)} tokens do not fit: {decoder.cache.length} of the context's "
                    f"{self.context} are used. reset() empties it; context= makes it larger."
                )
            if last_only:
                return decoder.evaluate(ids, None, on_progress).copy()
            logits = np.empty((len(ids), self.config.vocab_size), np.float32)
            return decoder.evaluate(ids, logits, on_progress)

    @contextmanager
    def sequences(self, n: int, capacity: int | None = None) -> Iterator["ParallelSequences"]:
        """n sequences beside the engine's own, with KV caches for `capacity` tokens each (None:
        the context): `forward` evaluates a token of each in one pass. The engine is busy with them
        inside the `with`, and their memory is given back at its end."""
        from airllm.engine import batch_generation

        check_count("n", n)
        capacity = self.context if capacity is None else capacity
        check_count("capacity", capacity)
        if capacity > self.context:
            raise ValueError(f"capacity is {capacity}; the context has room for {self.context}")
        with self._exclusive() as decoder:
            yield batch_generation.ParallelSequences(
                decoder, int(n), int(capacity), self.config.vocab_size
            )

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The ids of a text as a prompt, with the BOS token where the model wants one; or of a chat
        up to where the answer begins. Control tokens come from the chat template alone, never from
        what a text or a message says."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        guarded = map_texts(self.tokenizer.guarded, list(prompt))
        text = self.chat_template.render(guarded, add_generation_prompt=True)
        return self.tokenizer.encode(text, parse_special=True)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def reset(self) -> None:
        """Forget all tokens, so that the next prompt is evaluated from its first on."""
        with self._exclusive() as decoder:
            decoder.cache.clear()

    def save_session(
        self, path: str | os.PathLike[str], *, messages: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Write the KV cache's tokens, keys and values to a file, which load_session takes back.

        messages: a chat so far, to have it back with them. The file holds all that was said: only
        the user may read it. It appears when it is complete. OSError where it cannot be written.
        """
        from airllm.state import session

        with self._exclusive() as decoder:
            session.save(path, decoder.cache, self._gguf.fingerprint(), messages)

    def load_session(self, path: str | os.PathLike[str]) -> list[dict[str, str]]:
        """Go on where save_session was called, on this machine or another, on any backend; returns
        its messages. A prompt that begins with the session's tokens is evaluated from there
        (without a seed, which asks for an empty cache).

        FormatError, a ValueError, and nothing has changed, for a file that is damaged, belongs to
        another model or kv_type, or does not fit the context.
        """
        from airllm.state import session

        with self._exclusive() as decoder:
            return session.load(
                path, decoder.cache, self._gguf.fingerprint(), self.config.vocab_size
            )

    def fingerprint(self) -> bytes:
        """32 bytes that tell models apart, whatever their files are called."""
        return self._gguf.fingerprint()

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Inside the `with`, each op's time, bytes and FLOPs are noted."""
        with self._open_decoder().profile() as profile:
            yield profile

    def memory_usage(self) -> dict[str, int]:
        """Bytes: weights (as the backend keeps them; NumPy's stay in the file's memory map),
        kv_cache (when full), buffers, and resident (of the whole process, now)."""
        decoder = self._decoder
        return {
            "weights": decoder.weights.nbytes if decoder else 0,
            "kv_cache": decoder.cache.nbytes if decoder else 0,
            "buffers": decoder.buffer_bytes if decoder else 0,
            "resident": resident_bytes(),
        }

    def plan(self, *, probe: bool = False) -> Plan:
        """What of the model is kept in memory and what is streamed, and the bytes of each.

        probe: measure the disk for a fraction of a second as well, and expect a speed of it.
        """
        with self._exclusive() as decoder:
            if not probe or not decoder.plan.streams:
                return decoder.plan
            from airllm.weights.disk_probe import disk_bytes_per_second

            return decoder.plan.with_disk(disk_bytes_per_second(self._gguf, decoder.backend))

    def stream_stats(self) -> dict[str, Any] | None:
        """Of all passes so far: bytes_read, disk_seconds (with a read under way),
        waited_for_disk_seconds, waited_for_compute_seconds, io, direct; None where nothing is
        streamed."""
        return None if self._decoder is None else self._decoder.weights.stream_stats()

    def close(self) -> None:
        """Give memory and file back. What still runs, in a stream say, fails at its next token."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None
        self._gguf.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked_tokens(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        one = tokens[0] if type(tokens) is list and len(tokens) == 1 else None
        if type(one) is int and 0 <= one < self.config.vocab_size:
            return np.array(tokens, np.int32)  # decoding: a tenth of the time of what follows
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

    @contextmanager
    def _exclusive(self) -> Iterator[Decoder]:
        """The decoder, for one caller at a time. RuntimeError for the second, and after close."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "the engine is busy: another thread uses it, or a stream() is not finished; close "
                "the stream, or open an engine for each thread"
            )
        try:
            yield self._open_decoder()
        finally:
            self._busy.release()

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise RuntimeError("the engine is closed")
        return self._decoder

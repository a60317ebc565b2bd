"""The engine: opens a model's file, and continues text with it.

with LayerWiseInferenceEngine("model.gguf") as engine:
    print(engine.generate("Once upon a time", max_new_tokens=50).text)
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Self, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from airllm.backends.profiling import Profile
from airllm.engine.continuation import Generation
from airllm.engine.generation import continue_prompt
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.settings import (
    AnswerOptions,
    ContextFullError,
    Limits,
    settings_of,
    takes_answer_options,
)
from airllm.graph.graph import Activations
from airllm.models import ModelConfig
from airllm.state.kv_cache import KVType
from airllm.text.chat_template import ChatTemplate
from airllm.text.prompts import Chat, Prompt, chat, prompt_list
from airllm.text.tokenizer import Tokenizer
from airllm.util.arguments import check_choice, check_count
from airllm.util.progress import OnProgress
from airllm.util.system import resident_bytes
from airllm.weights.budget import BudgetError
from airllm.weights.plan import Plan
from airllm.weights.plan_model import PlannedModel

if TYPE_CHECKING:
    from airllm.engine.batch_generation import ParallelSequences

__all__ = ["BudgetError", "Chat", "ContextFullError", "Generation", "LayerWiseInferenceEngine"]


class LayerWiseInferenceEngine:
    """A language model on the CPU, run layer by layer.

    One thread at a time: a second one gets a RuntimeError instead of a corrupt cache, and so does
    a call while a `stream` is unfinished. An engine that is dropped without `close` is closed when
    it is collected, with a ResourceWarning.

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
            batch_size = check_count("batch_size", batch_size)
        if decode_threads is not None:
            decode_threads = check_count("decode_threads", decode_threads)
        planned = PlannedModel.open(
            model_path,
            backend=backend,
            threads=threads,
            context=context,
            kv_type=kv_type,
            activations=activations,
            batch_size=batch_size,
            ram_budget=ram_budget,
            quantize=quantize,
            fusion=fusion,
        )
        self._model = LoadedModel(planned, decode_threads=decode_threads, on_progress=on_progress)
        self.config: ModelConfig = self._model.config
        self.context = self._model.context
        self.backend = planned.backend.name

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.prompts.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """How the model wants a chat written. FormatError if its file does not say."""
        return self._model.prompts.chat_template

    @takes_answer_options
    def generate(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        on_token: Callable[[str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Continue a text, or answer the last of some messages.

        The beginning that the prompt shares with the tokens in the KV cache, those of the last
        prompt and its answer say, is not evaluated again. How tokens fall into batches changes how
        numbers round, above all with activations="auto", where 64 tokens are the limit between 16
        and 8 bit: so an answer can differ from the one that an empty cache would give. With a seed
        the cache is emptied first, and the answer is the same whatever was asked before.

        prompt: a text; or a chat, [{"role": "user", "content": "Hello"}], in the form that the
            model's chat template gives it. A content may be a list of {"type": "text", "text":
            ...}, whose texts are joined.
        template_variables: what the chat template is to know beside the messages, as JSON has it:
            {"enable_thinking": False, "tools": [...]}. Where there are several prompts, each may be
            an airllm.layer_engine.Chat, which has messages and variables.
        temperature, top_k, top_p, min_p, repeat_penalty, seed: see airllm.engine.sampling.Sampling.
        max_new_tokens, stop, on_full, keep: where the answer ends, and what happens where the
            context does; see airllm.engine.settings.Limits.
        lookahead: guess up to so many next tokens from what stood in the prompt and the answer
            before, and check them in one pass, up to 63; 0 for none. The answer stays the same
            (airllm.engine.lookahead). None: 8 with a draft, and where each pass waits for the disk.
        draft: an engine with a smaller model of the same vocabulary, whose tokens are the guesses;
            it is busy meanwhile, and forgets what it had in its KV cache.
        on_token: called with each piece of text as it comes; never with half a character.
        on_progress: called with (done, total) steps while the prompt is evaluated; a step is a
            layer for a batch of tokens.

        ContextFullError, a ValueError, when the prompt does not fit the context, whatever on_full
        says: what to leave out of a prompt is for its author to decide. It, Ctrl-C and whatever
        the callbacks raise leave the engine usable.
        """
        pieces = self.stream(
            prompt,
            template_variables=template_variables,
            lookahead=lookahead,
            draft=draft,
            on_progress=on_progress,
            **options,
        )
        with closing(pieces):
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    generation: Generation = end.value
                    return generation
                if on_token is not None:
                    on_token(piece)

    @takes_answer_options
    def stream(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[str, None, Generation]:
        """generate, as an iterator over the pieces of text, which returns the whole at its end.

        The engine is busy from the first piece until the iterator ends, is closed or is dropped.
        """
        sampling, limits = settings_of(**options)
        return continue_prompt(
            self._model,
            chat(prompt, template_variables),
            sampling,
            limits,
            lookahead=lookahead,
            draft=None if draft is None else draft._model,
            on_progress=on_progress,
        )

    @takes_answer_options
    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        on_token: Callable[[int, str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> list[Generation]:
        """Continue several prompts, each as `generate` does, and return the answers in order.

        Up to `batch` of them are decoded together, which reads the weights once for all; where an
        answer ends, the next prompt takes its place. Each has a KV cache of its own, of what it
        needs of the context, as long as this runs; the engine's own is not touched.

        Where layers come from the disk, all prompts that wait share a pass, as tokens of answers
        do: see airllm.engine.batch_generation.

        With a seed, or temperature=0, an answer is the one that `generate` gives with an empty
        cache, bit for bit; but for a `batch` above 64 with activations="auto", see there.

        on_full: "stop" or "shift"; an error would take the other answers with it.
        on_token: called with the index of a prompt and each piece of its text.
        on_progress: called with (done, total) prompts.

        ContextFullError, a ValueError, when a prompt does not fit, and MemoryError when the caches
        do not: nothing has been evaluated then.
        """
        prompts = prompt_list(prompts)
        done: dict[int, Generation] = {}
        answers = self.stream_batch(prompts, batch=batch, on_token=on_token, **options)
        with closing(answers):
            for index, generation in answers:
                done[index] = generation
                if on_progress is not None:
                    on_progress(len(done), len(prompts))
        return [done[index] for index in range(len(prompts))]

    @takes_answer_options
    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        on_token: Callable[[int, str], None] | None = None,
        on_layer: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[tuple[int, Generation], None, None]:
        """generate_batch, as an iterator over the index of each prompt and its answer, in the order
        in which they get ready.

        on_layer: called with (done, total) layers of each pass.

        The engine is busy from the first answer's beginning until the iterator ends, is closed or
        is dropped. Whatever is wrong with the arguments is said at once.
        """
        from airllm.engine.batch_generation import continue_prompts

        sampling, limits = settings_of(**options)
        return continue_prompts(self._model, prompts, batch, sampling, limits, on_token, on_layer)

    def prompt_length(self, prompt: Prompt) -> int:
        """Tokens of a prompt. ValueError where it has none, or a chat template refuses it, and as
        ContextFullError where it does not fit the context."""
        ids = self._model.prompts.some_tokens(prompt)
        self._model.limits_for(ids, Limits(0))
        return len(ids)

    @property
    def position(self) -> int:
        """Tokens in the KV cache: where the next one goes."""
        return 0 if self._model.closed else self._model.decoder.cache.length

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
        ids = self._model.checked_ids(tokens)
        with self._model.exclusive() as decoder:
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
        from airllm.engine.batch_generation import parallel_sequences

        with parallel_sequences(self._model, n, capacity) as lanes:
            yield lanes

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The ids of a text as a prompt, with the BOS token where the model wants one; or of a chat
        up to where the answer begins. Control tokens come from the chat template alone, never from
        what a text or a message says."""
        return self._model.prompts.tokens(prompt)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def reset(self) -> None:
        """Forget all tokens, so that the next prompt is evaluated from its first on."""
        with self._model.exclusive() as decoder:
            decoder.cache.clear()

    def save_session(
        self, path: str | os.PathLike[str], *, messages: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Write the KV cache's tokens, keys and values to a file, which load_session takes back.

        messages: a chat so far, to have it back with them. The file holds all that was said: only
        the user may read it. It appears when it is complete. OSError where it cannot be written.
        """
        from airllm.state import session

        with self._model.exclusive() as decoder:
            session.save(path, decoder.cache, self._model.planned.file.fingerprint(), messages)

    def load_session(self, path: str | os.PathLike[str]) -> list[dict[str, str]]:
        """Go on where save_session was called, on this machine or another, on any backend; returns
        its messages. A prompt that begins with the session's tokens is evaluated from there
        (without a seed, which asks for an empty cache).

        FormatError, a ValueError, and nothing has changed, for a file that is damaged, belongs to
        another model or kv_type, or does not fit the context.
        """
        from airllm.state import session

        with self._model.exclusive() as decoder:
            return session.load(
                path, decoder.cache, self._model.planned.file.fingerprint(), self.config.vocab_size
            )

    def fingerprint(self) -> bytes:
        """32 bytes that tell models apart, whatever their files are called."""
        return self._model.planned.file.fingerprint()

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Inside the `with`, each op's time, bytes and FLOPs are noted."""
        with self._model.decoder.profile() as profile:
            yield profile

    def memory_usage(self) -> dict[str, int]:
        """Bytes: weights (as the backend keeps them; NumPy's stay in the file's memory map),
        kv_cache (when full), buffers, and resident (of the whole process, now)."""
        decoder = None if self._model.closed else self._model.decoder
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
        with self._model.exclusive():
            planned = self._model.planned
            return planned.probed_plan() if probe else planned.plan

    def stream_stats(self) -> dict[str, Any] | None:
        """Of all passes so far: bytes_read, disk_seconds (with a read under way),
        waited_for_disk_seconds, waited_for_compute_seconds, io, direct; None where nothing is
        streamed."""
        return None if self._model.closed else self._model.decoder.weights.stream_stats()

    def close(self) -> None:
        """Give memory and file back. What still runs, in a stream say, fails at its next token."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

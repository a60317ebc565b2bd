"""The engine: opens a model's file and generates text with it.

with LayerWiseInferenceEngine("model.gguf") as engine:
    print(engine.generate("Once upon a time", max_new_tokens=50).text)
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from airllm.backends.profiling import Profile
from airllm.engine.answer_stream import AnswerStream, Usage
from airllm.engine.continuation import Generation
from airllm.engine.generation import continue_prompt
from airllm.engine.grammar import Grammar
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.settings import (
    CACHE_SAVE_SECONDS,
    LANES,
    PIECE_TOKENS,
    QUEUE_LENGTH,
    AnswerOptions,
    ContextFullError,
    Limits,
    Sampling,
    settings_of,
    takes_answer_options,
)
from airllm.graph.graph import Activations
from airllm.hub import model_path as model_path_of
from airllm.models import ModelConfig
from airllm.state.layout import KVType
from airllm.text.answer import AnswerFormat
from airllm.text.chat_template import ChatTemplate
from airllm.text.prompts import Chat, Prompt, PromptReader, chat, prompt_list
from airllm.text.tokenizer import Tokenizer
from airllm.util.arguments import check_choice, check_count
from airllm.util.progress import OnProgress
from airllm.util.system import resident_bytes
from airllm.weights.budget import BudgetError
from airllm.weights.plan import Plan
from airllm.weights.plan_model import PlannedModel

if TYPE_CHECKING:
    from airllm.engine.async_stream import AsyncAnswerStream
    from airllm.engine.batch_generation import ParallelSequences
    from airllm.engine.scheduler import Scheduler

__all__ = [
    "AnswerStream",
    "BudgetError",
    "Chat",
    "ContextFullError",
    "Generation",
    "LayerWiseInferenceEngine",
    "Usage",
]


class LayerWiseInferenceEngine:
    """A language model on the CPU, run layer by layer.

    For one thread at a time: a call from a second thread raises RuntimeError, and so does a call
    while a `stream` is unfinished. An engine that is dropped without `close` is closed when it is
    garbage-collected, with a ResourceWarning.

    config: the model's hyperparameters. tokenizer, chat_template: from the model's file. backend:
    "cpp" or "numpy". context: how many tokens fit. position: how many tokens the KV cache holds.
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
        mtp: bool | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Open a GGUF file, the first file of a split model, a Hugging Face folder, or a model that
        was pulled, by its name. Metadata and tensors are checked before any weight is used.

        backend: "cpp", "numpy", or None for the choice of airllm.tensor_ops_hybrid.
        threads: of the C++ kernels, for the whole process; None for the number that cpu_budget()
            gives.
        decode_threads: the most threads for the evaluation of a single token, which waits for
            memory rather than for arithmetic; None for all threads.
        context: the most tokens of prompt and answer together, up to the context that the model was
            trained for; None for that, but at most 4096, and less if memory is short.
        kv_type: the type of keys and values: "f16"; "f32" for exact work at twice the memory;
            "q8_0", 8 bits in blocks of 32, for about half (34/64) of the memory, if head_dim is a
            multiple of 32.
        activations: how activations are rounded for quantised weights. "q8" rounds them to 8 bits
            in blocks of 32, as llama.cpp does; "q16" to 16 bits, as good as exact and at most twice
            the work; "f32" does not round; "auto" is q16 for up to 64 tokens at once, else q8.
        batch_size: the most tokens of a prompt in one batch; None for 512, or for 144 on the C++
            backend if memory is short: larger buffers would take the place of layers.
        ram_budget: memory for weights, KV cache and buffers, in bytes or as "2GiB"; None for the
            value of AIRLLM_RAM, or else most of the available memory. Layers that do not fit are
            streamed from the disk for each token; answers are the same, bit for bit. See `plan`.
        quantize: the type to which the matrices of a float model are converted while they are read:
            "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", or "f16", "bf16" or "f32";
            see airllm.formats.retype.
        fusion: whether to combine operations, which is faster and gives the same numbers, see
            airllm.graph.rewrite; None for the value of AIRLLM_FUSION, which is 1 unless set.
        mtp: whether the model's next-token head guesses tokens, see airllm.models.next_head. It
            stays in memory, beside the head. None for the value of AIRLLM_MTP, which is 0 unless
            set; 1 changes nothing for a model without such a head, and True is refused.
        on_progress: called with (done, total) layers while weights are prepared.

        FormatError, a ValueError, for a file that is damaged or not supported; OSError if it cannot
        be read; HubError for the name of a model that has not been pulled; ValueError for an
        invalid argument; BudgetError, a ValueError, with the smallest budget that would do, if the
        model cannot run in the budget.
        """
        check_choice("kv_type", kv_type, get_args(KVType))
        check_choice("activations", activations, get_args(Activations))
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size)
        if decode_threads is not None:
            decode_threads = check_count("decode_threads", decode_threads)
        planned = PlannedModel.open(
            model_path_of(model_path),
            backend=backend,
            threads=threads,
            context=context,
            kv_type=kv_type,
            activations=activations,
            batch_size=batch_size,
            ram_budget=ram_budget,
            quantize=quantize,
            fusion=fusion,
            mtp=mtp,
        )
        self._model = LoadedModel(planned, decode_threads=decode_threads, on_progress=on_progress)
        self.config: ModelConfig = self._model.config
        self.context = self._model.context
        self.backend = planned.backend.name

    @property
    def prompts(self) -> PromptReader:
        """Reads texts and chats with the tokenizer and the chat template."""
        return self._model.prompts

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.prompts.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's format of a chat. FormatError if its file has no template."""
        return self._model.prompts.chat_template

    @property
    def answer_format(self) -> AnswerFormat:
        """How the model writes thoughts and tool calls, as its chat template tells; see
        airllm.text.answer. A model without a usable template writes plain text."""
        return self._model.prompts.answer_format

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's file has a chat template of its own: most models that were trained to
        answer have one."""
        return self._model.prompts.has_chat_template

    @takes_answer_options
    def generate(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        grammar: Grammar | None = None,
        markup: bool = False,
        on_token: Callable[[str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """Continue a text, or answer the last message of a chat.

        If the prompt begins with tokens that are still in the KV cache, for example the last prompt
        and its answer, these are not evaluated again. The answer can then differ from the answer of
        an empty cache: the cut into batches changes how numbers round, above all with
        activations="auto", which uses 16 bits for up to 64 tokens and 8 bits for more. With a seed
        the cache is emptied first, so that the answer does not depend on earlier prompts.

        prompt: a text; or a chat, [{"role": "user", "content": "Hello"}], which the model's chat
            template formats. A content may be a list of {"type": "text", "text": ...}, whose texts
            are joined.
        template_variables: further variables of the chat template, of the types that JSON has:
            {"enable_thinking": False, "tools": [...]}. For several prompts, each may be an
            airllm.layer_engine.Chat, which has messages and variables.
        temperature, top_k, top_p, min_p, repeat_penalty, seed, typical_p, presence_penalty,
            frequency_penalty, penalty_window, dry_multiplier, dry_base, dry_allowed_length,
            dry_breakers, logit_bias: see airllm.engine.settings.Sampling. What is not given is as
            the model's file asks for, see `sampling`.
        max_new_tokens, stop, on_full, keep: where the answer ends, and what to do when the context
            is full; see airllm.engine.settings.Limits.
        lookahead: the most tokens to guess and check in one pass, up to 63; 0 for none. The answer
            stays the same (airllm.engine.lookahead). None: 8 with a draft, 3 with mtp, 8 if each
            pass waits for the disk, else 0. Without draft and mtp, guesses are from the text so
            far.
        draft: an engine with a smaller model of the same vocabulary, which makes the guesses; it is
            busy meanwhile, and its KV cache loses its earlier contents.
        grammar: what the answer must look like, from `grammar`; without lookahead and draft.
        markup: whether the text has the control tokens that mark thoughts and tool calls, for an
            AnswerParser of `answer_format`. Other control tokens are never a part of the text.
        on_token: called with each piece of text as it comes, in whole characters.
        on_progress: called with (done, total) steps while the prompt is evaluated; a step is a
            layer for a batch of tokens.

        ContextFullError, a ValueError, if the prompt does not fit the context, whatever on_full is:
        the author of a prompt must decide what to leave out. After this error, Ctrl-C or an
        exception of a callback, the engine stays usable.
        """
        pieces = self.stream(
            prompt,
            template_variables=template_variables,
            lookahead=lookahead,
            draft=draft,
            grammar=grammar,
            markup=markup,
            on_progress=on_progress,
            **options,
        )
        with pieces:
            for piece in pieces:
                if on_token is not None:
                    on_token(piece)
        assert pieces.generation is not None
        return pieces.generation

    @takes_answer_options
    def stream(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        grammar: Grammar | None = None,
        markup: bool = False,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream:
        """`generate` as an iterator over the pieces of text, which afterwards has finish_reason,
        usage and generation.

        The engine is busy from the first piece until the iterator ends, is closed or is dropped.
        """
        sampling, limits = settings_of(self._model.sampling, **options)
        return AnswerStream(
            continue_prompt(
                self._model,
                chat(prompt, template_variables),
                sampling,
                limits,
                lookahead=lookahead,
                draft=None if draft is None else draft._model,
                grammar=grammar,
                shown=self._model.prompts.answer_marks if markup else frozenset(),
                on_progress=on_progress,
            )
        )

    @takes_answer_options
    def astream(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        grammar: Grammar | None = None,
        markup: bool = False,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> "AsyncAnswerStream":
        """`stream` for asyncio: an asynchronous iterator, which does not block the event loop and
        whose task can be cancelled. Invalid arguments raise here, not at the first piece.

        on_progress: called in the thread in which the model runs.
        """

        from airllm.engine.async_stream import AsyncAnswerStream

        def start(check: Callable[[], None]) -> AnswerStream:
            def checked_progress(done: int, total: int) -> None:
                check()
                if on_progress is not None:
                    on_progress(done, total)

            return self.stream(
                prompt,
                template_variables=template_variables,
                lookahead=lookahead,
                draft=draft,
                grammar=grammar,
                markup=markup,
                on_progress=checked_progress,
                **options,
            )

        return AsyncAnswerStream(start)

    @takes_answer_options
    async def agenerate(
        self,
        prompt: Prompt,
        *,
        template_variables: Mapping[str, object] | None = None,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        grammar: Grammar | None = None,
        markup: bool = False,
        on_token: Callable[[str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generation:
        """`generate` for asyncio, see `astream`. on_token: called in the event loop's thread."""
        async with self.astream(
            prompt,
            template_variables=template_variables,
            lookahead=lookahead,
            draft=draft,
            grammar=grammar,
            markup=markup,
            on_progress=on_progress,
            **options,
        ) as stream:
            async for piece in stream:
                if on_token is not None:
                    on_token(piece)
        assert stream.generation is not None
        return stream.generation

    @takes_answer_options
    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        markup: bool = False,
        on_token: Callable[[int, str], None] | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> list[Generation]:
        """Continue several prompts, each as `generate` does, and return the answers in order.

        Up to `batch` answers are decoded together, which reads the weights once for all of them;
        when an answer ends, the next prompt takes its place. Each has its own KV cache, with room
        for the longest prompt and its answer, until the call returns. The engine's own cache is not
        used.

        If layers are streamed, several waiting prompts share a pass, as the tokens of answers do:
        see airllm.engine.scheduler.

        With a seed, or temperature=0, an answer equals that of `generate` with an empty cache, bit
        for bit. What prompts begin with alike is evaluated once, as far as that changes no bit.

        on_full: "stop" or "shift"; not "error", which would lose the other answers.
        markup: whether the answers to chats have the marks of thoughts and calls, see `generate`.
        on_token: called with the index of a prompt and each piece of its text.
        on_progress: called with (done, total) prompts.

        Before anything is evaluated: ContextFullError, a ValueError, if a prompt does not fit.
        Where there is no memory for `batch` caches, fewer answers are decoded together.
        """
        prompts = prompt_list(prompts)
        done: dict[int, Generation] = {}
        answers = self.stream_batch(
            prompts, batch=batch, markup=markup, on_token=on_token, **options
        )
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
        markup: bool = False,
        on_token: Callable[[int, str], None] | None = None,
        on_layer: OnProgress | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Generator[tuple[int, Generation], None, None]:
        """`generate_batch` as an iterator over (index of the prompt, answer), in the order in which
        the answers are complete.

        on_layer: called with (done, total) layers of each pass.

        The engine is busy from the first `next` until the iterator ends, is closed or is dropped.
        Invalid arguments raise at once, not at the first answer.
        """
        from airllm.engine.batch_generation import continue_prompts

        sampling, limits = settings_of(self._model.sampling, **options)
        return continue_prompts(
            self._model, prompts, batch, sampling, limits, markup, on_token, on_layer
        )

    def grammar(
        self,
        *,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        gbnf: str | None = None,
        lark: str | None = None,
    ) -> Grammar:
        """What an answer must look like, for `generate` and for requests: JSON that a schema (an
        object or its text) allows, a text that a regular expression (Rust's) matches, or a text of
        a grammar as llama.cpp (GBNF) or Lark writes it. Exactly one of them.

        ValueError, with the fault, for a schema or grammar that cannot be enforced as a whole.
        GrammarLibraryError, a RuntimeError, if llguidance is not installed (the extra "grammar").
        """
        given = {"json_schema": json_schema, "regex": regex, "gbnf": gbnf, "lark": lark}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise TypeError(
                f"{' and '.join(names) or 'nothing'} given; expected one of {', '.join(given)}"
            )
        grammar: Grammar = getattr(self._model.grammars, names[0])(given[names[0]])
        return grammar

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen unless an argument says otherwise: what the model's file asks for
        (generation_config.json of a folder, general.sampling.* of a GGUF file), and else the
        defaults of Sampling."""
        return self._model.sampling

    def prompt_length(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt. ValueError if it has none or the chat template refuses
        it; ContextFullError, a ValueError, if it does not fit the context."""
        ids = self._model.prompts.some_tokens(prompt)
        self._model.limits_for(ids, Limits(0))
        return len(ids)

    @property
    def position(self) -> int:
        """The number of tokens in the KV cache, which is the position of the next token."""
        return 0 if self._model.closed else self._model.decoder.state.length

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]:
        """Evaluate tokens after those in the KV cache.

        tokens: ids, at least one. Returns the logits of the last token, float32 [vocab_size], or
        without last_only of all tokens, [n_tokens, vocab_size]. ValueError for an id that is not in
        the vocabulary; ContextFullError, a ValueError, if the context has no room.
        on_progress: called with (done, total) steps; a step is a layer for a batch of tokens.
        """
        ids = self._model.checked_ids(tokens)
        with self._model.exclusive() as decoder:
            room = self.context - decoder.state.length
            if len(ids) > room:
                raise ContextFullError(
                    f"{len(ids)} tokens do not fit: {decoder.state.length} of the context's "
                    f"{self.context} are used. reset() empties it; context= makes it larger."
                )
            if last_only:
                return decoder.evaluate(ids, None, on_progress).copy()
            logits = np.empty((len(ids), self.config.vocab_size), np.float32)
            return decoder.evaluate(ids, logits, on_progress)

    @contextmanager
    def sequences(self, n: int, capacity: int | None = None) -> Iterator["ParallelSequences"]:
        """n further sequences, each with a KV cache for `capacity` tokens (None: the context).
        Their `forward` evaluates a token of each in one pass. The engine is busy inside the `with`;
        the memory of the caches is freed at its end."""
        from airllm.engine.batch_generation import parallel_sequences

        with parallel_sequences(self._model, n, capacity) as lanes:
            yield lanes

    def embed(
        self,
        text: str | Sequence[int],
        *,
        pooling: Literal["model", "mean", "last", "cls"] = "model",
        normalize: bool = False,
    ) -> NDArray[np.float32]:
        """The embedding of a text or of tokens: the last hidden states, after the last norm, as one
        vector, float32 [hidden_size].

        pooling: "mean" of all tokens, "last" or "cls" (the first) for the token's; "model" for what
            the model's file says, and "last" if it says nothing.
        normalize: scale the vector to length 1, so that the dot product of two is their cosine.

        ContextFullError, a ValueError, if the text does not fit the context. The KV cache is not
        used.
        """
        from airllm.engine.pooling import embed, pooling_of

        check_choice("pooling", pooling, ("model", "mean", "last", "cls"))
        if isinstance(text, str):
            ids = self._model.prompts.some_tokens(text)
        else:
            ids = self._model.checked_ids(text).tolist()
        self._model.limits_for(ids, Limits(0))
        found = embed(self._model, ids, pooling_of(self._model, pooling))
        return found / max(np.linalg.norm(found), np.float32(1e-30)) if normalize else found

    @contextmanager
    def scheduler(
        self,
        *,
        lanes: int = LANES,
        queue_length: int = QUEUE_LENGTH,
        piece_tokens: int = PIECE_TOKENS,
        cache_bytes: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_save_seconds: float | None = CACHE_SAVE_SECONDS,
        pass_lock: AbstractContextManager[object] | None = None,
    ) -> Iterator["Scheduler"]:
        """A scheduler, which runs requests of many threads at once; the engine is busy inside the
        `with`. See airllm.engine.scheduler for the arguments and what it does, and
        airllm.engine.requests for requests and their events."""
        from airllm.engine.scheduler import Scheduler

        with Scheduler(
            self._model,
            lanes=lanes,
            queue_length=queue_length,
            piece_tokens=piece_tokens,
            cache_bytes=cache_bytes,
            cache_dir=cache_dir,
            cache_save_seconds=cache_save_seconds,
            pass_lock=pass_lock,
        ) as scheduler:
            yield scheduler

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The ids of a text, with the BOS token if the model wants one; or of a chat, up to the
        beginning of the answer. Only the chat template makes control tokens; the words of a text or
        a message never do."""
        return self._model.prompts.tokens(prompt)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def reset(self) -> None:
        """Empty the KV cache, so that the next prompt is evaluated from its first token on."""
        with self._model.exclusive() as decoder:
            decoder.state.clear()

    def save_session(
        self, path: str | os.PathLike[str], *, messages: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Write the tokens, keys and values of the KV cache to a file for load_session.

        messages: the chat so far, which load_session returns. Only the user may read the file, as
        it holds the conversation. It appears when it is complete. OSError if it cannot be written.
        """
        from airllm.state import session

        with self._model.exclusive() as decoder:
            session.save(path, decoder.state, self._model.planned.file.fingerprint(), messages)

    def load_session(self, path: str | os.PathLike[str]) -> list[dict[str, str]]:
        """Restore the KV cache from a file of save_session, made on any machine and backend;
        returns its messages. A prompt that begins with the session's tokens is evaluated from their
        end on (but with a seed from its first token, as a seed empties the cache).

        FormatError, a ValueError, and the cache is unchanged, for a file that is damaged, belongs
        to another model or kv_type, or does not fit the context.
        """
        from airllm.state import session

        with self._model.exclusive() as decoder:
            return session.load(
                path, decoder.state, self._model.planned.file.fingerprint(), self.config.vocab_size
            )

    def fingerprint(self) -> bytes:
        """32 bytes that identify the model, whatever its file is called."""
        return self._model.planned.file.fingerprint()

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Inside the `with`, record the time, bytes and FLOPs of each op."""
        with self._model.decoder.profile() as profile:
            yield profile

    def memory_usage(self) -> dict[str, int]:
        """Bytes by name: weights (in the backend's layout; those of NumPy stay in the file's memory
        map), kv_cache (of the sequence so far), buffers, and resident (the whole process, now)."""
        decoder = None if self._model.closed else self._model.decoder
        return {
            "weights": decoder.weights.nbytes if decoder else 0,
            "kv_cache": decoder.kv_bytes if decoder else 0,
            "buffers": decoder.buffer_bytes if decoder else 0,
            "resident": resident_bytes(),
        }

    def plan(self, *, probe: bool = False) -> Plan:
        """Which parts of the model stay in memory and which are streamed, and the bytes of each.

        probe: if the model is streamed, measure the disk for a fraction of a second, for the
        expected speed.
        """
        with self._model.exclusive():
            planned = self._model.planned
            return planned.probed_plan() if probe else planned.plan

    def stream_stats(self) -> dict[str, Any] | None:
        """Of all passes so far: bytes_read, disk_seconds (with a read under way),
        waited_for_disk_seconds, waited_for_compute_seconds, io, direct; for experts also
        expert_hits, expert_misses. None if nothing is streamed."""
        return None if self._model.closed else self._model.decoder.weights.stream_stats()

    def close(self) -> None:
        """Free the memory and close the file. An unfinished `stream` fails at its next token."""
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

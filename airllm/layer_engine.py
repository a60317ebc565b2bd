"""The engine: opens a model's file, and continues text with it.

with LayerWiseInferenceEngine("model.gguf") as engine:
    print(engine.generate("Once upon a time", max_new_tokens=50).text)
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

from airllm.engine.continuation import Generation
from airllm.engine.generation import generate
from airllm.engine.limits import ContextFullError, Limits, OnFull
from airllm.engine.lookahead import GUESSES, MOST_GUESSES, Draft, Lookahead
from airllm.engine.sampling import Sampling
from airllm.engine.token_engine import Prompt, TokenEngine
from airllm.util.arguments import check_choice, check_count
from airllm.util.progress import OnProgress
from airllm.weights.budget import BudgetError

__all__ = ["BudgetError", "ContextFullError", "Generation", "LayerWiseInferenceEngine"]


class LayerWiseInferenceEngine(TokenEngine):
    """A language model on the CPU, run layer by layer.

    One thread at a time: a second one gets a RuntimeError instead of a corrupt cache, and so does
    a call while a `stream` is unfinished.

    config: what the model is made of. tokenizer, chat_template: as its file has them. backend:
    "cpp" or "numpy". context: tokens that fit. position: tokens in the KV cache.
    """

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        on_full: OnFull = "stop",
        keep: int = 0,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        on_token: Callable[[str], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Generation:
        """Continue a text, or answer the last of some messages.

        The beginning that the prompt shares with the tokens in the KV cache, those of the last
        prompt and its answer say, is not evaluated again. How tokens fall into batches changes how
        numbers round, above all with activations="auto", where 64 tokens are the limit between 16
        and 8 bit: so an answer can differ from the one that an empty cache would give. With a seed
        the cache is emptied first, and the answer is the same whatever was asked before.

        prompt: a text; or a chat, [{"role": "user", "content": "Hello"}], in the form that the
            model's chat template gives it.
        temperature, top_k, top_p, min_p, repeat_penalty, seed: see airllm.engine.sampling.Sampling.
        max_new_tokens, stop, on_full, keep: where the answer ends, and what happens where the
            context does; see airllm.engine.limits.Limits.
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
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        limits = Limits(max_new_tokens, _strings(stop), on_full, keep)
        with closing(
            self._start(prompt, sampling, limits, lookahead, draft, on_progress)
        ) as pieces:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    generation: Generation = end.value
                    return generation
                if on_token is not None:
                    on_token(piece)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        on_full: OnFull = "stop",
        keep: int = 0,
        lookahead: int | None = None,
        draft: "LayerWiseInferenceEngine | None" = None,
        on_progress: OnProgress | None = None,
    ) -> Iterator[str]:
        """generate, as an iterator over the pieces of text.

        The engine is busy from the first piece until the iterator ends, is closed or is dropped.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        limits = Limits(max_new_tokens, _strings(stop), on_full, keep)
        return self._start(prompt, sampling, limits, lookahead, draft, on_progress)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        on_full: OnFull = "stop",
        keep: int = 0,
        on_token: Callable[[int, str], None] | None = None,
        on_progress: OnProgress | None = None,
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
        prompts = _prompts(prompts)
        done: dict[int, Generation] = {}
        answers = self.stream_batch(
            prompts,
            batch=batch,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
            stop=stop,
            on_full=on_full,
            keep=keep,
            on_token=on_token,
        )
        with closing(answers):
            for index, generation in answers:
                done[index] = generation
                if on_progress is not None:
                    on_progress(len(done), len(prompts))
        return [done[index] for index in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        on_full: OnFull = "stop",
        keep: int = 0,
        on_token: Callable[[int, str], None] | None = None,
        on_layer: OnProgress | None = None,
    ) -> Generator[tuple[int, Generation], None, None]:
        """generate_batch, as an iterator over the index of each prompt and its answer, in the order
        in which they get ready.

        on_layer: called with (done, total) layers of each pass.

        The engine is busy from the first answer's beginning until the iterator ends, is closed or
        is dropped. Whatever is wrong with the arguments is said at once.
        """
        ids = [self._prompt_tokens(prompt) for prompt in _prompts(prompts)]
        check_count("batch", batch)
        check_choice("on_full", on_full, ("stop", "shift"))
        sampling = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        limits = Limits(max_new_tokens, _strings(stop), on_full, keep)
        own_limits = [self._limits_for(prompt, limits) for prompt in ids]
        return self._stream_batch(ids, int(batch), sampling, own_limits, on_token, on_layer)

    def _stream_batch(
        self,
        ids: list[list[int]],
        batch: int,
        sampling: Sampling,
        limits: list[Limits],
        on_token: Callable[[int, str], None] | None,
        on_layer: OnProgress | None,
    ) -> Generator[tuple[int, Generation], None, None]:
        from airllm.engine import batch_generation

        if not ids:
            return
        longest = min(max(map(len, ids)) + int(limits[0].max_new_tokens), self.context)
        with self.sequences(min(batch, len(ids)), longest) as lanes:
            yield from batch_generation.stream_batch(
                lanes, self.tokenizer, ids, sampling, limits, on_token, on_layer
            )

    def prompt_length(self, prompt: Prompt) -> int:
        """Tokens of a prompt. ValueError where it has none, or a chat template refuses it, and as
        ContextFullError where it does not fit the context."""
        ids = self._prompt_tokens(prompt)
        self._limits_for(ids, Limits(0))
        return len(ids)

    def _start(
        self,
        prompt: Prompt,
        sampling: Sampling,
        limits: Limits,
        lookahead: int | None,
        draft: "LayerWiseInferenceEngine | None",
        on_progress: OnProgress | None,
    ) -> Generator[str, None, Generation]:
        """Check the prompt now, not at the first piece, and make the generator."""
        if lookahead is None:
            pays = draft is not None or self._open_decoder().plan.guesses_pay
            lookahead = GUESSES if pays else 0
        check_count("lookahead", lookahead, least=0)
        if lookahead > MOST_GUESSES:
            raise ValueError(f"lookahead is {lookahead}; expected at most {MOST_GUESSES}")
        if draft is not None:
            if not lookahead:
                raise ValueError("draft makes guesses, and lookahead=0 wants none")
            if not self.tokenizer.has_the_tokens_of(draft.tokenizer):
                raise ValueError("draft is a model with other tokens than this one")
        ids = self._prompt_tokens(prompt)
        limits = self._limits_for(ids, limits)
        return self._run(ids, sampling, limits, lookahead, draft, on_progress)

    def _limits_for(self, ids: list[int], limits: Limits) -> Limits:
        """The limits for a prompt. ContextFullError where it does not fit."""
        if len(ids) > self.context:
            raise ContextFullError(
                f"the prompt has {len(ids)} tokens; the context has room for {self.context}. "
                f"context= makes it larger; this model allows {self.config.context_length}."
            )
        has_bos = self.tokenizer.add_bos and ids[0] == self.tokenizer.bos_id
        return limits.for_prompt(len(ids), has_bos, self.context)

    def _run(
        self,
        ids: list[int],
        sampling: Sampling,
        limits: Limits,
        lookahead: int,
        draft: "LayerWiseInferenceEngine | None",
        on_progress: OnProgress | None,
    ) -> Generator[str, None, Generation]:
        with ExitStack() as stack:
            decoder = stack.enter_context(self._exclusive())
            guesser = None if draft is None else Draft(stack.enter_context(draft._exclusive()))
            if sampling.seed is not None:
                decoder.cache.clear()
            decoder.cache.keep_shared(ids)
            ahead = None
            if lookahead:
                ahead = Lookahead(decoder, lookahead, self.config.vocab_size, guesser)
            return (
                yield from generate(
                    decoder, self.tokenizer, ids, sampling, limits, on_progress, ahead
                )
            )

    def _prompt_tokens(self, prompt: Prompt) -> list[int]:
        """tokenize, with at least one token."""
        ids = self.tokenize(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and this model has no token that begins a text")
        return ids


def _prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise TypeError("prompts is one prompt; expected a list of them. generate() takes one.")
    return list(prompts)


def _strings(strings: str | Sequence[str]) -> tuple[str, ...]:
    return (strings,) if isinstance(strings, str) else tuple(strings)

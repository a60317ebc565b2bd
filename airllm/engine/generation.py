"""Generates text: evaluates tokens, samples the next one, yields its text, and repeats."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from time import perf_counter

import numpy as np

from airllm.engine.continuation import Continuation, Generation
from airllm.engine.decoder import Decoder
from airllm.engine.grammar import AnswerForm
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.lookahead import (
    GUESSES,
    MOST_GUESSES,
    NEXT_GUESSES,
    Draft,
    Guesser,
    Lookahead,
)
from airllm.engine.settings import Limits, Sampling
from airllm.text.prompts import Prompt
from airllm.text.tokenizer import Tokenizer
from airllm.util.arguments import check_count
from airllm.util.progress import OnProgress


def continue_prompt(
    model: LoadedModel,
    prompt: Prompt,
    sampling: Sampling,
    limits: Limits,
    *,
    lookahead: int | None = None,
    draft: LoadedModel | None = None,
    grammar: AnswerForm | None = None,
    shown: frozenset[int] = frozenset(),
    on_progress: OnProgress | None = None,
) -> Generator[str, None, Generation]:
    """Check all arguments now, not at the first piece, and return the generator of the answer's
    text. The models are busy from the generator's start to its end.

    lookahead: the most guesses in a pass; None for GUESSES with a draft, NEXT_GUESSES with a
    next-token head, GUESSES if the plan says that guesses pay, else 0. draft: the model that
    guesses; None for the next-token head, or without one to guess from the text so far. shown: see
    Continuation.
    """
    if grammar is not None:
        if lookahead or draft is not None:
            raise ValueError("a grammar takes no guesses: lookahead and draft are not for it")
        lookahead = 0
    if lookahead is None:
        lookahead = _usual_guesses(model.decoder, draft is not None)
    lookahead = check_count("lookahead", lookahead, least=0, most=MOST_GUESSES)
    if draft is not None:
        if not lookahead:
            raise ValueError("draft makes guesses, and lookahead=0 wants none")
        if not model.prompts.tokenizer.has_the_tokens_of(draft.prompts.tokenizer):
            raise ValueError("draft is a model with other tokens than this one")
    ids = model.prompts.some_tokens(prompt)
    limits = model.limits_for(ids, limits)
    model.check_sampling(sampling)
    return _continue(model, ids, sampling, limits, lookahead, draft, grammar, shown, on_progress)


def _usual_guesses(decoder: Decoder, drafted: bool) -> int:
    if decoder.next_tokens is not None and not drafted:
        return NEXT_GUESSES
    return GUESSES if drafted or decoder.plan.guesses_pay else 0


def _continue(
    model: LoadedModel,
    ids: list[int],
    sampling: Sampling,
    limits: Limits,
    lookahead: int,
    draft: LoadedModel | None,
    grammar: AnswerForm | None,
    shown: frozenset[int],
    on_progress: OnProgress | None,
) -> Generator[str, None, Generation]:
    with ExitStack() as stack:
        decoder = stack.enter_context(model.exclusive())
        guesser: Guesser | None = decoder.next_tokens
        if draft is not None:
            guesser = Draft(stack.enter_context(draft.exclusive()))
        if sampling.seed is not None:
            decoder.state.clear()
        decoder.state.keep_shared(ids)
        ahead = None
        if lookahead:
            ahead = Lookahead(decoder, lookahead, model.config.vocab_size, guesser)
        tokenizer = model.prompts.tokenizer
        return (
            yield from generate(
                decoder, tokenizer, ids, sampling, limits, on_progress, ahead, grammar, shown
            )
        )


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    on_progress: OnProgress | None = None,
    lookahead: Lookahead | None = None,
    grammar: AnswerForm | None = None,
    shown: frozenset[int] = frozenset(),
) -> Generator[str, None, Generation]:
    """Continue a prompt, see Continuation; yields pieces of text and returns the Generation.

    Its times count the model, guesses and the sampler, not the consumer of the pieces.
    """
    answer = Continuation(prompt, decoder.state, tokenizer, sampling, limits, grammar, shown=shown)
    while answer.goes_on():
        start = perf_counter()
        guesses = lookahead.guess(answer) if lookahead is not None else None
        if lookahead is not None and guesses is not None:
            yield from _check(answer, lookahead, guesses, start, on_progress)
            continue
        if len(answer.pending) == answer.n_fresh > 1:  # with tokens that the grammar forces
            logits = decoder.evaluate_one_by_one(answer.pending)
        else:
            logits = decoder.evaluate(np.array(answer.pending, np.int32), None, on_progress)
        if not decoder.streams:
            on_progress = None  # only for the prompt: a token of the answer is quick
        if piece := answer.take(logits, start):
            yield piece
    if rest := answer.rest():
        yield rest
    return answer.result()


def _check(
    answer: Continuation,
    lookahead: Lookahead,
    guesses: Sequence[int],
    start: float,
    on_progress: OnProgress | None,
) -> Generator[str, None, None]:
    """Evaluate the pending tokens and the guesses in one pass, then take tokens from the logits.

    The first token that differs from its guess is taken, too, and is the last. If all guesses are
    right, the logits after the last guess give one more token. start: when the guesses were begun.
    """
    evaluated, n_right = [*answer.pending, *guesses], len(answer.pending)
    rows = lookahead.evaluate(evaluated, on_progress)
    try:
        for row, guess in zip(rows[n_right - 1 :], [*guesses, None], strict=True):
            if piece := answer.take(row, start):
                yield piece
            if answer.ended or answer.pending != [guess]:
                return
            n_right += 1
            answer.accepted += 1
            start = perf_counter()
    finally:
        answer.evaluate_again(answer.state.accept(evaluated[:n_right], len(evaluated)))

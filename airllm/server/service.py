"""Answers ChatRequests with the model: the way from a request to the events of its answer."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from airllm.engine.requests import Failed, Handle, Request
from airllm.engine.settings import Limits
from airllm.server.answer import AnswerEvent, AnswerReader, Broken, ChoiceEnded
from airllm.server.chat import ChatRequest
from airllm.server.engine_thread import EngineThread
from airllm.server.errors import UNEXPECTED, ApiError, as_api_error, too_long
from airllm.server.grammars import form_of_answer
from airllm.server.mailbox import Doorbell, Mailbox
from airllm.server.metrics import Gauge, Metrics
from airllm.server.models import Models
from airllm.server.prompting import ReadPrompt, read_prompts
from airllm.server.remembered import Remembered
from airllm.server.served_model import ServedModel
from airllm.server.settings import ServerSettings
from airllm.text.answer import format_of
from airllm.util.printable import printable

if TYPE_CHECKING:
    from airllm.engine.grammar import AnswerForm

__all__ = ["Live", "Service", "error_of", "measured", "new_id"]

_log = logging.getLogger("airllm")

MOST_READERS = 2  # prompts that are read at once


@dataclass
class Live:
    """A request that has been submitted, once for each of its prompts. `events` gives its answer;
    Service.end must follow."""

    id: str
    request: ChatRequest
    engine: EngineThread
    model: ServedModel
    mailbox: Mailbox
    readers: dict[Handle, AnswerReader] = field(default_factory=dict)
    ends: list[ChoiceEnded] = field(default_factory=list)
    error: ApiError | None = None
    heard_nothing: bool = False  # for as long as a heartbeat

    @property
    def handles(self) -> Sequence[Handle]:
        return list(self.readers)

    @property
    def is_complete(self) -> bool:
        return len(self.ends) == self.request.n_choices

    async def events(self, settings: ServerSettings) -> AsyncIterator[Sequence[AnswerEvent]]:
        """The events, as many as there are each time; none after a heartbeat without any. The last
        are a ChoiceEnded for each choice, or Broken."""
        heartbeat = settings.heartbeat_seconds
        while not self.is_complete and self.error is None:
            now, due = time.perf_counter(), self._due(settings)
            found = await self.mailbox.take(max(0.0, min(heartbeat, due - now)))
            told: list[AnswerEvent] = []
            for handle, event in found:
                if isinstance(event, Failed):
                    ending = ApiError(503, "the server is ending", code="ending")
                    error = ending if self.engine.is_ending else error_of(event.error)
                    told.append(Broken(error))
                else:
                    told += self.readers[handle].read(event)
            if self._is_late(settings, due, told):
                stage = "prompt" if self._in_prompt else "answer"
                text = f"the {stage} took longer than this server's --{stage}-timeout allows"
                told.append(Broken(ApiError(504, text, code=f"{stage}_timeout")))
            for one in told:
                if isinstance(one, ChoiceEnded):
                    self.ends.append(one)
                elif isinstance(one, Broken) and self.error is None:
                    self.error = one.error
            self.heard_nothing = not found
            yield told

    def _is_late(self, settings: ServerSettings, due: float, told: Sequence[AnswerEvent]) -> bool:
        """Whether the answer takes too long, with what is told now. due: before that."""
        now = time.perf_counter()
        if now < due or now < self._due(settings):
            return False
        n_ended = sum(isinstance(one, ChoiceEnded) for one in told) + len(self.ends)
        return n_ended < self.request.n_choices

    @property
    def _in_prompt(self) -> bool:
        return any(handle.first_token is None for handle in self.handles)

    def _due(self, settings: ServerSettings) -> float:
        """When the stage that the request is in must have ended. The engine itself watches over
        the time in the queue."""
        starts = [handle.started for handle in self.handles]
        firsts = [handle.first_token for handle in self.handles]
        known = [first for first in firsts if first is not None]
        if len(known) == len(firsts):
            return max(known, default=0.0) + settings.answer_seconds
        begun = [start for start in starts if start is not None]
        return max(begun) + settings.prompt_seconds if begun else math.inf


class Service:
    """The server without HTTP."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.remembered = Remembered()
        self._readers = asyncio.Semaphore(MOST_READERS)
        self._doorbell: Doorbell | None = None

    async def start(self, request: ChatRequest, id: str, engine: EngineThread) -> Live:
        """Submit a request to a model, which is in use until `end`. ApiError, or another error that
        becomes one, if it cannot be."""
        model = engine.model
        prompts = await self.read(request, model)
        for prompt in prompts:
            self._check_length(len(prompt.tokens), model)
        live = Live(id, request, engine, model, self.new_mailbox())
        try:
            form = None
            if request.form is not None or request.tools:
                wanted = request, prompts[0].in_thought, model
                form = await asyncio.to_thread(form_of_answer, *wanted)
            for prompt in prompts:
                self._submit(live, prompt, form)
        except BaseException:
            self._cancel(live)
            raise
        return live

    def new_mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        if self._doorbell is None or self._doorbell.loop is not loop:
            self._doorbell = Doorbell(loop)
        return Mailbox(self._doorbell)

    def end(self, live: Live, endpoint: str, received: float) -> str:
        """The client has its answer, or has gone: cancel what still runs, count it and log it.
        Returns the finish reasons, "cancelled" or an error."""
        self._cancel(live)
        live.mailbox.close()
        finish = "cancelled"
        if live.error is not None:
            finish = f"error {live.error.status}"
        elif live.is_complete:
            finish = ",".join(sorted({end.finish for end in live.ends}))
        model = self._label(live.model)
        for handle in live.handles:
            tokens = len(handle.prompt), handle.reused_tokens, handle.answer_tokens
            self.metrics.answer(*tokens, model=model)
            self.metrics.waited(_queued(handle), _to_first_token(handle))
        _log.info("%s", _line(live, endpoint, received, finish))
        return finish

    def gauges(self) -> list[Gauge]:
        """What is measured now."""
        loaded = self.models.loaded
        found = [
            Gauge(name, value, self._label(model))
            for model in loaded
            for name, value in measured(model).items()
        ]
        if self.models.are_several:
            return [Gauge("models_loaded", len(loaded)), *found]
        return found or [Gauge("model_loaded", 0)]

    def _label(self, model: ServedModel) -> str:
        """Its name in metrics, where there are several."""
        return model.name if self.models.are_several else ""

    async def read(self, request: ChatRequest, model: ServedModel) -> list[ReadPrompt]:
        """The prompts of a request, as tokens."""
        async with self._readers:  # encoding takes processors and memory
            try:
                return await asyncio.to_thread(read_prompts, request, model)
            except ValueError as error:  # of the template and the tokenizer
                raise _refusal(error) from error

    def _submit(self, live: Live, prompt: ReadPrompt, form: "AnswerForm | None") -> None:
        request, model = live.request, live.model
        try:
            asked = self._engine_request(request, prompt, model, form)
        except (TypeError, ValueError) as error:  # Sampling, Limits and Request name the field
            raise _refusal(error) from None
        reader = AnswerReader(
            format_of("") if request.prompts else model.format,
            request.tools,
            n=request.n,
            first=len(live.readers) * request.n,
            in_thought=prompt.in_thought,
            parallel_calls=request.parallel_calls,
            stops=asked.limits.stop_strings,
            decode=model.prompts.tokenizer.decode,
            call_id="" if model.format.name == "mistral" else "call_",
        )
        try:
            mailbox = live.mailbox
            handle = model.scheduler.submit(asked, mailbox.put, mailbox.doorbell.ring)
            live.readers[handle] = reader
        except ValueError as error:
            raise _refusal(error) from None
        except RuntimeError as error:
            if type(error) is RuntimeError:  # it is closed
                raise ApiError(503, "the server is ending", code="ending") from None
            raise

    def _cancel(self, live: Live) -> None:
        for handle in live.handles:
            live.model.scheduler.cancel(handle)

    def _check_length(self, n_tokens: int, model: ServedModel) -> None:
        most = self.settings.max_prompt
        if most is not None and n_tokens > most:
            text = f"the prompt has {n_tokens} tokens; this server takes at most {most}"
            raise ApiError(400, text, "messages", "prompt_too_long")
        if n_tokens >= model.context:
            raise too_long(n_tokens, model.context)

    def _engine_request(
        self,
        request: ChatRequest,
        prompt: ReadPrompt,
        model: ServedModel,
        form: "AnswerForm | None",
    ) -> Request:
        settings = self.settings
        room = model.context - len(prompt.tokens)
        most = request.max_tokens if request.max_tokens is not None else settings.max_tokens
        limits = Limits(
            max_new_tokens=room if most is None else min(most, room), stop=tuple(request.stop)
        )
        longest = settings.queue_seconds + settings.prompt_seconds + settings.answer_seconds
        return Request(
            prompt.tokens,
            sampling=replace(model.sampling, **{**settings.sampling, **request.sampling}),
            limits=limits,
            shown=frozenset() if request.prompts else model.shown,
            n=request.n,
            best_of=request.best_of,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs if request.logprobs else None,
            prompt_logprobs=request.prompt_logprobs,
            grammar=form,
            queue_seconds=settings.queue_seconds,
            deadline_seconds=longest,
        )


def measured(model: ServedModel) -> dict[str, float]:
    """How busy a model is."""
    scheduler = model.scheduler
    return {
        "model_loaded": 1,
        "requests_waiting": scheduler.n_waiting,
        "requests_running": scheduler.n_running,
        "prefix_cache_bytes": scheduler.cached_bytes,
        "context_tokens": model.context,
    }


def _refusal(error: Exception) -> ApiError:
    """The error of a request that the engine refuses."""
    told = as_api_error(error)
    return told if told.status < 500 else ApiError(400, str(error))


def new_id() -> str:
    return secrets.token_hex(12)


def error_of(error: BaseException) -> ApiError:
    """What the client is told, after the log has an unexpected error whole."""
    told = as_api_error(error)
    if told.code == UNEXPECTED:
        _log.error("a request failed", exc_info=error)
    return told


def _line(live: Live, endpoint: str, received: float, finish: str) -> str:
    """The log's line: no word of a prompt or an answer."""
    handles = live.handles
    queue = max((_queued(handle) or 0.0 for handle in handles), default=0.0)
    firsts = [first for handle in handles if (first := _to_first_token(handle)) is not None]
    n_answer = sum(handle.answer_tokens for handle in handles)
    rates = [rate for handle in handles if (rate := _rate(handle))]
    return (
        f"{live.id} {endpoint} {printable(live.model.name)}:"
        f" prompt {sum(len(handle.prompt) for handle in handles)} tokens"
        f" ({sum(handle.reused_tokens for handle in handles)} reused), answer {n_answer};"
        f" queue {queue:.2f} s, first token {f'{min(firsts):.2f} s' if firsts else '-'},"
        f" {f'{sum(rates):.1f}' if rates else '-'} tokens/s,"
        f" {time.perf_counter() - received:.2f} s in all; {finish}"
    )


def _queued(handle: Handle) -> float | None:
    return None if handle.started is None else handle.started - handle.submitted


def _to_first_token(handle: Handle) -> float | None:
    return None if handle.first_token is None else handle.first_token - handle.submitted


def _rate(handle: Handle) -> float | None:
    """Tokens a second after the first."""
    if handle.first_token is None or handle.answer_tokens < 2:
        return None
    seconds = (handle.ended or time.perf_counter()) - handle.first_token
    return (handle.answer_tokens - 1) / seconds if seconds > 0 else None

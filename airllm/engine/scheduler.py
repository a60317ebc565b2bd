"""Many requests at once, each with its own settings: the loop beneath servers and batches.

    with Scheduler(model) as scheduler:
        handle = scheduler.submit(Request(tokens), on_event)      # from any thread
        scheduler.serve_forever()                                 # the engine's thread

A pass evaluates the next token of every answer, and beside them a piece of a prompt, or of several
short ones that together are no longer, so that an answer waits for no more than a piece. If layers
are streamed, reading them takes most of the time of a pass: it then takes as many whole prompts as
fit. Prompts are evaluated in the order in which
they came. What a request gets does not depend on its neighbours, bit for bit.
"""

import logging
import math
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from airllm.engine.lanes import Lanes
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.pooling import pooling_of
from airllm.engine.requests import (
    AfterEvents,
    DeadlineError,
    Handle,
    OnEvent,
    QueueFullError,
    Request,
)
from airllm.engine.running import Choice, RunningRequest
from airllm.engine.settings import CACHE_SAVE_SECONDS, LANES, PIECE_TOKENS, QUEUE_LENGTH
from airllm.engine.steps import Step
from airllm.engine.telling import Teller
from airllm.util.arguments import check_count, check_number
from airllm.util.closing import Closing
from airllm.util.progress import OnProgress
from airllm.util.shown import shown

__all__ = ["Scheduler"]

_log = logging.getLogger("airllm")

# A prompt waits a pass for another one that begins with as many of its tokens, rather than evaluate
# them as well. If layers are streamed, a pass takes as long as many tokens.
WORTH_A_WAIT, WORTH_A_PASS = 64, 256

# What a pass evaluates of an answer, or of the prompt before it.
Chosen: TypeAlias = tuple[RunningRequest, Choice, Step]


class Scheduler(Closing):
    """Runs requests on a model, which is busy until the scheduler is closed.

    submit, cancel, close and the properties are for any thread. step, wait and serve_forever are
    for one thread, the engine's, on which all events are told.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        lanes: int = LANES,
        queue_length: int = QUEUE_LENGTH,
        piece_tokens: int = PIECE_TOKENS,
        cache_bytes: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_save_seconds: float | None = CACHE_SAVE_SECONDS,
        capacity: int | None = None,
        within_budget: bool = True,
        on_layer: OnProgress | None = None,
        pass_lock: AbstractContextManager[object] | None = None,
    ) -> None:
        """lanes: the most answers that run at once. queue_length: the most requests that wait for
        lanes. piece_tokens: the most tokens of prompts that are evaluated between two tokens of an
        answer; on the NumPy backend, whose numbers depend on it, a piece is a batch of the engine's
        batch_size. cache_bytes: of what is kept of earlier prompts and answers; None for half of
        the memory that the engine's budget leaves, up to 8 GiB; 0 for nothing. cache_dir: a
        folder from which that is read now, and to which `close` writes it; serve_forever writes it,
        too, after cache_save_seconds without a request, or after ten times as long if there always
        is one; None for never. capacity: tokens of a lane; None for the context. within_budget:
        whether a request waits while the lanes of those that run, each as long as it may become,
        take the memory that the engine's budget leaves. on_layer: called with (done, total) layers
        of each pass. pass_lock: held for each pass of serve_forever, by schedulers that share the
        cores.

        RuntimeError if the model is busy.
        """
        self._model = model
        self.lanes = check_count("lanes", lanes)
        self.queue_length = check_count("queue_length", queue_length)
        piece_tokens = check_count("piece_tokens", piece_tokens)
        capacity = model.context if capacity is None else capacity
        capacity = check_count("capacity", capacity, most=model.context)
        if cache_save_seconds is not None:
            check_number("cache_save_seconds", cache_save_seconds, 0.0, math.inf, "0 or more")
        if cache_bytes is not None:
            cache_bytes = check_count("cache_bytes", cache_bytes, least=0)
        self._stack = ExitStack()
        self._decoder = decoder = self._stack.enter_context(model.exclusive())
        self._most = decoder.batch_size if decoder.streams else piece_tokens
        self._kinds = decoder.kinds
        try:
            self._lanes = Lanes(
                model,
                decoder,
                self.lanes,
                capacity=capacity,
                cache_bytes=cache_bytes,
                cache_dir=cache_dir,
                cache_save_seconds=cache_save_seconds,
                wake=self._wake,
                within_budget=within_budget,
            )
        except BaseException:
            self._stack.close()
            raise
        self._tree = self._lanes.tree
        self._on_layer = on_layer
        self._pass_lock = nullcontext() if pass_lock is None else pass_lock
        self._jobs: list[RunningRequest] = []  # in the order in which they were submitted
        self._logits = np.empty((0, model.config.vocab_size), np.float32)
        self._teller = Teller()
        # Guards what follows; is notified when there may be something to do.
        self._changed = threading.Condition()
        self._queue: deque[Handle] = deque()
        self._woken = False
        self._number = 0
        self._closing: Literal["drain", "now"] | None = None
        self._server: threading.Thread | None = None  # in serve_forever
        self.closed = False

    # ---- for any thread ------------------------------------------------------------------------

    def submit(
        self, request: Request, on_event: OnEvent, after_events: AfterEvents | None = None
    ) -> Handle:
        """Put a request into the queue. on_event, after_events: see airllm.engine.requests.

        QueueFullError if the queue is full; RuntimeError after `close`; ContextFullError, a
        ValueError, if the prompt does not fit; ValueError or TypeError, with the argument's name,
        for other requests that cannot be.
        """
        prompt: list[int] = self._model.checked_ids(request.prompt).tolist()
        self._model.limits_for(prompt, request.limits)
        self._model.check_sampling(request.sampling)
        if request.n_generated > self.lanes:
            name = "n" if request.best_of is None else "best_of"
            raise ValueError(
                f"{name} is {shown(request.n_generated)}; at most {self.lanes} answers run at once"
            )
        if request.embedding is not None:
            request = replace(request, embedding=pooling_of(self._model, request.embedding))
        with self._changed:
            if self._closing or self.closed:
                raise RuntimeError("the scheduler is closed")
            if len(self._queue) >= self.queue_length:
                raise QueueFullError(
                    f"{len(self._queue)} requests wait already; the queue has no room for more"
                )
            self._number += 1
            handle = Handle(self._number, request, prompt, on_event, after_events)
            self._queue.append(handle)
            self._changed.notify_all()
        return handle

    def cancel(self, handle: Handle) -> bool:
        """End a request wherever it is. When this returns, no event of it comes any more; a call of
        its on_event that is under way has returned, unless it is on_event that cancels. Returns
        whether the request was still going on."""
        going_on = handle.end("cancelled")
        with self._changed:
            if handle in self._queue:
                self._queue.remove(handle)
        return going_on

    @property
    def n_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def n_running(self) -> int:
        """Requests that have lanes."""
        return len(self._jobs)

    @property
    def cached_bytes(self) -> int:
        """Bytes of what is kept of earlier prompts and answers."""
        return self._tree.nbytes

    def close(self, *, drain: bool = False) -> None:
        """End, and free the model. drain: after all requests that were submitted have ended; else
        those fail with RuntimeError. Waits for a thread in serve_forever; in that thread, called
        from on_event, it returns at once, and serve_forever ends later."""
        with self._changed:
            if self.closed:
                return
            if self._closing != "now":
                self._closing = "drain" if drain else "now"
            self._changed.notify_all()
            if self._server is threading.current_thread():
                return
            self._changed.wait_for(lambda: self._server is None)
        while self.step():
            pass
        super().close()

    def release(self) -> None:
        try:
            self._lanes.close()
        finally:
            self._stack.close()

    # ---- the engine's thread -------------------------------------------------------------------

    def serve_forever(self) -> None:
        """Run requests until `close`. RuntimeError if a thread does so already."""
        with self._changed:
            if self._server is not None or self.closed:
                raise RuntimeError("the scheduler is closed, or a thread is in serve_forever")
            self._server = threading.current_thread()
        try:
            while self._serve():
                pass
        finally:
            with self._changed:
                self._server = None
                self._changed.notify_all()

    def _serve(self) -> bool:
        """A step, or a wait for something to do. Returns False when all is done and the scheduler
        is to be closed. An error that no request accounts for ends those that may have caused it;
        the others go on."""
        try:
            with self._pass_lock:
                went_on = self.step()
            if went_on:
                self._lanes.save(idle=False)
                return True
        except Exception as error:
            _log.exception("a step of the scheduler failed")
            with self._changed:
                first = list(self._queue)[:1]
            for handle in [*(job.handle for job in self._jobs), *first]:
                self._teller.fail(handle, error)
            self._teller.call_after_events()
        seconds = self._lanes.save(idle=True)
        with self._changed:
            if self._closing and not self._queue:
                return False
            self._changed.wait_for(lambda: self._has_work() or self._woken, seconds)
            self._woken = False
            return True

    def _wake(self) -> None:
        """For any thread: ends the wait of serve_forever."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _has_work(self) -> bool:
        return bool(self._queue or self._jobs or self._closing)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `step` may have something to do. Returns False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(self._has_work, timeout)

    def step(self) -> bool:
        """One pass: admit, choose, evaluate, tell. Returns False if there is nothing to do."""
        self._drop()
        self._admit()
        if chosen := self._choose():
            self._teller.call_after_events()  # of what was told so far: a pass may take long
            found = self._evaluate(chosen)
            for (job, choice, step), its in zip(chosen, found, strict=False):
                if job.handle.is_over:  # cancelled in this pass; what it evaluated is kept
                    choice.evaluated(step)
                else:
                    self._teller.tell(job, job.evaluated(choice, step, its, self._tree))
        self._drop()
        self._teller.call_after_events()
        if not self._jobs and not self._queue:
            self._lanes.shrink()
            return False
        return True

    # ---- admitting -----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give lanes to those that wait, in order, as far as there are lanes and memory."""
        while True:
            with self._changed:
                if not self._queue:
                    return
                handle = self._queue[0]
            try:
                job = self._job_of(handle)
            except MemoryError as error:
                if self._jobs:
                    return
                self._teller.fail(handle, error)
                job = None
            if job is None and not handle.is_over:
                return
            with self._changed:
                if handle in self._queue:  # it may have been cancelled meanwhile
                    self._queue.remove(handle)
            if job is not None:
                self._jobs.append(job)

    def _job_of(self, handle: Handle) -> RunningRequest | None:
        """The request with its lanes; None if it must wait for those that run. MemoryError."""
        n, limits = handle.request.n_generated, handle.request.limits
        taken = self._lanes.take(n, len(handle.prompt) + limits.max_new_tokens)
        if taken is None:
            return None
        return RunningRequest(handle, self._model.limits_for(handle.prompt, limits), *taken)

    def _drop(self) -> None:
        """End what is due, and take the lanes of what has ended."""
        self._end_what_is_due()
        with self._changed:
            for handle in [handle for handle in self._queue if handle.is_over]:
                self._queue.remove(handle)
        for job in list(self._jobs):
            states = job.freed
            if job.handle.is_over:
                for choice in job.choices if job.handle.stage == "cancelled" else ():
                    job.keep(choice, self._tree)
                states = [*states, *job.states]
                self._jobs.remove(job)
                self._lanes.release(job.n_bytes)
            self._lanes.give_back(states)
            job.freed = []

    def _end_what_is_due(self) -> None:
        """Requests that are late; all of them if the scheduler is to be closed now."""
        now = perf_counter()
        with self._changed:
            waiting = list(self._queue)
        for handle in [*waiting, *(job.handle for job in self._jobs)]:
            if self._closing == "now":
                self._teller.fail(handle, RuntimeError("the scheduler was closed"))
            elif late := _lateness(handle, now):
                self._teller.fail(handle, DeadlineError(late))

    # ---- a pass --------------------------------------------------------------------------------

    def _choose(self) -> list[Chosen]:
        """What the next pass evaluates: all single tokens, the next piece of the first prompt, and
        those of the prompts after it while all pieces have no more tokens than one may have. If
        layers are streamed, whole prompts: the first one, and as many others as together are no
        longer than the context, for which the plan has memory."""
        streams = self._decoder.streams
        most = self._model.context if streams else self._most
        chosen: list[Chosen] = []
        n_tokens, is_full = 0, False

        def fits(n: int) -> bool:
            nonlocal is_full
            if is_full or (n_tokens and n_tokens + n > most):
                is_full = not streams  # without streams, no prompt overtakes another one
                return False
            return True

        for job in self._jobs:
            if not job.begun:
                if is_full or n_tokens >= most:
                    continue
                prompts = [other for other, _, _ in chosen if other.handle.stage == "prompt"]
                # The first one fits; what it reuses is looked up when it begins.
                if prompts or n_tokens:
                    reused = job.n_reusable_now(self._kinds, self._tree)
                    if any(self._offers_more(other, job, reused) for other in prompts):
                        continue  # it reuses in the next pass what this one evaluates
                    if n_tokens and not fits(len(job.handle.prompt) - reused):
                        continue  # later, it may reuse more
                tokenizer = self._model.prompts.tokenizer
                self._teller.tell(job, job.begin(tokenizer, self._kinds, self._tree, self._most))
            for choice in job.choices:
                step = job.next_step(choice, self._most, whole=streams)
                if choice.n_pending > 1:
                    n = choice.n_pending if streams else len(step.tokens)
                    if step.wanted == "all" and not streams:
                        n = most  # the memory for logits is that of a piece
                    if not fits(n):
                        continue
                    n_tokens += n
                choice.start()
                chosen.append((job, choice, step))
        return [each for each in chosen if not each[0].handle.is_over]

    def _offers_more(self, other: RunningRequest, job: RunningRequest, reused: int) -> bool:
        """Whether a prompt can reuse much more of another one, which the next pass evaluates, than
        the `reused` tokens that were evaluated before."""
        n = WORTH_A_PASS if self._decoder.streams else WORTH_A_WAIT
        mine, its = job.handle.prompt, other.handle.prompt
        if len(mine) <= n or mine[:n] != its[:n]:
            return False
        reuses = job.request.reuses
        bits = reuses == "any" or (reuses == "exact" and self._kinds.any_batch)
        if not (bits and self._decoder.layout.can_be_cut and self._tree.most_bytes > 0):
            return False
        later = job.n_reusable(_n_shared(mine, its), self._kinds)
        return later >= n and later - reused >= n

    def _evaluate(self, chosen: Sequence[Chosen]) -> list[NDArray[np.float32]]:
        """What the steps want. If the pass fails, so do all requests in it, and there is none."""
        steps = [step for _, _, step in chosen]
        n_logits = sum(step.n_logits for step in steps)
        if len(self._logits) < n_logits or len(self._logits) > max(n_logits, self.lanes):
            self._logits = np.empty((n_logits, self._logits.shape[1]), np.float32)
        on_layer = None
        if self._decoder.streams or self._on_layer is not None:
            on_layer = partial(self._after_layer, chosen)
        lengths = [step.state.length for step in steps]
        try:
            try:
                return self._decoder.evaluate_each(steps, self._logits, on_layer)
            except MemoryError:
                self._lanes.shrink(tree=True)
                if lengths != [step.state.length for step in steps]:
                    raise  # recurrent memory has been lost
                return self._decoder.evaluate_each(steps, self._logits, on_layer)
        except _AbandonedError:
            return []
        except Exception as error:
            _log.warning("a pass of %d requests failed: %s", len(chosen), error)
            for job, _, _ in chosen:
                self._teller.fail(job.handle, error)
            return []
        except BaseException:  # Ctrl-C: the states may have lost tokens
            for job, _, _ in chosen:
                job.handle.end("failed")
            raise

    def _after_layer(self, chosen: Sequence[Chosen], done: int, total: int) -> None:
        """Within a pass: tells how far it is, and abandons a pass that nobody waits for."""
        if self._on_layer is not None:
            self._on_layer(done, total)
        if not self._decoder.streams:
            return
        for job, _, step in chosen:
            self._teller.tell(job, job.within_prompt(step, done / total))
        self._end_what_is_due()
        self._teller.call_after_events()
        if all(job.handle.is_over for job, _, _ in chosen):
            raise _AbandonedError


class _AbandonedError(Exception):
    """All requests of a pass have ended before it did."""


def _n_shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first tokens are equal, by halves: lists are compared a hundred times faster
    than their tokens one by one."""
    shared, end = 0, min(len(a), len(b))
    while shared < end:
        middle = (shared + end + 1) // 2
        if a[shared:middle] == b[shared:middle]:
            shared = middle
        else:
            end = middle - 1
    return shared


def _lateness(handle: Handle, now: float) -> str:
    """Why the request must end; empty if it need not."""
    request, seconds = handle.request, now - handle.submitted
    if request.deadline_seconds is not None and seconds > request.deadline_seconds:
        return f"the answer took longer than deadline_seconds={request.deadline_seconds:g}"
    waits = handle.stage == "queue" and request.queue_seconds is not None
    if waits and seconds > (request.queue_seconds or 0.0):
        return f"it waited longer than queue_seconds={request.queue_seconds:g}"
    return ""

"""Plans a model's memory within a budget, and opens the source of weights that the plan needs."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from airllm.backends import Backend, Executor
from airllm.backends.routed import RoutedExecutor, has_experts
from airllm.formats.model_file import ModelFile
from airllm.graph.graph import Graph
from airllm.models import Model, ModelConfig
from airllm.state.layout import KVType, StateLayout
from airllm.util.arguments import check_count
from airllm.util.progress import OnProgress
from airllm.util.shown import shown
from airllm.weights.budget import BudgetError
from airllm.weights.buffers import NEXT_HEAD_ROWS, buffer_bytes, carried_bytes
from airllm.weights.layer_weights import (
    FileWeights,
    WeightSource,
    check_tensors,
    largest_tensor,
)
from airllm.weights.plan import (
    BATCH_SIZE,
    CONTEXT_STEP,
    DEFAULT_CONTEXT,
    STREAMED_BATCH_SIZE,
    Part,
    Plan,
    default_context,
    make_plan,
    model_parts,
    next_head_part,
)

_Made = TypeVar("_Made")
_log = logging.getLogger("airllm")


def plan_weights(
    gguf: ModelFile,
    model: Model,
    backend: Backend,
    *,
    budget: int | None,
    context: int | None,
    kv_type: KVType,
    batch_size: int | None = None,
) -> tuple[Plan, list[Part]]:
    """The plan for `budget` bytes, and the parts of the model.

    context: in tokens; None for the default, see in_context.
    batch_size: the most tokens of a prompt in one batch; None for BATCH_SIZE, or for
    STREAMED_BATCH_SIZE if the model does not fit with BATCH_SIZE and the backend gives the same
    answers with both.
    Errors, before any weight is read: FormatError if the file's tensors do not fit the model,
    ValueError for a context that the model does not allow, BudgetError if it does not run in the
    budget.
    """
    check_tensors(gguf, model)
    parts, next_head = model_parts(gguf, model, backend), next_head_part(gguf, model, backend)
    layout = StateLayout(model.states, kv_type)
    of_head = None if model.next_head is None else StateLayout([model.next_head.state], kv_type)

    def state_of_head(context: int) -> int:
        return 0 if of_head is None else of_head.nbytes(context, NEXT_HEAD_ROWS)

    def state_bytes(context: int) -> int:
        size = int(batch_size or BATCH_SIZE)
        return layout.nbytes(context, size, guesses=True) + state_of_head(context)

    def with_batches(context: int, most: int, *, streamed: bool) -> Plan:
        size = min(most, context)
        # All batches of a prompt go through a layer before the next layer is read.
        waiting = carried_bytes(model) * (context - size) if streamed else 0
        return make_plan(
            parts,
            budget=budget,
            context=context,
            batch_size=size,
            kv_cache_bytes=state_of_head(context)
            + layout.nbytes(context, size, context if streamed else 0, guesses=True),
            buffer_bytes=buffer_bytes(model, backend, size, context) + waiting,
            by_expert_bytes=buffer_bytes(model, backend, size, context, by_expert=True) + waiting,
            experts_used=model.config.n_experts_used,
            n_loops=model.config.n_loops,
            next_head=next_head,
            may_stream=streamed,
        )

    large, small = int(batch_size or BATCH_SIZE), int(batch_size or STREAMED_BATCH_SIZE)
    if not backend.any_batch:
        small = large

    def plan(context: int) -> Plan:
        refusals: list[BudgetError] = []
        # Each batch reads its experts anew, so that few large batches read less.
        for size, streamed in ((large, False), (large, True), (small, True)):
            try:
                found = with_batches(context, size, streamed=streamed)
            except BudgetError as refusal:
                # A traceback would keep the engine that is being opened.
                refusals.append(refusal.with_traceback(None))
                continue
            if not streamed or found.expert_places or size == small:
                return found
        # A prompt that waits for streamed layers takes memory: all of a small model may take less.
        raise min(refusals, key=lambda refusal: refusal.minimum)

    return in_context(plan, context, model.config, state_bytes, budget)[1], parts


def in_context(
    make: Callable[[int], _Made],
    asked: int | None,
    config: ModelConfig,
    state_bytes: Callable[[int], int],
    budget: int | None,
) -> tuple[int, _Made]:
    """The context that an engine has, and the result of make(context). state_bytes: of the state
    of a sequence of a context.

    Without `asked`, the context starts at the default and shrinks, down to CONTEXT_STEP, while
    `make` raises a BudgetError. ValueError if `asked` is more than the model allows.
    """
    if asked is not None:
        asked = check_count("context", asked)
        if asked > config.context_length:
            raise ValueError(
                f"context is {shown(asked)}; {config.name} allows at most {config.context_length} "
                "tokens"
            )
        return asked, make(asked)
    longest = min(config.context_length, DEFAULT_CONTEXT)
    shortest = min(CONTEXT_STEP, longest)
    context = default_context(longest, shortest, state_bytes, budget)
    while True:
        try:
            made = make(context)
            break
        except BudgetError as error:
            if budget is None or context == shortest:
                raise
            too_much = error.minimum - budget
            smaller = range(context - CONTEXT_STEP, shortest, -CONTEXT_STEP)
            enough = (c for c in smaller if state_bytes(context) - state_bytes(c) >= too_much)
            context = max(shortest, next(enough, shortest) // CONTEXT_STEP * CONTEXT_STEP)
    if context < longest:
        _log.info("a context of %d tokens: the memory has no room for more", context)
    elif context < config.context_length:
        _log.debug("context of %d tokens; the model allows %d", context, config.context_length)
    return context, made


def layer_executor(backend: Backend, graph: Graph, max_tokens: int, plan: Plan) -> Executor:
    """The executor of a layer: one that fetches experts if the layer has experts, and the plan
    reads them from the disk."""
    if not plan.expert_places or not has_experts(graph):
        return backend.executor(graph, max_tokens)
    return RoutedExecutor(backend, graph, max_tokens)


def open_weights(
    gguf: ModelFile,
    model: Model,
    backend: Backend,
    plan: Plan,
    parts: Sequence[Part],
    *,
    embed: Executor,
    layers: Sequence[Executor],
    head: Executor,
    next_head: Sequence[Executor] = (),
    on_progress: OnProgress | None = None,
) -> WeightSource:
    """The plan's source of weights, bound to the executors. layers: made by layer_executor."""
    executors: dict[str, Any] = {
        "embed": embed,
        "layers": layers[: model.config.n_stored_layers],
        "head": head,
        "next_head": next_head,
    }
    # FileWeights reads through the page cache, which may hold the model from an earlier use. It
    # reads a whole tensor at a time, so the budget needs room for the largest tensor, too.
    at_once = largest_tensor(gguf, model)
    budget = plan.budget_bytes
    if budget is None or (plan.embedding == "pinned" and plan.total_bytes + at_once <= budget):
        return FileWeights(gguf, model, backend, **executors, on_progress=on_progress)
    from airllm.weights.stream_weights import StreamWeights

    return StreamWeights(gguf, model, backend, plan, parts, **executors, on_progress=on_progress)

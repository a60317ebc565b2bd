"""From a model and a budget to its plan and its weights: which of the sources it is."""

from collections.abc import Sequence

from airllm.backends import Backend, Executor
from airllm.budget import BudgetError
from airllm.formats.model_file import ModelFile
from airllm.graph import Graph
from airllm.models import Model
from airllm.plan import (
    BATCH_SIZE,
    STREAMED_BATCH_SIZE,
    Part,
    Plan,
    buffer_bytes,
    make_plan,
    model_parts,
)
from airllm.progress import OnProgress
from airllm.weights import FileWeights, WeightSource, check_tensors


def plan_weights(
    gguf: ModelFile,
    model: Model,
    backend: Backend,
    *,
    budget: int | None,
    context: int,
    kv_cache_bytes: int,
    batch_size: int | None = None,
) -> tuple[Plan, list[Part]]:
    """The plan for `budget` bytes, and the parts of the model that it speaks of.

    batch_size: tokens of a prompt that are evaluated at once, at most; None for BATCH_SIZE, or for
    STREAMED_BATCH_SIZE where the model does not fit with that, and the answers are the same.
    FormatError where the tensors are not the model's, BudgetError where it does not run in the
    budget; nothing was read then.
    """
    check_tensors(gguf, model)
    parts = model_parts(gguf, model, backend)

    def plan(most: int, *, streamed: bool) -> Plan:
        size = min(most, context)
        # All batches of a prompt go through a layer before the next is read.
        waiting = 4 * model.config.hidden_size * (context - size) if streamed else 0
        return make_plan(
            parts,
            budget=budget,
            context=context,
            batch_size=size,
            kv_cache_bytes=kv_cache_bytes,
            buffer_bytes=buffer_bytes(model, size, context) + waiting,
            experts_used=model.config.n_experts_used,
        )

    large, small = batch_size or BATCH_SIZE, batch_size or STREAMED_BATCH_SIZE
    if not backend.any_batch:
        small = large
    try:
        found = plan(large, streamed=False)
    except BudgetError:
        return plan(small, streamed=True), parts
    if not found.streams:
        return found, parts
    # Experts are read for each batch anew: few large ones read less.
    return plan(large if found.expert_places else small, streamed=True), parts


def layer_executor(backend: Backend, graph: Graph, max_tokens: int, plan: Plan) -> Executor:
    """The executor that a layer needs for weights as the plan has them."""
    if not plan.expert_places:
        return backend.executor(graph, max_tokens)
    from airllm.routed import RoutedExecutor

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
    on_progress: OnProgress | None = None,
) -> WeightSource:
    """The weights as the plan says, bound to executors; those of layers are layer_executor's."""
    # What all fits is read through the page cache, which has it already where the model was used
    # before; but a whole tensor at a time, so there must be room for that too.
    at_once = max((tensor.nbytes for tensor in gguf.tensors.values()), default=0)
    budget = plan.budget_bytes
    if budget is None or (plan.embedding == "pinned" and plan.total_bytes + at_once <= budget):
        return FileWeights(
            gguf, model, backend, embed=embed, layers=layers, head=head, on_progress=on_progress
        )
    from airllm.stream_weights import StreamWeights

    return StreamWeights(
        gguf,
        model,
        backend,
        plan,
        parts,
        embed=embed,
        layers=layers,
        head=head,
        on_progress=on_progress,
    )

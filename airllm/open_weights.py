"""From a model and a budget to the weights: which of the sources it is."""

from collections.abc import Sequence

from airllm.backends import Backend, Executor
from airllm.formats.model_file import ModelFile
from airllm.models import Model
from airllm.plan import Plan, make_plan, model_parts
from airllm.progress import OnProgress
from airllm.weights import FileWeights, WeightSource, check_tensors


def open_weights(
    gguf: ModelFile,
    model: Model,
    backend: Backend,
    *,
    executors: tuple[Executor, Sequence[Executor], Executor],
    budget: int | None,
    context: int,
    kv_cache_bytes: int,
    buffer_bytes: int,
    on_progress: OnProgress | None = None,
) -> tuple[WeightSource, Plan]:
    """The weights as `budget` bytes allow, and the plan that they follow.

    executors: of the embedding, of each layer, of the head. BudgetError where the model does not
    run in the budget, before anything is read.
    """
    check_tensors(gguf, model)
    parts = model_parts(gguf, model, backend)
    plan = make_plan(
        parts,
        budget=budget,
        context=context,
        kv_cache_bytes=kv_cache_bytes,
        buffer_bytes=buffer_bytes,
    )
    embed, layers, head = executors
    # What all fits is read through the page cache, which has it already where the model was used
    # before; but a whole tensor at a time, so there must be room for that too.
    at_once = max((tensor.nbytes for tensor in gguf.tensors.values()), default=0)
    if budget is None or (plan.embedding == "pinned" and plan.total_bytes + at_once <= budget):
        return (
            FileWeights(
                gguf, model, backend, embed=embed, layers=layers, head=head, on_progress=on_progress
            ),
            plan,
        )
    from airllm.stream_weights import StreamWeights

    return (
        StreamWeights(
            gguf,
            model,
            backend,
            plan,
            parts,
            embed=embed,
            layers=layers,
            head=head,
            on_progress=on_progress,
        ),
        plan,
    )

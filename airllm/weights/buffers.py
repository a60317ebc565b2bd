"""How much memory the graphs of a model take beside weights and state: buffers between them and
inside, and tables of angles."""

from airllm.backends import Backend
from airllm.backends.routed import has_experts, routed_bytes
from airllm.graph.graph import Graph
from airllm.models import Model
from airllm.models.next_head import HeadSteps

__all__ = ["NEXT_HEAD_ROWS", "NEXT_HEAD_TOKENS", "buffer_bytes", "carried_bytes"]

# The most tokens that go through a next-token head at once: as many as lookahead evaluates, so that
# their hidden states are all kept. Larger buffers would make a prompt no faster.
NEXT_HEAD_ROWS = 64
NEXT_HEAD_TOKENS = HeadSteps(
    norm=NEXT_HEAD_ROWS, join=NEXT_HEAD_ROWS, layer=1, append=NEXT_HEAD_ROWS, output=1
)


def buffer_bytes(
    model: Model, backend: Backend, batch_size: int, context: int, *, by_expert: bool = False
) -> int:
    """Bytes of all buffers, for batches of `batch_size` tokens, and of the angles of a context.
    by_expert: experts are read one by one."""

    def of_layer(graph: Graph) -> int:
        if by_expert and has_experts(graph):
            return routed_bytes(backend, graph, batch_size, context)
        return backend.executor_bytes(graph, batch_size, context)

    found = sum(of_layer(kind.graph) for kind in model.kinds)
    graphs = [*(kind.graph for kind in model.kinds), model.embed, model.head]
    for graph in (model.embed, model.head):
        found += backend.executor_bytes(graph, batch_size, context)
    # One graph runs at a time.
    found += max(backend.temporary_bytes(graph, batch_size, context) for graph in graphs)
    angles = sum(2 * len(rotation.inv_freq) for rotation in model.rotations)
    logits = 4 * model.config.vocab_size
    found += carried_bytes(model) * batch_size + 4 * angles * context + logits
    if (head := model.next_head) is not None:
        for graph, n in zip(head.graphs, NEXT_HEAD_TOKENS, strict=True):
            found += backend.executor_bytes(graph, n, context)
        hidden = 4 * model.config.hidden_size
        found += (carried_bytes(model) + hidden) * NEXT_HEAD_ROWS + 2 * hidden + logits
    return found


def carried_bytes(model: Model) -> int:
    """Bytes that each token of a pass carries from the embedding through the layers."""
    return 4 * sum(model.carried.values())

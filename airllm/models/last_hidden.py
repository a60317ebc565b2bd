"""The graph of the last hidden states, from which embeddings are made."""

from collections.abc import Iterable
from dataclasses import replace

from airllm.graph.graph import Graph

__all__ = ["before_the_last_linear"]


def before_the_last_linear(head: Graph) -> Graph:
    """The ops of a head, which is not fused, that make what its matrix multiplies."""
    at = next(at for at, op in enumerate(head.ops) if "logits" in op.outputs)
    ops, (source,) = head.ops[:at], head.ops[at].inputs

    def named(names: Iterable[str]) -> tuple[str, ...]:
        return tuple("hidden" if name == source else name for name in names)

    renamed = tuple(
        replace(
            op,
            inputs=named(op.inputs),
            output=None if op.output is None else named([op.output])[0],
            more_outputs=named(op.more_outputs),
        )
        for op in ops
    )
    used = {name for op in ops for name in (*op.inputs, *op.outputs)}
    buffers = tuple(
        replace(buffer, name="hidden", external=True) if buffer.name == source else buffer
        for buffer in head.buffers
        if buffer.name in used
    )
    weights = {name for op in ops for name in op.weights}
    return Graph(
        "last hidden",
        buffers,
        tuple(each for each in head.weights if each.name in weights),
        renamed,
    )

"""Fusion: rewrites of a graph into fewer, larger ops.

Threads then wait for each other less often, and intermediate results stay in the caches. Each
rewrite is a function from a graph to a graph that computes the same numbers, bit for bit on both
backends. `fuse` applies all rewrites; AIRLLM_FUSION=0 turns them off.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from airllm.graph.graph import Graph, Op
from airllm.util.arguments import check_flag

# Ops that multiply the quantised form of their first input by matrices.
_LINEAR_KINDS = ("linear", "linear_many", "linear_add", "glu_linear")
MOST_LINEARS = 8  # of a linear_many; the C++ executor takes no more
_GLU = {"swiglu": "silu", "geglu": "gelu"}
_APPENDS = ("kv_append", "rope_append", "latent_append", "index_append")


def fusion_wanted(asked: bool | None) -> bool:
    """`asked`, or if that is None the value of AIRLLM_FUSION: "1" (the default) or "0".
    ValueError for another value, TypeError if `asked` is no bool."""
    if asked is not None:
        return check_flag("fusion", asked)
    value = os.environ.get("AIRLLM_FUSION") or "1"
    if value not in ("0", "1"):
        raise ValueError(f"AIRLLM_FUSION is {value!r}; expected '0' or '1'")
    return value == "1"


def fuse(graph: Graph) -> Graph:
    for rewrite in REWRITES:
        graph = rewrite(graph)
    return graph


def only_appends(graph: Graph) -> Graph:
    """The ops that a layer's keys and values are made by, without those that read them."""
    needed: set[str] = set()
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if op.kind in _APPENDS or needed & {*op.outputs}:
            kept.append(op)
            needed |= {*op.inputs}
    return replace(_with_ops(graph, kept[::-1]), name="append")


def fuse_glu(graph: Graph) -> Graph:
    """linear, linear, swiglu (or geglu) -> glu_linear, which computes a few columns of both
    products and combines them while they are in the cache."""
    ops = list(graph.ops)
    for at, op in enumerate(ops):
        if op.kind not in _GLU:
            continue
        gate, up = (_writer(graph, ops, at, name, "linear") for name in op.inputs)
        if gate is None or up is None or gate == up:
            continue
        first, second = ops[gate], ops[up]
        x, start = first.inputs[0], min(gate, up)
        if second.inputs[0] != x or first.attrs != second.attrs or op.output == x:
            continue
        if _is_written(ops, x, start, at):
            continue
        attrs = {**first.attrs, "activation": _GLU[op.kind]}
        fused = Op("glu_linear", (x,), op.output, first.weights + second.weights, attrs)
        ops[at] = fused
        return fuse_glu(_with_ops(graph, _without(ops, gate, up)))
    return graph


def fuse_add(graph: Graph) -> Graph:
    """linear, add -> linear_add, which adds each product as soon as it is computed."""
    ops = list(graph.ops)
    for at, op in enumerate(ops):
        if op.kind != "add" or op.inputs[0] == op.inputs[1]:
            continue
        for product, other in (op.inputs, op.inputs[::-1]):
            linear = _writer(graph, ops, at, product, "linear")
            if linear is None:
                continue
            x = ops[linear].inputs[0]
            if op.output == x or _is_written(ops, x, linear, at):
                continue
            ops[at] = replace(ops[linear], kind="linear_add", inputs=(x, other), output=op.output)
            return fuse_add(_with_ops(graph, _without(ops, linear)))
    return graph


def fuse_linears(graph: Graph) -> Graph:
    """Several linears of one input (Q, K and V) -> linear_many, in which no thread waits between
    the products."""
    ops = list(graph.ops)
    for at, op in enumerate(ops):
        if op.kind not in ("linear", "linear_many"):
            continue
        for other in range(at + 1, len(ops)):
            later = ops[other]
            if later.kind != "linear" or later.inputs != op.inputs or later.attrs != op.attrs:
                continue
            if len(op.weights) == MOST_LINEARS:
                break
            between = ops[at:other]
            touched = {name for o in between for name in (*o.inputs, *o.outputs)}
            if later.output in touched or _is_written(ops, op.inputs[0], at - 1, other):
                continue
            ops[at] = replace(
                op,
                kind="linear_many",
                weights=op.weights + later.weights,
                more_outputs=(*op.more_outputs, *later.outputs),
            )
            return fuse_linears(_with_ops(graph, _without(ops, other)))
    return graph


def fuse_rope_append(graph: Graph) -> Graph:
    """rope, kv_append -> rope_append, which writes rotated keys straight into the cache."""
    ops = list(graph.ops)
    for at, op in enumerate(ops):
        if op.kind != "kv_append":
            continue
        k, v = op.inputs
        rope = _writer(graph, ops, at, k, "rope")
        if rope is None or v == k or ops[rope].attrs["offset"]:
            continue
        source, table = ops[rope].inputs
        names = (source, table)
        if any(_is_written(ops, name, rope, at) for name in names) or source == v:
            continue
        attrs = {**op.attrs, "interleaved": ops[rope].attrs["interleaved"]}
        ops[at] = Op("rope_append", (source, v, table), None, (), attrs)
        return fuse_rope_append(_with_ops(graph, _without(ops, rope)))
    return graph


def fuse_norm(graph: Graph) -> Graph:
    """An rms_norm whose output only matrix products read -> quantized_norm, which quantises each
    row for them while the row is in the cache."""
    internal = {buffer.name for buffer in graph.buffers if not buffer.external}
    ops = list(graph.ops)
    for at, op in enumerate(ops):
        if op.kind != "rms_norm" or op.output not in internal:
            continue
        readers = _readers(ops, at)
        kinds = {ops[reader].kind for reader in readers}
        activations = {ops[reader].attrs.get("activations") for reader in readers}
        as_x = all(ops[reader].inputs.index(op.output) == 0 for reader in readers)
        once = all(ops[reader].inputs.count(op.output) == 1 for reader in readers)
        if readers and kinds <= {*_LINEAR_KINDS} and len(activations) == 1 and as_x and once:
            [kind] = activations
            if kind is not None and kind != "f32":
                attrs = {**op.attrs, "activations": kind}
                ops[at] = replace(op, kind="quantized_norm", attrs=attrs)
    return _with_ops(graph, ops)


REWRITES: Sequence[Callable[[Graph], Graph]] = (
    fuse_glu,
    fuse_add,
    fuse_linears,
    fuse_rope_append,
    fuse_norm,
)


# ---- who writes and reads what -------------------------------------------------------------------


def _writer(graph: Graph, ops: Sequence[Op], at: int, name: str, kind: str) -> int | None:
    """The index of the op of that kind that writes `name` for op `at`, if no other op reads it."""
    if any(buffer.name == name and buffer.external for buffer in graph.buffers):
        return None
    for index in range(at - 1, -1, -1):
        if name in ops[index].outputs:
            alone = ops[index].kind == kind and _readers(ops, index) == [at]
            return index if alone else None
    return None


def _readers(ops: Sequence[Op], at: int) -> list[int]:
    """The ops that read the output of op `at` before another op overwrites it."""
    found, name = [], ops[at].output
    for index in range(at + 1, len(ops)):
        if name in ops[index].inputs:
            found.append(index)
        if name in ops[index].outputs:
            break
    return found


def _is_written(ops: Sequence[Op], name: str, after: int, before: int) -> bool:
    """Whether an op after `after` and before `before` writes the buffer `name`."""
    return any(name in op.outputs for op in ops[after + 1 : before])


def _without(ops: Sequence[Op], *left_out: int) -> list[Op]:
    return [op for index, op in enumerate(ops) if index not in left_out]


def _with_ops(graph: Graph, ops: Sequence[Op]) -> Graph:
    """The graph with these ops, and only the weights and internal buffers that they use."""
    used = {name for op in ops for name in (*op.inputs, *op.outputs)}
    buffers = tuple(buffer for buffer in graph.buffers if buffer.external or buffer.name in used)
    of_ops = {name for op in ops for name in op.weights}
    weights = tuple(weight for weight in graph.weights if weight.name in of_ops)
    return replace(graph, ops=tuple(ops), buffers=buffers, weights=weights)

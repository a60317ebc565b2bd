"""Graphs: a layer of a model as a list of ops over named buffers.

A graph is plain data. Weights are slots, bound to one layer's weights after another, so one graph
serves all layers; buffers are [n_tokens, width], so it serves every batch.

A model family builds its graphs once, with a GraphBuilder; a backend runs them. Every Graph is
sound, also after a rewrite: it is checked as a whole. A fault is a GraphError that names the op and
the buffer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airllm.graph.ops import SIGNATURES
from airllm.graph.vocabulary import (
    MANY,
    MATRICES,
    Activations,
    Attr,
    Buffer,
    Call,
    DType,
    GraphError,
    Op,
    Role,
    Weight,
)

__all__ = [
    "MANY",
    "MATRICES",
    "Activations",
    "Buffer",
    "Graph",
    "GraphError",
    "Op",
    "Role",
    "Weight",
    "check_outputs",
    "look_up",
]


_ATTENDS = ("attention", "sparse_attention", "block_attention")


@dataclass(frozen=True)
class Graph:
    """Ops in the order in which they run. Raises GraphError where the parts do not fit together.

    roles: what each weight slot is used as, as its ops say; backends prepare weights by it.
    """

    name: str
    buffers: tuple[Buffer, ...]
    weights: tuple[Weight, ...]
    ops: tuple[Op, ...]
    roles: Mapping[str, Role] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "roles", _check(self))
        except GraphError as error:
            raise GraphError(f"graph {self.name!r}: {error}") from None

    def has(self, buffer: str) -> bool:
        return any(each.name == buffer for each in self.buffers)

    @property
    def row_bytes(self) -> int:
        """Bytes of the internal buffers for each token of a batch."""
        return sum(4 * buffer.width for buffer in self.buffers if not buffer.external)

    def call(self, op: Op) -> Call:
        """One of the graph's ops with its buffers and weights."""
        buffers = {buffer.name: buffer for buffer in self.buffers}
        return look_up(op, buffers, {weight.name: weight for weight in self.weights})

    def recurrent_floats(self, op: Op) -> int:
        """The floats of recurrent memory that one of the graph's ops has for a sequence."""
        state = SIGNATURES[op.kind].state
        return 0 if state is None else state(self.call(op))

    def check_bound(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise GraphError unless `shapes` has every weight slot, in its shape, and no other."""
        for weight in self.weights:
            if weight.name not in shapes:
                raise GraphError(f"graph {self.name!r}: weight {weight.name!r} is not bound")
            if shapes[weight.name] != weight.shape:
                raise GraphError(
                    f"graph {self.name!r}: weight {weight.name!r} has shape "
                    f"{list(shapes[weight.name])}, expected {list(weight.shape)}"
                )
        if extra := shapes.keys() - self.roles.keys():
            raise GraphError(f"graph {self.name!r}: no weight is named {', '.join(sorted(extra))}")


def _check(graph: Graph) -> dict[str, Role]:
    """Check a whole graph; returns the role of each weight."""
    _check_names([buffer.name for buffer in graph.buffers], "buffer")
    _check_names([weight.name for weight in graph.weights], "weight")
    buffers = {buffer.name: buffer for buffer in graph.buffers}
    weights = {weight.name: weight for weight in graph.weights}
    written = {buffer.name for buffer in graph.buffers if buffer.external}
    roles: dict[str, Role] = {}
    cache: tuple[Attr, Attr] | None = None  # (n_kv_heads, head_dim) that the graph appends
    index: tuple[Attr, Attr] | None = None  # (head_dim, every) that it appends to the index
    groups: tuple[Attr, Attr] | None = None  # likewise of groups
    pooled: set[Attr] = set()  # whether for the index
    for_matrices: dict[str, Attr] = {}  # buffer of a quantized_norm -> its activations
    for op in graph.ops:
        call = look_up(op, buffers, weights)
        for name in op.inputs:
            call.require(name in written, f"input {name!r} is read before it is written")
        for name in op.inputs:
            call.require(
                name not in for_matrices or op.attrs.get("activations") == for_matrices[name],
                f"input {name!r} is quantised for matrices with other activations",
            )
        for name, role in zip(op.weights, SIGNATURES[op.kind].roles(op), strict=True):
            used_as = roles.setdefault(name, role)
            call.require(used_as == role, f"weight {name!r} is used as {used_as} and as {role}")
        if op.kind in ("kv_append", "rope_append", "latent_append"):
            call.require(cache is None, "keys are appended twice")
            cache = op.attrs["n_kv_heads"], op.attrs["head_dim"]
        elif op.kind == "index_append":
            call.require(index is None, "keys of the index are appended twice")
            index = op.attrs["head_dim"], op.attrs["every"]
        elif op.kind == "group_append":
            call.require(groups is None, "keys of groups are appended twice")
            groups = op.attrs["head_dim"], op.attrs["every"]
        elif op.kind == "pool_groups":
            call.require(op.attrs["of_index"] not in pooled, "groups are pooled twice")
            pooled.add(op.attrs["of_index"])
        elif op.kind in ("index_select", "choose_blocks"):
            pools = op.attrs.get("pooled", False)
            head_dim = op.attrs["head_dim"]
            every = op.attrs["block_size"] if pools else op.attrs.get("every", 1)
            own = index or (None, None)
            call.require(own[0] == head_dim, f"reads keys of {head_dim}, the index has {own[0]}")
            call.require(
                own[1] == every, f"selects groups of {every}, the index has groups of {own[1]}"
            )
        elif op.kind in _ATTENDS and cache is not None:
            # Without keys of its own, the graph reads another layer's.
            wanted = op.attrs["n_kv_heads"], op.attrs["head_dim"]
            call.require(cache == wanted, f"reads KV heads {wanted}, the cache has {cache}")
        elif op.kind in ("group_attention", "sparse_group_attention"):
            head_dim = op.attrs["head_dim"]
            call.require(cache == (1, head_dim), f"reads keys of {head_dim}, the cache has {cache}")
            wanted = head_dim, op.attrs["every"]
            call.require(
                groups == wanted, f"reads groups (head_dim, every) {wanted}, there are {groups}"
            )
        check_outputs(call, SIGNATURES[op.kind].width(call), buffers)
        written |= {*op.outputs}
        for name in op.outputs:
            for_matrices.pop(name, None)
            if op.kind == "quantized_norm":
                for_matrices[name] = op.attrs["activations"]
    if idle := [name for name in buffers if name not in written]:
        raise GraphError(f"buffer {idle[0]!r} is never written")
    if idle := [name for name in weights if name not in roles]:
        raise GraphError(f"weight {idle[0]!r} is never used")
    return roles


def _check_names(names: Sequence[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise GraphError(f"two {what}s are named {name!r}")


def look_up(op: Op, buffers: Mapping[str, Buffer], weights: Mapping[str, Weight]) -> Call:
    """The op with its buffers and weights, after a check of their number and rank."""
    if op.kind not in SIGNATURES:
        raise GraphError(f"no op is named {op.kind!r}; there are {', '.join(SIGNATURES)}")
    signature = SIGNATURES[op.kind]
    for name in op.inputs:
        if name not in buffers:
            raise GraphError(f"{op.kind}: no buffer is named {name!r}")
    for name in op.weights:
        if name not in weights:
            raise GraphError(f"{op.kind}: no weight is named {name!r}")
    call = Call(op, tuple(buffers[n] for n in op.inputs), tuple(weights[n] for n in op.weights))
    for what, have, expected in (
        ("inputs", len(op.inputs), len(signature.inputs)),
        ("weights", len(op.weights), len(signature.roles(op))),
        ("attributes", sorted(op.attrs), sorted(signature.attrs)),
    ):
        call.require(have == expected, f"has {what} {have}, expected {expected}")
    for weight, role in zip(call.weights, signature.roles(op), strict=True):
        rank = 3 if role in MANY else 1 if role == "vector" else 2
        call.require(
            len(weight.shape) == rank,
            f"weight {weight.name!r} is {list(weight.shape)}, expected {rank} axes ({role})",
        )
    for name, buffer in zip(signature.inputs, call.inputs, strict=True):
        call.require(buffer.width >= 1, f"input {buffer.name!r} has width {buffer.width}")
        wanted = _dtype(op, name)
        call.require(
            buffer.dtype == wanted or op.kind == "embed",
            f"input {buffer.name!r} is not {wanted}",
        )
    return call


def _dtype(op: Op, name: str) -> DType:
    """The type of an op's input `name`, or of its output if `name` is "out"."""
    quantized = name == SIGNATURES[op.kind].q8_0 and op.attrs["quantized"]
    return "q8_0" if quantized else "float32"


def check_outputs(call: Call, width: int | None, buffers: Mapping[str, Buffer]) -> None:
    """What an op writes. width: of its output, as its signature says; None where it has none."""
    op, signature = call.op, SIGNATURES[call.op.kind]
    if op.output is None or width is None:
        call.require(op.output is None, "it has no output")
        call.require(width is None, "it needs a buffer to write to")
        return
    call.require(signature.many or not op.more_outputs, "it has one output")
    call.require(len({*op.outputs}) == len(op.outputs), "it writes a buffer twice")
    dtype = _dtype(op, "out")
    widths = [weight.shape[0] for weight in call.weights] if signature.many else [width]
    for output_name, expected in zip(op.outputs, widths, strict=True):
        call.require(output_name in buffers, f"no buffer is named {output_name!r}")
        output = buffers[output_name]
        call.require(
            (output.width, output.dtype) == (expected, dtype),
            f"output {output.name!r} is {output.dtype} of width {output.width}, "
            f"expected {dtype} of width {expected}",
        )
        call.require(
            output.external or op.kind != "put_columns", f"writes a part of {output.name!r} only"
        )
        for name, buffer in zip(signature.inputs, op.inputs, strict=True):
            call.require(
                buffer != output_name or name in signature.in_place,
                f"cannot overwrite its input {name}",
            )

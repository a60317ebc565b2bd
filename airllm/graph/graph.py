"""Graphs: a layer of a model as a list of ops over named buffers.

A model family builds its graphs once, with a GraphBuilder; a backend runs them. A graph is plain
data. Weights are slots, bound to one layer's weights after another, so one graph serves all layers;
buffers are [n_tokens, width], so it serves every batch.

    g = GraphBuilder("mlp")
    x = g.external("residual", 576)                             # [n, 576]
    h = g.rms_norm(x, g.weight("ffn_norm", 576), eps=1e-5)      # [n, 576]
    g.add(x, g.linear(h, g.weight("ffn_down", 576, 576)), out=x)
    graph = g.build()

The builder checks shapes at each call, so that an error points at the wrong line. Graph checks the
whole again, so that every Graph is sound, also after a rewrite. A fault is a GraphError that names
the op and the buffer.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airllm.graph.ops import (
    SIGNATURES,
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

__all__ = ["Activations", "Buffer", "Graph", "GraphBuilder", "GraphError", "Op", "Role", "Weight"]


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

    @property
    def row_bytes(self) -> int:
        """Bytes of the internal buffers for each token of a batch."""
        return sum(4 * buffer.width for buffer in self.buffers if not buffer.external)

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
    cache: tuple[Attr, Attr] | None = None  # (n_kv_heads, head_dim) after the append
    for_matrices: dict[str, Attr] = {}  # buffer of a quantized_norm -> its activations
    for op in graph.ops:
        call = _look_up(op, buffers, weights)
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
        if op.kind in ("kv_append", "rope_append"):
            cache = op.attrs["n_kv_heads"], op.attrs["head_dim"]
        elif op.kind == "attention":
            wanted = op.attrs["n_kv_heads"], op.attrs["head_dim"]
            call.require(cache is not None, "no kv_append comes before it")
            call.require(cache == wanted, f"reads KV heads {wanted}, the cache has {cache}")
        _check_outputs(call, SIGNATURES[op.kind].width(call), buffers)
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


def _look_up(op: Op, buffers: Mapping[str, Buffer], weights: Mapping[str, Weight]) -> Call:
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
        rank = {"vector": 1, "experts": 3}.get(role, 2)
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


def _check_outputs(call: Call, width: int | None, buffers: Mapping[str, Buffer]) -> None:
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


class GraphBuilder:
    """Writes a graph down op by op; each method returns the buffer that the op writes.

    A new buffer is named after the op's weight, or the op. `out` names another one to write to,
    which may be an input if the op works in place (ops.SIGNATURES).
    """

    def __init__(self, name: str, *, activations: Activations = "auto") -> None:
        """activations: how the graph's matrix products round their inputs, see ops.SIGNATURES."""
        self.name = name
        self._activations = activations
        self._buffers: dict[str, Buffer] = {}
        self._weights: dict[str, Weight] = {}
        self._ops: list[Op] = []

    def external(self, name: str, width: int, dtype: DType = "float32") -> Buffer:
        """A buffer that the caller passes with each run: an input, an output, or both."""
        buffer = Buffer(name, width, external=True, dtype=dtype)
        if self._buffers.setdefault(name, buffer) != buffer:
            raise GraphError(f"graph {self.name!r}: there is already a buffer {name!r}")
        return buffer

    def weight(self, name: str, *shape: int) -> Weight:
        """A weight slot; (n) is a vector, (n, k) a matrix as checkpoints store it, (n_experts, n,
        k) a matrix for each expert."""
        weight = Weight(name, shape)
        if self._weights.setdefault(name, weight) != weight:
            raise GraphError(f"graph {self.name!r}: weight {name!r} has two shapes")
        return weight

    def embed(
        self, tokens: Buffer, table: Weight, *, scale: float = 1.0, out: Buffer | None = None
    ) -> Buffer:
        """scale * table[tokens]. table: [vocab, n] -> [n_tokens, n]"""
        return self._emit("embed", [tokens], out, [table], scale=scale)

    def rms_norm(
        self, x: Buffer, weight: Weight, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """x / sqrt(mean(x^2) + eps) * weight over each row."""
        return self._emit("rms_norm", [x], out, [weight], eps=eps)

    def head_norm(
        self, x: Buffer, weight: Weight, n_heads: int, eps: float, *, out: Buffer | None = None
    ) -> Buffer:
        """rms_norm of each head by itself. x: [n_tokens, n_heads * head_dim], weight: [head_dim]"""
        return self._emit("head_norm", [x], out, [weight], n_heads=n_heads, eps=eps)

    def bias(self, x: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """x + weight, the same for each row."""
        return self._emit("bias", [x], out, [weight])

    def linear(self, x: Buffer, weight: Weight, *, out: Buffer | None = None) -> Buffer:
        """x @ weight.T. x: [n_tokens, k], weight: [n, k] -> [n_tokens, n]"""
        return self._emit("linear", [x], out, [weight], activations=self._activations)

    def rope(
        self,
        x: Buffer,
        table: Buffer,
        n_heads: int,
        head_dim: int,
        *,
        interleaved: bool,
        out: Buffer | None = None,
    ) -> Buffer:
        """Rotates pairs of each head: (2j, 2j+1) interleaved, else (j, j + n_dims/2).

        table: [n_tokens, n_dims], the n_dims/2 cosines of the token's position, then the sines.
        Dimensions of a head from n_dims on stay as they are.
        """
        return self._emit(
            "rope", [x, table], out, n_heads=n_heads, head_dim=head_dim, interleaved=interleaved
        )

    def kv_append(self, k: Buffer, v: Buffer, n_kv_heads: int, head_dim: int) -> None:
        """Writes k and v, [n_tokens, n_kv_heads * head_dim], to the end of the KV cache."""
        self._append(
            Op(
                "kv_append",
                (k.name, v.name),
                None,
                (),
                {"n_kv_heads": n_kv_heads, "head_dim": head_dim},
            )
        )

    def attention(
        self,
        q: Buffer,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        out: Buffer | None = None,
    ) -> Buffer:
        """softmax(scale * q K^T) V over the KV cache, causal. -> [n_tokens, n_heads * head_dim]

        window: positions that a token sees, its own included; 0: all before it.
        softcap: scores s become softcap * tanh(s / softcap); 0: they stay.
        """
        return self._emit(
            "attention",
            [q],
            out,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            scale=scale,
            window=window,
            softcap=softcap,
        )

    def swiglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """silu(gate) * up"""
        return self._emit("swiglu", [gate, up], out)

    def geglu(self, gate: Buffer, up: Buffer, *, out: Buffer | None = None) -> Buffer:
        """gelu(gate) * up, gelu by its tanh approximation"""
        return self._emit("geglu", [gate, up], out)

    def softcap(self, x: Buffer, cap: float, *, out: Buffer | None = None) -> Buffer:
        """cap * tanh(x / cap)"""
        return self._emit("softcap", [x], out, cap=cap)

    def route(self, logits: Buffer, n_used: int, *, normalized: bool) -> Buffer:
        """Chooses n_used experts for each token. logits: [n_tokens, n_experts] -> [n_tokens,
        2 * n_used], the numbers of the experts, then their shares."""
        return self._emit("route", [logits], None, n_used=n_used, normalized=normalized)

    def expert_linear(self, x: Buffer, route: Buffer, weight: Weight) -> Buffer:
        """x @ weight[e].T for each expert e of a token's route. weight: [n_experts, n, k]

        x: [n_tokens, k], or [n_tokens, n_used * k] with one for each expert
        -> [n_tokens, n_used * n]
        """
        return self._emit(
            "expert_linear",
            [x, route],
            None,
            [weight],
            n_used=route.width // 2,
            shared=x.width == weight.shape[-1],
            activations=self._activations,
        )

    def expert_sum(self, x: Buffer, route: Buffer) -> Buffer:
        """The sum of the experts' outputs, weighted by their shares. [n_tokens, n_used * n] ->
        [n_tokens, n]"""
        return self._emit("expert_sum", [x, route], None, n_used=route.width // 2)

    def add(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("add", [a, b], out)

    def multiply(self, a: Buffer, b: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("multiply", [a, b], out)

    def silu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        return self._emit("silu", [x], out)

    def gelu(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """By its tanh approximation."""
        return self._emit("gelu", [x], out)

    def round_q8(self, x: Buffer, *, out: Buffer | None = None) -> Buffer:
        """x rounded to the values that blocks of Q8_0 can hold."""
        return self._emit("round_q8", [x], out)

    def merge_add(self, x: Buffer, parts: Buffer, *, out: Buffer | None = None) -> Buffer:
        """x plus the parts, in order. parts: [n_tokens, n_parts * width of x]"""
        return self._emit("merge_add", [x, parts], out, quantized=parts.dtype == "q8_0")

    def take_columns(
        self, x: Buffer, offset: int, width: int, *, out: Buffer | None = None
    ) -> Buffer:
        """x[:, offset : offset + width]"""
        quantized = x.dtype == "q8_0"
        return self._emit("take_columns", [x], out, offset=offset, width=width, quantized=quantized)

    def put_columns(self, x: Buffer, offset: int, *, out: Buffer) -> Buffer:
        """Writes x to the columns of `out`, which is external, from `offset` on."""
        quantized = out.dtype == "q8_0"
        return self._emit(
            "put_columns", [x], out, offset=offset, width=out.width, quantized=quantized
        )

    def build(self) -> Graph:
        """The graph. GraphError if an op reads a buffer that none wrote, or a slot is unused."""
        buffers, weights = tuple(self._buffers.values()), tuple(self._weights.values())
        return Graph(self.name, buffers, weights, tuple(self._ops))

    def _emit(
        self,
        kind: str,
        inputs: Sequence[Buffer],
        out: Buffer | None,
        weights: Sequence[Weight] = (),
        **attrs: Attr,
    ) -> Buffer:
        slots = tuple(weight.name for weight in weights)
        name = out.name if out is not None else self._unused_name(slots[0] if slots else kind)
        self._append(Op(kind, tuple(buffer.name for buffer in inputs), name, slots, attrs))
        return self._buffers[name]

    def _append(self, op: Op) -> None:
        """Check an op, declare the buffer that it writes unless it is there, and add it."""
        try:
            call = _look_up(op, self._buffers, self._weights)
            width = SIGNATURES[op.kind].width(call)
            if op.output is not None and width is not None:
                self._buffers.setdefault(op.output, Buffer(op.output, width))
            _check_outputs(call, width, self._buffers)
        except GraphError as error:
            raise GraphError(f"graph {self.name!r}: {error}") from None
        self._ops.append(op)

    def _unused_name(self, name: str) -> str:
        """`name`, or name.2, name.3... if a buffer has it."""
        names = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
        return next(n for n in names if n not in self._buffers)

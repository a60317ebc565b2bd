"""The vocabulary of graphs: buffers, weight slots, ops, and what each kind of op takes and gives.

SIGNATURES is the one place that knows an op's inputs, weights, attributes and output width. The
backends implement these kinds and nothing else.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Attr = int | float | bool | str
DType = Literal["float32", "int32", "q8_0"]
# Shapes: vector [n]; matrix [n, k], to multiply by; rows [n, k], to look rows up in;
# experts [n_experts, n, k], a matrix for each expert.
Role = Literal["vector", "matrix", "rows", "experts"]
Activations = Literal["auto", "q8", "q16", "f32"]


class GraphError(ValueError):
    """A graph is wrong, or is given weights of the wrong shape."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """A named array with a row for each token.

    By dtype: float32 is [n_tokens, width]; int32 (token ids) is [n_tokens], with width 1; q8_0
    (rows of Q8_0 blocks, which the nodes of a cluster exchange) is uint8
    [n_tokens, width / 32 * 34]. The caller passes external buffers to each run; the executor owns
    the others.
    """

    name: str
    width: int
    external: bool = False
    dtype: DType = "float32"


@dataclass(frozen=True, slots=True)
class Weight:
    """A slot for a weight, which is bound to data later.

    shape: (n,), (n rows, k columns) or (n_experts, n, k).
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on buffers and weights, all given by name.

    output: None if the op has none. more_outputs: the second and later outputs of linear_many.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str | None
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    more_outputs: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return () if self.output is None else (self.output, *self.more_outputs)


@dataclass(frozen=True, slots=True)
class Call:
    """An op with its buffers and weights looked up, as a signature's `width` checks it."""

    op: Op
    inputs: tuple[Buffer, ...]
    weights: tuple[Weight, ...]

    def require(self, truth: bool, fault: str) -> None:
        if not truth:
            where = f"{self.op.kind} -> {self.op.output!r}" if self.op.output else self.op.kind
            raise GraphError(f"{where}: {fault}")

    def require_width(self, index: int, width: int, reason: str) -> None:
        buffer = self.inputs[index]
        self.require(
            buffer.width == width,
            f"input {buffer.name!r} has width {buffer.width}, expected {width} ({reason})",
        )

    def count(self, attr: str, least: int = 1) -> int:
        """An attribute that counts something: an integer of at least `least`."""
        value = self.op.attrs[attr]
        fault = f"{attr} is {value!r}, expected {least} or more"
        self.require(type(value) is int and value >= least, fault)
        return int(value)


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs, weights and attributes of a kind of op, and how to compute its output's width.

    width: returns None for an op without output. in_place: inputs that may be the output, too.
    many: the op has one weight for each output, all of the given role; an output is as wide as its
    weight has rows. q8_0: the external buffer (an input or "out") that holds rows of Q8_0 if the
    attribute `quantized` is true.
    """

    inputs: tuple[str, ...]
    weights: tuple[Role, ...]
    attrs: frozenset[str]
    width: Callable[[Call], int | None]
    in_place: frozenset[str] = frozenset()
    many: bool = False
    q8_0: str = ""

    def roles(self, op: Op) -> tuple[Role, ...]:
        """Of the op's weights."""
        return self.weights * len(op.outputs) if self.many else self.weights


def _embed(call: Call) -> int:
    tokens = call.inputs[0]
    call.require(tokens.dtype == "int32", f"input {tokens.name!r} is {tokens.dtype}, not int32")
    return call.weights[0].shape[1]


def _vector(call: Call) -> int:
    weight = call.weights[0]
    call.require_width(0, weight.shape[0], f"the length of weight {weight.name!r}")
    return weight.shape[0]


def _head_norm(call: Call) -> int:
    n_heads, weight = call.count("n_heads"), call.weights[0]
    head_dim = weight.shape[0]
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of weight {weight.name!r}'s length")
    return n_heads * head_dim


def _linear(call: Call) -> int:
    weight = call.weights[0]
    n, k = weight.shape
    call.require_width(0, k, f"weight {weight.name!r} is [{n}, {k}]")
    _check_activations(call)
    return n


def _quantized_norm(call: Call) -> int:
    _check_activations(call)
    return _vector(call)


def _linear_many(call: Call) -> int:
    for weight in call.weights:
        n, k = weight.shape
        call.require_width(0, k, f"weight {weight.name!r} is [{n}, {k}]")
    _check_activations(call)
    return call.weights[0].shape[0]


def _linear_add(call: Call) -> int:
    n = _linear(call)
    call.require_width(1, n, f"the rows of weight {call.weights[0].name!r}")
    return n


def _glu_linear(call: Call) -> int:
    gate, up = call.weights
    call.require(
        gate.shape == up.shape, f"weight {up.name!r} is {list(up.shape)}, expected that of the gate"
    )
    activation = call.op.attrs["activation"]
    call.require(
        activation in ("silu", "gelu"), f"activation is {activation!r}, expected 'silu' or 'gelu'"
    )
    return _linear(call)


def _rope_append(call: Call) -> None:
    _kv_append(call)
    head_dim, table = call.count("head_dim"), call.inputs[2]
    call.require(
        table.width % 2 == 0 and table.width <= head_dim,
        f"table {table.name!r} has width {table.width}, expected an even number up to {head_dim}",
    )


def _check_activations(call: Call) -> None:
    activations = call.op.attrs["activations"]
    allowed = get_args(Activations)
    call.require(activations in allowed, f"activations is {activations!r}, not one of {allowed}")


def _rope(call: Call) -> int:
    n_heads, head_dim = call.count("n_heads"), call.count("head_dim")
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    table = call.inputs[1]
    call.require(
        table.width % 2 == 0 and table.width <= head_dim,
        f"table {table.name!r} has width {table.width}, expected an even number up to {head_dim}",
    )
    return n_heads * head_dim


def _kv_append(call: Call) -> None:
    n_kv_heads, head_dim = call.count("n_kv_heads"), call.count("head_dim")
    for index in (0, 1):
        call.require_width(index, n_kv_heads * head_dim, f"{n_kv_heads} KV heads of {head_dim}")


def _attention(call: Call) -> int:
    n_heads, n_kv_heads = call.count("n_heads"), call.count("n_kv_heads")
    head_dim = call.count("head_dim")
    call.require(
        n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads} KV heads evenly"
    )
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    call.count("window", least=0)
    _check_cap(call, "softcap", least=0.0)
    return n_heads * head_dim


def _softcap(call: Call) -> int:
    _check_cap(call, "cap", least=1e-6)
    return call.inputs[0].width


def _check_cap(call: Call, attr: str, least: float) -> None:
    cap = call.op.attrs[attr]
    good = isinstance(cap, float) and least <= cap < math.inf
    call.require(good, f"{attr} is {cap!r}, expected a float of at least {least}")


def _route(call: Call) -> int:
    n_used, logits = call.count("n_used"), call.inputs[0]
    call.require(
        n_used <= logits.width, f"n_used is {n_used}, expected at most the {logits.width} experts"
    )
    return 2 * n_used


def _expert_linear(call: Call) -> int:
    n_used, weight = call.count("n_used"), call.weights[0]
    _, n, k = weight.shape
    inputs = 1 if call.op.attrs["shared"] else n_used
    call.require_width(0, inputs * k, f"{inputs} for weight {weight.name!r}, {list(weight.shape)}")
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    _check_activations(call)
    return n_used * n


def _expert_sum(call: Call) -> int:
    n_used, x = call.count("n_used"), call.inputs[0]
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    call.require(
        x.width % n_used == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {n_used}",
    )
    return x.width // n_used


def _elementwise(call: Call) -> int:
    first = call.inputs[0]
    call.require_width(1, first.width, f"the width of {first.name!r}")
    return first.width


def _activation(call: Call) -> int:
    return call.inputs[0].width


def _whole_blocks(call: Call, n: int, what: str) -> None:
    call.require(n % 32 == 0, f"{what} is {n}, expected a multiple of 32, a block of Q8_0")


def _round_q8(call: Call) -> int:
    _whole_blocks(call, call.inputs[0].width, f"the width of {call.inputs[0].name!r}")
    return call.inputs[0].width


def _merge_add(call: Call) -> int:
    x, parts = call.inputs
    call.require(
        parts.width % x.width == 0,
        f"input {parts.name!r} has width {parts.width}, expected a multiple of {x.width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, x.width, f"the width of {x.name!r}")
    return x.width


def _take_columns(call: Call) -> int:
    x, offset, width = call.inputs[0], call.count("offset", least=0), call.count("width")
    call.require(
        offset + width <= x.width,
        f"columns {offset} to {offset + width} of {x.name!r}, which has {x.width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, offset, "offset")
        _whole_blocks(call, width, "width")
    return width


def _put_columns(call: Call) -> int:
    x, offset, width = call.inputs[0], call.count("offset", least=0), call.count("width")
    call.require(
        offset + x.width <= width,
        f"columns {offset} to {offset + x.width} of {call.op.output!r}, which has {width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, offset, "offset")
        _whole_blocks(call, x.width, f"the width of {x.name!r}")
    return width


def _signature(
    inputs: str,
    width: Callable[[Call], int | None],
    *,
    weights: tuple[Role, ...] = (),
    attrs: str = "",
    in_place: str = "",
    many: bool = False,
    q8_0: str = "",
) -> Signature:
    names, aliases = tuple(inputs.split()), frozenset(in_place.split())
    return Signature(names, weights, frozenset(attrs.split()), width, aliases, many, q8_0)


SIGNATURES: Mapping[str, Signature] = {
    # out[t] = scale * weight[tokens[t]]
    "embed": _signature("tokens", _embed, weights=("rows",), attrs="scale"),
    # out = x / sqrt(mean(x^2) + eps) * weight
    "rms_norm": _signature("x", _vector, weights=("vector",), attrs="eps", in_place="x"),
    # out = x @ weight.T; activations: how x is rounded for a quantised weight, see
    # tensor_ops_cpp.linear
    "linear": _signature("x", _linear, weights=("matrix",), attrs="activations"),
    # out = x + weight
    "bias": _signature("x", _vector, weights=("vector",), in_place="x"),
    # rms_norm of each of x's heads by itself
    "head_norm": _signature(
        "x", _head_norm, weights=("vector",), attrs="n_heads eps", in_place="x"
    ),
    # rotates pairs of each head's dimensions; table: [n_tokens, n_dims], n_dims / 2 cos, then sin
    "rope": _signature("x table", _rope, attrs="n_heads head_dim interleaved", in_place="x"),
    # writes the batch's k and v behind the `past` tokens in the layer's KV cache
    "kv_append": _signature("k v", _kv_append, attrs="n_kv_heads head_dim"),
    # causal attention of q over the layer's KV cache, which includes the batch; window: the number
    # of positions that a token sees, its own included (0: all); softcap: a score s becomes
    # softcap * tanh(s / softcap) (0: scores stay)
    "attention": _signature(
        "q", _attention, attrs="n_heads n_kv_heads head_dim scale window softcap"
    ),
    # out = silu(gate) * up
    "swiglu": _signature("gate up", _elementwise, in_place="gate up"),
    # out = gelu(gate) * up, with the tanh approximation
    "geglu": _signature("gate up", _elementwise, in_place="gate up"),
    # out = cap * tanh(x / cap)
    "softcap": _signature("x", _softcap, attrs="cap", in_place="x"),
    # softmax over a token's logits, [n_experts]; out: the numbers of the n_used experts with the
    # largest shares, largest first, and then these shares; normalized: divided by their sum
    "route": _signature("logits", _route, attrs="n_used normalized"),
    # out: x @ weight[e].T for each expert e of the token's route, side by side; shared: all experts
    # have the same x, [k]; otherwise each has its own, [n_used * k]; reads no other expert
    "expert_linear": _signature(
        "x route", _expert_linear, weights=("experts",), attrs="n_used shared activations"
    ),
    # x: the outputs of a token's experts, [n_used * n]; out: their sum, weighted by shares: [n]
    "expert_sum": _signature("x route", _expert_sum, attrs="n_used"),
    "add": _signature("a b", _elementwise, in_place="a b"),
    # ---- made by graph.rewrite ------------------------------------------------------------------
    # rms_norm whose output only matrix products read, so it is quantised at once; activations: as
    # those of the products
    "quantized_norm": _signature(
        "x", _quantized_norm, weights=("vector",), attrs="eps activations", in_place="x"
    ),
    # x @ weight.T for each of the weights
    "linear_many": _signature(
        "x", _linear_many, weights=("matrix",), attrs="activations", many=True
    ),
    # out = a + x @ weight.T
    "linear_add": _signature(
        "x a", _linear_add, weights=("matrix",), attrs="activations", in_place="a"
    ),
    # out = activation(x @ gate.T) * (x @ up.T); activation: "silu" or "gelu"
    "glu_linear": _signature(
        "x", _glu_linear, weights=("matrix", "matrix"), attrs="activations activation"
    ),
    # kv_append of rope(k) and v
    "rope_append": _signature("k v table", _rope_append, attrs="n_kv_heads head_dim interleaved"),
    "multiply": _signature("a b", _elementwise, in_place="a b"),
    "silu": _signature("x", _activation, in_place="x"),
    # the tanh approximation
    "gelu": _signature("x", _activation, in_place="x"),
    # out = x rounded to the values that blocks of Q8_0 can hold
    "round_q8": _signature("x", _round_q8, in_place="x"),
    # out = x + the parts, added in order; parts: [n_tokens, n_parts * width of x]
    "merge_add": _signature("x parts", _merge_add, attrs="quantized", in_place="x", q8_0="parts"),
    # out = x[:, offset : offset + width]
    "take_columns": _signature("x", _take_columns, attrs="offset width quantized", q8_0="x"),
    # out[:, offset : offset + width of x] = x; other columns of out, an external buffer, stay
    "put_columns": _signature("x", _put_columns, attrs="offset width quantized", q8_0="out"),
}

"""The words that graphs are written in: buffers, weight slots, ops, and signatures of ops."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from airllm.util.errors import AirllmError

Attr = int | float | bool | str
DType = Literal["float32", "int32", "q8_0"]
# Shapes: vector [n]; vectors [n_experts, n], one for each expert; matrix [n, k], to multiply by;
# rows [n, k], to look rows up in; experts [n_experts, n, k], a matrix for each expert; heads
# [n_heads, n, k], a matrix for each head, all of which each token uses.
Role = Literal["vector", "vectors", "matrix", "rows", "experts", "heads"]
MANY: frozenset[Role] = frozenset(["experts", "heads"])  # roles of several matrices
MATRICES: frozenset[Role] = MANY | {"matrix"}  # roles of what rows are multiplied by
Activations = Literal["auto", "q8", "q16", "f32"]
# How logits of experts become shares.
Gating = Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"]


class GraphError(AirllmError, ValueError):
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

    shape: (n,), (n_experts, n), (n rows, k columns), (n_experts, n, k) or (n_heads, n, k).
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

    def check_float(self, attr: str, least: float | None = None) -> None:
        """An attribute is a finite float, of at least `least`."""
        value = self.op.attrs[attr]
        good = (
            isinstance(value, float) and math.isfinite(value) and (least is None or value >= least)
        )
        wanted = "a finite float" if least is None else f"a float of at least {least}"
        self.require(good, f"{attr} is {value!r}, expected {wanted}")

    def check_one_of(self, attr: str, *allowed: str) -> None:
        value = self.op.attrs[attr]
        self.require(value in allowed, f"{attr} is {value!r}, expected one of {allowed}")

    def check_activations(self) -> None:
        self.check_one_of("activations", *get_args(Activations))


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs, weights and attributes of a kind of op, and how to compute its output's width.

    width: returns None for an op without output. flops: for each element of the buffer `per`, an
    input or "out"; products with weights are counted apart. in_place: inputs that may be the
    output, too. optional: the op may go without its weights. many: the op has one weight for each
    output, all of the given role; an output is as wide as its weight has rows. q8_0: the external
    buffer (an input or "out") that holds rows of Q8_0 if the attribute `quantized` is true. state:
    the floats of recurrent memory that the op has for a sequence; None if it has none.
    """

    inputs: tuple[str, ...]
    weights: tuple[Role, ...]
    attrs: frozenset[str]
    width: Callable[[Call], int | None]
    flops: int
    per: str = "out"
    in_place: frozenset[str] = frozenset()
    optional: bool = False
    many: bool = False
    q8_0: str = ""
    state: Callable[[Call], int] | None = None

    def roles(self, op: Op) -> tuple[Role, ...]:
        """Of the op's weights."""
        if self.optional and not op.weights:
            return ()
        return self.weights * len(op.outputs) if self.many else self.weights


def signature(
    inputs: str,
    width: Callable[[Call], int | None],
    *,
    flops: int,
    per: str = "out",
    weights: tuple[Role, ...] = (),
    attrs: str = "",
    in_place: str = "",
    optional: bool = False,
    many: bool = False,
    q8_0: str = "",
    state: Callable[[Call], int] | None = None,
) -> Signature:
    """A Signature, from names with spaces between them."""
    return Signature(
        tuple(inputs.split()),
        weights,
        frozenset(attrs.split()),
        width,
        flops,
        per,
        frozenset(in_place.split()),
        optional,
        many,
        q8_0,
        state,
    )

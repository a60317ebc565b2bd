"""The operations of a worker, with the shapes of a layer of Llama 7B or 8B."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from common.contest import Case

from ops import Participants, attention, elementwise, matrix

TYPES = ("f32", "q8_0", "q4_0")


@dataclass(frozen=True)
class Operation:
    name: str
    shape: str
    type: str  # of the weights, or of the KV cache
    flops: float  # roughly, to find operations that take too long without vectors
    make: Callable[[Participants], Case]

    @property
    def label(self) -> str:
        return f"{self.name} {self.shape} {self.type}"


@dataclass(frozen=True)
class Sizes:
    hidden: int = 4096
    ffn: int = 11008
    n_heads: int = 32
    head_dim: int = 128
    norm_rows: tuple[int, ...] = (1, 128, 512)
    rows: tuple[int, ...] = (1, 128)
    decode: tuple[int, ...] = (512, 2048, 8192)
    prefill: tuple[int, ...] = (128, 512)


# A test of a few seconds that everything works; the numbers mean nothing.
QUICK = Sizes(256, 512, 4, 64, (1, 4), (1, 4), (32, 64), (16,))


def operations(sizes: Sizes) -> Iterator[Operation]:
    for rows in sizes.norm_rows:
        make = partial(elementwise.rms_norm, rows=rows, n=sizes.hidden)
        yield _elementwise("rms_norm", rows, sizes.hidden, make)
    for rows in sizes.rows:
        yield from _products("Q, K, V or output", sizes.hidden, sizes.hidden, rows)
        yield from _products("FFN gate or up", sizes.hidden, sizes.ffn, rows)
        yield from _products("FFN down", sizes.ffn, sizes.hidden, rows)
    for rows in sizes.rows:
        heads = partial(elementwise.rope, n_heads=sizes.n_heads, head_dim=sizes.head_dim)
        n = sizes.n_heads * sizes.head_dim
        yield _elementwise("rope", rows, n, partial(heads, rows=rows))
    yield from _attention(sizes)
    for name, activation in {
        "silu": elementwise.silu,
        "gelu tanh": elementwise.gelu_tanh,
        "gelu erf": elementwise.gelu_erf,
        "swiglu": elementwise.swiglu,
    }.items():
        yield _elementwise(name, 1, sizes.ffn, partial(activation, rows=1, n=sizes.ffn))


def _elementwise(name: str, rows: int, n: int, make: Callable[[Participants], Case]) -> Operation:
    return Operation(name, f"{rows} x {n}", "f32", 10.0 * rows * n, make)


def _products(name: str, k: int, n: int, rows: int) -> Iterator[Operation]:
    """x [rows, k] times a matrix of n outputs, in float32 and quantised."""
    for type in TYPES:
        if type == "f32":
            make = partial(matrix.linear, rows=rows, n=n, k=k)
        else:
            make = partial(matrix.packed_linear, type=type, rows=rows, n=n, k=k)
        yield Operation(name, f"{rows} x {k} x {n}", type, 2.0 * rows * n * k, make)


def _attention(sizes: Sizes) -> Iterator[Operation]:
    per_pair = 4.0 * attention.N_HEADS * attention.HEAD_DIM
    for n in sizes.decode:
        for type in ("f32", "f16"):
            make = partial(attention.decode, n_kv=n, kv_type=type)
            yield Operation("attention", f"1 of {n}", type, per_pair * n, make)
    for n in sizes.prefill:
        make = partial(attention.prefill, n=n)
        yield Operation("attention", f"{n} of {n}", "f32", per_pair * n * n / 2, make)

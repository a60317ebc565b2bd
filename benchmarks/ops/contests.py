"""The measurements, and the targets that the kernels must reach.

A target of "numpy" or "torch" is the speed relative to that peer. A target of a limit (`read`,
`copy`, `multiply_add`, `dot`) is a share of the limit, a target of "microsecond" the number of
calls in a microsecond.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from common.contest import Case

from ops import Participants, attention, elementwise, matrix


@dataclass(frozen=True)
class Target:
    of: str
    least: float | None
    aim: float | None = None


@dataclass(frozen=True)
class Contest:
    group: str
    op: str
    shape: str
    make: Callable[[Participants], Case]
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        return f"{self.group}: {self.op} {self.shape}"


@dataclass(frozen=True)
class Sizes:
    """The sizes in a layer of Llama 7B or 8B."""

    hidden: int = 4096
    ffn: int = 11008
    cached_rows: tuple[int, ...] = (1, 128)
    memory_rows: int = 2048
    gemm_rows: tuple[int, ...] = (8, 128, 512)
    quantised_rows: tuple[int, ...] = (256, 512)
    decode: tuple[int, ...] = (2048, 8192)
    prefill: tuple[int, ...] = (512, 2048)


# A test of a few seconds that everything works; the numbers mean nothing.
QUICK = Sizes(256, 512, (1, 4), 8, (2, 4), (4, 8), (64, 96), (16, 32))

ELEMENTWISE = {
    "rms_norm": elementwise.rms_norm,
    "silu": elementwise.silu,
    "gelu tanh": elementwise.gelu_tanh,
    "gelu erf": elementwise.gelu_erf,
    "softmax": elementwise.softmax,
    "swiglu": elementwise.swiglu,
}
GEMV_TYPES = (
    *("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "mxfp4", "f16", "bf16"),
)
GEMM_TYPES = ("q4_0", "q8_0")


def contests(sizes: Sizes, isa: str) -> Iterator[Contest]:
    yield _call_cost()
    yield from _elementwise(sizes)
    yield from _float_products(sizes, isa)
    yield from _quantised_products(sizes)
    yield from _attention(sizes)


def _call_cost() -> Contest:
    """The overhead of a call: one that has next to nothing to compute."""
    make = partial(elementwise.silu, rows=1, n=1)
    return Contest("call", "silu", "1 x 1", make, (Target("microsecond", 1.0),))


def _elementwise(sizes: Sizes) -> Iterator[Contest]:
    in_cache = (Target("numpy", 3.0), Target("torch", 1.2, 2.0))
    in_memory = (Target("copy", 0.85, 0.95),)
    for rows in (*sizes.cached_rows, sizes.memory_rows):
        targets = in_memory if rows == sizes.memory_rows else in_cache
        for op, make in ELEMENTWISE.items():
            shape = f"{rows} x {sizes.hidden}"
            yield Contest(
                "elementwise", op, shape, partial(make, rows=rows, n=sizes.hidden), targets
            )


def _float_products(sizes: Sizes, isa: str) -> Iterator[Contest]:
    """matmul (x @ w) and linear (x @ w.T, as models store w)."""
    gemv = (Target("read", 0.90, 0.97), Target("numpy", 1.0))
    peer = 1.4 if isa in ("avx512", "amx") else 1.0
    gemm = (Target("numpy", peer), Target("torch", peer), Target("multiply_add", None, 0.85))
    k = sizes.hidden
    for rows in (1, *sizes.gemm_rows):
        for op, product in (("matmul f32", matrix.matmul), ("linear f32", matrix.linear)):
            for n in (sizes.hidden, sizes.ffn):
                make = partial(product, rows=rows, n=n, k=k)
                targets = gemv if rows == 1 else gemm
                yield Contest("float product", op, f"{rows} x {k} x {n}", make, targets)


def _quantised_products(sizes: Sizes) -> Iterator[Contest]:
    def product(type: str, rows: int, n: int, target: Target) -> Contest:
        k = sizes.hidden
        make = partial(matrix.packed_linear, type=type, rows=rows, n=n, k=k)
        shape = f"{rows} x {k} x {n}"
        return Contest("packed product", f"linear {type.upper()}", shape, make, (target,))

    for type in GEMV_TYPES:
        for n in (sizes.hidden, sizes.ffn):
            yield product(type, 1, n, Target("read", 0.85, 0.95))
    for rows in sizes.quantised_rows:
        for type in GEMM_TYPES:
            yield product(type, rows, sizes.hidden, Target("dot", 0.45, 0.70))


def _attention(sizes: Sizes) -> Iterator[Contest]:
    decode = (Target("torch", 2.0), Target("read", 0.85, 0.95))
    for n_kv in sizes.decode:
        for kv_type in ("f32", "f16"):
            make = partial(attention.decode, n_kv=n_kv, kv_type=kv_type)
            shape = f"1 of {n_kv}, {kv_type.upper()} cache"
            yield Contest("attention", "decode", shape, make, decode)
    prefill = (Target("torch", 1.5), Target("multiply_add", None, 0.60))
    for n in sizes.prefill:
        make = partial(attention.prefill, n=n)
        yield Contest("attention", "causal prefill", f"{n}", make, prefill)

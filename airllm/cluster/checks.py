"""Checks whether the parts of a node's program fit together: types, sizes, references of each op.

A program that passes can be lowered without further checks of its numbers. The checks allocate
nothing. Source: the op table of dllama at commit 8d624a7.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airllm.cluster.node_config import NodeConfig, NodeOp
from airllm.cluster.op_config import (
    Attention,
    Gate,
    InvRms,
    Matmul,
    OpCode,
    Reference,
    RmsNorm,
    Rope,
    RopeType,
)
from airllm.cluster.protocol import NetConfig, SyncType
from airllm.cluster.wire import FloatType, Pointer, PointerType, ProtocolError, Size, Source

F32, Q40, Q80 = FloatType.F32, FloatType.Q40, FloatType.Q80


@dataclass(frozen=True, slots=True)
class View:
    """The part of a pipe or buffer that a pointer names: planes with a row for each token.

    width: columns of a row, from column `first` on.
    """

    type: FloatType
    planes: int
    width: int
    first: int = 0

    def __str__(self) -> str:
        return f"{self.type.name} of {self.planes} x {self.width}"


class Program:
    """A node's program. The constructor checks it; a ProtocolError names op, field and value.

    weights: sizes by the op's name and index.
    """

    def __init__(self, net: NetConfig, node: NodeConfig) -> None:
        self.net, self.node = net, node
        self.weights = {
            (op.name, op.index): op.weight
            for segment in node.segments
            for op in segment.ops
            if op.weight.type is not FloatType.NONE
        }
        for number, segment in enumerate(node.segments):
            for i, sync in enumerate(segment.syncs):
                self._check_sync(f"segment {number}, sync {i}", sync.pipe, sync.type)
            for op in segment.ops:
                _OpCheck(self, op, f"segment {number}, op {op.name!r} {op.index}").run()

    def size(self, source: Source, index: int) -> Size:
        things = self.net.pipes if source is Source.PIPE else self.node.buffers
        return things[index].size

    def view(self, pointer: Pointer) -> View:
        size = self.size(pointer.source, pointer.index)
        if pointer.type is PointerType.BATCHED_SLICE:
            width = size.x // self.net.n_nodes
            return View(size.type, size.z, width, width * self.node.node)
        return View(size.type, size.z, size.x)

    def _check_sync(self, where: str, pipe: int, kind: SyncType) -> None:
        size, n = self.net.pipes[pipe].size, self.net.n_nodes
        if kind is not SyncType.WITH_ROOT and size.x % (n * size.type.block):
            raise ProtocolError(
                f"{where}: pipe {pipe} is {size}; expected rows that {n} nodes can share evenly"
            )


class _OpCheck:
    """One op of a program."""

    def __init__(self, program: Program, op: NodeOp, where: str) -> None:
        self.program, self.op, self.where = program, op, where
        for which, pointer in (("input", op.input), ("output", op.output)):
            self._check_pointer(which, pointer)
        self.input, self.output = program.view(op.input), program.view(op.output)

    def run(self) -> None:
        _CHECKS[self.op.code](self)

    def require(self, truth: bool, field: str, value: object, expected: str) -> None:
        if not truth:
            raise ProtocolError(f"{self.where}: {field} is {value}; expected {expected}")

    def _check_pointer(self, which: str, pointer: Pointer) -> None:
        size, rows = self.program.size(pointer.source, pointer.index), self.program.net.rows
        if pointer.type is PointerType.RAW:
            shift = self.op.code is OpCode.SHIFT and which == "output"
            self.require(shift, f"its {which}", "raw", "a batch; only SHIFT's output is raw")
            return
        self.require(size.y == rows, f"its {which}", size, f"{rows} rows, those of the net")
        if pointer.type is PointerType.BATCHED_SLICE:
            n = self.program.net.n_nodes
            even = size.x % (n * size.type.block) == 0
            self.require(even, f"its {which}", size, f"rows that {n} nodes can share evenly")

    def types(self, *allowed: tuple[FloatType, ...]) -> None:
        """Types of (input, output), or of (input, weight, output) if the op has a weight."""
        weight = self.op.weight.type
        have: tuple[FloatType, ...] = (self.input.type, self.output.type)
        if weight is not FloatType.NONE:
            have = (self.input.type, weight, self.output.type)
        names = " or ".join("-".join(t.name for t in types) for types in allowed)
        self.require(have in allowed, "its types", "-".join(t.name for t in have), names)

    def same(self) -> None:
        """Input and output have the same planes and width."""
        a, b = self.input, self.output
        self.require((a.planes, a.width) == (b.planes, b.width), "its output", b, f"that of {a}")

    def in_place(self) -> None:
        self.require(self.op.input == self.op.output, "its output", self.op.output, "its input")

    def one_plane(self) -> None:
        self.require(self.input.planes == 1, "its input", self.input, "1 plane")
        self.require(self.output.planes == 1, "its output", self.output, "1 plane")

    def rows_of(self, what: str, buffer: int, planes: int, width: int, exact: bool = True) -> None:
        """The buffer is F32, with a row of `width` (or, unless exact, more) for each token."""
        size, rows = self.program.node.buffers[buffer].size, self.program.net.rows
        fits = size.x == width if exact else size.x >= width
        good = size.type is F32 and size.z == planes and size.y == rows and fits
        self.require(good, what, size, f"F32 {planes}x{rows}x{width}")

    def weight(self, z: int, y: int, x: int) -> None:
        have = self.op.weight
        self.require((have.z, have.y, have.x) == (z, y, x), "its weight", have, f"{z}x{y}x{x}")


def _merge_add(c: _OpCheck) -> None:
    c.types((F32, F32), (Q80, F32))
    c.one_plane()
    even = c.input.width % c.output.width == 0
    c.require(even, "its input", c.input, f"parts as wide as the output, {c.output.width}")
    blocks = c.output.width % c.input.type.block == 0
    c.require(blocks, "its output", c.output, "whole blocks in each part")


def _merge_sum(c: _OpCheck) -> None:
    c.types((F32, F32))
    fits = c.output.planes == 1 and c.output.width == c.input.width
    c.require(fits, "its output", c.output, f"1 plane of {c.input.width}")


def _embedding(c: _OpCheck) -> None:
    c.types((F32, F32, F32), (F32, F32, Q80))
    c.one_plane()
    c.require(c.input.width == 1, "its input", c.input, "one token number in a row")
    c.weight(1, c.op.weight.y, c.output.width)


def _inv_rms(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, InvRms)
    c.types((F32, F32))
    c.one_plane()
    even = c.input.width % config.columns == 0
    c.require(even, "columns", config.columns, f"a divisor of {c.input.width}")
    fits = c.output.width >= config.columns
    c.require(fits, "its output", c.output, f"room for {config.columns} columns")


def _rms_norm(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, RmsNorm)
    c.types((F32, F32, F32), (Q80, F32, F32))
    c.one_plane()
    c.same()
    one = c.input.type is F32 or config.columns == 1
    c.require(one, "columns", config.columns, "1 with a Q80 input")
    even = c.input.width % config.columns == 0
    c.require(even, "columns", config.columns, f"a divisor of {c.input.width}")
    c.weight(1, 1, c.input.width // config.columns)
    c.rows_of("the buffer of inverse RMS", config.buffer, 1, config.columns, exact=False)


def _matmul(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Matmul)
    c.types((F32, F32, F32), (Q80, Q40, F32))
    blocks = c.input.width % c.op.weight.type.block == 0
    c.require(blocks, "its input", c.input, "whole blocks of the weight")
    if config.n_active == 0:
        c.require(config.n_experts == 0, "experts", config.n_experts, "0, as none is active")
        c.one_plane()
        return c.weight(1, c.input.width, c.output.width)
    active, experts = config.n_active, config.n_experts
    c.require(active <= experts, "active experts", active, f"at most the {experts} experts")
    c.require(c.input.planes == active, "its input", c.input, f"{active} planes")
    c.require(c.output.planes == active, "its output", c.output, f"{active} planes")
    c.weight(experts, c.input.width, c.output.width)
    return c.rows_of("the buffer of experts", config.buffer, 1, active)


def _rope(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Rope)
    k, n = c.program.node.node, c.program.net.n_nodes
    c.types((F32, F32))
    c.one_plane()
    c.in_place()
    d = config.head_dim
    c.require(d % 2 == 0 and d <= 256, "head_dim", d, "an even number up to 256")
    kv_dim = d * config.n_kv_heads
    for field, value, expected in (
        ("the key values of all nodes", config.kv_dim, kv_dim),
        ("kv0", config.kv0 * n, kv_dim),
    ):
        c.require(value == expected, field, value, str(expected))
    for field, value in (("q0", config.q0), ("kv0", config.kv0)):
        c.require(value > 0 and value % d == 0, field, value, f"whole heads of {d}")
    width = config.q0 if config.is_query else config.kv0
    c.require(c.input.width == width, "its input", c.input, f"1 x {width}")
    if config.type is not RopeType.FALCON:
        start, key_start = config.q0 * k, config.kv0 * k
        for field, value, expected in (
            ("the first query column", config.q_start, start),
            ("the end of the query columns", config.q_end, start + config.q0),
            ("the first key column", config.kv_start, key_start),
        ):
            c.require(value == expected, field, value, str(expected))
        scaled = config.factor != 1.0
        low, high = config.low_frequency_factor, config.high_frequency_factor
        fits = not scaled or (0.0 < low < high and config.original_length > 0)
        c.require(fits, "its scaling", (low, high, config.original_length), "0 < low < high")


def _attention(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Attention)
    n, d = c.program.net.n_nodes, config.head_dim
    c.types((F32, F32))
    c.one_plane()
    c.require(d <= 256, "head_dim", d, "at most 256")
    for field, value, expected in (
        ("heads", config.n_heads, config.n_heads0 * n),
        ("q0", config.q0, config.n_heads0 * d),
        ("kv_heads", config.n_kv_heads * d, config.kv0 * n),
    ):
        c.require(value == expected, field, value, str(expected))
    c.require(config.kv0 % d == 0, "kv0", config.kv0, f"whole heads of {d}")
    even = config.n_heads % config.n_kv_heads == 0
    c.require(even, "heads", config.n_heads, f"a multiple of {config.n_kv_heads} kv_heads")
    c.require(c.output.width == config.q0, "its output", c.output, f"1 x {config.q0}")
    c.rows_of("the buffer of queries", config.query_buffer, 1, config.q0)
    cache = Size(F32, 1, config.length, config.kv0)
    for field, buffer in (
        ("the buffer of keys", config.key_buffer),
        ("the buffer of values", config.value_buffer),
    ):
        size = c.program.node.buffers[buffer].size
        c.require(size == cache, field, size, str(cache))


def _elementwise(c: _OpCheck) -> None:
    c.types((F32, F32))
    c.in_place()


def _mul(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Reference)
    c.types((F32, F32))
    c.same()
    c.rows_of("the multiplier", config.index, c.input.planes, c.input.width)


def _scale(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Reference)
    c.types((F32, F32))
    c.same()
    c.rows_of("the factors", config.index, c.input.planes, 1)


def _cast(c: _OpCheck) -> None:
    c.types((F32, F32), (F32, Q80), (Q80, Q80), (Q80, F32))
    c.same()
    blocks = c.input.width % max(c.input.type.block, c.output.type.block) == 0
    c.require(blocks, "its input", c.input, "whole blocks")


def _repeat(c: _OpCheck) -> None:
    c.types((F32, Q80))
    c.require(c.input.planes == 1, "its input", c.input, "1 plane")
    c.require(c.output.width == c.input.width, "its output", c.output, f"rows of {c.input.width}")


def _shift(c: _OpCheck) -> None:
    c.types((F32, F32))
    raw = c.op.output.type is PointerType.RAW and c.op.output.source is Source.BUFFER
    c.require(raw, "its output", c.op.output, "a cache, raw")
    c.require(c.input.planes == c.output.planes == 1, "its input", c.input, "1 plane")
    fits = c.output.width == c.input.width
    c.require(fits, "its output", c.output, f"positions of {c.input.width} values")


def _softmax(c: _OpCheck) -> None:
    c.types((F32, F32))
    c.in_place()


def _gate(c: _OpCheck) -> None:
    config = c.op.config
    assert isinstance(config, Gate)
    c.types((F32, F32))
    c.require(c.input.planes == 1, "its input", c.input, "1 plane")
    fits = config.k <= c.input.width
    c.require(fits, "k", config.k, f"at most the {c.input.width} experts")
    good = (c.output.planes, c.output.width) == (config.k, 1)
    c.require(good, "its output", c.output, f"{config.k} planes of 1")
    c.rows_of("the buffer of experts", config.buffer, 1, config.k)


_CHECKS: Mapping[OpCode, Callable[[_OpCheck], None]] = {
    OpCode.MERGE_ADD: _merge_add,
    OpCode.MERGE_SUM: _merge_sum,
    OpCode.EMBEDDING: _embedding,
    OpCode.INV_RMS: _inv_rms,
    OpCode.RMS_NORM: _rms_norm,
    OpCode.MATMUL: _matmul,
    OpCode.ROPE: _rope,
    OpCode.MULTIHEAD_ATT: _attention,
    OpCode.GELU: _elementwise,
    OpCode.SILU: _elementwise,
    OpCode.MUL: _mul,
    OpCode.SCALE: _scale,
    OpCode.CAST: _cast,
    OpCode.REPEAT_Z: _repeat,
    OpCode.SHIFT: _shift,
    OpCode.SOFTMAX: _softmax,
    OpCode.MOE_GATE: _gate,
}

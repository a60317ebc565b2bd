"""Lowers one segment of a node's program to a graph.

The root describes a layer in small steps over numbered buffers: inverse RMS, then a multiplication
by it; a cast to Q80, then a product; softmax, gate, scale, sum. The lowering goes through a segment
once. It records for each buffer whether it holds a buffer of the graph or an incomplete step, and
emits our op when the step is complete: INV_RMS + RMS_NORM as rms_norm, SHIFT + SHIFT +
MULTIHEAD_ATT as kv_append + attention, SILU + MUL as swiglu, SOFTMAX + MOE_GATE as route, SCALE +
MERGE_SUM as expert_sum.

A Q80 buffer of the program is float32 here, rounded like Q80; only pipes are real Q80. A step that
our ops cannot complete is a ProtocolError; no stock root sends one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airllm.cluster.lowered import Cache, Segment, WeightKey
from airllm.cluster.node_config import NodeOp, Sync
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
from airllm.cluster.shared import Shared
from airllm.cluster.wire import FloatType, Pointer, PointerType, ProtocolError, Source
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer, Weight
from airllm.graph.vocabulary import DType

# ---- what a buffer holds ----


@dataclass(frozen=True, eq=False)
class _Tensor:
    buffer: Buffer  # [n, planes * width]


@dataclass(frozen=True, eq=False)
class _InverseRms:
    of: _Tensor
    config: InvRms


@dataclass(frozen=True, eq=False)
class _Activated:
    """silu or gelu of a tensor, not emitted yet, so that a MUL that follows can include it."""

    x: Buffer
    code: OpCode


@dataclass(frozen=True, eq=False)
class _Repeated:
    """The same row in each plane."""

    x: Buffer


@dataclass(frozen=True, eq=False)
class _Softmax:
    logits: Buffer


@dataclass(frozen=True, eq=False)
class _Route:
    """The chosen experts and their shares."""

    route: Buffer


@dataclass(frozen=True, eq=False)
class _Scaled:
    """Planes times the shares of a route. MERGE_SUM adds them up."""

    x: Buffer
    route: Buffer


_Value = _Tensor | _InverseRms | _Activated | _Repeated | _Softmax | _Route | _Scaled


# ---- the segment ----


class SegmentLowering:
    """Takes the ops of one segment in order, then gives the segment."""

    def __init__(self, shared: Shared, number: int) -> None:
        self.shared, self.number = shared, number
        self.program = shared.program
        self.g = GraphBuilder("segment", activations="q8")
        self.values: dict[int, _Value] = {}  # by the program's buffer
        self.shifted: dict[int, Buffer] = {}  # by the cache's buffer
        self.weights: dict[str, WeightKey] = {}
        self.cache: int | None = None

    def add(self, op: NodeOp) -> None:
        _LOWERINGS[op.code](self, op)

    def finish(self, syncs: tuple[Sync, ...]) -> Segment:
        if self.shifted:
            raise ProtocolError(f"segment {self.number}: SHIFT fills a cache that nothing reads")
        for index, value in self.values.items():
            if index in self.shared.carried and not isinstance(value, _Tensor):
                raise ProtocolError(
                    f"segment {self.number}: buffer {index} passes an incomplete step to another"
                )
        return Segment(self.g.build(), self.weights, self.cache, syncs)

    # ---- reading and writing ----

    def fault(self, op: NodeOp, text: str) -> ProtocolError:
        return ProtocolError(f"segment {self.number}, op {op.name!r} {op.index}: {text}")

    def pipe(self, index: int) -> Buffer:
        size = self.program.net.pipes[index].size
        dtype: DType = "q8_0" if size.type is FloatType.Q80 else "float32"
        return self.g.external(f"pipe.{index}", size.x, dtype)

    def external(self, index: int) -> Buffer:
        return self.g.external(f"buffer.{index}", self.shared.width(index))

    def value(self, index: int) -> _Value:
        """The value of a buffer; another segment's value, if this segment has not written it."""
        if index not in self.values:
            self.values[index] = _Tensor(self.external(index))
        return self.values[index]

    def tensor(self, op: NodeOp, index: int) -> Buffer:
        """A buffer's values, [n, planes * width]."""
        value = self.value(index)
        if isinstance(value, _Activated):
            value = _Tensor(self.activate(value))
            self.values[index] = value
        if not isinstance(value, _Tensor):
            kind = type(value).__name__.strip("_").lower()
            raise self.fault(op, f"reads buffer {index}, which holds an incomplete step: {kind}")
        return value.buffer

    def activate(self, value: _Activated, out: Buffer | None = None) -> Buffer:
        function = self.g.silu if value.code is OpCode.SILU else self.g.gelu
        return function(value.x, out=out)

    def read(self, op: NodeOp, pointer: Pointer, out: Buffer | None = None) -> Buffer:
        """The values at `pointer`. out: the buffer to which values from a pipe are copied."""
        if pointer.source is Source.BUFFER:
            return self.tensor(op, pointer.index)
        view = self.program.view(pointer)
        return self.g.take_columns(self.pipe(pointer.index), view.first, view.width, out=out)

    def kept(self, op: NodeOp, pointer: Pointer) -> Buffer:
        """The present values, for a step that is completed later; copied if external."""
        x = self.read(op, pointer)
        return self.g.take_columns(x, 0, x.width) if x.external else x

    def write(self, pointer: Pointer, make: Callable[[Buffer | None], Buffer]) -> None:
        """Writes to `pointer`. make(out) emits the op and returns the buffer that the op writes:
        `out`, or for None a new buffer."""
        if pointer.source is Source.PIPE:
            out = self.pipe(pointer.index)
            self.g.put_columns(make(None), self.program.view(pointer).first, out=out)
        else:
            carried = pointer.index in self.shared.carried
            out_buffer = make(self.external(pointer.index) if carried else None)
            self.values[pointer.index] = _Tensor(out_buffer)

    def hold(self, op: NodeOp, value: _Value) -> None:
        """Records that the op's output is a step that a later op completes."""
        if op.output.source is Source.PIPE:
            raise self.fault(op, f"{op.code.name} cannot write to a pipe")
        self.values[op.output.index] = value

    def weight(self, op: NodeOp) -> Weight:
        """The slot of an op's weight, in the shape that graphs give it."""
        size = op.weight
        if op.code is OpCode.RMS_NORM:
            shape: tuple[int, ...] = (size.x,)
        elif op.code is OpCode.EMBEDDING:
            shape = (size.y, size.x)  # rows are looked up
        elif isinstance(op.config, Matmul) and op.config.n_active:
            shape = (size.z, size.x, size.y)
        else:
            shape = (size.x, size.y)  # x outputs of y inputs each, stored row after row
        slot = op.name if op.name not in self.weights else f"{op.name}.{op.index}"
        self.weights[slot] = op.name, op.index
        return self.g.weight(slot, *shape)

    # ---- the ops ----

    def merge_add(self, op: NodeOp) -> None:
        x = self.read(op, op.output)
        if op.input.source is Source.PIPE and op.input.type is PointerType.BATCH:
            parts = self.pipe(op.input.index)
        else:
            parts = self.read(op, op.input)
        self.write(op.output, lambda out: self.g.merge_add(x, parts, out=out))

    def merge_sum(self, op: NodeOp) -> None:
        value = self.value(op.input.index) if op.input.source is Source.BUFFER else None
        if not isinstance(value, _Scaled):
            raise self.fault(op, "MERGE_SUM adds up values that SCALE has not scaled")
        x, route = value.x, value.route
        self.write(op.output, lambda out: _copied(self.g, self.g.expert_sum(x, route), out))

    def embedding(self, op: NodeOp) -> None:
        if op.input.source is not Source.PIPE:
            raise self.fault(op, "EMBEDDING takes its tokens from a buffer; expected a pipe")
        tokens = self.g.external(f"tokens.{op.input.index}", 1, "int32")
        table = self.weight(op)
        if op.output.source is Source.BUFFER and self.program.view(op.output).type is FloatType.Q80:
            rows = self.g.embed(tokens, table)
            return self.write(op.output, lambda out: self.g.round_q8(rows, out=out))
        return self.write(op.output, lambda out: self.g.embed(tokens, table, out=out))

    def inv_rms(self, op: NodeOp) -> None:
        assert isinstance(op.config, InvRms)
        if op.input.source is not Source.BUFFER:
            raise self.fault(op, "INV_RMS reads a pipe; expected a buffer")
        self.tensor(op, op.input.index)
        of = self.value(op.input.index)
        assert isinstance(of, _Tensor)
        self.hold(op, _InverseRms(of, op.config))

    def rms_norm(self, op: NodeOp) -> None:
        assert isinstance(op.config, RmsNorm)
        x, columns = self.read(op, op.input), op.config.columns
        inverse = self.value(op.config.buffer)
        same = isinstance(inverse, _InverseRms) and inverse.of is self.values.get(op.input.index)
        if not (isinstance(inverse, _InverseRms) and same and inverse.config.columns == columns):
            raise self.fault(op, "RMS_NORM does not use the inverse RMS of its own input")
        weight, eps = self.weight(op), inverse.config.epsilon
        if columns == 1:
            self.write(op.output, lambda out: self.g.rms_norm(x, weight, eps, out=out))
        else:
            self.write(op.output, lambda out: self.g.head_norm(x, weight, columns, eps, out=out))

    def matmul(self, op: NodeOp) -> None:
        assert isinstance(op.config, Matmul)
        if not op.config.n_active:
            x, weight = self.read(op, op.input), self.weight(op)
            return self.write(op.output, lambda out: self.g.linear(x, weight, out=out))
        chosen = self.value(op.config.buffer)
        if not isinstance(chosen, _Route):
            raise self.fault(op, f"buffer {op.config.buffer} holds no experts that a gate chose")
        value = self.value(op.input.index) if op.input.source is Source.BUFFER else None
        x = value.x if isinstance(value, _Repeated) else self.read(op, op.input)
        product = self.g.expert_linear(x, chosen.route, self.weight(op))
        return self.write(op.output, lambda out: _copied(self.g, product, out))

    def rope(self, op: NodeOp) -> None:
        config = op.config
        assert isinstance(config, Rope)
        x = self.read(op, op.input)
        table = self.g.external(self.shared.angles_of(config), config.head_dim)
        n_heads, pairs = x.width // config.head_dim, config.type is not RopeType.FALCON
        self.write(
            op.output,
            lambda out: self.g.rope(x, table, n_heads, config.head_dim, interleaved=pairs, out=out),
        )

    def shift(self, op: NodeOp) -> None:
        if op.output.index in self.shifted:
            raise self.fault(op, f"fills the cache {op.output.index} twice")
        self.shifted[op.output.index] = self.kept(op, op.input)

    def attention(self, op: NodeOp) -> None:
        c = op.config
        assert isinstance(c, Attention)
        if self.cache is not None:
            raise self.fault(op, "is the segment's second attention")
        if c.key_buffer == c.value_buffer:
            raise self.fault(op, f"keeps keys and values in the same buffer, {c.key_buffer}")
        for buffer in (c.key_buffer, c.value_buffer):
            if buffer not in self.shifted:
                raise self.fault(op, f"no SHIFT of this segment fills its cache, buffer {buffer}")
        k, v = self.shifted.pop(c.key_buffer), self.shifted.pop(c.value_buffer)
        n_kv_heads = c.kv0 // c.head_dim
        where = f"segment {self.number}, op {op.name!r} {op.index}"
        cache = Cache(c.key_buffer, c.value_buffer, n_kv_heads, c.length, c.head_dim)
        self.cache = self.shared.cache(cache, where)
        self.g.kv_append(k, v, n_kv_heads, c.head_dim)
        q = self.tensor(op, c.query_buffer)
        self.write(
            op.output,
            lambda out: self.g.attention(
                q, c.n_heads0, n_kv_heads, c.head_dim, scale=c.head_dim**-0.5, out=out
            ),
        )

    def activation(self, op: NodeOp) -> None:
        value = _Activated(self.read(op, op.input), op.code)
        carried = op.output.index in self.shared.carried
        if op.output.source is Source.PIPE or carried or value.x.external:
            return self.write(op.output, lambda out: self.activate(value, out))
        return self.hold(op, value)

    def multiply(self, op: NodeOp) -> None:
        assert isinstance(op.config, Reference)
        value = self.value(op.input.index) if op.input.source is Source.BUFFER else None
        by = self.tensor(op, op.config.index)
        if isinstance(value, _Activated) and value is self.value(op.input.index):
            gate = value.x
            gated = self.g.swiglu if value.code is OpCode.SILU else self.g.geglu
            return self.write(op.output, lambda out: gated(gate, by, out=out))
        x = self.read(op, op.input)
        return self.write(op.output, lambda out: self.g.multiply(x, by, out=out))

    def scale(self, op: NodeOp) -> None:
        assert isinstance(op.config, Reference)
        shares = self.value(op.config.index)
        if not isinstance(shares, _Route):
            raise self.fault(op, f"buffer {op.config.index} holds no shares that a gate gave")
        self.hold(op, _Scaled(self.kept(op, op.input), shares.route))

    def cast(self, op: NodeOp) -> None:
        if op.output.source is Source.PIPE:  # writing to a pipe rounds
            return self.write(op.output, lambda out: self.read(op, op.input))
        types = self.program.view(op.input).type, self.program.view(op.output).type
        if types == (FloatType.F32, FloatType.Q80):
            x = self.read(op, op.input)
            return self.write(op.output, lambda out: self.g.round_q8(x, out=out))
        if op.input.source is Source.PIPE:
            return self.write(op.output, lambda out: self.read(op, op.input, out))
        x = self.read(op, op.input)
        if x.external:  # copied, because it may change
            return self.write(op.output, lambda out: self.g.take_columns(x, 0, x.width, out=out))
        return self.write(op.output, lambda out: _copied(self.g, x, out))

    def repeat(self, op: NodeOp) -> None:
        self.hold(op, _Repeated(self.g.round_q8(self.read(op, op.input))))

    def softmax(self, op: NodeOp) -> None:
        self.hold(op, _Softmax(self.kept(op, op.input)))

    def gate(self, op: NodeOp) -> None:
        assert isinstance(op.config, Gate)
        value = self.value(op.input.index) if op.input.source is Source.BUFFER else None
        if not isinstance(value, _Softmax):
            raise self.fault(op, "the input of MOE_GATE is not the output of a SOFTMAX")
        normalized = bool(op.config.normalize)
        route = _Route(self.g.route(value.logits, op.config.k, normalized=normalized))
        self.values[op.config.buffer] = route
        self.hold(op, route)


def _copied(g: GraphBuilder, x: Buffer, out: Buffer | None) -> Buffer:
    """x itself if `out` is None, otherwise `out` with a copy of x."""
    return x if out is None else g.take_columns(x, 0, x.width, out=out)


_LOWERINGS: Mapping[OpCode, Callable[[SegmentLowering, NodeOp], None]] = {
    OpCode.MERGE_ADD: SegmentLowering.merge_add,
    OpCode.MERGE_SUM: SegmentLowering.merge_sum,
    OpCode.EMBEDDING: SegmentLowering.embedding,
    OpCode.INV_RMS: SegmentLowering.inv_rms,
    OpCode.RMS_NORM: SegmentLowering.rms_norm,
    OpCode.MATMUL: SegmentLowering.matmul,
    OpCode.ROPE: SegmentLowering.rope,
    OpCode.MULTIHEAD_ATT: SegmentLowering.attention,
    OpCode.GELU: SegmentLowering.activation,
    OpCode.SILU: SegmentLowering.activation,
    OpCode.MUL: SegmentLowering.multiply,
    OpCode.SCALE: SegmentLowering.scale,
    OpCode.CAST: SegmentLowering.cast,
    OpCode.REPEAT_Z: SegmentLowering.repeat,
    OpCode.SHIFT: SegmentLowering.shift,
    OpCode.SOFTMAX: SegmentLowering.softmax,
    OpCode.MOE_GATE: SegmentLowering.gate,
}

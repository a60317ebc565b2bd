"""A node's program as the root sends it: buffers, and segments of ops and syncs.

Here every field is checked by itself, and references against what there is; whether an op's parts
fit together is for checks.py.
"""

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from airllm.cluster.protocol import Handshake, NetConfig, Pipe, SyncType, check_rows
from airllm.cluster.wire import (
    ACK,
    NO_SIZE,
    Fields,
    FloatType,
    Pointer,
    Size,
    Take,
    encode_name,
    encode_u32,
)

MOST_BUFFERS = 1 << 14
MOST_SEGMENTS = 1 << 10
MOST_OPS = 1 << 8  # of a segment; a layer's halves have about 20
MOST_OPS_TOGETHER = 1 << 14
MOST_SYNCS = 64
LONGEST_CONFIG = 120


class OpCode(enum.IntEnum):
    MERGE_ADD = 0
    MERGE_SUM = 1
    EMBEDDING = 2
    INV_RMS = 3
    RMS_NORM = 4
    MATMUL = 5
    ROPE = 6
    MULTIHEAD_ATT = 7
    GELU = 8
    SILU = 9
    MUL = 10
    SCALE = 11
    CAST = 12
    REPEAT_Z = 13
    SHIFT = 14
    SOFTMAX = 15
    MOE_GATE = 16


class RopeType(enum.IntEnum):
    LLAMA = 0  # neighbours are a pair
    FALCON = 1  # halves are a pair
    LLAMA3_1 = 2  # as LLAMA


@dataclass(frozen=True, slots=True)
class Empty:
    """The config of ops that need none: one byte that means nothing."""

    def encode(self) -> bytes:
        return b"\0"


@dataclass(frozen=True, slots=True)
class InvRms:
    epsilon: float
    columns: int  # pieces of the input, each with a result

    def encode(self) -> bytes:
        return struct.pack("<fI", self.epsilon, self.columns)


@dataclass(frozen=True, slots=True)
class RmsNorm:
    buffer: int  # with INV_RMS's results
    columns: int

    def encode(self) -> bytes:
        return encode_u32(self.buffer, self.columns)


@dataclass(frozen=True, slots=True)
class Matmul:
    n_experts: int
    n_active: int  # 0: the weight is one matrix
    buffer: int  # with the chosen experts

    def encode(self) -> bytes:
        return encode_u32(self.n_experts, self.n_active, self.buffer)


@dataclass(frozen=True, slots=True)
class Rope:
    """The fields up to theta in their order; those a node does not need are kept as they came."""

    type: RopeType
    is_query: int
    position_pipe: int
    cache_buffer: int
    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int
    q0: int
    q_start: int
    q_end: int
    q_shift: int
    kv_dim: int
    kv0: int
    kv_start: int
    slice_width: int
    length: int
    head_dim: int
    n_kv_heads: int
    theta: float
    cache: Size

    def encode(self) -> bytes:
        return struct.pack(
            "<iIIIfffIIIIIIIIIIIIf",
            self.type,
            self.is_query,
            self.position_pipe,
            self.cache_buffer,
            self.factor,
            self.low_frequency_factor,
            self.high_frequency_factor,
            self.original_length,
            self.q0,
            self.q_start,
            self.q_end,
            self.q_shift,
            self.kv_dim,
            self.kv0,
            self.kv_start,
            self.slice_width,
            self.length,
            self.head_dim,
            self.n_kv_heads,
            self.theta,
        ) + (self.cache.encode())


@dataclass(frozen=True, slots=True)
class Attention:
    n_heads: int
    n_heads0: int  # of this node
    n_kv_heads: int
    head_dim: int
    length: int
    q0: int
    kv0: int
    position_pipe: int
    query_buffer: int
    key_buffer: int
    value_buffer: int
    score_buffer: int

    def encode(self) -> bytes:
        return encode_u32(
            self.n_heads,
            self.n_heads0,
            self.n_kv_heads,
            self.head_dim,
            self.length,
            self.q0,
            self.kv0,
            self.position_pipe,
            self.query_buffer,
            self.key_buffer,
            self.value_buffer,
            self.score_buffer,
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """The config of MUL and SCALE, whose buffer has the other factor, and of SHIFT, whose pipe has
    the row."""

    index: int

    def encode(self) -> bytes:
        return encode_u32(self.index)


@dataclass(frozen=True, slots=True)
class Gate:
    k: int
    normalize: int
    buffer: int  # for the chosen experts

    def encode(self) -> bytes:
        return encode_u32(self.k, self.normalize, self.buffer)


Config: TypeAlias = Empty | InvRms | RmsNorm | Matmul | Rope | Attention | Reference | Gate


@dataclass(frozen=True, slots=True)
class Op:
    code: OpCode
    name: str
    index: int
    input: Pointer
    output: Pointer
    config: Config
    weight: Size = NO_SIZE

    def encode(self) -> bytes:
        config = self.config.encode()
        return (
            encode_u32(self.code, self.index)
            + self.weight.encode()
            + encode_u32(len(config))
            + encode_name(self.name)
            + self.input.encode()
            + self.output.encode()
            + config
        )


@dataclass(frozen=True, slots=True)
class Sync:
    pipe: int
    type: SyncType


@dataclass(frozen=True, slots=True)
class Segment:
    """Ops in order, then syncs in order."""

    ops: tuple[Op, ...]
    syncs: tuple[Sync, ...]

    def encode(self) -> bytes:
        return (
            encode_u32(len(self.syncs), len(self.ops))
            + b"".join(encode_u32(sync.pipe, sync.type) for sync in self.syncs)
            + b"".join(op.encode() for op in self.ops)
        )


@dataclass(frozen=True, slots=True)
class NodeConfig:
    node: int  # worker index + 1
    buffers: tuple[Pipe, ...]
    segments: tuple[Segment, ...]

    def encode(self) -> bytes:
        buffers = (buffer.size.encode() + encode_name(buffer.name) for buffer in self.buffers)
        return (
            encode_u32(ACK, self.node, len(self.buffers), len(self.segments))
            + b"".join(buffers)
            + b"".join(segment.encode() for segment in self.segments)
        )


def read_node_config(take: Take, handshake: Handshake, net: NetConfig) -> NodeConfig:
    f = Fields(take, "node config")
    f.ack()
    node = f.u32("the node's index")
    if node != handshake.index + 1:
        expected = f"{handshake.index + 1}, as the handshake said worker {handshake.index}"
        raise f.fault("the node's index", node, expected)
    n_buffers = f.u32("the number of buffers", 0, MOST_BUFFERS)
    n_segments = f.u32("the number of segments", 1, MOST_SEGMENTS)
    buffers = []
    for i in range(n_buffers):
        part = f.part(f"buffer {i}")
        size = part.size("its size")
        check_rows(part, size)
        buffers.append(Pipe(size, part.name("its name")))
    counts = len(net.pipes), n_buffers
    segments: list[Segment] = []
    n_ops = 0
    for i in range(n_segments):
        segments.append(_read_segment(f.part(f"segment {i}"), *counts))
        n_ops += len(segments[-1].ops)
        if n_ops > MOST_OPS_TOGETHER:
            raise f.fault("the number of ops", n_ops, f"at most {MOST_OPS_TOGETHER}")
    config = NodeConfig(node, tuple(buffers), tuple(segments))
    _check_weights_are_unique(f, config)
    return config


def _read_segment(f: Fields, n_pipes: int, n_buffers: int) -> Segment:
    n_syncs = f.u32("the number of syncs", 0, MOST_SYNCS)
    n_ops = f.u32("the number of ops", 0, MOST_OPS)
    syncs = []
    for i in range(n_syncs):
        part = f.part(f"sync {i}")
        pipe = part.index("its pipe", n_pipes)
        syncs.append(Sync(pipe, part.enum("its type", SyncType)))
    ops = tuple(_read_op(f.part(f"op {i}"), n_pipes, n_buffers) for i in range(n_ops))
    return Segment(ops, tuple(syncs))


def _read_op(f: Fields, n_pipes: int, n_buffers: int) -> Op:
    code = f.enum("its code", OpCode)
    index = f.u32("its index")
    weight = f.size("its weight")
    n_config = f.u32("the size of its config", 1, LONGEST_CONFIG)
    name = f.name("its name")
    part = Fields(f.raw, f"{f.message} {name!r}")
    pointers = [part.pointer(which, n_pipes, n_buffers) for which in ("its input", "its output")]
    size, read = _CONFIGS[code]
    if n_config != size:
        raise part.fault("the size of its config", n_config, f"{size} for {code.name}")
    config = read(part, n_pipes, n_buffers)
    has_weight = code in (OpCode.EMBEDDING, OpCode.RMS_NORM, OpCode.MATMUL)
    if has_weight != (weight.type is not FloatType.NONE):
        raise part.fault("its weight", weight, f"{'one' if has_weight else 'none'} for {code.name}")
    return Op(code, name, index, pointers[0], pointers[1], config, weight)


def _check_weights_are_unique(f: Fields, config: NodeConfig) -> None:
    seen = set()
    for segment in config.segments:
        for op in segment.ops:
            if op.weight.type is FloatType.NONE:
                continue
            if (op.name, op.index) in seen:
                name = f"({op.name!r}, {op.index})"
                raise f.fault("an op with a weight", name, "a name and index of its own")
            seen.add((op.name, op.index))


def _read_empty(f: Fields, n_pipes: int, n_buffers: int) -> Empty:
    f.raw(1)
    return Empty()


def _read_inv_rms(f: Fields, n_pipes: int, n_buffers: int) -> InvRms:
    return InvRms(f.f32("epsilon", 0.0, 1.0), f.u32("columns", 1))


def _read_rms_norm(f: Fields, n_pipes: int, n_buffers: int) -> RmsNorm:
    return RmsNorm(f.index("the buffer of inverse RMS", n_buffers), f.u32("columns", 1))


def _read_matmul(f: Fields, n_pipes: int, n_buffers: int) -> Matmul:
    n_experts, n_active = f.u32("experts"), f.u32("active experts")
    # Without experts the third field means nothing, and a node may have no buffers.
    buffer = f.index("the buffer of experts", n_buffers) if n_active else f.u32("unused")
    return Matmul(n_experts, n_active, buffer)


def _read_rope(f: Fields, n_pipes: int, n_buffers: int) -> Rope:
    return Rope(
        type=f.enum("the rope type", RopeType),
        is_query=f.u32("is_query", 0, 1),
        position_pipe=f.u32("the position pipe", 0, 0),
        cache_buffer=f.index("the cache's buffer", n_buffers),
        factor=f.f32("the scaling factor", 1e-3, 1e6),
        low_frequency_factor=f.f32("the low frequency factor", 0.0, 1e6),
        high_frequency_factor=f.f32("the high frequency factor", 0.0, 1e6),
        original_length=f.u32("the original length"),
        q0=f.u32("q0"),
        q_start=f.u32("the first query column"),
        q_end=f.u32("the end of the query columns"),
        q_shift=f.u32("the distance of query and key columns"),
        kv_dim=f.u32("the key values of all nodes"),
        kv0=f.u32("kv0"),
        kv_start=f.u32("the first key column"),
        slice_width=f.u32("the width of the cache"),
        length=f.u32("the sequence length", 1),
        head_dim=f.u32("head_dim", 2),
        n_kv_heads=f.u32("kv_heads", 1),
        theta=f.f32("theta", 1.0, 1e12),
        cache=f.size("the cache"),
    )


def _read_attention(f: Fields, n_pipes: int, n_buffers: int) -> Attention:
    return Attention(
        n_heads=f.u32("heads", 1),
        n_heads0=f.u32("heads of this node", 1),
        n_kv_heads=f.u32("kv_heads", 1),
        head_dim=f.u32("head_dim", 1),
        length=f.u32("the sequence length", 1),
        q0=f.u32("q0"),
        kv0=f.u32("kv0"),
        position_pipe=f.u32("the position pipe", 0, 0),
        query_buffer=f.index("the buffer of queries", n_buffers),
        key_buffer=f.index("the buffer of keys", n_buffers),
        value_buffer=f.index("the buffer of values", n_buffers),
        score_buffer=f.index("the buffer of scores", n_buffers),
    )


def _read_factor(f: Fields, n_pipes: int, n_buffers: int) -> Reference:
    return Reference(f.index("the buffer of factors", n_buffers))


def _read_shift(f: Fields, n_pipes: int, n_buffers: int) -> Reference:
    return Reference(f.u32("the position pipe", 0, 0))


def _read_gate(f: Fields, n_pipes: int, n_buffers: int) -> Gate:
    k, normalize = f.u32("k", 1), f.u32("normalise", 0, 1)
    return Gate(k, normalize, f.index("the buffer of experts", n_buffers))


_CONFIGS: Mapping[OpCode, tuple[int, Callable[[Fields, int, int], Config]]] = {
    OpCode.MERGE_ADD: (1, _read_empty),
    OpCode.MERGE_SUM: (1, _read_empty),
    OpCode.EMBEDDING: (1, _read_empty),
    OpCode.INV_RMS: (8, _read_inv_rms),
    OpCode.RMS_NORM: (8, _read_rms_norm),
    OpCode.MATMUL: (12, _read_matmul),
    OpCode.ROPE: (120, _read_rope),
    OpCode.MULTIHEAD_ATT: (48, _read_attention),
    OpCode.GELU: (1, _read_empty),
    OpCode.SILU: (1, _read_empty),
    OpCode.MUL: (4, _read_factor),
    OpCode.SCALE: (4, _read_factor),
    OpCode.CAST: (1, _read_empty),
    OpCode.REPEAT_Z: (1, _read_empty),
    OpCode.SHIFT: (4, _read_shift),
    OpCode.SOFTMAX: (1, _read_empty),
    OpCode.MOE_GATE: (12, _read_gate),
}

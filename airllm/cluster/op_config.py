"""The codes of the ops, and the config struct that follows each kind of op in the stream."""

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from airllm.cluster.wire import Fields, Size, encode_u32

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
    LLAMA = 0  # turns pairs of neighbouring columns
    FALCON = 1  # pairs a column of the first half with one of the second
    LLAMA3_1 = 2  # pairs as LLAMA


@dataclass(frozen=True, slots=True)
class Empty:
    """The config of ops that need none: one byte that means nothing."""

    def encode(self) -> bytes:
        return b"\0"


@dataclass(frozen=True, slots=True)
class InvRms:
    epsilon: float
    columns: int  # parts of the input, each with its own result

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
    n_active: int  # 0: no experts; the weight is one matrix
    buffer: int  # with the chosen experts

    def encode(self) -> bytes:
        return encode_u32(self.n_experts, self.n_active, self.buffer)


@dataclass(frozen=True, slots=True)
class Rope:
    """The fields up to theta are in wire order. Fields that a node does not need are kept, too."""

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
    """The config of MUL and SCALE (index: the buffer with the other factor) and of SHIFT (index:
    the pipe with the positions)."""

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


# By code: the size in bytes, and the function that reads and checks the config.
CONFIGS: Mapping[OpCode, tuple[int, Callable[[Fields, int, int], Config]]] = {
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

"""A node's program as the root sends it: buffers, and segments of ops and syncs.

This module checks each field by itself, and that each reference names a pipe or buffer of the
program. checks.py checks whether the parts of an op fit together.
"""

from dataclasses import dataclass

from airllm.cluster.op_config import CONFIGS, LONGEST_CONFIG, Config, OpCode
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
MOST_OPS = 1 << 8  # of a segment; half a layer has about 20
MOST_OPS_TOGETHER = 1 << 14
MOST_SYNCS = 64


@dataclass(frozen=True, slots=True)
class NodeOp:
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
class NodeSegment:
    """Ops in order, then syncs in order."""

    ops: tuple[NodeOp, ...]
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
    segments: tuple[NodeSegment, ...]

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
    segments: list[NodeSegment] = []
    n_ops = 0
    for i in range(n_segments):
        segments.append(_read_segment(f.part(f"segment {i}"), *counts))
        n_ops += len(segments[-1].ops)
        if n_ops > MOST_OPS_TOGETHER:
            raise f.fault("the number of ops", n_ops, f"at most {MOST_OPS_TOGETHER}")
    config = NodeConfig(node, tuple(buffers), tuple(segments))
    _check_weights_are_unique(f, config)
    return config


def _read_segment(f: Fields, n_pipes: int, n_buffers: int) -> NodeSegment:
    n_syncs = f.u32("the number of syncs", 0, MOST_SYNCS)
    n_ops = f.u32("the number of ops", 0, MOST_OPS)
    syncs = []
    for i in range(n_syncs):
        part = f.part(f"sync {i}")
        pipe = part.index("its pipe", n_pipes)
        syncs.append(Sync(pipe, part.enum("its type", SyncType)))
    ops = tuple(_read_op(f.part(f"op {i}"), n_pipes, n_buffers) for i in range(n_ops))
    return NodeSegment(ops, tuple(syncs))


def _read_op(f: Fields, n_pipes: int, n_buffers: int) -> NodeOp:
    code = f.enum("its code", OpCode)
    index = f.u32("its index")
    weight = f.size("its weight")
    n_config = f.u32("the size of its config", 1, LONGEST_CONFIG)
    name = f.name("its name")
    part = Fields(f.raw, f"{f.message} {name!r}")
    pointers = [part.pointer(which, n_pipes, n_buffers) for which in ("its input", "its output")]
    size, read = CONFIGS[code]
    if n_config != size:
        raise part.fault("the size of its config", n_config, f"{size} for {code.name}")
    config = read(part, n_pipes, n_buffers)
    has_weight = code in (OpCode.EMBEDDING, OpCode.RMS_NORM, OpCode.MATMUL)
    if has_weight != (weight.type is not FloatType.NONE):
        raise part.fault("its weight", weight, f"{'one' if has_weight else 'none'} for {code.name}")
    return NodeOp(code, name, index, pointers[0], pointers[1], config, weight)


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

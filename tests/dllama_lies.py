"""Roots that lie: recorded programs with one thing changed, of which the rest fits together.

A byte that changes is mostly refused where it stands, as sizes name their own length. A lie is what
a root could say: other dimensions, counts, numbers, types, an op more, less or elsewhere, all
written as the protocol has them.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from functools import cache
from typing import Any

import dllama_recording

from airllm.cluster.node_config import NodeConfig, NodeSegment, Sync, read_node_config
from airllm.cluster.op_config import OpCode
from airllm.cluster.protocol import (
    Handshake,
    NetConfig,
    Pipe,
    SyncType,
    encode_ack,
    read_handshake,
    read_net_config,
)
from airllm.cluster.wire import NO_SIZE, Pointer, Size, take_from

NUMBERS = [0, 1, 2, 3, 31, 32, 33, 64, 96, 255, 256, 257, 4096, 2**16, 2**20, 2**31 - 1, 2**31]


@cache
def recorded(name: str, worker: int) -> tuple[Handshake, NetConfig, NodeConfig]:
    data = bytes(dllama_recording.read_recording(name)[0][worker, 0].to_worker)
    take = take_from(data)
    handshake = read_handshake(take)
    take(4)
    net = read_net_config(take, handshake)
    return handshake, net, read_node_config(take, handshake, net)


def encoded(handshake: Handshake, net: NetConfig, node: NodeConfig) -> bytes:
    return handshake.encode() + encode_ack() + net.encode() + node.encode()


def lie(random: random.Random, name: str, worker: int, count: int = 1) -> bytes:
    """What a root says that lies in so many things."""
    handshake, net, node = recorded(name, worker)
    for _ in range(count):
        kind = random.randrange(10)
        if kind == 0:
            net = _change_net(random, net)
        elif kind == 1:
            node = replace(node, buffers=_change_pipes(random, node.buffers))
        elif kind == 2:  # one size everywhere: the lie that fits best
            net, node = _resize(random, net, node)
        else:
            node = _change_segment(random, node)
    return encoded(handshake, net, node)


def _number(random: random.Random, near: int) -> int:
    close = [near + 1, max(near - 1, 0), near * 2, near // 2, near * 3]
    return min(random.choice([*NUMBERS, *close]), 2**32 - 1)


def _change_size(random: random.Random, size: Size) -> Size:
    if size == NO_SIZE or random.random() < 0.1:
        return random.choice([NO_SIZE, Size(type(size.type)(0), 1, 32, 64)])
    axis = random.choice(["type", "x", "y", "z"])
    if axis == "type":
        return replace(size, type=random.choice(list(type(size.type))[1:]))
    return _valid(replace(size, **{axis: _number(random, getattr(size, axis))}), size)


def _valid(size: Size, otherwise: Size) -> Size:
    """One that can be written: its length in 64 bits."""
    return size if size.x * size.y * size.z < 2**60 else otherwise


def _change_pipes(random: random.Random, pipes: tuple[Pipe, ...]) -> tuple[Pipe, ...]:
    at = random.randrange(len(pipes))
    changed = replace(pipes[at], size=_change_size(random, pipes[at].size))
    return random.choice(
        [
            (*pipes[:at], changed, *pipes[at + 1 :]),
            (*pipes[:at], *pipes[at + 1 :]),
            (*pipes[:at], pipes[at], *pipes[at:]),
        ]
    )


def _change_net(random: random.Random, net: NetConfig) -> NetConfig:
    kind = random.randrange(3)
    if kind == 0:
        return replace(net, rows=_number(random, net.rows))
    if kind == 1:
        return replace(net, n_nodes=_number(random, net.n_nodes))
    return replace(net, pipes=_change_pipes(random, net.pipes))


def _resize(
    random: random.Random, net: NetConfig, node: NodeConfig
) -> tuple[NetConfig, NodeConfig]:
    """Another number in place of one, wherever it stands: a model of another shape."""
    widths = {pipe.size.x for pipe in (*net.pipes, *node.buffers)} | {net.rows}
    old = random.choice(sorted(widths | {pipe.size.y for pipe in node.buffers}))
    new = _number(random, old)

    def changed(value: Any) -> Any:
        if isinstance(value, Size):
            if value == NO_SIZE:
                return value
            z, y, x = (new if n == old else n for n in (value.z, value.y, value.x))
            return _valid(Size(value.type, z, y, x), value)
        if isinstance(value, IntEnum | str | Pointer | Sync):
            return value
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: changed(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return replace(value, **fields)
        return new if type(value) is int and value == old else value

    node_number, n_nodes = node.node, net.n_nodes
    return replace(changed(net), n_nodes=n_nodes), replace(changed(node), node=node_number)


def _change_segment(random: random.Random, node: NodeConfig) -> NodeConfig:
    segments = list(node.segments)
    at = random.randrange(len(segments))
    kind = random.randrange(12)
    if kind == 0:
        del segments[at]
    elif kind == 1:
        segments.insert(at, segments[random.randrange(len(segments))])
    elif kind == 2:
        other = random.randrange(len(segments))
        segments[at], segments[other] = segments[other], segments[at]
    elif kind == 3:
        sync = Sync(random.randrange(6), random.choice(list(SyncType)))
        keep = segments[at].syncs[random.randrange(2) :]
        segments[at] = replace(segments[at], syncs=(*keep, sync))
    elif segments[at].ops:
        segments[at] = _change_ops(random, segments[at], len(node.buffers))
    return replace(node, segments=tuple(segments))


def _change_ops(random: random.Random, segment: NodeSegment, n_buffers: int) -> NodeSegment:
    ops = list(segment.ops)
    at = random.randrange(len(ops))
    op = ops[at]
    kind = random.randrange(8)
    if kind == 0:
        del ops[at]
    elif kind == 1:
        ops.insert(at, ops[random.randrange(len(ops))])
    elif kind == 2:
        other = random.randrange(len(ops))
        ops[at], ops[other] = ops[other], ops[at]
    elif kind == 3:
        ops[at] = replace(op, weight=_change_size(random, op.weight))
    elif kind == 4:
        same = [code for code in OpCode if _config_of(code) == _config_of(op.code)]
        ops[at] = replace(op, code=random.choice(same), index=_number(random, op.index))
    elif kind == 5:
        which = random.choice(["input", "output"])
        pointer = getattr(op, which)
        field = random.choice(list(_fields_of(pointer)))
        value = _other(random, getattr(pointer, field), n_buffers)
        ops[at] = replace(op, **{which: replace(pointer, **{field: value})})
    else:
        names = list(_fields_of(op.config))
        if names:
            name = random.choice(names)
            value = _other(random, getattr(op.config, name), n_buffers)
            ops[at] = replace(op, config=replace(op.config, **{name: value}))
    return replace(segment, ops=tuple(ops))


def _config_of(code: OpCode) -> int:
    from airllm.cluster.op_config import CONFIGS

    return CONFIGS[code][0]


def _fields_of(value: Any) -> Iterator[str]:
    return (field.name for field in dataclasses.fields(value))


def _other(random: random.Random, value: Any, n_buffers: int) -> Any:
    if isinstance(value, IntEnum):
        return random.choice(list(type(value)))
    if isinstance(value, Size):
        return _change_size(random, value)
    if isinstance(value, float):
        special = [0.0, -1.0, 1.0, 1e-30, 1e30, float("inf"), float("nan"), 2 * value]
        return random.choice(special)
    return random.choice([_number(random, value), random.randrange(n_buffers)])

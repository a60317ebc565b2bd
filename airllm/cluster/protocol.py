"""The messages of a run, apart from the node's program, which node_config reads.

Each message is a dataclass. `read_...` reads it from a stream and checks it, also against earlier
messages of the root. `encode` returns its bytes.
"""

import enum
import struct
from dataclasses import dataclass

from airllm.cluster.wire import (
    ACK,
    LONGEST_NAME,
    Fields,
    FloatType,
    Size,
    Take,
    encode_name,
    encode_u32,
)

LARGEST_CLUSTER = 1024  # nodes
LARGEST_BATCH = 255  # rows of a step; the stock program sends 32 and has 8-bit counters
MOST_PIPES = 64


@dataclass(frozen=True, slots=True)
class Handshake:
    """index: of this worker, among n_workers. others: (host, port) of the others, by index."""

    n_workers: int
    index: int
    others: tuple[tuple[str, int], ...]

    def encode(self) -> bytes:
        hosts = (encode_name(host) + encode_u32(port) for host, port in self.others)
        return encode_u32(self.n_workers, self.index) + b"".join(hosts)


def read_handshake(take: Take) -> Handshake:
    f = Fields(take, "handshake")
    n_workers = f.u32("the number of workers", 1, LARGEST_CLUSTER - 1)
    index = f.index("this worker's index", n_workers)
    others = tuple(
        (f.name(f"the host of worker {i}"), f.u32(f"the port of worker {i}", 1, 65535))
        for i in range(n_workers)
        if i != index
    )
    return Handshake(n_workers, index, others)


@dataclass(frozen=True, slots=True)
class Pipe:
    """A buffer that all nodes have and syncs transfer."""

    size: Size
    name: str


@dataclass(frozen=True, slots=True)
class NetConfig:
    """rows: the most rows of a step. pre_syncs: pipes; they have no effect here."""

    rows: int
    n_nodes: int
    pipes: tuple[Pipe, ...]
    pre_syncs: tuple[int, ...] = ()

    def encode(self) -> bytes:
        pipes = (pipe.size.encode() + encode_name(pipe.name) for pipe in self.pipes)
        return (
            encode_u32(ACK, self.rows, self.n_nodes, len(self.pipes))
            + b"".join(pipes)
            + encode_u32(len(self.pre_syncs), *self.pre_syncs)
        )


def read_net_config(take: Take, handshake: Handshake) -> NetConfig:
    f = Fields(take, "net config")
    f.ack()
    rows = f.u32("the number of rows", 1, LARGEST_BATCH)
    n_nodes = f.u32("the number of nodes")
    if n_nodes != handshake.n_workers + 1:
        expected = f"{handshake.n_workers + 1}, as the handshake said {handshake.n_workers} workers"
        raise f.fault("the number of nodes", n_nodes, expected)
    pipes = []
    for i in range(f.u32("the number of pipes", 1, MOST_PIPES)):
        part = f.part(f"pipe {i}")
        size = part.size("its size")
        check_rows(part, size)
        if (size.z, size.y) != (1, rows):
            raise part.fault("its size", size, f"1x{rows}x..., a row for each row of a step")
        pipes.append(Pipe(size, part.name("its name")))
    if (pipes[0].size.type, pipes[0].size.x) != (FloatType.F32, 1):
        raise f.fault("pipe 0", pipes[0].size, f"F32 1x{rows}x1, for positions")
    n_pre_syncs = f.u32("the number of pre-syncs", 0, MOST_PIPES)
    pre_syncs = tuple(f.index(f"pre-sync {i}", len(pipes)) for i in range(n_pre_syncs))
    return NetConfig(rows, n_nodes, tuple(pipes), pre_syncs)


def check_rows(f: Fields, size: Size) -> None:
    """Checks that ops compute with a buffer's type, and that its rows are whole blocks."""
    if size.type not in (FloatType.F32, FloatType.Q80):
        raise f.fault("its type", size.type.name, "F32 or Q80, the types that ops have")
    if size.x % size.type.block:
        raise f.fault("its size", size, f"rows of whole blocks of {size.type.block}")


@dataclass(frozen=True, slots=True)
class WeightHeader:
    """Announces `nbytes` bytes of the weight of op (name, index), from `offset` on."""

    name: str
    index: int
    offset: int
    nbytes: int

    def encode(self) -> bytes:
        return encode_name(self.name) + struct.pack("<IQQ", self.index, self.offset, self.nbytes)


def read_weight_header(take: Take) -> WeightHeader | None:
    """The next weight, whose bytes follow; None after the last one."""
    f = Fields(take, "weight")
    length = f.u32("the length of its name", 0, LONGEST_NAME)
    if length == 0:
        return None
    name = f.text("its name", length)
    f = Fields(take, f"weight {name!r}")
    return WeightHeader(name, f.u32("its op index"), f.u64("its offset"), f.u64("its bytes"))


NO_MORE_WEIGHTS = encode_u32(0)


class SyncType(enum.IntEnum):
    WITH_ROOT = 0  # the root sends whole rows to all
    NODE_SLICES = 1  # every node sends its slice to every other
    NODE_SLICES_EXCEPT_ROOT = 2  # every worker sends its slice to the root


@dataclass(frozen=True, slots=True)
class Control:
    """A step: rows at position, position + 1, ...; 0 rows: the run is over."""

    position: int
    rows: int

    def encode(self) -> bytes:
        return encode_u32(self.position, self.rows)


def parse_control(data: bytes, rows: int, positions: int, filled: int) -> Control:
    """Decodes and checks a packet of 8 bytes. rows: the most rows of a step. positions: the
    sequence's length. filled: the number of positions that the run has evaluated."""
    control = Control(*struct.unpack("<II", data))
    end = control.position + control.rows
    if control.rows == 0 or (
        control.rows <= rows and end <= positions and control.position <= filled
    ):
        return control
    f = Fields(lambda n: b"", "control packet")
    if control.rows > rows:
        raise f.fault("the number of rows", control.rows, f"at most {rows}, as the net config said")
    if end > positions:
        raise f.fault("the last position", end - 1, f"below {positions}, the sequence's length")
    raise f.fault("the position", control.position, f"at most {filled}, the first without keys")


def encode_ack() -> bytes:
    return encode_u32(ACK)

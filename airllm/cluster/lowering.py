"""Lowers a node's program to graphs for our executor, one for each segment (segment.py)."""

from collections.abc import Iterable

from airllm.cluster.checks import Program
from airllm.cluster.lowered import Lowered
from airllm.cluster.node_config import NodeOp
from airllm.cluster.op_config import Attention, Gate, Matmul, OpCode, Reference, RmsNorm, Rope
from airllm.cluster.segment import SegmentLowering
from airllm.cluster.shared import Shared
from airllm.cluster.wire import PointerType, ProtocolError, Source
from airllm.graph.graph import GraphError

UNLIMITED = 1 << 31  # positions of a program without attention and rope


def lower(program: Program) -> Lowered:
    """ProtocolError, which names op or segment, if the root's steps do not combine to our ops."""
    shared = Shared(program, _buffer_uses(program), _carried(program))
    segments = []
    for number, segment in enumerate(program.node.segments):
        try:
            lowering = SegmentLowering(shared, number)
            for op in segment.ops:
                lowering.add(op)
            segments.append(lowering.finish(segment.syncs))
        except GraphError as error:
            raise ProtocolError(f"segment {number}: {error}") from None
    return Lowered(
        tuple(segments),
        {index: shared.width(index) for index in shared.carried},
        tuple(shared.caches),
        tuple(shared.angles),
        min(_lengths(program, shared), default=UNLIMITED),
    )


def _lengths(program: Program, shared: Shared) -> Iterable[int]:
    """The sequence lengths that the caches and ropes of the program give."""
    yield from (cache.length for cache in shared.caches)
    for segment in program.node.segments:
        yield from (op.config.length for op in segment.ops if isinstance(op.config, Rope))


def _reads(op: NodeOp) -> Iterable[int]:
    """The buffers whose values an op reads, without KV caches."""
    if op.code is OpCode.MULTIHEAD_ATT:
        assert isinstance(op.config, Attention)
        yield op.config.query_buffer
    elif op.input.source is Source.BUFFER:
        yield op.input.index
    if op.code is OpCode.MERGE_ADD and op.output.source is Source.BUFFER:
        yield op.output.index
    if op.code in (OpCode.MUL, OpCode.SCALE):
        assert isinstance(op.config, Reference)
        yield op.config.index
    elif isinstance(op.config, RmsNorm) or (isinstance(op.config, Matmul) and op.config.n_active):
        yield op.config.buffer


def _writes(op: NodeOp) -> Iterable[int]:
    if op.output.source is Source.BUFFER:
        yield op.output.index
    if isinstance(op.config, Gate):
        yield op.config.buffer


def _carried(program: Program) -> frozenset[int]:
    """Buffers that a segment reads before it writes them: another segment's values, or zeros."""
    carried: set[int] = set()
    for segment in program.node.segments:
        written: set[int] = set()
        for op in segment.ops:
            carried.update(index for index in _reads(op) if index not in written)
            written.update(_writes(op))
    return frozenset(carried)


def _buffer_uses(program: Program) -> dict[int, PointerType]:
    """How the ops use each buffer. ProtocolError for a buffer that is used in two ways. Of a buffer
    that is used as a slice, only this node's slice is stored."""
    uses: dict[int, PointerType] = {}

    def use(op: NodeOp, index: int, kind: PointerType) -> None:
        used_as = uses.setdefault(index, kind)
        if used_as is not kind:
            raise ProtocolError(
                f"op {op.name!r} {op.index}: buffer {index} is used as {used_as.name} and as "
                f"{kind.name}"
            )

    for segment in program.node.segments:
        for op in segment.ops:
            for pointer in (op.input, op.output):
                if pointer.source is Source.BUFFER:
                    use(op, pointer.index, pointer.type)
            named = {p.index for p in (op.input, op.output) if p.source is Source.BUFFER}
            for index in {*_reads(op), *_writes(op)} - named:  # those in its config
                use(op, index, PointerType.BATCH)
    return uses

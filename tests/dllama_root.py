"""A small root of the tests' own: it sends programs and slices as a stock root does, and drives
steps. Its own share of the work, node 0, is computed by our Node.
"""

import socket
from contextlib import ExitStack

import numpy as np
from dllama_model import EPSILON, Model, Shape

from airllm.backends import load_backend
from airllm.cluster.checks import Program
from airllm.cluster.link import Link, transfer
from airllm.cluster.lowering import lower
from airllm.cluster.node import Node
from airllm.cluster.node_config import NodeConfig, NodeOp, NodeSegment, Sync
from airllm.cluster.op_config import (
    Attention,
    Empty,
    Gate,
    InvRms,
    Matmul,
    OpCode,
    Reference,
    RmsNorm,
    Rope,
    RopeType,
)
from airllm.cluster.protocol import (
    NO_MORE_WEIGHTS,
    Control,
    Handshake,
    NetConfig,
    Pipe,
    SyncType,
    WeightHeader,
    encode_ack,
)
from airllm.cluster.weights import ResidentWeights
from airllm.cluster.wire import (
    NO_SIZE,
    Fields,
    FloatType,
    Pointer,
    PointerType,
    Size,
    Source,
)

ROWS = 32
F32 = FloatType.F32
POS, TOK, X, LG, ZQ = range(5)


def net_config(s: Shape, n_nodes: int) -> NetConfig:
    pipes = (
        ("POS", F32, 1),
        ("TOK", F32, 1),
        ("X", F32, s.dim),
        ("LG", F32, s.vocab),
        ("ZQ", s.sync_type, s.dim * n_nodes),
    )
    sizes = tuple(Pipe(Size(kind, 1, ROWS, x), name) for name, kind, x in pipes)
    return NetConfig(ROWS, n_nodes, sizes, (POS,))


class Builder:
    """One node's program, buffer by buffer and op by op, in the stock root's order."""

    def __init__(self, s: Shape, n_nodes: int, node: int) -> None:
        self.s, self.n, self.node = s, n_nodes, node
        self.buffers: list[Pipe] = []
        self.number: dict[str, int] = {}
        self.ops: list[NodeOp] = []
        self.segments: list[NodeSegment] = []

    def buffer(self, name: str, kind: FloatType, x: int, z: int = 1, y: int = ROWS) -> None:
        self.number[name] = len(self.buffers)
        self.buffers.append(Pipe(Size(kind, z, y, x), name))

    def quantized(self, name: str, of: str, x: int, z: int = 1) -> None:
        """A copy in the sync type, or with F32 the buffer itself."""
        if self.s.quantized:
            self.buffer(name, FloatType.Q80, x, z)
        else:
            self.number[name] = self.number[of]

    def at(self, name: str | int, kind: PointerType = PointerType.BATCH) -> Pointer:
        if isinstance(name, int):
            return Pointer(Source.PIPE, name, kind)
        return Pointer(Source.BUFFER, self.number[name], kind)

    def add(self, code, name, source, target, config=None, weight=NO_SIZE, index=0) -> None:
        source, target = (p if isinstance(p, Pointer) else self.at(p) for p in (source, target))
        self.ops.append(NodeOp(code, name, index, source, target, config or Empty(), weight))

    def matmul(self, name, source, target, n, k, index, experts=0, active=0) -> None:
        size = Size(self.s.weight_type, max(experts, 1), k, n)
        config = Matmul(experts, active, self.number["act_exp_ix"])
        self.add(OpCode.MATMUL, name, source, target, config, size, index)

    def norm(self, pre, name, source, target, index, columns=1, width=None) -> None:
        self.add(OpCode.INV_RMS, pre, source, "inv_rms", InvRms(EPSILON, columns), index=index)
        size = Size(F32, 1, 1, width or self.s.dim)
        config = RmsNorm(self.number["inv_rms"], columns)
        self.add(OpCode.RMS_NORM, name, source, target, config, size, index)

    def cast_if_quantized(self, name, source, target, index) -> None:
        if self.s.quantized:
            self.add(OpCode.CAST, name, source, target, index=index)

    def segment(self, *syncs: Sync) -> None:
        self.segments.append(NodeSegment(tuple(self.ops), syncs))
        self.ops = []


def node_config(s: Shape, n_nodes: int, node: int) -> NodeConfig:
    b = Builder(s, n_nodes, node)
    sliced = PointerType.BATCHED_SLICE
    heads, kv_heads = s.heads // n_nodes, s.kv_heads // n_nodes
    q0, kv0, f0 = s.q_dim // n_nodes, s.kv_dim // n_nodes, s.hidden // n_nodes
    active = max(s.active, 1)
    q_start, kv_start = q0 * node, kv0 * node
    rope_width = s.head_dim if s.half_rope else q_start + q0 - kv_start
    columns = max(heads, kv_heads) if s.has_head_norms else 1
    b.buffer("x", F32, s.dim)
    b.buffer("y", F32, s.dim)
    b.quantized("q_y", "y", s.dim)
    b.buffer("z", F32, s.q_dim)
    b.buffer("q_z_slice", s.sync_type, q0)
    b.buffer("q", F32, q0)
    b.buffer("k_temp", F32, kv0)
    b.buffer("v_temp", F32, kv0)
    b.buffer("inv_rms", F32, columns)
    b.buffer("rope_cache", F32, rope_width, y=s.length)
    b.buffer("att", F32, heads * s.length)
    b.buffer("lg", F32, s.vocab // n_nodes)
    b.buffer("d", F32, f0)
    b.quantized("q_d", "d", f0)
    b.buffer("l", F32, f0)
    b.buffer("gt", F32, max(s.experts, 1))
    b.buffer("act_exp_ix", F32, active)
    b.buffer("moe_y", F32, s.dim, active)
    b.quantized("q_moe_y", "moe_y", s.dim, active)
    b.buffer("moe_d", F32, f0, active)
    b.quantized("q_moe_d", "moe_d", f0, active)
    b.buffer("moe_l", F32, f0, active)
    b.buffer("moe_s", F32, 1, active)
    for layer in range(s.layers):
        b.buffer(f"k{layer}", F32, kv0, y=s.length)
        b.buffer(f"v{layer}", F32, kv0, y=s.length)

    if node == 0:
        b.add(OpCode.EMBEDDING, "embedding", TOK, X, weight=Size(F32, 1, s.vocab, s.dim))
    b.segment(Sync(X, SyncType.WITH_ROOT))
    for i in range(s.layers):
        if i == 0:
            b.add(OpCode.CAST, "block_cast_x", X, "x", index=i)
        else:
            b.add(OpCode.MERGE_ADD, "block_merge_add", ZQ, "x", index=i)
        b.norm("block_norm_pre_0", "block_norm_0", "x", "y", i)
        b.cast_if_quantized("block_cast_y", "y", "q_y", i)
        b.matmul("block_matmul_q", "q_y", "q", q0, s.dim, i)
        b.matmul("block_matmul_k", "q_y", "k_temp", kv0, s.dim, i)
        b.matmul("block_matmul_v", "q_y", "v_temp", kv0, s.dim, i)
        if s.has_head_norms:
            d = s.head_dim
            b.norm("block_norm_pre_q", "block_norm_q", "q", "q", i, heads, d)
            b.norm("block_norm_pre_k", "block_norm_k", "k_temp", "k_temp", i, kv_heads, d)
        for is_query, name in ((1, "q"), (0, "k")):
            buffer = "q" if is_query else "k_temp"
            kind = RopeType.FALCON if s.half_rope else RopeType.LLAMA
            config = Rope(
                kind,
                is_query,
                POS,
                b.number["rope_cache"],
                1.0,
                0.0,
                0.0,
                0,
                q0,
                q_start,
                q_start + q0,
                q_start - kv_start,
                s.kv_dim,
                kv0,
                kv_start,
                q_start + q0 - kv_start,
                s.length,
                s.head_dim,
                s.kv_heads,
                s.theta,
                Size(F32, 1, s.length, rope_width),
            )
            b.add(OpCode.ROPE, f"block_rope_{name}", buffer, buffer, config, index=i)
        for name in "kv":
            target = b.at(f"{name}{i}", PointerType.RAW)
            shift = Reference(POS)
            b.add(OpCode.SHIFT, f"block_shift_{name}", f"{name}_temp", target, shift, index=i)
        config = Attention(
            s.heads,
            heads,
            s.kv_heads,
            s.head_dim,
            s.length,
            q0,
            kv0,
            POS,
            b.number["q"],
            b.number[f"k{i}"],
            b.number[f"v{i}"],
            b.number["att"],
        )
        z = b.at("z", sliced)
        b.add(OpCode.MULTIHEAD_ATT, "block_multihead_att", z, z, config, index=i)
        b.add(OpCode.CAST, "block_cast_y2", z, "q_z_slice", index=i)
        b.matmul("block_matmul_wo", "q_z_slice", "y", s.dim, q0, i)
        b.add(OpCode.CAST, "block_cast_d", "y", b.at(ZQ, sliced), index=i)
        b.segment(Sync(ZQ, SyncType.NODE_SLICES))

        b.add(OpCode.MERGE_ADD, "block_merge_add2", ZQ, "x", index=i)
        b.norm("block_norm_pre_1", "block_norm_1", "x", "y", i)
        if s.experts:
            _experts(b, i, f0)
        else:
            b.cast_if_quantized("block_cast_y3", "y", "q_y", i)
            b.matmul("block_matmul_w1", "q_y", "d", f0, s.dim, i)
            b.matmul("block_matmul_w3", "q_y", "l", f0, s.dim, i)
            b.add(OpCode.SILU, "block_act", "d", "d", index=i)
            b.add(OpCode.MUL, "block_mul", "d", "d", Reference(b.number["l"]), index=i)
            b.cast_if_quantized("block_cast_d2", "d", "q_d", i)
            b.matmul("block_matmul_w2", "q_d", "y", s.dim, f0, i)
        b.add(OpCode.CAST, "block_cast_d3", "y", b.at(ZQ, sliced), index=i)
        b.segment(Sync(ZQ, SyncType.NODE_SLICES))
    b.add(OpCode.MERGE_ADD, "final_merge_add", ZQ, "x")
    b.norm("final_norm_pre", "final_norm", "x", "y", 0)
    b.cast_if_quantized("final_cast_y", "y", "q_y", 0)
    b.matmul("final_matmul_logits", "q_y", "lg", s.vocab // n_nodes, s.dim, 0)
    b.add(OpCode.CAST, "final_cast_logits", "lg", b.at(LG, sliced))
    b.segment(Sync(LG, SyncType.NODE_SLICES_EXCEPT_ROOT))
    return NodeConfig(node, tuple(b.buffers), tuple(b.segments))


def _experts(b: Builder, i: int, f0: int) -> None:
    s = b.s
    routed = s.experts, s.active
    b.add(OpCode.REPEAT_Z, "block_moe_y_repeat", "y", "q_moe_y", index=i)
    gate = Size(F32, 1, s.dim, s.experts)
    none = Matmul(0, 0, b.number["act_exp_ix"])
    b.add(OpCode.MATMUL, "block_moe_gate", "y", "gt", none, gate, i)
    b.add(OpCode.SOFTMAX, "block_moe_softmax", "gt", "gt", index=i)
    config = Gate(s.active, 1, b.number["act_exp_ix"])
    b.add(OpCode.MOE_GATE, "block_moe_gate2", "gt", "moe_s", config, index=i)
    b.matmul("block_matmul_w1", "q_moe_y", "moe_d", f0, s.dim, i, *routed)
    b.matmul("block_matmul_w3", "q_moe_y", "moe_l", f0, s.dim, i, *routed)
    b.add(OpCode.SILU, "block_act", "moe_d", "moe_d", index=i)
    b.add(OpCode.MUL, "block_mul", "moe_d", "moe_d", Reference(b.number["moe_l"]), index=i)
    b.cast_if_quantized("block_cast_d2", "moe_d", "q_moe_d", i)
    b.matmul("block_matmul_w2", "q_moe_d", "moe_y", s.dim, f0, i, *routed)
    b.add(OpCode.SCALE, "block_moe_scale", "moe_y", "moe_y", Reference(b.number["moe_s"]), index=i)
    b.add(OpCode.MERGE_SUM, "block_moe_merge_sum", "moe_y", "y", index=i)


def weight_messages(model: Model, n_nodes: int, node: int):
    """(header, bytes) of each of a node's weights, in the stock root's order."""
    s = model.shape

    def message(name, index, data, offset=0):
        return WeightHeader(name, index, offset, len(data)), data

    if node == 0:
        yield message("embedding", 0, model.embedding.rows.tobytes())
    for i, layer in enumerate(model.layers):
        for name in "qkv":
            yield message(f"block_matmul_{name}", i, layer[name].by_output(n_nodes, node))
        yield message("block_matmul_wo", i, layer["wo"].by_input(n_nodes, node))
        if s.experts:
            yield message("block_moe_gate", i, layer["gate"].rows.tobytes())
        for expert in range(max(s.experts, 1)):
            for name in ("w1", "w2", "w3"):
                matrix = layer[name][expert]
                cut = matrix.by_input if name == "w2" else matrix.by_output
                data = cut(n_nodes, node)
                yield message(f"block_matmul_{name}", i, data, expert * len(data))
        norms = ("norm_q", "norm_k") if s.has_head_norms else ()
        for name in (*norms, "norm_0", "norm_1"):
            yield message(f"block_{name}", i, layer[name].tobytes())
    yield message("final_norm", 0, model.final_norm.tobytes())
    yield message("final_matmul_logits", 0, model.logits.by_output(n_nodes, node))


class Root:
    """Connects to workers at (host, port) each, and is ready for steps when made.

    `stage`, called with "handshake", "everybody", "net", "node", "weights" before each: where a
    test lets the root die.
    """

    def __init__(
        self, model: Model, addresses, *, backend="numpy", timeout=20.0, stage=lambda name: None
    ) -> None:
        self.model, self.n_nodes, self.backend = model, len(addresses) + 1, load_backend(backend)
        self._exit = ExitStack()
        try:
            self._open(addresses, timeout, stage)
        except BaseException:
            self._exit.close()
            raise

    def _open(self, addresses, timeout, stage) -> None:
        n_workers, shape = len(addresses), self.model.shape
        self.links = {}
        stage("handshake")
        for i, address in enumerate(addresses):
            link = Link(socket.create_connection(address, timeout), f"worker {i}", timeout)
            self._exit.callback(link.close)
            self.links[i + 1] = link
            others = tuple(other for j, other in enumerate(addresses) if j != i)
            link.send(Handshake(n_workers, i, others).encode())
            self._ack(link)
        stage("everybody")
        for link in self.links.values():
            link.send(encode_ack())
        net = net_config(shape, self.n_nodes)
        for node, link in self.links.items():
            stage("net")
            link.send(net.encode())
            self._ack(link)
            stage("node")
            link.send(node_config(shape, self.n_nodes, node).encode())
            self._ack(link)
        for node, link in self.links.items():
            for header, data in weight_messages(self.model, self.n_nodes, node):
                link.send(header.encode() + data)
            stage("weights")
        for link in self.links.values():
            link.send(NO_MORE_WEIGHTS)
            self._ack(link)
        self._make_own_node(net)

    def _make_own_node(self, net: NetConfig) -> None:
        self.program = Program(net, node_config(self.model.shape, self.n_nodes, 0))
        lowered = lower(self.program)
        self.node = Node(lowered, self.program, self.backend)
        weights = ResidentWeights(lowered, self.program.weights, self.backend)
        for header, data in weight_messages(self.model, self.n_nodes, 0):
            key = header.name, header.index
            memory = weights.memory(key)
            memory[...] = np.frombuffer(data, np.uint8)
            weights.put(key, header.offset // self.program.weights[key].plane_bytes, memory)
        weights.finish(self.node.executors)
        self.node.weights = weights

    def step(self, tokens, position: int) -> np.ndarray:
        """Logits [rows, vocab] of tokens at position, position + 1, ..."""
        n = len(tokens)
        for link in self.links.values():
            link.send(Control(position, n).encode())
        self.node.pipes[TOK].view(np.float32)[:n, 0] = tokens
        for compute, syncs in self.node.step(position, n):
            compute()
            for sync in syncs:
                self._sync(sync, n)
        return self.node.pipes[LG].view(np.float32)[:n].copy()

    def _sync(self, sync: Sync, n: int) -> None:
        pipe = self.node.pipes[sync.pipe][:n]
        width = pipe.shape[1] // self.n_nodes
        if sync.type is SyncType.WITH_ROOT:
            transfer([(link, pipe.tobytes()) for link in self.links.values()], [])
            return
        received = {node: np.empty((n, width), np.uint8) for node in self.links}
        sends = []
        if sync.type is SyncType.NODE_SLICES:
            mine = memoryview(pipe[:, :width].tobytes())
            sends = [(link, mine) for link in self.links.values()]
        into = [(link, received[k].reshape(-1).data) for k, link in self.links.items()]
        transfer(sends, into)
        for node, values in received.items():
            pipe[:, node * width : (node + 1) * width] = values

    def run(self, tokens, batch: int = ROWS) -> np.ndarray:
        """Logits of all tokens from position 0 on, in steps of `batch`."""
        steps = range(0, len(tokens), batch)
        return np.concatenate([self.step(tokens[at : at + batch], at) for at in steps])

    def stop(self) -> None:
        """The stop packet; then both sides close."""
        for link in self.links.values():
            link.send(Control(0, 0).encode())
        self.close()

    def close(self) -> None:
        self._exit.close()

    @staticmethod
    def _ack(link: Link) -> None:
        Fields(link.take, link.name).ack()

"""Programs of a few ops, lowered and run on both backends, against the ops' definitions."""

import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_root import LG, POS, Builder, X, net_config, node_config
from extension import require_cpp

from airllm.backends import load_backend
from airllm.cluster.checks import Program
from airllm.cluster.lowering import lower
from airllm.cluster.node import Node, buffer_bytes
from airllm.cluster.node_config import NodeConfig
from airllm.cluster.op_config import (
    Gate,
    InvRms,
    Matmul,
    OpCode,
    Reference,
    RmsNorm,
    Rope,
    RopeType,
)
from airllm.cluster.weights import ResidentWeights
from airllm.cluster.wire import FloatType, Pointer, PointerType, ProtocolError, Size, Source

F32, Q80 = FloatType.F32, FloatType.Q80
# Two nodes; this is node 1.
SHAPE = Shape("llama", True, dim=128, vocab=128, hidden=64, heads=4, kv_heads=4, length=40)
EXACT = 3e-6  # of the largest value: a few roundings of float32


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return load_backend(request.param)


class Case:
    """One segment that reads pipe X and writes this node's slice of LG or ZQ."""

    def __init__(self):
        self.b = Builder(SHAPE, 2, 1)
        for name in "abcd":
            self.b.buffer(name, F32, 128)
            self.b.buffer(f"q_{name}", Q80, 128)
        self.b.buffer("half", F32, 64)
        self.b.buffer("inv", F32, 4)
        self.b.buffer("planes", F32, 128, 2)
        self.b.buffer("q_planes", Q80, 128, 2)
        self.b.buffer("shares", F32, 1, 2)
        self.b.buffer("chosen", F32, 2)
        self.b.buffer("cache", F32, 64, y=SHAPE.length)
        self.weights = {}

    def op(self, code, source, target, config=None, **more):
        name = f"op{len(self.b.ops)}"
        self.b.add(code, name, source, target, config, **more)
        return name

    def cast(self, source, target):
        return self.op(OpCode.CAST, source, target)

    def weight(self, name, values):
        self.weights[name] = values.astype(np.float32)

    def program(self):
        self.b.segment()
        node = NodeConfig(1, tuple(self.b.buffers), tuple(self.b.segments))
        return Program(net_config(SHAPE, 2), node)

    def run(self, backend, x, position=0):
        """Every pipe after a step over rows of x."""
        program = self.program()
        lowered = lower(program)
        node = Node(lowered, program, backend)
        weights = ResidentWeights(lowered, program.weights, backend)
        for (name, index), values in self.weights.items():
            data = values.view(np.uint8).reshape(-1)
            n = program.weights[name, index].plane_bytes
            for plane in range(len(data) // n):
                memory = weights.memory((name, index))
                memory[...] = data[plane * n : (plane + 1) * n]
                weights.put((name, index), plane, memory)
        weights.finish(node.executors)
        node.weights = weights
        node.pipes[X].view(np.float32)[: len(x)] = x
        for compute, _ in node.step(position, len(x)):
            compute()
        return node.pipes


def random(rows=3, width=128, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def q80(x):
    blocks = x.astype(np.float64).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    return (np.rint(blocks / scale) * scale.astype(np.float16)).reshape(x.shape)


def slice_of(pipes, rows=3):
    """Node 1's half of the rows of LG."""
    return pipes[LG].view(np.float32)[:rows, 64:]


def out(case, source):
    """Cast 64 values to this node's half of LG."""
    kind = PointerType.BATCHED_SLICE
    if isinstance(source, str):
        source = case.b.at(source)
    case.op(OpCode.CAST, source, case.b.at(LG, kind))


def assert_close(actual, expected, bound=EXACT):
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()


def test_a_slice_of_a_pipe_goes_to_a_slice_of_another(backend):
    case, x = Case(), random()
    case.cast(case.b.at(X, PointerType.BATCHED_SLICE), "half")
    out(case, "half")
    np.testing.assert_array_equal(slice_of(case.run(backend, x)), x[:, 64:])


@pytest.mark.parametrize(
    ("path", "rounded"),
    [(["b"], False), (["q_b", "q_c", "c"], True), (["q_b", "c", "b"], True)],
)
def test_casts_in_every_combination(path, rounded, backend):
    case, x = Case(), random()
    for source, target in zip(["a", *path], [*path, "d"], strict=True):
        if source == "a":
            case.cast(X, "a")
        case.cast(source, target)
    case.op(OpCode.MATMUL, "d", "half", Matmul(0, 0, 0), weight=Size(F32, 1, 128, 64))
    out(case, "half")
    eye = np.eye(128)[64:]
    case.weight((f"op{len(path) + 2}", 0), eye)
    expected = q80(x) if rounded else x
    assert_close(slice_of(case.run(backend, x)), expected[:, 64:])


def through(case, name):
    """The last 64 values of a buffer, to the pipe."""
    op = case.op(OpCode.MATMUL, name, "half", Matmul(0, 0, 0), weight=Size(F32, 1, 128, 64))
    case.weight((op, 0), np.eye(128)[64:])
    out(case, "half")


@pytest.mark.parametrize("code", [OpCode.SILU, OpCode.GELU])
@pytest.mark.parametrize("multiplied", [False, True])
def test_activations_alone_and_multiplied(code, multiplied, backend):
    case, x = Case(), random()
    case.cast(X, "a")
    case.cast(X, "b")
    case.op(code, "b", "b")
    if multiplied:
        case.op(OpCode.MUL, "b", "c", Reference(case.b.number["a"]))
    through(case, "c" if multiplied else "b")
    z = x.astype(np.float64)
    if code is OpCode.SILU:
        expected = z / (1 + np.exp(-z))
    else:
        expected = z * (1 + np.tanh(0.7978845608 * z * (1 + 0.044715 * z**2))) / 2
    expected = expected * z if multiplied else expected
    assert_close(slice_of(case.run(backend, x)), expected[:, 64:])


def test_multiplication_without_an_activation(backend):
    case, x = Case(), random()
    case.cast(X, "a")
    case.cast(X, "b")
    case.op(OpCode.MUL, "a", "c", Reference(case.b.number["b"]))
    through(case, "c")
    assert_close(slice_of(case.run(backend, x)), (x.astype(np.float64) ** 2)[:, 64:])


@pytest.mark.parametrize("columns", [1, 4])
def test_rms_norm_of_the_row_and_of_its_pieces(columns, backend):
    case, x = Case(), random()
    weight = random(1, 128 // columns, seed=1)[0]
    case.cast(X, "a")
    case.op(OpCode.INV_RMS, "a", "inv", InvRms(1e-5, columns))
    config = RmsNorm(case.b.number["inv"], columns)
    size = Size(F32, 1, 1, 128 // columns)
    case.weight((case.op(OpCode.RMS_NORM, "a", "a", config, weight=size), 0), weight)
    through(case, "a")
    pieces = x.astype(np.float64).reshape(3, columns, -1)
    expected = pieces / np.sqrt((pieces**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert_close(slice_of(case.run(backend, x)), expected.reshape(3, 128)[:, 64:])


def test_merge_add_of_floats_adds_parts(backend):
    case, x = Case(), random()
    case.op(OpCode.MERGE_ADD, X, "half")
    out(case, "half")
    assert_close(slice_of(case.run(backend, x)), x[:, :64] + x[:, 64:])


def test_merge_add_of_q80_adds_what_blocks_hold(backend):
    case, x = Case(), random()
    case.cast(X, "q_a")
    case.op(OpCode.MERGE_ADD, "q_a", "half")
    out(case, "half")
    assert_close(slice_of(case.run(backend, x)), q80(x)[:, :64] + q80(x)[:, 64:])


def test_what_another_segment_left_is_there(backend):
    case, x = Case(), random()
    case.cast(X, "a")
    case.b.segment()
    through(case, "a")
    case.weights = {("op0", 0): np.eye(128)[64:].astype(np.float32)}
    np.testing.assert_array_equal(slice_of(case.run(backend, x)), x[:, 64:])


@pytest.mark.parametrize("kind", list(RopeType))
@pytest.mark.parametrize("is_query", [0, 1])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_rope_in_each_variant(kind, is_query, factor, backend):
    case, x, d, theta, position = Case(), random(), 32, 10000.0, 30
    low, high, original = 1.0, 4.0, 64
    case.cast(case.b.at(X, PointerType.BATCHED_SLICE), "half")
    width = d if kind is RopeType.FALCON else 64
    cache = Size(F32, 1, SHAPE.length, width)
    config = Rope(
        kind, is_query, POS, case.b.number["cache"], factor, low, high, original,
        64, 64, 128, 0, 128, 64, 64, 64, SHAPE.length, d, 4, theta, cache,
    )  # fmt: skip
    case.op(OpCode.ROPE, "half", "half", config)
    out(case, "half")
    f = theta ** -(np.arange(0, d, 2) / d)
    if factor != 1 and kind is not RopeType.FALCON:
        wave = 2 * np.pi / f
        s = (original / wave - low) / (high - low)
        mixed = (1 - s) * f / factor + s * f
        f = np.where(wave < original / high, f, np.where(wave > original / low, f / factor, mixed))
    turn = np.exp(1j * (position + np.arange(3))[:, None] * f)[:, None]
    heads = x[:, 64:].astype(np.float64).reshape(3, 2, d)
    if kind is RopeType.FALCON:
        z = (heads[..., : d // 2] + 1j * heads[..., d // 2 :]) * turn
        expected = np.concatenate([z.real, z.imag], axis=-1)
    else:
        z = (heads[..., ::2] + 1j * heads[..., 1::2]) * turn
        expected = np.stack([z.real, z.imag], axis=-1)
    actual = slice_of(case.run(backend, x, position))
    assert_close(actual, expected.reshape(3, 64))


@pytest.mark.parametrize("normalize", [0, 1])
def test_experts_from_softmax_to_the_sum(normalize, backend):
    case, x = Case(), random()
    gate, model = random(3, 128, seed=1) / 6, Model(SHAPE)
    w = [model._matrix(128, 128) for _ in range(3)]
    case.cast(X, "a")
    case.b.buffer("gt", F32, 3)
    chosen = case.b.number["chosen"]
    gate_op = case.op(OpCode.MATMUL, "a", "gt", Matmul(0, 0, 0), weight=Size(F32, 1, 128, 3))
    case.weight((gate_op, 0), gate)
    case.op(OpCode.SOFTMAX, "gt", "gt")
    case.op(OpCode.MOE_GATE, "gt", "shares", Gate(2, normalize, chosen))
    case.op(OpCode.REPEAT_Z, "a", "q_planes")
    size = Size(FloatType.Q40, 3, 128, 128)
    op = case.op(OpCode.MATMUL, "q_planes", "planes", Matmul(3, 2, chosen), weight=size)
    case.weights[op, 0] = np.concatenate([matrix.rows for matrix in w])
    case.op(OpCode.SCALE, "planes", "planes", Reference(case.b.number["shares"]))
    case.op(OpCode.MERGE_SUM, "planes", "b")
    through(case, "b")
    logits = x.astype(np.float64) @ gate.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((3, 128))
    for row in range(3):
        best = np.argsort(-shares[row])[:2]
        total = shares[row, best].sum() if normalize else 1
        for expert in best:
            expected[row] += shares[row, expert] / total * (w[expert].values @ q80(x)[row])
    assert_close(slice_of(case.run(backend, x)), expected[:, 64:])


@pytest.mark.parametrize("to_q80", [False, True])
def test_embeddings_by_token_number(to_q80, backend):
    case, table = Case(), random(50, 128, seed=1)
    target = "q_a" if to_q80 else "a"
    op = case.op(OpCode.EMBEDDING, POS, target, weight=Size(F32, 1, 50, 128))
    case.weight((op, 0), table)
    case.cast(target, "b")
    through(case, "b")
    expected = table[7:10]
    actual = slice_of(case.run(backend, random(), position=7))
    assert_close(actual, (q80(expected) if to_q80 else expected)[:, 64:])


# ---- what is refused ----


def refuse(case, says):
    with pytest.raises(ProtocolError, match=says):
        lower(case.program())


def test_a_norm_of_what_was_not_measured_is_refused():
    case = Case()
    case.cast(X, "a")
    case.cast(X, "b")
    case.op(OpCode.INV_RMS, "a", "inv", InvRms(1e-5, 1))
    config = RmsNorm(case.b.number["inv"], 1)
    case.op(OpCode.RMS_NORM, "b", "b", config, weight=Size(F32, 1, 1, 128))
    refuse(case, "'op3' 0: RMS_NORM does not use the inverse RMS of its own input")


def test_steps_that_nothing_completes_are_refused():
    case = Case()
    case.cast(X, "a")
    case.op(OpCode.SOFTMAX, "a", "a")
    case.cast("a", "b")
    refuse(case, "'op2' 0: reads buffer .*, which holds an incomplete step: softmax")


def test_a_cache_that_nothing_reads_is_refused():
    case = Case()
    case.cast(case.b.at(X, PointerType.BATCHED_SLICE), "half")
    cache = case.b.at("cache", PointerType.RAW)
    case.op(OpCode.SHIFT, "half", cache, Reference(POS))
    refuse(case, "SHIFT fills a cache that nothing reads")


def test_a_buffer_used_whole_and_as_a_slice_is_refused():
    case = Case()
    case.cast(X, "a")
    case.cast(case.b.at("a", PointerType.BATCHED_SLICE), "half")
    refuse(case, "is used as BATCH and as BATCHED_SLICE")


WRONG_TYPES = [
    (OpCode.SILU, "q_a", "q_a", None, None),
    (OpCode.INV_RMS, "q_a", "inv", InvRms(1e-5, 1), None),
    (OpCode.REPEAT_Z, "a", "planes", None, None),
    (OpCode.MERGE_ADD, "a", "q_a", None, None),
    (OpCode.MATMUL, "a", "b", Matmul(0, 0, 0), Size(FloatType.Q40, 1, 128, 128)),
    (OpCode.MATMUL, "q_a", "b", Matmul(0, 0, 0), Size(F32, 1, 128, 128)),
]


@pytest.mark.parametrize(("code", "source", "target", "config", "weight"), WRONG_TYPES)
def test_types_that_no_op_has_are_refused(code, source, target, config, weight):
    case = Case()
    case.op(code, source, target, config, **({"weight": weight} if weight else {}))
    with pytest.raises(ProtocolError, match=r"its types .* expected"):
        case.program()


WRONG_SIZES = [
    (OpCode.CAST, "a", "half", None, None, "its output is F32 of 1 x 64; expected that of F32"),
    (OpCode.SILU, "a", "b", None, None, "its output .* expected its input"),
    (OpCode.MERGE_ADD, "half", "a", None, None, "expected parts as wide as the output, 128"),
    (OpCode.MATMUL, "a", "b", Matmul(0, 0, 0), Size(F32, 1, 64, 128), "expected 1x128x128"),
    (OpCode.MATMUL, "a", "b", Matmul(2, 0, 0), Size(F32, 2, 128, 128), "experts is 2; expected 0"),
    (OpCode.INV_RMS, "a", "inv", InvRms(1e-5, 5), None, "columns is 5; expected a divisor of 128"),
    (OpCode.MUL, "a", "b", Reference(8), None, "the multiplier is F32 1x32x64; expected"),
]


@pytest.mark.parametrize(("code", "source", "target", "config", "weight", "says"), WRONG_SIZES)
def test_sizes_that_do_not_fit_are_refused(code, source, target, config, weight, says):
    case = Case()
    case.op(code, source, target, config, **({"weight": weight} if weight else {}))
    with pytest.raises(ProtocolError, match=says):
        case.program()


def test_layers_share_an_executor():
    shape = Shape("llama", True, layers=5)
    program = Program(net_config(shape, 2), node_config(shape, 2, 1))
    node = Node(lower(program), program, load_backend("numpy"))
    # None at all, the first layer's attention (x is the root's), the others', the rest, the head.
    assert len(set(map(id, node.executors))) == 5


@pytest.mark.parametrize("kind", ["llama", "qwen3moe"])
def test_what_is_allocated_was_announced(kind):
    """Within 2%, of which rope takes a part only while it computes angles."""
    require_cpp()
    shape = Shape(kind, True, experts=8, active=2) if "moe" in kind else Shape(kind, True)
    program = Program(net_config(shape, 2), node_config(shape, 2, 1))
    lowered, backend = lower(program), load_backend("cpp")
    node = Node(lowered, program, backend)
    allocated = sum({id(e): e._executor.nbytes for e in node.executors}.values())
    arrays = [*node.pipes, *node._carried.values(), *(turns.table for turns in node._turns)]
    allocated += sum(array.nbytes for array in arrays)
    announced = buffer_bytes(lowered, program, backend)
    assert 0.98 * announced <= allocated <= announced


def test_pipes_are_q80_and_buffers_rounded_floats():
    shape = Shape("qwen3moe", True, experts=4, active=2)
    lowered = lower(Program(net_config(shape, 2), node_config(shape, 2, 1)))
    kinds = [op.kind for op in lowered.segments[2].graph.ops]
    assert kinds == [
        "merge_add", "rms_norm", "round_q8", "linear", "route", "expert_linear", "expert_linear",
        "swiglu", "round_q8", "expert_linear", "expert_sum", "put_columns",
    ]  # fmt: skip


def test_a_pointer_outside_is_named():
    from airllm.cluster.wire import Fields, take_from

    data = Pointer(Source.BUFFER, 9).encode()
    with pytest.raises(ProtocolError, match="the buffer of its input is 9; expected less than 9"):
        Fields(take_from(data), "op").pointer("its input", 5, 9)

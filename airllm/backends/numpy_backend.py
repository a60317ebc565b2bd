"""Runs graphs op by op in NumPy: the fallback, and the second opinion in tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.experts import Experts
from airllm.backends.plain_stream import PlainStream
from airllm.graph.graph import Graph, Op, Role
from airllm.numpy_ops import checks
from airllm.numpy_ops.quants import row_bytes

Buffers = dict[str, NDArray[Any]]


class NumpyBackend:
    """Keeps weights in the file's bytes; each use decodes them to float32, a few MB at a time."""

    name = "numpy"
    any_batch = False  # BLAS sums in an order of its own for each shape
    keeps: frozenset[Role] = frozenset(["rows", "matrix", "experts"])

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        if role == "vector":
            return numpy_ops.PackedMatrix(data, type, (1, shape[0])).dequantize()[0]
        if role == "experts":
            matrix_shape = shape[1], shape[2]
            return Experts(numpy_ops.PackedMatrix(part, type, matrix_shape) for part in data)
        kind = numpy_ops.RawRows if role == "rows" else numpy_ops.PackedMatrix
        return kind(data, type, (shape[0], shape[1]))

    def executor(self, graph: Graph, max_tokens: int) -> "NumpyExecutor":
        return NumpyExecutor(graph, max_tokens)

    def packed_bytes(self, type: str, shape: tuple[int, int]) -> int:
        return shape[0] * row_bytes(type, shape[1])

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return np.empty(nbytes, np.uint8)

    def matrix_in(
        self, memory: NDArray[np.uint8], offset: int, type: str, shape: tuple[int, int]
    ) -> tuple[Any, Any]:
        rows = memory[offset : offset + self.packed_bytes(type, shape)]
        return numpy_ops.PackedMatrix(rows, type, shape), (memory, offset)

    def stream(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[tuple[int, int, int, Sequence[Any]]]],
        *,
        endless: bool = True,
    ) -> PlainStream:
        return PlainStream(files, sections, endless=endless)

    def kv_layers(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Any:
        return list(layers)


@dataclass(frozen=True, slots=True)
class _Sequence:
    first: int  # row of the buffers
    n_tokens: int
    past: int
    k_cache: NDArray[Any]  # [n_kv_heads, capacity, head_dim], or rows of Q8_0
    v_cache: NDArray[Any]

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.n_tokens)

    @property
    def end(self) -> int:
        """Positions in the cache after the batch."""
        return self.past + self.n_tokens


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one run works on."""

    buffers: Buffers  # each [n_tokens, width]
    weights: Mapping[str, Any]
    n_tokens: int
    sequences: Sequence[_Sequence]

    def multiply(self, x: NDArray[Any], weight: str, out: NDArray[Any]) -> None:
        """Multiplies each sequence separately, so that its sums round the same in any batch."""
        parts = [sequence.rows for sequence in self.sequences]
        numpy_ops.linear_apply(x, self.weights[weight], out, parts)


class NumpyExecutor:
    def __init__(self, graph: Graph, max_tokens: int) -> None:
        self.graph = graph
        self.max_tokens = max_tokens
        self._internal = {
            buffer.name: np.empty((max_tokens, buffer.width), np.float32)
            for buffer in graph.buffers
            if not buffer.external
        }
        self._external = [buffer for buffer in graph.buffers if buffer.external]
        self._written = {output for op in graph.ops for output in op.outputs}

    def bind(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        self.graph.check_bound({name: weight.shape for name, weight in weights.items()})
        return dict(weights)

    def weight_bytes(self, bound: Any) -> Mapping[str, int]:
        return {name: weight.nbytes for name, weight in bound.items()}

    def run(
        self,
        bound: Any,
        buffers: Mapping[str, NDArray[Any]],
        n_tokens: int,
        past: int = 0,
        k_cache: NDArray[Any] | None = None,
        v_cache: NDArray[Any] | None = None,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        if k_cache is None or v_cache is None:
            k_cache = v_cache = np.empty((0, 0, 0), np.float32)
        sequence = _Sequence(0, n_tokens, past, k_cache, v_cache)
        self._run(bound, buffers, n_tokens, [sequence], seconds)

    def run_layers(
        self,
        bound: Sequence[Any],
        buffers: Mapping[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, Any]],
        first_layer: int = 0,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        for index, weights in enumerate(bound, first_layer):
            parts, n_tokens = [], 0
            for n, past, layers in sequences:
                parts.append(_Sequence(n_tokens, n, past, *layers[index]))
                n_tokens += n
            self._run(weights, buffers, n_tokens, parts, seconds)

    def _run(
        self,
        bound: Any,
        buffers: Mapping[str, NDArray[Any]],
        n_tokens: int,
        sequences: Sequence[_Sequence],
        seconds: NDArray[np.float64] | None,
    ) -> None:
        if not 0 <= n_tokens <= self.max_tokens:
            raise ValueError(f"n_tokens is {n_tokens}; expected 0 to {self.max_tokens}")
        values = {name: array[:n_tokens] for name, array in self._internal.items()}
        values |= self._external_arrays(buffers, n_tokens)
        batch = _Batch(values, bound, n_tokens, sequences)
        with np.errstate(all="ignore"):  # infinities and NaN are values here, as in C++
            for index, op in enumerate(self.graph.ops):
                start = perf_counter()
                _OPS[op.kind](op, batch)
                if seconds is not None:
                    seconds[index] += perf_counter() - start

    def _external_arrays(self, buffers: Mapping[str, NDArray[Any]], n_tokens: int) -> Buffers:
        """The external buffers, checked. ValueError where they do not fit, or overlap and an op
        writes one of them."""
        if buffers.keys() != {buffer.name for buffer in self._external}:
            expected = ", ".join(buffer.name for buffer in self._external)
            raise ValueError(
                f"graph {self.graph.name!r}: buffers are {', '.join(buffers)}; expected {expected}"
            )
        arrays = {}
        for buffer in self._external:
            array = checks.plain("Executor.run", buffer.name, buffers[buffer.name])
            arrays[buffer.name] = array
            shape, dtype = {
                "float32": ((n_tokens, buffer.width), "float32"),
                "int32": ((n_tokens,), "int32"),
                "q8_0": ((n_tokens, buffer.width // 32 * 34), "uint8"),
            }[buffer.dtype]
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"graph {self.graph.name!r}: buffer {buffer.name!r} is {array.dtype} "
                    f"{list(array.shape)}; expected {dtype} {list(shape)}"
                )
        for name, other in permutations(arrays, 2):
            if other not in self._written or not np.may_share_memory(arrays[name], arrays[other]):
                continue
            # All of its memory another may share: elementwise ops then write over what they read.
            if _place(arrays[name]) != _place(arrays[other]):
                raise ValueError(
                    f"graph {self.graph.name!r}: buffers {name!r} and {other!r} overlap, and "
                    f"{other!r} is written; expected separate arrays"
                )
        return arrays


def _place(array: NDArray[Any]) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def _embed(op: Op, batch: _Batch) -> None:
    tokens, out = _arrays(op, batch)
    np.multiply(batch.weights[op.weights[0]].rows(tokens), np.float32(op.attrs["scale"]), out=out)


def _rms_norm(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    numpy_ops.rms_norm(x, batch.weights[op.weights[0]], float(op.attrs["eps"]), out=out)


def _head_norm(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    weight, eps = batch.weights[op.weights[0]], float(op.attrs["eps"])
    heads = batch.n_tokens, int(op.attrs["n_heads"]), len(weight)
    numpy_ops.rms_norm(x.reshape(heads), weight, eps, out=out.reshape(heads))


def _bias(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    np.add(x, batch.weights[op.weights[0]], out=out)


def _linear(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    batch.multiply(x, op.weights[0], out)  # exact; activations="q8" permits rounding only


def _rope(op: Op, batch: _Batch) -> None:
    x, table, out = _arrays(op, batch)
    n_heads, head_dim = int(op.attrs["n_heads"]), int(op.attrs["head_dim"])
    numpy_ops.rope_apply(x, table, n_heads, head_dim, bool(op.attrs["interleaved"]), out)


def _kv_append(op: Op, batch: _Batch) -> None:
    keys, values = (batch.buffers[name] for name in op.inputs)
    _append(batch, (keys, values), int(op.attrs["n_kv_heads"]), int(op.attrs["head_dim"]))


def _append(
    batch: _Batch, kv: tuple[NDArray[Any], NDArray[Any]], n_kv_heads: int, head_dim: int
) -> None:
    for s in batch.sequences:
        for part, cache in zip(kv, (s.k_cache, s.v_cache), strict=True):
            capacity = cache.shape[1]
            if capacity < s.end:
                raise ValueError(f"kv_append: {s.end} tokens do not fit a KV cache of {capacity}")
            rows = part[s.rows].reshape(-1, n_kv_heads, head_dim)
            kept = numpy_ops.quantize(rows, "q8_0") if cache.dtype == np.uint8 else rows
            cache[:, s.past : s.end] = kept.transpose(1, 0, 2)


def _attention(op: Op, batch: _Batch) -> None:
    q, out = _arrays(op, batch)
    shape = -1, int(op.attrs["n_heads"]), int(op.attrs["head_dim"])
    for s in batch.sequences:
        numpy_ops.attention_apply(
            q[s.rows].reshape(shape),
            s.k_cache[:, : s.end],
            s.v_cache[:, : s.end],
            float(op.attrs["scale"]),
            True,
            out[s.rows].reshape(shape),
            window=int(op.attrs["window"]) or None,
            softcap=float(op.attrs["softcap"]) or None,
        )


def _swiglu(op: Op, batch: _Batch) -> None:
    gate, up, out = _arrays(op, batch)
    numpy_ops.swiglu(gate, up, out=out)


def _geglu(op: Op, batch: _Batch) -> None:
    gate, up, out = _arrays(op, batch)
    np.multiply(numpy_ops.gelu(gate), up, out=out)


def _softcap(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    cap = float(op.attrs["cap"])
    out[...] = cap * np.tanh(x.astype(np.float64) / cap)


def _route(op: Op, batch: _Batch) -> None:
    logits, out = _arrays(op, batch)
    n_used = int(op.attrs["n_used"])
    shares = numpy_ops.softmax(logits)
    experts = np.argsort(-shares, axis=-1, kind="stable")[:, :n_used]  # lowest number first
    chosen = np.take_along_axis(shares, experts, axis=-1)
    if op.attrs["normalized"]:
        chosen /= chosen.sum(axis=-1, keepdims=True)
    out[:, :n_used] = experts
    out[:, n_used:] = chosen


def _expert_linear(op: Op, batch: _Batch) -> None:
    x, route, out = _arrays(op, batch)
    n_used, matrices = int(op.attrs["n_used"]), batch.weights[op.weights[0]]
    _, n, k = matrices.shape
    experts = route[:, :n_used].astype(np.int64)  # [n_tokens, n_used]
    inputs = x.reshape(batch.n_tokens, x.shape[1] // k, k)  # one for all, or one for each
    rows = np.broadcast_to(inputs, (batch.n_tokens, n_used, k))
    result = out.reshape(batch.n_tokens, n_used, n)
    for expert in np.unique(experts):
        chosen = experts == expert
        part = np.empty((int(chosen.sum()), n), np.float32)
        each = [slice(row, row + 1) for row in range(len(part))]  # see _Batch.multiply
        parts = each if len(batch.sequences) > 1 else [slice(None)]
        numpy_ops.linear_apply(rows[chosen], matrices[expert], part, parts)
        result[chosen] = part


def _expert_sum(op: Op, batch: _Batch) -> None:
    x, route, out = _arrays(op, batch)
    n_used = int(op.attrs["n_used"])
    parts = x.reshape(batch.n_tokens, n_used, x.shape[1] // n_used)
    np.einsum("tu,tuj->tj", route[:, n_used:], parts, out=out)


def _add(op: Op, batch: _Batch) -> None:
    a, b, out = _arrays(op, batch)
    np.add(a, b, out=out)


def _linear_many(op: Op, batch: _Batch) -> None:
    x = batch.buffers[op.inputs[0]]
    for weight, output in zip(op.weights, op.outputs, strict=True):
        batch.multiply(x, weight, batch.buffers[output])


def _linear_add(op: Op, batch: _Batch) -> None:
    x, a, out = _arrays(op, batch)
    product = np.empty_like(out)
    batch.multiply(x, op.weights[0], product)
    np.add(a, product, out=out)


def _glu_linear(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    gate, up = np.empty_like(out), np.empty_like(out)
    for weight, product in zip(op.weights, (gate, up), strict=True):
        batch.multiply(x, weight, product)
    if op.attrs["activation"] == "silu":
        numpy_ops.swiglu(gate, up, out=out)
    else:
        np.multiply(numpy_ops.gelu(gate), up, out=out)


def _rope_append(op: Op, batch: _Batch) -> None:
    k, v, table = (batch.buffers[name] for name in op.inputs)
    n_kv_heads, head_dim = int(op.attrs["n_kv_heads"]), int(op.attrs["head_dim"])
    rotated = np.empty_like(k)
    interleaved = bool(op.attrs["interleaved"])
    numpy_ops.rope_apply(k, table, n_kv_heads, head_dim, interleaved, rotated)
    _append(batch, (rotated, v), n_kv_heads, head_dim)


def _multiply(op: Op, batch: _Batch) -> None:
    a, b, out = _arrays(op, batch)
    np.multiply(a, b, out=out)


def _silu(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    numpy_ops.silu(x, out=out)


def _gelu(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    numpy_ops.gelu(x, out=out)


def _round_q8(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    out[...] = numpy_ops.dequantize(numpy_ops.quantize(x, "q8_0"), "q8_0")


def _merge_add(op: Op, batch: _Batch) -> None:
    x, parts, out = _arrays(op, batch)
    if op.attrs["quantized"]:
        parts = numpy_ops.dequantize(parts, "q8_0")
    out[...] = x
    for part in np.split(parts, parts.shape[1] // x.shape[1], axis=1):
        out += part


def _take_columns(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    if op.attrs["quantized"]:
        x = numpy_ops.dequantize(x, "q8_0")
    offset = int(op.attrs["offset"])
    out[...] = x[:, offset : offset + out.shape[1]]


def _put_columns(op: Op, batch: _Batch) -> None:
    x, out = _arrays(op, batch)
    offset = int(op.attrs["offset"])
    if op.attrs["quantized"]:
        x, offset = numpy_ops.quantize(x, "q8_0"), offset // 32 * 34
    out[:, offset : offset + x.shape[1]] = x


def _arrays(op: Op, batch: _Batch) -> list[NDArray[Any]]:
    """An op's inputs, and its output."""
    assert op.output is not None
    return [batch.buffers[name] for name in (*op.inputs, op.output)]


_OPS: Mapping[str, Callable[[Op, _Batch], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "head_norm": _head_norm,
    "bias": _bias,
    "linear": _linear,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "swiglu": _swiglu,
    "geglu": _geglu,
    "softcap": _softcap,
    "route": _route,
    "expert_linear": _expert_linear,
    "expert_sum": _expert_sum,
    "add": _add,
    "quantized_norm": _rms_norm,  # exact, as linear is
    "linear_many": _linear_many,
    "linear_add": _linear_add,
    "glu_linear": _glu_linear,
    "rope_append": _rope_append,
    "multiply": _multiply,
    "silu": _silu,
    "gelu": _gelu,
    "round_q8": _round_q8,
    "merge_add": _merge_add,
    "take_columns": _take_columns,
    "put_columns": _put_columns,
}

# Types of the C++ extension. Its docstrings describe each function; airllm/numpy_ops has the same
# functions in Python.

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

_Float32: TypeAlias = NDArray[np.float32]
_Bytes: TypeAlias = NDArray[np.uint8]
_Int32: TypeAlias = NDArray[np.int32]
_Cache: TypeAlias = NDArray[np.float32] | NDArray[np.float16]

__version__: str
has_simd: bool  # whether the ISA in use has vectors
simd_level: str  # the name of that ISA, as in TENSOR_OPS_ISA

# ---- operations: the last axis is the feature axis, every result has the shape of `out` ----------

def silu(
    x: _Float32,  # [...]
    *,
    out: _Float32 | None = None,  # [...], may be x
) -> _Float32: ...
def gelu(
    x: _Float32,  # [...]
    approximate: str = "tanh",  # or "none"
    *,
    out: _Float32 | None = None,  # [...], may be x
) -> _Float32: ...
def swiglu(
    gate: _Float32,  # [...]
    up: _Float32,  # [...]
    *,
    out: _Float32 | None = None,  # [...], may be gate or up
) -> _Float32: ...
def rms_norm(
    x: _Float32,  # [..., n]
    weight: _Float32,  # [n]
    eps: float = 1e-06,
    *,
    out: _Float32 | None = None,  # [..., n], may be x
) -> _Float32: ...
def softmax(
    x: _Float32,  # [..., n]
    *,
    out: _Float32 | None = None,  # [..., n], may be x
) -> _Float32: ...
def rope(
    x: _Float32,  # [n_tokens, n_heads, head_dim]
    positions: _Int32,  # [n_tokens]
    *,
    theta: float = 10000.0,
    inv_freq: _Float32 | None = None,  # [n_dims / 2], n_dims <= head_dim; overrides theta
    interleaved: bool = False,
    out: _Float32 | None = None,  # [n_tokens, n_heads, head_dim], may be x
) -> _Float32: ...
def matmul(
    a: _Float32,  # [..., m, k]
    b: _Float32,  # [k, n]
    *,
    out: _Float32 | None = None,  # [..., m, n]
) -> _Float32: ...
def linear(
    x: _Float32,  # [..., k]
    w: PackedMatrix | NDArray[np.float32] | NDArray[np.float16],  # [n, k]
    *,
    activations: str = "auto",  # or "q8", "q16", "f32"
    out: _Float32 | None = None,  # [..., n]
) -> _Float32: ...
def linear_many(
    x: _Float32,  # [..., k]
    ws: Sequence[PackedMatrix],  # each [n_i, k]
    *,
    activations: str = "auto",
    out: Sequence[_Float32] | None = None,  # each [..., n_i]
) -> tuple[_Float32, ...]: ...
@overload
def attention(
    q: _Float32,  # [n_q, n_heads, head_dim]
    k: _Cache | _Bytes,  # [n_kv_heads, n_kv, head_dim], or Q8_0: [..., head_dim / 32 * 34]
    v: _Cache | _Bytes,  # as k
    *,
    scale: float | None = None,  # None: head_dim ** -0.5
    causal: bool = True,
    window: int | None = None,  # positions, at least 1
    chunked: bool = False,
    softcap: float | None = None,  # above 0
    sinks: _Float32 | None = None,  # [n_heads]
    cu_seqlens_q: _Int32 | None = None,  # [n_sequences + 1], as cu_seqlens_k
    cu_seqlens_k: _Int32 | None = None,
    return_lse: Literal[True],
    out: _Float32 | None = None,  # [n_q, n_heads, head_dim]
) -> tuple[_Float32, _Float32]: ...  # out, lse [n_q, n_heads]
@overload
def attention(
    q: _Float32,  # [n_q, n_heads, head_dim]
    k: _Cache | _Bytes,  # [n_kv_heads, n_kv, head_dim], or Q8_0: [..., head_dim / 32 * 34]
    v: _Cache | _Bytes,  # as k
    *,
    scale: float | None = None,  # None: head_dim ** -0.5
    causal: bool = True,
    window: int | None = None,  # positions, at least 1
    chunked: bool = False,
    softcap: float | None = None,  # above 0
    sinks: _Float32 | None = None,  # [n_heads]
    cu_seqlens_q: _Int32 | None = None,  # [n_sequences + 1], as cu_seqlens_k
    cu_seqlens_k: _Int32 | None = None,
    return_lse: Literal[False] = False,
    out: _Float32 | None = None,  # [n_q, n_heads, head_dim]
) -> _Float32: ...
def sample(
    logits: _Float32,  # [vocab]
    draw: float,  # from 0 to below 1
    *,
    temperature: float = 1.0,  # 0: take the likeliest token
    top_k: int = 0,  # 0: all
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int: ...

# ---- formats -------------------------------------------------------------------------------------

def quantize(
    x: _Float32,  # [..., n], n a multiple of the block, 32 or 256 for K types
    type: str,  # "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4", "q2_k" to "q6_k"
    importance: _Float32 | None = None,  # [n], of the columns' squared errors
) -> _Bytes: ...  # [..., row_bytes]
def dequantize(
    data: _Bytes,  # [..., row_bytes]
    type: str,  # as quantize, or "iq4_xs", "iq3_xxs" to "nvfp4"
) -> _Float32: ...  # [..., n]
def float32_to_float16(x: _Float32) -> NDArray[np.float16]: ...
def float16_to_float32(x: NDArray[np.float16]) -> _Float32: ...
def float32_to_bfloat16(x: _Float32) -> NDArray[np.uint16]: ...
def bfloat16_to_float32(x: NDArray[np.uint16]) -> _Float32: ...

class PackedMatrix:
    def __init__(
        self,
        data: Any,  # an array of any dtype, or bytes-like: the n rows' bytes
        type: str,  # "f32", "f16", "bf16", or as dequantize
        shape: Sequence[int],  # (n, k)
    ) -> None: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...  # of the packed form
    def fill(self, data: Any) -> None: ...  # packs other rows, of as many bytes
    def dequantize(self) -> _Float32: ...  # [n, k]

class RawRows:
    def __init__(
        self,
        data: Any,  # as PackedMatrix; referenced, not copied
        type: str,
        shape: Sequence[int],  # (n, k)
    ) -> None: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...

# ---- graphs, as airllm.graph.graph builds them ---------------------------------------------------

class BoundWeights:
    @property
    def nbytes(self) -> dict[str, int]: ...  # by slot

# table, k_offset, v_offset, type, n_kv_heads, head_dim, value_dim
_Keys = tuple[int, int, int, str, int, int, int]

class SequenceState:
    def __init__(
        self,
        tables: Sequence[tuple[int, int]],  # positions of a page, a power of 2, and its bytes
        # keys; recurrent floats: first, number; keys of the index, and perhaps of groups, and what
        # groups and keys of the index are made of
        layers: Sequence[tuple[_Keys | None, int, int, *tuple[_Keys | None, ...]]],
    ) -> None: ...
    def set_page(self, table: int, index: int, page: NDArray[np.uint8]) -> None: ...
    def keep_pages(self, table: int, first: int, last: int) -> None: ...
    def set_recurrent(self, memory: NDArray[np.float32]) -> None: ...
    @property
    def recurrent_floats(self) -> int: ...

# By name: inputs, a number; output, a bool; weights, a tuple of roles; optional, many: bools
def graph_ops() -> dict[str, dict[str, Any]]: ...

class Executor:
    def __init__(
        self,
        buffers: Sequence[tuple[str, int, bool]],  # name, width, external
        weights: Sequence[str],  # the slots' names
        # kind, input names, output name or names, weight slots, attributes
        ops: Sequence[
            tuple[str, Sequence[str], str | Sequence[str] | None, Sequence[str], Mapping[str, Any]]
        ],
        max_tokens: int,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...  # of the internal buffers
    def bind(  # a list holds the matrices of experts
        self, weights: dict[str, PackedMatrix | RawRows | list[PackedMatrix] | _Float32]
    ) -> BoundWeights: ...
    def run(
        self,
        bound: BoundWeights,
        buffers: dict[str, NDArray[Any]],  # external buffers: float32 [n_tokens, width], or int32
        n_tokens: int,
        threads: int = 0,  # the most to use; 0: all
        seconds: NDArray[np.float64] | None = None,  # [n_ops]; run adds the time of each op
    ) -> None: ...
    def run_layers(
        self,
        bound: Sequence[BoundWeights],  # of each layer
        buffers: dict[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, SequenceState]],  # n_tokens, past, state
        first_layer: int = 0,  # index in each SequenceState of the first layer of bound
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None: ...

def executor_bytes(  # of an Executor with the same arguments, see Executor.nbytes
    buffers: Sequence[tuple[str, int, bool]],
    weights: Sequence[str],
    ops: Sequence[
        tuple[str, Sequence[str], str | Sequence[str] | None, Sequence[str], Mapping[str, Any]]
    ],
    max_tokens: int,
    positions: int,  # of the longest sequence
) -> int: ...

# ---- ISAs and threads ----------------------------------------------------------------------------

def available_isas() -> list[str]: ...  # slowest first
def set_isa(name: str) -> None: ...  # "": the fastest
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def allocations() -> int: ...
def cpu_budget() -> dict[str, Any]: ...
def get_optimization_info() -> dict[str, Any]: ...

# ---- files, read ahead of need -------------------------------------------------------------------

class Memory:
    def __init__(self, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...

def packed_bytes(
    type: str,
    shape: tuple[int, int],  # (n, k)
) -> int: ...
def packed_room(
    memory: Memory,
    offset: int,  # a multiple of 64
    type: str,
    shape: tuple[int, int],  # (n, k)
) -> PackedMatrix: ...

class Stream:
    def __init__(
        self,
        files: Sequence[tuple[int, str]],  # descriptor, name
        # file, offset, bytes, a target for each slot
        sections: Sequence[
            Sequence[tuple[int, int, int, Sequence[PackedMatrix | tuple[Memory, int]]]]
        ],
        *,
        threads: int = 0,
        depth: int = 10,
        piece_bytes: int = 1048576,
        endless: bool = True,
        direct: bool = True,
        io: str = "auto",
    ) -> None: ...
    def take(self) -> tuple[int, int]: ...  # section, slot
    def release(self) -> None: ...
    def rewind(self) -> None: ...
    def push(
        self,
        section: Sequence[tuple[int, int, int, Sequence[PackedMatrix | tuple[Memory, int]]]],
    ) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...

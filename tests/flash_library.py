"""The attention library, built for the tests and called by ctypes, and attention in float64.

An array that a call takes is a NumPy array: float32, float16, or uint16 for bf16 and uint8 for e4m3
(`stored` makes them, `values` reads them).
"""

import ctypes
import functools
import math
from pathlib import Path

import cpp_program
import numpy as np
import pytest
from cpp_program import build as cpp_build

import attention_library
from airllm.flash_attention.arrays import TensorStruct as Tensor
from airllm.flash_attention.library import ARRAYS, TENSORS
from airllm.flash_attention.library import NUMBERS as SHORT
from airllm.flash_attention.library import CombineStruct as CombineParams
from airllm.flash_attention.library import ForwardStruct as Params

__all__ = ["ARRAYS", "SHORT", "TENSORS", "CombineParams", "Params", "Tensor"]

OK, INVALID, UNSUPPORTED, NO_DEVICE = range(4)
F32, F16, BF16, E4M3, Q8_0 = range(5)
CAUSAL, INTERLEAVED, DETERMINISTIC, SCALE_SET = 1, 2, 4, 8


class RefusedError(Exception):
    """A call that failed; status: why, by its number."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


@functools.cache
def folder():
    """Where the library lies, built for the instruction sets of the extension."""
    place = cpp_program.folder("attention")
    failure = ""
    with cpp_program.locked(place):
        try:
            toolchain = cpp_build.Toolchain.native()
            attention_library.build_library(toolchain, cpp_program.native_isas(), place)
        except cpp_build.BuildError as error:
            failure = f"the attention library does not compile:\n{error}"
    if failure:
        pytest.fail(failure, pytrace=False)
    return Path(place)


@functools.cache
def library():
    lib = ctypes.CDLL(str(folder() / attention_library.NAME))
    lib.fa_last_error.restype = lib.fa_build_info.restype = ctypes.c_char_p
    lib.fa_version.restype = ctypes.c_uint32
    return lib


def check(status):
    """Raises what the library says is wrong."""
    if status != OK:
        raise RefusedError(status, library().fa_last_error().decode())


@functools.cache
def context(device="cpu:2"):
    made = ctypes.c_void_p()
    check(library().fa_context_create(device.encode(), ctypes.byref(made)))
    return made


# ---- numbers -------------------------------------------------------------------------------------


def bf16_values(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def e4m3_table():
    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = (8 + fraction) * 2.0 ** (exponent - 10)
    table = np.where(exponent == 0, fraction * 2.0**-9, normal)
    table[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes >= 128, -table, table)


E4M3_VALUES = e4m3_table()


def stored(x, kind):
    """x as "f32", "f16", "bf16" or "e4m3", in order [..][d]."""
    x = np.asarray(x, np.float32)
    if kind == "f32":
        return x
    if kind == "f16":
        return x.astype(np.float16)
    if kind == "bf16":
        return ((x.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    finite = E4M3_VALUES[:0x7F]
    middles = (finite[1:] + finite[:-1]) / 2
    return (np.searchsorted(middles, np.abs(x)) + 128 * (x < 0)).astype(np.uint8)


def values(x):
    """What a stored array stands for, in float64."""
    if x.dtype == np.uint16:
        return bf16_values(x).astype(np.float64)
    if x.dtype == np.uint8:
        return E4M3_VALUES[x]
    return x.astype(np.float64)


TYPES = {"float32": F32, "float16": F16, "uint16": BF16, "uint8": E4M3}


def tensor(x, type=None):
    """An array as the library takes it, with its strides."""
    t = Tensor()
    if x is None:
        return t
    t.data, t.rank = x.ctypes.data, x.ndim
    t.type = TYPES[x.dtype.name] if type is None else type
    t.shape[: x.ndim] = x.shape
    t.stride[: x.ndim] = [n // x.itemsize for n in x.strides]
    return t


# ---- calls ---------------------------------------------------------------------------------------


def params_of(**fields):
    """An fa_fwd_params with these fields: arrays for tensors and arrays, numbers for the others."""
    p = Params(struct_size=ctypes.sizeof(Params), window_left=-1, window_right=-1, pack_gqa=-1)
    p.kept = fields
    for name, value in fields.items():
        if name in TENSORS:
            setattr(p, name, value if isinstance(value, Tensor) else tensor(value))
        elif name in ARRAYS and value is not None:
            array = np.ascontiguousarray(value, np.int32)
            p.kept = {**p.kept, name: array}
            setattr(p, name, array.ctypes.data)
            if name == "page_table":
                p.page_table_columns = array.shape[1]
        elif value is not None:
            setattr(p, name, value)
    return p


def give_workspace(p, device="cpu:2"):
    """Asks for the bytes of the workspace, and gives the struct exactly as many, all of 0xff."""
    n = ctypes.c_uint64()
    check(library().fa_fwd_workspace(context(device), ctypes.byref(p), ctypes.byref(n)))
    memory = np.full(n.value, 0xFF, np.uint8)
    p.workspace, p.workspace_bytes = memory.ctypes.data, n.value
    p.kept = {**p.kept, "workspace": memory}


def forward(device="cpu:2", **fields):
    """Calls fa_fwd with these fields and a workspace."""
    p = params_of(**fields)
    give_workspace(p, device)
    check(library().fa_fwd(context(device), ctypes.byref(p), None))


# ---- attention in float64 ------------------------------------------------------------------------


def visible(n_q, n_kv, causal, left, right, chunk):
    """[n_q][n_kv]: which keys each query sees."""
    p = np.arange(n_q)[:, None] + n_kv - n_q
    j = np.arange(n_kv)[None, :]
    seen = np.ones((n_q, n_kv), bool)
    if causal:
        right = 0
    if left >= 0:
        seen &= j >= p - left
    if right >= 0:
        seen &= j <= p + right
    if chunk:
        seen &= j // chunk == p // chunk
    return seen


def attend(q, k, v, scale, seen, softcap=0.0, sinks=None):
    """out and lse, [h][n_q], of one sequence: q [n_q][h][d], k and v [n_kv][h_k][..]."""
    n_q, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.zeros((n_q, heads, v.shape[2]))
    lse = np.full((heads, n_q), -np.inf)
    for h in range(heads):
        scores = scale * (q[:, h] @ k[:, h // group].T)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = np.where(seen, scores, -np.inf)
        if sinks is not None:
            scores = np.concatenate([scores, np.full((n_q, 1), sinks[h])], 1)
        top = scores.max(1, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0)[:, None])
        total = weights.sum(1)
        with np.errstate(divide="ignore"):
            lse[h] = np.where(np.isfinite(top), top, 0.0) + np.log(total)
        weights /= np.where(total == 0, 1, total)[:, None]
        out[:, h] = weights[:, : k.shape[0]] @ v[:, h // group]
    return out, lse


def rotate(x, cosines, sines, interleaved):
    """x [n][heads][d] with row i by row i of the tables, [n][rotary_dim / 2]."""
    n = cosines.shape[1]
    y = x.copy()
    first, second = (
        (np.s_[..., 0 : 2 * n : 2], np.s_[..., 1 : 2 * n : 2])
        if interleaved
        else (np.s_[..., :n], np.s_[..., n : 2 * n])
    )
    a, b, c, s = x[first], x[second], cosines[:, None], sines[:, None]
    y[first], y[second] = a * c - b * s, b * c + a * s
    return y


def default_scale(d):
    return 1 / math.sqrt(d)

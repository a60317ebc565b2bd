"""Attention of Llama 3 8B: 32 query heads, 8 heads of keys and values, 128 dimensions."""

from functools import partial
from typing import Any

import numpy as np
from common.contest import Case, Contender, Form, Work
from common.extension import cpp
from numpy.typing import DTypeLike, NDArray

from ops import Participants, rng

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Cache = tuple[NDArray[Any], NDArray[Any]]  # k, v: [n_kv_heads, n_kv, head_dim]

N_HEADS, N_KV_HEADS, HEAD_DIM = 32, 8, 128
GROUP = N_HEADS // N_KV_HEADS
SCALE = HEAD_DIM**-0.5

FLOAT_TOLERANCE = 2e-5
HALF_TOLERANCE = 5e-3  # for PyTorch, which also rounds the result to float16


def decode(p: Participants, n_kv: int, kv_type: str = "f32") -> Case:
    """One token attends to n_kv positions. Calls cycle through caches, like a model's layers."""
    dtype = np.dtype({"f32": "f4", "f16": "f2"}[kv_type])
    q = rng().standard_normal((1, N_HEADS, HEAD_DIM), np.float32)
    first = _cache(n_kv, dtype)
    nbytes = 2 * first[0].nbytes
    caches = [first, *((first[0].copy(), first[1].copy()) for _ in range(p.cycles(nbytes) - 1))]

    def ours() -> Form:
        out = np.empty_like(q)
        return tuple(partial(cpp.attention, q, k, v, out=out) for k, v in caches)

    contenders = list(p.cpp(ours, FLOAT_TOLERANCE))
    if p.numpy and kv_type == "f32":
        contenders.append(_numpy_decode(q, caches))
    if p.torch is not None:
        contenders.append(_torch_decode(p.torch, q.astype(dtype), caches))
    flops = 4.0 * N_HEADS * HEAD_DIM * n_kv
    return Case(_exact(q, *first), tuple(contenders), Work("read", nbytes, nbytes, flops))


def prefill(p: Participants, n: int) -> Case:
    """Each of n tokens attends to itself and the tokens before it."""
    q = rng().standard_normal((n, N_HEADS, HEAD_DIM), np.float32)
    k, v = _cache(n, np.float32)
    contenders = list(
        p.cpp(lambda: (partial(cpp.attention, q, k, v, out=np.empty_like(q)),), FLOAT_TOLERANCE)
    )
    if p.numpy:
        contenders.append(Contender("numpy", ((_numpy_prefill(q, k, v),),), FLOAT_TOLERANCE))
    if p.torch is not None:
        contenders.append(_torch_prefill(p.torch, q, k, v))
    flops = 4.0 * N_HEADS * HEAD_DIM * n * (n + 1) / 2
    nbytes = float(2 * q.nbytes + k.nbytes + v.nbytes)
    return Case(_exact(q, k, v), tuple(contenders), Work("multiply_add", flops, nbytes, flops))


def _cache(n_kv: int, dtype: DTypeLike) -> Cache:
    generator = np.random.default_rng(n_kv)
    shape = (N_KV_HEADS, n_kv, HEAD_DIM)
    k = generator.standard_normal(shape, np.float32)
    v = generator.standard_normal(shape, np.float32)
    return k.astype(dtype, copy=False), v.astype(dtype, copy=False)


def _exact(q: Float32, k: NDArray[Any], v: NDArray[Any]) -> Float64:
    """Computes head by head, so that only the scores of one head are in memory."""
    n_q, n_kv = len(q), k.shape[1]
    hidden = np.arange(n_kv) > np.arange(n_q)[:, None] + n_kv - n_q
    exact = np.empty(q.shape, np.float64)
    for head in range(N_HEADS):
        keys, values = k[head // GROUP].astype(np.float64), v[head // GROUP].astype(np.float64)
        scores = q[:, head].astype(np.float64) @ keys.T * SCALE
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        exact[:, head] = weights @ values / weights.sum(axis=-1, keepdims=True)
    return exact


def _numpy_decode(q: Float32, caches: list[Cache]) -> Contender:
    grouped: Float32 = q.reshape(N_KV_HEADS, GROUP, HEAD_DIM) * np.float32(SCALE)

    def attend(k: Float32, v: Float32) -> Float32:
        scores: Float32 = grouped @ k.transpose(0, 2, 1)
        _softmax(scores)
        return (scores @ v).reshape(1, N_HEADS, HEAD_DIM)

    form: Form = tuple(partial(attend, k, v) for k, v in caches)
    return Contender("numpy", (form,), FLOAT_TOLERANCE)


def _numpy_prefill(q: Float32, k: Float32, v: Float32) -> Any:
    n = len(q)
    hidden = np.where(np.arange(n) > np.arange(n)[:, None], -np.inf, 0).astype(np.float32)
    scores, out = np.empty((n, n), np.float32), np.empty_like(q)

    def attend() -> Float32:
        for head in range(N_HEADS):
            np.matmul(q[:, head] * np.float32(SCALE), k[head // GROUP].T, out=scores)
            np.add(scores, hidden, out=scores)
            _softmax(scores)
            out[:, head] = scores @ v[head // GROUP]
        return out

    return attend


def _softmax(scores: Float32) -> None:
    np.subtract(scores, scores.max(axis=-1, keepdims=True), out=scores)
    np.exp(scores, out=scores)
    np.divide(scores, scores.sum(axis=-1, keepdims=True), out=scores)


def _torch_decode(torch: Any, q: NDArray[Any], caches: list[Cache]) -> Contender:
    """Two forms: with enable_gqa, or (mostly faster) with the heads of a group as queries of one
    head."""
    attention = torch.nn.functional.scaled_dot_product_attention
    tensors = [(torch.from_numpy(k)[None], torch.from_numpy(v)[None]) for k, v in caches]
    heads = torch.from_numpy(q).reshape(1, N_HEADS, 1, HEAD_DIM)
    groups = heads.reshape(1, N_KV_HEADS, GROUP, HEAD_DIM)
    return Contender(
        "torch",
        (
            tuple(partial(attention, groups, k, v) for k, v in tensors),
            tuple(partial(attention, heads, k, v, enable_gqa=True) for k, v in tensors),
        ),
        HALF_TOLERANCE if q.dtype == np.float16 else FLOAT_TOLERANCE,
        to_numpy=lambda result: result.reshape(1, N_HEADS, HEAD_DIM).numpy(),
    )


def _torch_prefill(torch: Any, q: Float32, k: Float32, v: Float32) -> Contender:
    """Three forms: enable_gqa with q head by head, enable_gqa with q in our layout, and heads of
    keys and values that are repeated beforehand."""
    attention = torch.nn.functional.scaled_dot_product_attention
    keys, values = torch.from_numpy(k)[None], torch.from_numpy(v)[None]
    strided = torch.from_numpy(q).transpose(0, 1)[None]
    queries = strided.contiguous()
    repeated = (keys.repeat_interleave(GROUP, 1), values.repeat_interleave(GROUP, 1))
    return Contender(
        "torch",
        (
            (partial(attention, queries, keys, values, is_causal=True, enable_gqa=True),),
            (partial(attention, strided, keys, values, is_causal=True, enable_gqa=True),),
            (partial(attention, queries, *repeated, is_causal=True),),
        ),
        FLOAT_TOLERANCE,
        to_numpy=lambda result: result[0].transpose(0, 1).numpy(),
    )

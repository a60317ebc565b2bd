"""Every operation once more, in float64, from its formula: what the backends are checked against.

Written to be checked by eye: loops over rows and blocks, one formula each, no vectorised
cleverness, nothing from airllm. Arguments are arrays of any shape, results float64 and not rounded
to float32, so that an error can be measured in float32's own units (see bounds.py). Quantised
formats are in reference_blocks.py.
"""

import math
import struct

import numpy as np


def each(formula, x):
    """formula(float) for every element of x: float64, x's shape."""
    x = np.asarray(x)
    return np.array([formula(float(v)) for v in x.reshape(-1)], np.float64).reshape(x.shape)


def each_row(formula, x):
    """formula(float64 [n]) -> float64 [n] for every row along the last axis of x."""
    x = np.asarray(x, np.float64)
    result = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        result[index] = formula(x[index])
    return result


# ---- elementwise ---------------------------------------------------------------------------------


def silu(x):
    return each(lambda v: v * _sigmoid(v) if v != -math.inf else -0.0, x)


def gelu_tanh(x):
    # 0.5 * (1 + tanh(u)) is sigmoid(2 u): the textbook form loses all digits for u < -18.
    def formula(v):
        if v == -math.inf:
            return -0.0
        return v * _sigmoid(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))

    return each(formula, x)


def gelu_erf(x):
    # 0.5 * (1 + erf(z)) is 0.5 * erfc(-z), for the same reason.
    return each(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)) if v != -math.inf else -0.0, x)


def swiglu(gate, up):
    with np.errstate(all="ignore"):
        return silu(gate) * np.asarray(up, np.float64)


def _sigmoid(v):
    if v >= 0:
        return 1 / (1 + math.exp(-v))
    return math.exp(v) / (1 + math.exp(v))  # also NaN, which stays NaN


# ---- rows ----------------------------------------------------------------------------------------


def rms_norm(x, weight, eps):
    weight = np.asarray(weight, np.float64)

    def formula(row):
        mean_square = math.fsum(v * v for v in row) / len(row)
        if mean_square + eps == 0:
            return row * math.nan
        return row * weight / math.sqrt(mean_square + eps)

    return each_row(formula, x) if np.asarray(x).shape[-1] else np.zeros(np.shape(x))


def softmax(x):
    def formula(row):
        if len(row) == 0 or np.all(row == -math.inf):
            return np.zeros(len(row))
        if np.isnan(row).any() or np.isposinf(row).any():
            return np.full(len(row), math.nan)
        top = max(row)
        exps = [math.exp(v - top) for v in row]
        return np.array(exps) / math.fsum(exps)

    return each_row(formula, x)


def rope_frequencies(theta, head_dim):
    return np.array([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])


def rope_pairs(n_dims, interleaved):
    """Which features turn together: [(first, second), ...]."""
    half = n_dims // 2
    return [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]


def rope(x, positions, inv_freq, interleaved):
    """x: [n_tokens, n_heads, head_dim]; inv_freq: [n_dims / 2]."""
    x = np.asarray(x, np.float64)
    result = x.copy()
    for token, position in enumerate(positions):
        for i, (a, b) in enumerate(rope_pairs(2 * len(inv_freq), interleaved)):
            angle = float(position) * float(inv_freq[i])
            c, s = math.cos(angle), math.sin(angle)
            result[token, :, a] = x[token, :, a] * c - x[token, :, b] * s
            result[token, :, b] = x[token, :, a] * s + x[token, :, b] * c
    return result


# ---- matrices ------------------------------------------------------------------------------------


def matmul(a, b):
    """a: [..., m, k]; b: [k, n]."""
    with np.errstate(all="ignore"):
        return np.einsum("...mk,kn->...mn", np.asarray(a, np.float64), np.asarray(b, np.float64))


def linear(x, w):
    """x: [..., k]; w: [n, k]."""
    with np.errstate(all="ignore"):
        return np.einsum("...k,nk->...n", np.asarray(x, np.float64), np.asarray(w, np.float64))


def attention(
    q,
    k,
    v,
    scale,
    causal=True,
    window=None,
    chunked=False,
    softcap=None,
    sinks=None,
    slopes=None,
    cu_seqlens=None,
):
    """out [n_q, n_heads, head_dim] and lse [n_q, n_heads].

    q: [n_q, n_heads, head_dim]; k, v: [n_kv_heads, n_kv, head_dim], numbers; sinks, slopes:
    [n_heads]; cu_seqlens: where sequences start and end in q and in k, (list, list), or None: one
    sequence.
    """
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    out, lse = np.zeros_like(q), np.zeros(q.shape[:2])
    ends_q, ends_k = cu_seqlens or ([0, q.shape[0]], [0, k.shape[1]])
    n_heads, n_kv_heads = q.shape[1], k.shape[0]
    for sequence in range(len(ends_q) - 1):
        first, n_q = ends_q[sequence], ends_q[sequence + 1] - ends_q[sequence]
        keys = slice(ends_k[sequence], ends_k[sequence + 1])
        n_kv = keys.stop - keys.start
        for token in range(n_q):
            seen = _seen_keys(n_kv - n_q + token, n_kv, causal, window, chunked)
            for head in range(n_heads):
                kv_head = head // (n_heads // n_kv_heads)
                out[first + token, head], lse[first + token, head] = _attend(
                    q[first + token, head],
                    k[kv_head, keys][seen],
                    v[kv_head, keys][seen],
                    scale,
                    softcap,
                    -math.inf if sinks is None else float(sinks[head]),
                    [
                        0.0 if slopes is None else slopes[head] * (key - (n_kv - n_q + token))
                        for key in seen
                    ],
                )
    return out, lse


def _seen_keys(position, n_kv, causal, window, chunked):
    """The keys that the query at `position` sees, in order."""
    first, last = 0, n_kv - 1
    if causal:
        last = min(last, position)
    if chunked:
        chunk = math.floor(position / window)
        first, last = max(first, chunk * window), min(last, chunk * window + window - 1)
    elif window is not None:
        first, last = max(first, position - window + 1), min(last, position + window - 1)
    return list(range(first, last + 1))


def _attend(query, keys, values, scale, softcap, sink, biases):
    """One query, one head, the keys that it sees: its row of out and its lse."""
    scores = [float(score) for score in keys @ query * scale]
    if softcap is not None:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    scores = [score + bias for score, bias in zip(scores, biases, strict=True)]
    top = max([sink, *scores])
    if top == -math.inf:
        return np.zeros(len(query)), -math.inf
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum([*weights, math.exp(sink - top)])
    return np.array(weights) @ values / total, top + math.log(total)


# ---- 16-bit floats, bit by bit -------------------------------------------------------------------


def decode_float16(bits):
    """IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits."""
    sign = -1.0 if bits >> 15 else 1.0
    exponent, fraction = bits >> 10 & 0x1F, bits & 0x3FF
    if exponent == 0x1F:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def decode_bfloat16(bits):
    """The upper half of a binary32."""
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def encode_nearest(value, decode, n_bits):
    """The bits of a 16-bit format whose value is nearest to `value`, ties to the even bits.

    decode: bits -> float, increasing over the positive bits up to infinity at `n_bits`. Infinity
    stands for the value that would follow the largest finite one, as IEEE 754 rounds overflow.
    """
    magnitude = abs(value)
    low, high = 0, n_bits  # decode(low) <= magnitude <= decode(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decode(middle) <= magnitude else (low, middle)
    above = decode(high)
    if math.isinf(above):
        above = 2 * decode(high - 1) - decode(high - 2)
    if math.isinf(magnitude):
        bits = n_bits
    elif magnitude - decode(low) != above - magnitude:
        bits = low if magnitude - decode(low) < above - magnitude else high
    else:
        bits = low if low % 2 == 0 else high
    return bits | (0x8000 if math.copysign(1.0, value) < 0 else 0)


def encode_float16(value):
    return encode_nearest(value, decode_float16, 0x7C00)


def encode_bfloat16(value):
    return encode_nearest(value, decode_bfloat16, 0x7F80)

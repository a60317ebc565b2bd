"""Recurrent layers, token by token in float32: what the executor of `airllm.backends` calls.

A batch holds several sequences: the rows of the first one come first in every array. Several
entries may have the same state: the tokens of each continue those of the entry before it. The
result does not depend on how the tokens of a state are divided among entries and calls.

There are no checks of arguments here. An `out` must not overlap an input, unless a function says
that it may.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.elementwise import softplus_apply

_quiet = np.errstate(all="ignore")


class RecurrentSequence(NamedTuple):
    """Tokens of a batch that belong to one state, which the operation updates."""

    n_tokens: int
    state: Float32


@_quiet
def causal_conv_apply(
    x: Float32,
    weight: Float32,
    bias: Float32 | None,
    silu: bool,
    sequences: Sequence[RecurrentSequence],
    out: Float32,
) -> None:
    """out[t] = bias + sum over j of weight[:, j] * x[t - (taps - 1) + j], or silu of that.

    x: float32 [n, channels]; weight: float32 [channels, taps]; bias: float32 [channels];
    out: float32 [n, channels], may be x.
    State: float32 [taps - 1, channels], the inputs of the last tokens, oldest first.
    """
    for row, state in _tokens(sequences):
        window = np.concatenate([state, x[row : row + 1]])  # [taps, channels]
        state[...] = window[1:]
        result = np.zeros_like(window[0]) if bias is None else bias.copy()
        for tap, values in zip(weight.T, window, strict=True):
            result += tap * values
        if silu:
            # -inf * 0 would be NaN where the limit is 0.
            result = np.maximum(result, np.float32(-1e30)) / (1 + np.exp(-result))
        out[row] = result


@_quiet
def delta_rule_apply(
    q: Float32,
    k: Float32,
    v: Float32,
    log_decay: Float32,
    beta: Float32,
    tiled: bool,
    scale: float,
    sequences: Sequence[RecurrentSequence],
    out: Float32,
) -> None:
    """The gated delta rule (arXiv:2412.06464; a decay for each channel: arXiv:2510.26692).

    For each token: S = exp(log_decay) S; d = beta (v - S^T k); S = S + k d^T; out = scale S^T q.

    q, k: float32 [n, n_k_heads, d_k]; v, out: float32 [n, n_v_heads, d_v]; beta: float32
    [n, n_v_heads]; log_decay: float32 [n, n_v_heads], or [n, n_v_heads, d_k], a number for each
    row of S.
    tiled: value head h uses key head h % n_k_heads; otherwise h // (n_v_heads // n_k_heads).
    State: S, float32 [n_v_heads, d_k, d_v].
    """
    n_k_heads, n_v_heads = k.shape[1], v.shape[1]
    heads = np.arange(n_v_heads)
    key_heads = heads % n_k_heads if tiled else heads // (n_v_heads // n_k_heads)
    by_channel = log_decay.ndim == 3
    decay = np.exp(log_decay if by_channel else log_decay[..., np.newaxis])[..., np.newaxis]
    for row, state in _tokens(sequences):
        query, key = q[row, key_heads], k[row, key_heads]  # [n_v_heads, d_k]
        state *= decay[row]
        recalled = np.einsum("hkv,hk->hv", state, key)
        delta = beta[row, :, np.newaxis] * (v[row] - recalled)
        state += key[:, :, np.newaxis] * delta[:, np.newaxis, :]
        out[row] = np.float32(scale) * np.einsum("hkv,hk->hv", state, query)


@_quiet
def ssm_scan_apply(
    x: Float32,
    dt: Float32,
    b: Float32,
    c: Float32,
    a: Float32,
    skip: Float32 | None,
    dt_bias: Float32 | None,
    dt_limits: tuple[float, float],
    sequences: Sequence[RecurrentSequence],
    out: Float32,
) -> None:
    """The scan of Mamba-2 (arXiv:2405.21060).

    For each token, with s = softplus(dt + dt_bias), held between dt_limits:
    h = exp(s a) h + s x b^T; out = h c + skip x.

    x, out: float32 [n, n_heads, head_dim]; dt: float32 [n, n_heads]; b, c: float32
    [n, n_groups, d_state]; a (negative), skip, dt_bias: float32 [n_heads]. Head i uses b and c of
    group i // (n_heads // n_groups).
    State: h, float32 [n_heads, head_dim, d_state].
    """
    n_heads, n_groups = x.shape[1], b.shape[1]
    groups = np.arange(n_heads) // (n_heads // n_groups)
    steps = softplus_apply(dt if dt_bias is None else dt + dt_bias)
    steps = np.clip(steps, np.float32(dt_limits[0]), np.float32(dt_limits[1]))
    decay = np.exp(steps * a)
    for row, state in _tokens(sequences):
        inputs = steps[row, :, np.newaxis] * x[row]  # [n_heads, head_dim]
        state *= decay[row, :, np.newaxis, np.newaxis]
        state += inputs[:, :, np.newaxis] * b[row, groups][:, np.newaxis, :]
        out[row] = np.einsum("hpn,hn->hp", state, c[row, groups])
        if skip is not None:
            out[row] += skip[:, np.newaxis] * x[row]


@_quiet
def selective_scan_apply(
    x: Float32,
    dt: Float32,
    b: Float32,
    c: Float32,
    a: Float32,
    sequences: Sequence[RecurrentSequence],
    out: Float32,
) -> None:
    """The scan of Mamba (arXiv:2312.00752).

    For each token and channel: h = exp(dt a) h + dt x b; out = h . c.

    x, dt, out: float32 [n, channels]; b, c: float32 [n, d_state]; a (negative): float32
    [channels, d_state].
    State: h, float32 [channels, d_state].
    """
    for row, state in _tokens(sequences):
        state *= np.exp(dt[row, :, np.newaxis] * a)
        state += np.outer(dt[row] * x[row], b[row])
        out[row] = state @ c[row]


@_quiet
def l2_norm_apply(x: Float32, eps: float, out: Float32) -> None:
    """x / sqrt(sum(x^2) + eps), the sum over the last axis.

    x, out: float32 [..., d]; out may be x.
    """
    wide = x.astype(np.float64)
    out[...] = wide / np.sqrt(np.sum(wide * wide, axis=-1, keepdims=True) + eps)


@_quiet
def log_decay_apply(
    x: Float32, bias: Float32 | None, a: Float32, out: Float32, bound: float = 0.0
) -> None:
    """a * softplus(x + bias), as the gated delta rule wants it, or with a bound below 0
    bound * sigmoid(-a * (x + bias)).

    x, out: float32 [n, width]; bias: float32 [width]; a: float32 [n_a], each element for
    width / n_a consecutive columns. out may be x.
    """
    biased = x if bias is None else x + bias
    factors = np.repeat(a, x.shape[1] // len(a))
    if bound:
        out[...] = np.float32(bound) / (1.0 + np.exp(factors * biased))
    else:
        out[...] = factors * softplus_apply(biased)


@_quiet
def group_norm_apply(x: Float32, weight: Float32, n_groups: int, eps: float, out: Float32) -> None:
    """The RMSNorm of each of n_groups equal parts of a row.

    x, out: float32 [n, width]; weight: float32 [width]; out may be x.
    """
    wide = x.astype(np.float64).reshape(len(x), n_groups, x.shape[1] // n_groups)
    mean_square = np.mean(wide * wide, axis=-1, keepdims=True)
    out[...] = (wide / np.sqrt(mean_square + eps)).reshape(x.shape) * weight


def _tokens(sequences: Sequence[RecurrentSequence]) -> Iterator[tuple[int, Float32]]:
    """The row and the state of each token, in order."""
    row = 0
    for sequence in sequences:
        for _ in range(sequence.n_tokens):
            yield row, sequence.state
            row += 1

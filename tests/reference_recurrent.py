"""Recurrent layers once more, in float64, from other forms of their formulas than the code has.

The convolution is a sum over the whole history; the delta rule multiplies by the matrices of its
paper; the scans of Mamba and Mamba-2 are sums over all earlier tokens, which the second paper calls
the quadratic form. Everything is one sequence: arrays begin with the token axis. Results are
float64.
"""

import math

import numpy as np


def softplus(v):
    """log(1 + exp(v)) of a number."""
    return v if v > 40 else math.log1p(math.exp(v))


def causal_conv(x, weight, bias, silu, state):
    """y [n, channels] and the state after it; state: [taps - 1, channels]."""
    history = np.concatenate([state, x]).astype(np.float64)
    y = np.empty(np.shape(x))
    taps = weight.shape[1]
    for token, channel in np.ndindex(y.shape):
        window = history[token : token + taps, channel]
        total = math.fsum(window * weight[channel].astype(np.float64))
        total += 0.0 if bias is None else float(bias[channel])
        y[token, channel] = total / (1 + math.exp(-total)) if silu else total
    return y, history[len(history) - (taps - 1) :]


def delta_rule(q, k, v, log_decay, beta, tiled, scale, state):
    """out [n, n_v_heads, d_v] and the state after it; state: [n_v_heads, d_k, d_v].

    S_t = (I - beta k k^T) diag(exp(log_decay)) S + beta k v^T; out_t = scale S_t^T q.
    """
    q, k, v, log_decay, beta = (np.asarray(a, np.float64) for a in (q, k, v, log_decay, beta))
    n, n_v_heads, d_v = v.shape
    n_k_heads, d_k = k.shape[1:]
    out, after = np.empty((n, n_v_heads, d_v)), np.array(state, np.float64)
    for head in range(n_v_heads):
        key_head = head % n_k_heads if tiled else head * n_k_heads // n_v_heads
        for token in range(n):
            key = k[token, key_head]
            fading = np.diag(np.exp(log_decay[token, head]) * np.ones(d_k))
            erasing = np.eye(d_k) - beta[token, head] * np.outer(key, key)
            written = beta[token, head] * np.outer(key, v[token, head])
            after[head] = erasing @ fading @ after[head] + written
            out[token, head] = scale * (after[head].T @ q[token, key_head])
    return out, after


def ssm_scan(x, dt, b, c, a, skip, dt_bias, dt_limits, state):
    """y [n, n_heads, head_dim] and the state after it; state: [n_heads, head_dim, d_state].

    y_t = sum over s <= t of (c_t . b_s) exp(a (sum of steps s + 1 to t)) step_s x_s, what is left
    of the state, and skip x_t.
    """
    x, b, c, a, state = (np.asarray(array, np.float64) for array in (x, b, c, a, state))
    n, n_heads = dt.shape
    y, after = np.zeros(x.shape), np.zeros(state.shape)
    for head in range(n_heads):
        group = head * b.shape[1] // n_heads
        steps = []
        for token in range(n):
            step = softplus(float(dt[token, head]) + (0 if dt_bias is None else dt_bias[head]))
            steps.append(min(max(step, dt_limits[0]), dt_limits[1]))
        for token in range(n):
            left = math.exp(a[head] * math.fsum(steps[: token + 1]))
            y[token, head] = left * (state[head] @ c[token, group])
            for past in range(token + 1):
                kept = math.exp(a[head] * math.fsum(steps[past + 1 : token + 1]))
                likeness = c[token, group] @ b[past, group]
                y[token, head] += likeness * kept * steps[past] * x[past, head]
            if skip is not None:
                y[token, head] += skip[head] * x[token, head]
        after[head] = state[head] * math.exp(a[head] * math.fsum(steps))
        for past in range(n):
            kept = math.exp(a[head] * math.fsum(steps[past + 1 :]))
            after[head] += kept * steps[past] * np.outer(x[past, head], b[past, group])
    return y, after


def selective_scan(x, dt, b, c, a, state):
    """y [n, channels] and the state after it; state: [channels, d_state].

    y_t = sum over s <= t and i of c_t[i] b_s[i] exp(a[i] (sum of steps s + 1 to t)) step_s x_s,
    and what is left of the state.
    """
    x, dt, b, c, a, state = (np.asarray(array, np.float64) for array in (x, dt, b, c, a, state))
    n, channels = x.shape
    y, after = np.zeros(x.shape), np.zeros(state.shape)
    for channel in range(channels):
        steps = dt[:, channel]
        for token in range(n):
            left = state[channel] * np.exp(a[channel] * math.fsum(steps[: token + 1]))
            for past in range(token + 1):
                kept = np.exp(a[channel] * math.fsum(steps[past + 1 : token + 1]))
                left = left + kept * steps[past] * x[past, channel] * b[past]
            y[token, channel] = left @ c[token]
        after[channel] = left
    return y, after

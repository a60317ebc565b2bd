"""The families' forward pass once more, in float64, from their papers (see airllm/models).

For a whole sequence at once, without cache, batches or graphs; nothing from airllm. Matrices are
[out, in], as GGUF has them, Llama's with its order of the rows of Q and K: rope's pairs are
neighbours. What a layer does beyond a Llama's is seen from the tensors that it has.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tiny_model import Sizes

Linear = Callable[[np.ndarray, np.ndarray], np.ndarray]


def forward(
    tensors: Mapping[str, np.ndarray],
    sizes: Sizes,
    tokens: Sequence[int],
    *,
    rope_factors: np.ndarray | None = None,
    activations: str = "f32",
) -> np.ndarray:
    """Logits, float64 [n_tokens, vocab].

    tensors: values by GGUF name. rope_factors: [rope_dims / 2], divide the frequencies.
    activations: "q8" rounds what a matrix is multiplied by to 8 bits in blocks of 32.
    """
    linear = _linear_q8 if activations == "q8" else _linear
    gemma = sizes.arch.startswith("gemma")
    x = tensors["token_embd.weight"][list(tokens)]  # [n, hidden]
    if gemma:
        x = x * np.sqrt(sizes.hidden)
    for i in range(sizes.n_layers):
        w = {
            name.removeprefix(f"blk.{i}.").removesuffix(".weight"): value
            for name, value in tensors.items()
            if name.startswith(f"blk.{i}.")
        }
        period = sizes.window_period
        window = 0 if period and (i + 1) % period == 0 else sizes.window
        h = _rms_norm(x, w["attn_norm"], sizes.eps)
        q, k, v = (
            linear(h, w[name]) + w.get(f"{name}.bias", 0) for name in ("attn_q", "attn_k", "attn_v")
        )
        if "attn_q_norm" in w:
            q, k = _head_norm(q, w["attn_q_norm"], sizes), _head_norm(k, w["attn_k_norm"], sizes)
        h = linear(_attention(q, k, v, sizes, window, rope_factors), w["attn_output"])
        x = x + (_rms_norm(h, w["post_attention_norm"], sizes.eps) if gemma else h)
        h = _rms_norm(x, w["ffn_norm"], sizes.eps)
        if "ffn_gate_inp" in w:
            h = _experts(h, w, sizes, linear)
        else:
            gate = linear(h, w["ffn_gate"])
            gate = _gelu(gate) if gemma else _silu(gate)
            h = linear(gate * linear(h, w["ffn_up"]), w["ffn_down"])
        x = x + (_rms_norm(h, w["post_ffw_norm"], sizes.eps) if gemma else h)
    h = _rms_norm(x, tensors["output_norm.weight"], sizes.eps)
    logits = linear(h, tensors.get("output.weight", tensors["token_embd.weight"]))
    return _capped(logits, sizes.final_softcap)


def _experts(
    x: np.ndarray, w: Mapping[str, np.ndarray], sizes: Sizes, linear: Linear
) -> np.ndarray:
    """Each token's best experts, one token and one expert after the other. x: [n, hidden]."""
    result = np.zeros_like(x)
    for token, scores in enumerate(linear(x, w["ffn_gate_inp"])):
        best = sorted(range(sizes.n_experts), key=lambda e: -scores[e])[: sizes.n_used]
        shares = np.exp(scores[best] - scores[best].max())
        row = x[token : token + 1]
        for expert, share in zip(best, shares / shares.sum(), strict=True):
            h = _silu(linear(row, w["ffn_gate_exps"][expert]))
            h = linear(h * linear(row, w["ffn_up_exps"][expert]), w["ffn_down_exps"][expert])
            result[token] += share * h[0]
    return result


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def _capped(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap) if cap else x


def _linear(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x @ w.T


def _linear_q8(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    blocks = x.reshape(len(x), -1, 32)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(blocks / np.where(d == 0, 1, d)) * d
    return rounded.reshape(x.shape) @ w.T


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _head_norm(x: np.ndarray, weight: np.ndarray, sizes: Sizes) -> np.ndarray:
    heads = x.reshape(len(x), -1, sizes.head_dim)
    return _rms_norm(heads, weight, sizes.eps).reshape(x.shape)


def _attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    sizes: Sizes,
    window: int,
    factors: np.ndarray | None,
) -> np.ndarray:
    """All heads, one after the other. q: [n, n_heads * d]; k, v: [n, n_kv_heads * d]; as q."""
    n, d = len(q), sizes.head_dim
    distance = np.arange(n)[:, None] - np.arange(n)  # of a key behind its query
    hidden = (distance < 0) | (distance >= (window or n))
    theta = (sizes.window_theta if window else 0.0) or sizes.theta
    heads = []
    for head in range(sizes.n_heads):
        kv_head = head // (sizes.n_heads // sizes.n_kv_heads)
        kv = slice(kv_head * d, (kv_head + 1) * d)
        query = _rope(q[:, head * d : (head + 1) * d], sizes, theta, factors)
        scores = query @ _rope(k[:, kv], sizes, theta, factors).T / np.sqrt(d)
        scores = np.where(hidden, -np.inf, _capped(scores, sizes.attention_softcap))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv])
    return np.concatenate(heads, axis=-1)


def _rope(x: np.ndarray, sizes: Sizes, theta: float, factors: np.ndarray | None) -> np.ndarray:
    """Rotates pairs as complex numbers: a + b j, times e^(j angle). Llama's pairs are neighbours,
    the others' are a dimension of the first half and its like in the second."""
    n_dims = sizes.rope_dims
    rotating, rest = x[:, :n_dims], x[:, n_dims:]
    frequency = theta ** (-np.arange(0, n_dims, 2) / n_dims)
    if factors is not None:
        frequency = frequency / factors
    angle = np.arange(len(x))[:, None] * frequency  # [n, rope_dims / 2]
    pair_axis = -1 if sizes.arch == "llama" else -2
    shape = (len(x), n_dims // 2, 2) if pair_axis == -1 else (len(x), 2, n_dims // 2)
    first, second = np.moveaxis(rotating.reshape(shape), pair_axis, 0)
    turned = (first + 1j * second) * np.exp(1j * angle)
    pairs = np.stack([turned.real, turned.imag], axis=pair_axis).reshape(rotating.shape)
    return np.concatenate([pairs, rest], axis=-1)

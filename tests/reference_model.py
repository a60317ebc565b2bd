"""A Llama's forward pass once more, in float64, from the paper (arXiv:2302.13971).

For a whole sequence at once, without cache, batches or graphs; nothing from airllm. Matrices are
[out, in], as GGUF has them, with its order of the rows of Q and K: rope's pairs are neighbours.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from tiny_model import Sizes


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
    x = tensors["token_embd.weight"][list(tokens)]  # [n, hidden]
    for i in range(sizes.n_layers):
        w = {
            name.removeprefix(f"blk.{i}.").removesuffix(".weight"): value
            for name, value in tensors.items()
            if name.startswith(f"blk.{i}.")
        }
        h = _rms_norm(x, w["attn_norm"], sizes.eps)
        q, k, v = (linear(h, w[name]) for name in ("attn_q", "attn_k", "attn_v"))
        x = x + linear(_attention(q, k, v, sizes, rope_factors), w["attn_output"])
        h = _rms_norm(x, w["ffn_norm"], sizes.eps)
        gate = linear(h, w["ffn_gate"])
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, w["ffn_up"]), w["ffn_down"])
    h = _rms_norm(x, tensors["output_norm.weight"], sizes.eps)
    return linear(h, tensors.get("output.weight", tensors["token_embd.weight"]))


def _linear(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x @ w.T


def _linear_q8(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    blocks = x.reshape(len(x), -1, 32)
    d = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(blocks / np.where(d == 0, 1, d)) * d
    return rounded.reshape(x.shape) @ w.T


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sizes: Sizes, rope_factors: np.ndarray | None
) -> np.ndarray:
    """All heads, one after the other. q: [n, n_heads * d]; k, v: [n, n_kv_heads * d]; as q."""
    n, d = len(q), sizes.head_dim
    future = np.triu(np.ones((n, n), bool), k=1)
    heads = []
    for head in range(sizes.n_heads):
        kv_head = head // (sizes.n_heads // sizes.n_kv_heads)
        kv = slice(kv_head * d, (kv_head + 1) * d)
        query = _rope(q[:, head * d : (head + 1) * d], sizes, rope_factors)
        scores = np.where(future, -np.inf, query @ _rope(k[:, kv], sizes, rope_factors).T)
        weights = np.exp((scores - scores.max(axis=-1, keepdims=True)) / np.sqrt(d))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv])
    return np.concatenate(heads, axis=-1)


def _rope(x: np.ndarray, sizes: Sizes, factors: np.ndarray | None) -> np.ndarray:
    """Rotates neighbours as complex numbers: x[2i] + x[2i + 1] j, times e^(j angle)."""
    rotating, rest = x[:, : sizes.rope_dims], x[:, sizes.rope_dims :]
    frequency = sizes.theta ** (-np.arange(0, sizes.rope_dims, 2) / sizes.rope_dims)
    if factors is not None:
        frequency = frequency / factors
    angle = np.arange(len(x))[:, None] * frequency  # [n, rope_dims / 2]
    turned = (rotating[:, 0::2] + 1j * rotating[:, 1::2]) * np.exp(1j * angle)
    pairs = np.stack([turned.real, turned.imag], axis=-1).reshape(rotating.shape)
    return np.concatenate([pairs, rest], axis=-1)

"""Next-token heads in float64, from DeepSeek-V3's paper (arXiv:2412.19437, section 2.2) and the
papers of their layers: for whole sequences at once, without cache, graphs, absorbed matrices or
batches.

Sizes and switches come from the model's configuration, everything else from here.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from airllm.models import ModelConfig

Tensors = Mapping[str, np.ndarray]
Rows = np.ndarray  # [n, width]


def guess_logits(
    c: ModelConfig,
    tensors: Tensors,
    theta: float,
    tokens: Sequence[int],
    residual: Rows,
    n: int,
    unknown: int = 0,
    *,
    normed: bool = True,
) -> list[np.ndarray]:
    """The logits of n guesses, one after the other, [vocab] each.

    tokens: of which the model has evaluated all but the last. residual: behind the model's last
    layer, [len(tokens) - 1, hidden]. Each guess is the likeliest token. unknown: the position
    before which the hidden state is 0, beside the first. normed: whether hidden states are read
    behind their norms, or before them, as in Step-3.5 and MiMo-V2.
    """
    w = {
        name.removeprefix(f"blk.{c.n_layers}.").removesuffix(".weight"): values.astype(np.float64)
        for name, values in tensors.items()
        if name.startswith((f"blk.{c.n_layers}.", "token_embd", "output", "rope_freqs"))
    }
    c = c.of(c.head_layer)
    embedding = w.get("nextn.embed_tokens", w["token_embd"])
    output = w.get("nextn.shared_head_head", w["output"])
    norm = w.get("nextn.shared_head_norm", w.get("layer_output_norm", w["output_norm"]))
    tokens, found = list(tokens), list[np.ndarray]()
    hidden = residual.astype(np.float64)  # of each position that before it
    if normed:
        hidden = _rms(hidden, w["output_norm"], c.norm_eps)
    hidden = np.concatenate([np.zeros((1, c.hidden_size)), hidden])
    hidden[unknown] = 0.0
    for _ in range(n):
        e = _rms(embedding[tokens], w["nextn.enorm"], c.norm_eps)
        h = _rms(hidden, w["nextn.hnorm"], c.norm_eps)
        x = np.concatenate([e, h], axis=1) @ w["nextn.eh_proj"].T
        x = x + _attention(c, w, theta, _rms(x, w["attn_norm"], c.norm_eps))
        post = w["ffn_norm"] if "ffn_norm" in w else w["post_attention_norm"]
        x = x + _feed_forward(c, w, _rms(x, post, c.norm_eps))
        last = _rms(x[-1:], norm, c.norm_eps)
        found.append((last @ output.T)[0])
        tokens.append(int(np.argmax(found[-1])))
        hidden = np.concatenate([hidden, last if normed else x[-1:]])
    return found


def _rms(x: Rows, weight: np.ndarray, eps: float) -> Rows:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _sigmoid(x: Rows) -> Rows:
    return 1 / (1 + np.exp(-x))


def _rope(
    x: Rows, theta: float, n_dims: int, interleaved: bool, factors: np.ndarray | None = None
) -> Rows:
    """x: [n, heads, d], of which the first n_dims rotate as complex numbers. factors: divide the
    frequencies, the first ones those of these dimensions."""
    frequencies = theta ** (-np.arange(0, n_dims, 2) / n_dims)
    if factors is not None:
        frequencies = frequencies / factors[: n_dims // 2]
    angles = np.arange(len(x))[:, None] * frequencies
    turn = np.exp(1j * angles)[:, None]
    result, half = x.copy(), n_dims // 2
    real = slice(0, n_dims, 2) if interleaved else slice(0, half)
    imaginary = slice(1, n_dims, 2) if interleaved else slice(half, n_dims)
    turned = (x[..., real] + 1j * x[..., imaginary]) * turn
    result[..., real], result[..., imaginary] = turned.real, turned.imag
    return result


def _seen(
    scores: np.ndarray, values: np.ndarray, sees: np.ndarray, sink: float = -np.inf
) -> np.ndarray:
    """scores: [n, n]; values: [n, d]; sees: [n, n], whether a row sees a column. sink: a score of
    each row, without a value."""
    scores = np.where(sees, scores, -np.inf)
    most = scores.max(axis=1, keepdims=True)
    shares = np.exp(scores - most)
    return shares / (shares.sum(axis=1, keepdims=True) + np.exp(sink - most)) @ values


def _attention(c: ModelConfig, w: Tensors, theta: float, h: Rows) -> Rows:
    rope = partial(_rope, theta=theta, n_dims=c.rope_dims, interleaved=c.rope_interleaved)
    if not c.head_layer.window:
        rope = partial(rope, factors=w.get("rope_freqs"))
    if c.latent is not None:
        return _latent_attention(c, w, theta, h)
    n, d = len(h), c.head_dim
    gated = c.delta_net is not None
    q = (h @ w["attn_q"].T).reshape(n, c.n_heads, -1)
    gate, q = q[..., d:], q[..., :d]
    k = (h @ w["attn_k"].T).reshape(n, c.n_kv_heads, d)
    v = c.value_scale * (h @ w["attn_v"].T).reshape(n, c.n_kv_heads, -1)
    if of_heads := "attn_gate" in w:
        gate = (h @ w["attn_gate"].T)[..., np.newaxis]  # [n, heads, 1]
    if "attn_q_norm" in w:
        q, k = _rms(q, w["attn_q_norm"], c.norm_eps), _rms(k, w["attn_k_norm"], c.norm_eps)
    q, k, sees = rope(q), rope(k), np.tri(n, dtype=bool)
    if window := c.head_layer.window:
        sees = sees & ~np.tri(n, k=-window, dtype=bool)
    sinks, heads = w.get("attn_sinks", np.full(c.n_heads, -np.inf)), []
    for head in range(c.n_heads):
        of_kv = head * c.n_kv_heads // c.n_heads
        a = _seen(q[:, head] @ k[:, of_kv].T * d**-0.5, v[:, of_kv], sees, sinks[head])
        heads.append(a * _sigmoid(gate[:, head]) if gated or of_heads else a)
    return np.concatenate(heads, axis=1) @ w["attn_output"].T


def _latent_attention(c: ModelConfig, w: Tensors, theta: float, h: Rows) -> Rows:
    """Each head has keys and values of its own, which are computed from the latents."""
    m, n = c.latent, len(h)
    assert m is not None
    h_q = _rms(h @ w["attn_q_a"].T, w["attn_q_a_norm"], c.norm_eps)
    q = (h_q @ w["attn_q_b"].T).reshape(n, c.n_heads, -1)
    kv = h @ w["attn_kv_a_mqa"].T
    latent = _rms(kv[:, : m.rank], w["attn_kv_a_norm"], c.norm_eps)
    rope = partial(_rope, theta=theta, n_dims=c.rope_dims, interleaved=True)
    turning, key = rope(q[..., m.unrotated :]), rope(kv[:, None, m.rank :])[:, 0]
    sees = np.tri(n, dtype=bool)
    if c.indexer is not None:
        sees = sees & _selected(c, w, theta, h, h_q)
    heads = []
    for head in range(c.n_heads):
        keys = latent @ w["attn_k_b"][head]  # [n, unrotated]
        scores = q[:, head, : m.unrotated] @ keys.T + turning[:, head] @ key.T
        scores = scores * (m.unrotated + c.rope_dims) ** -0.5
        heads.append(_seen(scores, latent @ w["attn_v_b"][head].T, sees))
        if "attn_gate" in w:
            heads[-1] *= _sigmoid(h @ w["attn_gate"][head])[:, np.newaxis]
    return np.concatenate(heads, axis=1) @ w["attn_output"].T


def _selected(c: ModelConfig, w: Tensors, theta: float, h: Rows, h_q: Rows) -> np.ndarray:
    """Whether a position is among those that the index selects for a token."""
    x, n = c.indexer, len(h)
    assert x is not None
    q = (h_q @ w["indexer.attn_q_b"].T).reshape(n, x.n_heads, x.head_dim)
    k = h @ w["indexer.attn_k"].T
    k = k - k.mean(axis=1, keepdims=True)
    k = k / np.sqrt((k * k).mean(axis=1, keepdims=True) + 1e-6)
    k = k * w["indexer.k_norm"] + w["indexer.k_norm.bias"]
    rope = partial(_rope, theta=theta, n_dims=c.rope_dims, interleaved=x.interleaved)
    q, k = rope(q), rope(k[:, None])[:, 0]
    products = np.maximum(np.einsum("thd,sd->tsh", q, k), 0.0)
    scores = np.einsum("tsh,th->ts", products, h @ w["indexer.proj"].T)
    selected = np.zeros((n, n), bool)
    for token in range(n):
        best = np.argsort(-scores[token, : token + 1], kind="stable")[: x.n_selected]
        selected[token, best] = True
    return selected


def _glu(h: Rows, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> Rows:
    g = h @ gate.T
    return (g * _sigmoid(g) * (h @ up.T)) @ down.T


def _feed_forward(c: ModelConfig, w: Tensors, h: Rows) -> Rows:
    if "ffn_gate_inp" not in w:
        return _glu(h, w["ffn_gate"], w["ffn_up"], w["ffn_down"])
    result = np.zeros_like(h)
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    for token, logits in enumerate(h @ w["ffn_gate_inp"].T):
        for expert, share in _routed(c, w, logits):
            matrices = (w[name][expert] for name in names)
            result[token] += share * _glu(h[token : token + 1], *matrices)[0]
    shared = _glu(h, w["ffn_gate_shexp"], w["ffn_up_shexp"], w["ffn_down_shexp"])
    if c.shared_expert_gated:
        shared = shared * _sigmoid(h @ w["ffn_gate_inp_shexp"].reshape(1, -1).T)
    return result + shared


def _routed(c: ModelConfig, w: Tensors, logits: np.ndarray) -> list[tuple[int, float]]:
    """The experts of a token and their shares."""
    r = c.router
    if r.gating == "softmax":
        scores = np.exp(logits - logits.max())
        scores = scores / scores.sum()
    else:
        scores = _sigmoid(logits)
    choice = scores + w.get(r.bias_slot.removesuffix("."), 0.0)
    if r.n_groups_used < r.n_groups:
        groups = choice.reshape(r.n_groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(axis=1))[: r.n_groups_used]
        hidden = np.full_like(groups, -np.inf)
        hidden[best] = groups[best]
        choice = hidden.ravel()
    chosen = np.argsort(-choice)[: c.n_experts_used].tolist()
    total = scores[chosen].sum() if r.normalized else 1.0
    return [(expert, scores[expert] / total * r.scale) for expert in chosen]

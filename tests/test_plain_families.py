"""Families that transformers has not: the tiny models' logits against a plain forward pass in
float64. Nothing here is from airllm but the engine."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from family_models import CONTEXT, VOCAB, write_family_model
from hf_folder import safetensors_bytes, write_json

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40)
N_LAYERS, N_HEADS, HEAD_DIM, N_USED, EPS, THETA = 8, 4, 16, 2, 1e-6, 10000.0
# Norm of the error over the norm of the logits; measured: up to 9e-7.
EXACT = 3e-6
ONE = np.ones(1)  # the weight of a norm that has none

Layer = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shape:
    """What a family does. interleaved: rope's pairs are neighbours. by_sigmoid, normalized, scale:
    of an expert's share. relu: of gates, in place of SiLU. router_first: experts are chosen by what
    comes before attention. window: of layers that are not the first of four; those do not rotate,
    or by theta. limit: of an expert's gate and up values. normed: heads of queries and keys are
    normalised. gated: heads have a gate; those without a window rotate by a half. beside: experts
    see what comes before the layer. loops: times that a token goes through the layers, normalised
    behind each. skips: each layer adds the embedding. constants: Grok's, of tests/family_models.py.
    """

    interleaved: bool = False
    by_sigmoid: bool = False
    normalized: bool = False
    scale: float = 1.0
    relu: bool = False
    router_first: bool = False
    window: int = 0
    theta: float = 0.0
    limit: float = 0.0
    normed: bool = False
    gated: bool = False
    beside: bool = False
    loops: int = 1
    skips: bool = False
    constants: bool = False


SHAPES = {
    "arctic": Shape(interleaved=True, normalized=True, beside=True),
    "bailingmoe": Shape(interleaved=True, normalized=True),
    "bitnet": Shape(),
    "cogvlm": Shape(),
    "deepseek": Shape(interleaved=True, scale=1.5),
    "grok": Shape(constants=True),
    "grovemoe": Shape(normalized=True, normed=True),
    "maple": Shape(normalized=True, window=20, normed=True, limit=0.5),
    "nanbeige": Shape(interleaved=True, loops=2),
    "openelm": Shape(normed=True),
    "pangu-embedded": Shape(),
    "plamo2": Shape(normed=True),
    "plamo3": Shape(window=20, theta=1000.0, normed=True),
    "plm": Shape(interleaved=True),
    "qwen": Shape(),
    "spark2_5": Shape(window=20, theta=1000.0, gated=True),
    "smallthinker": Shape(
        by_sigmoid=True, normalized=True, relu=True, router_first=True, window=20
    ),
    "talkie": Shape(normed=True, skips=True),
}


@pytest.mark.parametrize("architecture", SHAPES)
def test_logits_are_the_references(tmp_path: Path, architecture: str) -> None:
    path = write_family_model(tmp_path, architecture)
    with open_model(path) as file:
        tensors = {
            name.removesuffix(".weight"): file.data(name).view("<f4").reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }
        expected = forward({name: x.astype(float) for name, x in tensors.items()}, architecture)
    exact = {"backend": "numpy", "kv_type": "f32", "activations": "f32"}
    with LayerWiseInferenceEngine(path, **exact) as engine:
        logits = engine.forward(TOKENS.tolist(), last_only=False)
    assert np.linalg.norm(logits - expected) <= EXACT * np.linalg.norm(expected)


# Folders: config.json beyond what all have, and names of the tensors of a layer.
_NAMES = {
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{"attn_output": "self_attn.o_proj", "ffn_gate_inp": "mlp.gate"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_exps": f"mlp.experts.*.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")},
}
_SPARSE = "block_sparse_moe"
FOLDERS: dict[str, tuple[dict[str, object], dict[str, str]]] = {
    "deepseek": (
        {"intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 6}
        | {"num_experts_per_tok": N_USED, "n_shared_experts": 2, "first_k_dense_replace": 2}
        | {"norm_topk_prob": False, "scoring_func": "softmax", "moe_layer_freq": 1},
        _NAMES,
    ),
    "smallthinker": (
        {"moe_ffn_hidden_size": 32, "moe_num_primary_experts": 6, "rope_layout": 2 * [0, 1, 1, 1]}
        | {"moe_num_active_primary_experts": N_USED, "moe_primary_router_apply_softmax": False}
        | {"sliding_window_size": 20, "sliding_window_layout": 2 * [0, 1, 1, 1]},
        {
            **_NAMES,
            "ffn_gate_inp": f"{_SPARSE}.primary_router",
            **{
                f"ffn_{part}_exps": f"{_SPARSE}.experts.*.{part}" for part in ("gate", "up", "down")
            },
        },
    ),
}


@pytest.mark.parametrize("architecture", FOLDERS)
def test_a_folder_gives_the_logits_of_the_file(tmp_path: Path, architecture: str) -> None:
    path = write_family_model(
        tmp_path, architecture, **{f"{architecture}.expert_weights_scale": None}
    )
    with open_model(path) as file:
        tensors = {
            name.removesuffix(".weight"): file.data(name).view("<f4").reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }
    found = []
    for each in (path, write_folder(tmp_path / "folder", architecture, tensors)):
        exact = {"backend": "numpy", "kv_type": "f32", "activations": "f32"}
        with LayerWiseInferenceEngine(each, **exact) as engine:
            found.append(engine.forward(TOKENS.tolist(), last_only=False))
    assert np.linalg.norm(found[1] - found[0]) <= EXACT * np.linalg.norm(found[0])


def write_folder(folder: Path, architecture: str, tensors: Layer) -> Path:
    own, names = FOLDERS[architecture]
    table = {"model.embed_tokens": tensors["token_embd"], "model.norm": tensors["output_norm"]}
    table["lm_head"] = tensors["output"]
    for name, values in tensors.items():
        if not name.startswith("blk."):
            continue
        _, layer, slot = name.split(".")
        rows = values
        if slot in ("attn_q", "attn_k") and SHAPES[architecture].interleaved:
            heads = values.reshape(-1, HEAD_DIM // 2, 2, 64)
            rows = heads.swapaxes(1, 2).reshape(values.shape)
        full = f"model.layers.{layer}.{names[slot]}"
        if "*" in full:
            table |= {full.replace("*", str(index)): each for index, each in enumerate(rows)}
        else:
            table[full] = rows
    config = {"model_type": architecture, "vocab_size": VOCAB, "hidden_size": 64} | {
        **{"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "rms_norm_eps": EPS},
        **{"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rope_theta": THETA},
    }
    folder.mkdir()
    stored = {f"{name}.weight": ("F32", np.asarray(rows, "<f4")) for name, rows in table.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(stored))
    write_json(folder / "config.json", config | own)
    vocabulary = {f"t{id}": id for id in range(VOCAB)}
    write_json(
        folder / "tokenizer.json",
        {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}
        | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
    )
    return folder


def forward(tensors: Layer, architecture: str) -> np.ndarray:
    """float64 [n_tokens, vocab]"""
    s, x = SHAPES[architecture], tensors["token_embd"][TOKENS]
    x = 2.0 * x if s.constants else x
    x = embedding = rms_norm(x, ONE) if s.skips else x
    for loop, i in itertools.product(range(s.loops), range(N_LAYERS)):
        if loop and i == 0:
            x = rms_norm(x, tensors["output_norm"])
        before = f"blk.{i}."
        w = {n.removeprefix(before): t for n, t in tensors.items() if n.startswith(before)}
        whole = i % 4 == 0 or not s.window
        chosen_by = before_layer = x
        attend = latent_attention if "attn_kv_a_mqa" in w else attention
        attend = scan if "ssm_in" in w else attend
        rotates = bool(s.theta) or not s.window or not whole
        a = attend(s, w, rms_norm(x, w.get("attn_norm", ONE)), whole, rotates)
        x = x + behind(w, a, "attn_output_norm", "post_attention_norm")
        h = rms_norm(x, w.get("ffn_norm", ONE))
        if s.beside:
            x = x + glu(s, h, w["ffn_gate"], w["ffn_up"], w["ffn_down"])
            h = rms_norm(before_layer, w["ffn_norm_exps"])
        y = network(s, w, h, h) if not s.router_first else network(s, w, h, chosen_by)
        if s.constants:
            y = (y + glu(s, h, w["ffn_gate"], w["ffn_up"], w["ffn_down"])) / np.sqrt(2)
        x = x + behind(w, y, "layer_output_norm", "post_ffw_norm")
        x = x + w["layer_output_scale"] * embedding if s.skips else x
    logits = rms_norm(x, tensors.get("output_norm", ONE)) @ tensors["output"].T
    logits = 0.5 * logits if s.skips else logits
    return capped(0.5 * logits, 2.0) if s.constants else logits


def behind(w: Layer, y: np.ndarray, *names: str) -> np.ndarray:
    """Normalised, if the layer has a norm of one of these names."""
    weight = next((w[name] for name in names if name in w), None)
    return y if weight is None else rms_norm(y, weight)


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap)


def attention(s: Shape, w: Layer, h: np.ndarray, whole: bool, rotates: bool) -> np.ndarray:
    if "attn_qkv" in w:
        qkv, width = h @ w["attn_qkv"].T + w.get("attn_qkv.bias", 0.0), w["attn_output"].shape[1]
        q, k, v = np.split(qkv, [width, (width + qkv.shape[1]) // 2], axis=1)
    else:
        q, k, v = (h @ w[f"attn_{part}"].T + w.get(f"attn_{part}.bias", 0.0) for part in "qkv")
    if s.normed:
        q, k = heads_normed(q, w["attn_q_norm"]), heads_normed(k, w.get("attn_k_norm", ONE))
    if s.gated and whole:
        q, k = half_rotated(s, q), half_rotated(s, k)
    elif rotates:
        theta = s.theta if s.theta and not whole else THETA
        q, k = rotated(s, q, theta=theta), rotated(s, k, theta=theta)
    q, k, v = (each.reshape(len(h), -1, HEAD_DIM) for each in (q, k, v))
    shared, out = q.shape[1] // k.shape[1], np.zeros(q.shape)
    for token in range(len(h)):
        first = 0 if whole else max(0, token + 1 - s.window)
        for head in range(q.shape[1]):
            keys, values = (each[first : token + 1, head // shared] for each in (k, v))
            scale = 0.3 if s.constants else HEAD_DIM**-0.5
            scores = scale * keys @ q[token, head]
            scores = np.exp(capped(scores, 1.0) if s.constants else scores)
            out[token, head] = scores @ values / scores.sum()
            if s.gated:
                out[token, head] /= 1 + np.exp(-h[token] @ w["attn_gate"][head])
    out = out.reshape(len(h), -1)
    if "attn_sub_norm" in w:
        out = rms_norm(out, w["attn_sub_norm"])
    return out @ w["attn_output"].T + w.get("attn_output.bias", 0.0)


def heads_normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """weight: of all heads, or of each, or a number for each."""
    weight = weight.reshape(-1, HEAD_DIM) if weight.size >= HEAD_DIM else weight.reshape(-1, 1)
    return rms_norm(x.reshape(len(x), -1, HEAD_DIM), weight).reshape(x.shape)


def scan(s: Shape, w: Layer, h: np.ndarray, whole: bool, rotates: bool) -> np.ndarray:
    """PLaMo 2's Mamba-2, token by token."""
    n_heads, taps = len(w["ssm_a"].ravel()), w["ssm_conv1d"].shape[1]
    inner, n_state = w["ssm_conv1d"].shape[0], len(w["ssm_b_norm"])
    gate, x = np.split((h @ w["ssm_in"].T).reshape(len(h), n_heads, -1), 2, axis=2)
    past = np.vstack([np.zeros((taps - 1, inner)), x.reshape(len(h), inner)])
    x = np.stack([(past[t : t + taps] * w["ssm_conv1d"].T).sum(0) for t in range(len(h))])
    x = x / (1 + np.exp(-x))
    parts = np.split(x @ w["ssm_x"].T, [n_state, 2 * n_state], axis=1)
    b, c, dt = (
        rms_norm(part, w[f"ssm_{n}_norm"]) for part, n in zip(parts, ("b", "c", "dt"), strict=True)
    )
    dt = np.log1p(np.exp(dt @ w["ssm_dt"].T + w["ssm_dt.bias"]))  # [n, heads]
    x = x.reshape(len(h), n_heads, -1)
    memory, out = np.zeros((*x.shape[1:], n_state)), np.zeros(x.shape)
    for t in range(len(h)):
        kept = np.exp(dt[t] * w["ssm_a"].ravel())[:, None, None] * memory
        memory = kept + dt[t][:, None, None] * x[t][:, :, None] * b[t]
        out[t] = memory @ c[t] + w["ssm_d"].reshape(-1, 1) * x[t]
    out *= gate / (1 + np.exp(-gate))
    return out.reshape(len(h), inner) @ w["ssm_out"].T


def latent_attention(s: Shape, w: Layer, h: np.ndarray, whole: bool, rotates: bool) -> np.ndarray:
    """Keys and values of each head are made of a latent; 8 dimensions rotate."""
    latents, shared = np.split(h @ w["attn_kv_a_mqa"].T, [-8], axis=1)
    latents, shared = rms_norm(latents, w["attn_kv_a_norm"]), rotated(s, shared, 8)
    outputs = []
    for head, q in enumerate(np.split(h @ w["attn_q"].T, N_HEADS, axis=1)):
        q_own, q_shared = q[:, :-8], rotated(s, q[:, -8:], 8)
        scores = q_own @ (latents @ w["attn_k_b"][head]).T + q_shared @ shared.T
        scores = np.tril(np.exp(scores / np.sqrt(q.shape[1])))
        outputs.append(scores @ (latents @ w["attn_v_b"][head].T) / scores.sum(1, keepdims=True))
    return np.concatenate(outputs, axis=1) @ w["attn_output"].T


def half_rotated(s: Shape, x: np.ndarray) -> np.ndarray:
    first, rest = np.split(x.reshape(len(x), -1, HEAD_DIM), 2, axis=2)
    turned = rotated(s, first.reshape(len(x), -1), HEAD_DIM // 2).reshape(first.shape)
    return np.concatenate([turned, rest], axis=2).reshape(x.shape)


def rotated(s: Shape, x: np.ndarray, head_dim: int = HEAD_DIM, theta: float = THETA) -> np.ndarray:
    half = head_dim // 2
    angles = np.arange(len(x))[:, None] * theta ** -(np.arange(half) / half)  # [n, half]
    shape = (len(x), -1, half, 2) if s.interleaved else (len(x), -1, 2, half)
    pairs = x.reshape(shape)
    pairs = pairs if s.interleaved else pairs.swapaxes(2, 3)  # [n, heads, half, 2]
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
    pairs = np.stack([turned.real, turned.imag], axis=-1)
    return (pairs if s.interleaved else pairs.swapaxes(2, 3)).reshape(x.shape)


def network(s: Shape, w: Layer, h: np.ndarray, chosen_by: np.ndarray) -> np.ndarray:
    if "ffn_gate" not in w and "ffn_up" in w and len(w["ffn_up"]) == 2 * w["ffn_down"].shape[1]:
        return glu(s, h, *np.split(w["ffn_up"], 2), w["ffn_down"])
    if "ffn_gate" not in w and "ffn_gate_inp" not in w:
        return np.maximum(h @ w["ffn_up"].T, 0.0) ** 2 @ w["ffn_down"].T
    if "ffn_gate_inp" not in w:
        between = w.get("ffn_sub_norm")
        return glu(s, h, w["ffn_gate"], w["ffn_up"], w["ffn_down"], between)
    y = np.zeros(h.shape)
    if "ffn_gate_shexp" in w:
        y += glu(s, h, w["ffn_gate_shexp"], w["ffn_up_shexp"], w["ffn_down_shexp"])
    for token, scores in enumerate(chosen_by @ w["ffn_gate_inp"].T):
        scores = capped(scores, 1.5) if s.constants else scores
        shares = 1 / (1 + np.exp(-scores)) if s.by_sigmoid else np.exp(scores)
        if not s.by_sigmoid:
            shares /= shares.sum()
        best = np.argsort(-shares)[:N_USED]
        all_shares = shares[best].sum() if s.normalized else 1.0
        for expert in best:
            matrices = (w[f"ffn_{part}_exps"][expert] for part in ("gate", "up", "down"))
            one = glu(s, h[token], *matrices)
            if "ffn_up_chexps" in w:  # with a small network of its group
                small = (w[f"ffn_{part}_chexps"][expert] for part in ("gate", "up", "down"))
                one += 0.5 * glu(s, h[token], *small)
            y[token] += s.scale * shares[expert] / all_shares * one
    return y


def glu(
    s: Shape,
    h: np.ndarray,
    gate: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    between: np.ndarray | None = None,
) -> np.ndarray:
    """between: the weight of a norm before the last matrix."""
    x, y = h @ gate.T, h @ up.T
    if s.limit:
        x, y = np.minimum(x, s.limit), np.clip(y, -s.limit, s.limit)
    y = activated(s, x) * y
    return (y if between is None else rms_norm(y, between)) @ down.T


def activated(s: Shape, x: np.ndarray) -> np.ndarray:
    if s.gated:  # GELU as it is defined
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    if s.constants:  # GELU
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) if s.relu else x / (1 + np.exp(-x))


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight

"""Kimi K3 against float64, and what of its files is refused. transformers has no such model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp
from family_models import CONTEXT, VOCAB, described, metadata_of, shapes, write_family_model

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import Model, load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

ARCH = "kimi-k3"
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()
# Norm of the difference over the norm of the logits; measured: up to 1.4e-6.
EXACT = 3e-6

HEADS, HEAD, RANK, ROPE, VALUES, EPS = 4, 12, 24, 8, 9, 1e-3
BLOCK, BOUND, GATE_CAP, UP_CAP, N_USED, SCALE = 2, -5.0, 2.0, 3.0, 2, 1.5


def loaded(**entries: object) -> Model:
    """The model of tests/family_models.py with other metadata."""
    usual = metadata_of(ARCH)
    own = {f"{ARCH}.{key}": value for key, value in entries.items() if value is not None}
    without = {f"{ARCH}.{key}" for key, value in entries.items() if value is None}
    known = {key: value for key, value in usual.items() if key not in without}
    file = described(known | own, shapes(ARCH, usual))
    model = load_model(file)
    check_tensors(file, model)
    return model


# ---- the reference -------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def norm(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight


def softmax(x: np.ndarray) -> np.ndarray:
    shares = np.exp(x - x.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


class Reference:
    """One token after the other, float64."""

    def __init__(self, path: Path, **keys: Any) -> None:
        """keys: which parts the model has, and their constants."""
        with open_model(path) as file:
            self.tensors = {
                name: file.data(name).view("<f4").astype(np.float64).reshape(tensor.shape)
                for name, tensor in file.tensors.items()
            }
        self.bound, self.up_cap, self.block = BOUND, UP_CAP, BLOCK
        self.__dict__.update(keys)
        self.kept: dict[tuple[int, str], Any] = {}  # of the sequence

    def logits(self, tokens: list[int]) -> np.ndarray:
        return np.stack([self.token(token) for token in tokens])

    def weight(self, slot: str, suffix: str = ".weight") -> np.ndarray:
        return self.tensors[f"blk.{self.layer}.{slot}{suffix}"]

    def seen(self, x: np.ndarray, score: np.ndarray) -> np.ndarray:
        rows = np.stack([*self.earlier, x])
        return softmax((norm(rows) * score).sum(axis=1)) @ rows

    def token(self, token: int) -> np.ndarray:
        x = self.tensors["token_embd.weight"][token]
        self.earlier: list[np.ndarray] = []
        for self.layer in range(5):
            h = self.seen(x, self.weight("attn_res_score")) if self.layer else x
            begins = self.layer % self.block == 0
            if begins:
                self.earlier.append(x)
            h = norm(h, self.weight("attn_norm"))
            y = self.latent(h) if self.layer in (2, 4) else self.kda(h)
            x = y if begins else x + y
            h = norm(self.seen(x, self.weight("ffn_res_score")), self.weight("ffn_norm"))
            x = x + (self.experts(h) if self.layer else self.network(h, ""))
        x = norm(self.seen(x, self.tensors["output_res_score.weight"]))
        return self.tensors["output.weight"] @ (x * self.tensors["output_norm.weight"])

    def kda(self, h: np.ndarray) -> np.ndarray:
        def convolved(part: str) -> np.ndarray:
            taps, key = self.weight(f"ssm_conv1d_{part}"), (self.layer, part)
            inputs = [*self.kept.get(key, [np.zeros(HEADS * HEAD)] * 3)]
            inputs.append(self.weight(f"attn_{part}") @ h)
            self.kept[key] = inputs[1:]
            y = sum(taps[:, j] * inputs[j] for j in range(4))
            return (y * sigmoid(y)).reshape(HEADS, HEAD)

        q, k, v = (convolved(part) for part in "qkv")
        q, k = (x / np.sqrt((x * x).sum(axis=1, keepdims=True) + 1e-6) for x in (q, k))
        decay = self.weight("ssm_f_b") @ (self.weight("ssm_f_a") @ h)
        decay = (decay + self.weight("ssm_dt.bias", "")).reshape(HEADS, HEAD)
        a = self.weight("ssm_a", "").reshape(HEADS, 1)  # -exp(A_log)
        decay = self.bound * sigmoid(-a * decay) if self.bound else a * np.logaddexp(0.0, decay)
        beta = sigmoid(self.weight("ssm_beta") @ h)
        states = self.kept.get((self.layer, "state"), np.zeros((HEADS, HEAD, HEAD)))
        states = np.exp(decay)[:, :, np.newaxis] * states
        y = np.empty((HEADS, HEAD))
        for head in range(HEADS):
            d = beta[head] * (v[head] - states[head].T @ k[head])
            states[head] += np.outer(k[head], d)
            y[head] = states[head].T @ q[head] / math.sqrt(HEAD)
        self.kept[self.layer, "state"] = states
        gate = sigmoid(self.weight("ssm_g") @ h)
        return self.weight("attn_output") @ (norm(y, self.weight("ssm_norm")).ravel() * gate)

    def latent(self, h: np.ndarray) -> np.ndarray:
        """With keys and values of each head, not absorbed."""
        q = self.weight("attn_q_b") @ norm(
            self.weight("attn_q_a") @ h, self.weight("attn_q_a_norm")
        )
        both = self.weight("attn_kv_a_mqa") @ h
        cache = self.kept.setdefault((self.layer, "latents"), [])
        cache.append((norm(both[:RANK], self.weight("attn_kv_a_norm")), both[RANK:]))
        y = []
        for head, query in enumerate(q.reshape(HEADS, -1)):
            of_keys, of_values = self.weight("attn_k_b")[head], self.weight("attn_v_b")[head]
            keys = [np.concatenate([latent @ of_keys, shared]) for latent, shared in cache]
            shares = softmax(np.array([query @ key for key in keys]) / math.sqrt(len(query)))
            y.append(shares @ np.array([of_values @ latent for latent, _ in cache]))
        v = np.concatenate(y)
        if f"blk.{self.layer}.attn_gate.weight" in self.tensors:
            v = v * sigmoid(self.weight("attn_gate") @ h)
        return self.weight("attn_output") @ v

    def activation(self, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        gate = GATE_CAP * np.tanh(gate / GATE_CAP) * sigmoid(gate)
        return gate * (self.up_cap * np.tanh(up / self.up_cap) if self.up_cap else up)

    def network(self, h: np.ndarray, suffix: str) -> np.ndarray:
        gate, up = self.weight(f"ffn_gate{suffix}") @ h, self.weight(f"ffn_up{suffix}") @ h
        return self.weight(f"ffn_down{suffix}") @ self.activation(gate, up)

    def experts(self, h: np.ndarray) -> np.ndarray:
        shares = sigmoid(self.weight("ffn_gate_inp") @ h)
        best = np.argsort(-(shares + self.weight("exp_probs_b.bias", "")))[:N_USED]
        narrow = self.weight("ffn_routed_down") @ h
        y = np.zeros(len(narrow))
        for expert in best:
            gate, up = (self.weight(f"ffn_{part}_exps")[expert] @ narrow for part in ("gate", "up"))
            out = self.weight("ffn_down_exps")[expert] @ self.activation(gate, up)
            y += SCALE * shares[expert] / shares[best].sum() * out
        y = self.weight("ffn_routed_up") @ norm(y, self.weight("ffn_routed_norm"))
        return y + self.network(h, "_shexp")


# What is changed in the file, and in the reference.
VARIANTS: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
    "as published": ({}, {}),
    "decays without a bound": ({"kda.gate_lower_bound": None}, {"bound": 0.0}),
    "values that are not capped": ({"activation.situ_linear_beta": 0.0}, {"up_cap": 0.0}),
    "one residual kept": ({"attn_res.block_size": 8}, {"block": 8}),
    "every residual kept": ({"attn_res.block_size": 1}, {"block": 1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_logits_are_those_of_float64(tmp_path: Path, backend: str, variant: str) -> None:
    if backend == "cpp":
        require_cpp()
    changes, keys = VARIANTS[variant]
    own = {f"{ARCH}.{key}": value for key, value in changes.items()}
    path = write_family_model(tmp_path, ARCH, **own)
    exact: dict[str, Any] = {"kv_type": "f32", "activations": "f32", "context": CONTEXT}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        actual = engine.forward(TOKENS, last_only=False)
    expected = Reference(path, **keys).logits(TOKENS)
    assert np.linalg.norm(actual - expected) <= EXACT * np.linalg.norm(expected)


# ---- what a model is -----------------------------------------------------------------------------


def test_the_first_layer_of_each_block_keeps_its_residual() -> None:
    model = loaded()
    layers = model.config.layers
    assert [layer.keeps_residual for layer in layers] == [True, False, True, False, True]
    assert [layer.n_earlier for layer in layers] == [0, 1, 1, 2, 2]
    assert model.carried == {"residual": 64, "earlier": 3 * 64}


def test_the_logits_of_the_last_token_see_its_own_residuals(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH)
    exact: dict[str, Any] = {"kv_type": "f32", "activations": "f32", "context": CONTEXT}
    with LayerWiseInferenceEngine(path, backend="numpy", batch_size=16, **exact) as engine:
        last = engine.forward(TOKENS).copy()
        engine.reset()
        every = engine.forward(TOKENS, last_only=False)
    np.testing.assert_allclose(last.ravel(), every[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attn_res.block_size", 0, "is 0; expected 1 to"),
        ("activation.situ_beta", 0.0, "is 0.0; expected at least 0.001"),
        ("activation.situ_linear_beta", -1.0, "is -1.0; expected at least 0.001, or 0 for none"),
        ("activation.other", 1.0, "asks for something that kimi-k3 models here do not do"),
        ("kda.gate_lower_bound", 5.0, "is 5.0; expected -10000 to 0, where 0 is none"),
        ("expert_latent_length", -1, "is -1; expected 0 to"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        loaded(**{key: value})
    assert f"{ARCH}.{key} {said}" in str(refused.value)

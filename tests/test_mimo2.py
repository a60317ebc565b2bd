"""MiMo-V2.5's files have one matrix for Q, K and V, where those of V2-Flash have three. The layer
of a next-token head is what arrays and tensors of the file say of it."""

import numpy as np
import pytest
from extension import require_cpp
from family_models import VOCAB, described, metadata_of, shapes, write_family_model
from gguf_writer import write_gguf

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.config import LayerConfig
from airllm.models.opening import open_model

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_one_matrix_for_q_k_and_v_gives_the_logits_of_three(tmp_path, backend):
    if backend == "cpp":
        require_cpp()
    apart = write_family_model(tmp_path, "mimo2")
    with open_model(apart) as file:
        tensors = {
            name: file.data(name).copy().view("<f4").reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }
    together = {}
    for name, values in tensors.items():
        if not name.endswith((".attn_k.weight", ".attn_v.weight")):
            together[name.replace(".attn_q.", ".attn_qkv.")] = values
    for name in [name for name in together if ".attn_qkv." in name]:
        parts = [tensors[name.replace("_qkv", f"_{part}")] for part in "qkv"]
        together[name] = np.concatenate(parts)
    specs = [(name, "f32", values.shape, values) for name, values in together.items()]
    fused = write_gguf(tmp_path / "fused.gguf", metadata_of("mimo2"), specs)
    found = []
    for path in (apart, fused):
        exact = {"kv_type": "f32", "activations": "f32"}
        with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
            found.append(engine.forward(TOKENS, last_only=False))
    assert np.linalg.norm(found[1] - found[0]) <= 2e-6 * np.linalg.norm(found[0])


@pytest.mark.parametrize(
    ("architecture", "changed", "layer"),
    [
        ("mimo2", {}, LayerConfig(20, n_kv_heads=2, has_sinks=True)),
        (
            "step35",
            {
                "attention.head_count": np.array([4, 6, 6, 6, 4, 6, 6, 6, 8], np.int32),
                "attention.sliding_window_pattern": np.arange(9) % 4 != 1,
                "swiglu_clamp_shexp": np.arange(9, dtype=np.float32),
            },
            LayerConfig(20, n_heads=8, n_kv_heads=2, rope_dims=16, shared_limit=8.0),
        ),
        ("hy_v3", {}, LayerConfig(has_experts=True)),
    ],
)
def test_the_layer_of_a_next_token_head_is_the_one_behind_the_last(architecture, changed, layer):
    entries = metadata_of(architecture)
    tensors = shapes(architecture, entries)
    entries |= {f"{architecture}.{key}": value for key, value in changed.items()}
    assert load_model(described(entries, tensors)).config.head_layer == layer

"""Folders of Ling 2, which no class of transformers reads: a GLM-4.5 of the same arithmetic, with
their names of tensors and keys."""

import json

import numpy as np
import pytest
from extension import require_cpp
from hf_case import VOCAB
from hf_cases import CASES
from hf_models import build, logits, require_hf, write_folder

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 90).tolist()
EXACT = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
_RENAMED = {
    "embed_tokens": "word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias",
}
_KEYS = {
    **{"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"num_shared_experts": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5},
    **{"score_function": "sigmoid", "moe_router_enable_expert_bias": True, "use_qk_norm": True},
    **{"use_rmsnorm": True, "use_bias": False, "use_qkv_bias": False, "norm_topk_prob": True},
    **{"first_k_dense_replace": 1, "head_dim": 32, "partial_rotary_factor": 0.5},
    **{"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "hidden_act": "silu"},
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    **{"tie_word_embeddings": False, "rope_scaling": None, "max_window_layers": 28},
}


@pytest.fixture(scope="module")
def ling(tmp_path_factory):
    """A folder, and its logits for TOKENS."""
    require_hf()
    from safetensors.numpy import load_file, save_file

    case = CASES["GLM-4.5"]
    changed = case.config | {"use_qk_norm": True, "rms_norm_eps": 1e-5}
    model = build(type(case)(case.family, case.arch, changed))
    folder = write_folder(tmp_path_factory.mktemp("ling"), case, model)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for layer in range(4):
        before = f"model.layers.{layer}."
        parts = [tensors.pop(f"{before}self_attn.{part}_proj.weight") for part in "qkv"]
        tensors[f"{before}attention.query_key_value.weight"] = np.concatenate(parts)
    for old, new in _RENAMED.items():
        tensors = {name.replace(old, new): values for name, values in tensors.items()}
    save_file(tensors, path)
    _write_config(folder, {})
    return folder, logits(model, TOKENS)


def _write_config(folder, changed):
    config = {"model_type": "bailing_moe", "architectures": ["BailingMoeV2ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config | _KEYS | changed))


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_its_logits_are_those_of_the_same_arithmetic(ling, backend):
    if backend == "cpp":
        require_cpp()
    folder, expected = ling
    with LayerWiseInferenceEngine(folder, backend=backend, **EXACT) as engine:
        actual = engine.forward(TOKENS, last_only=False)
    assert np.linalg.norm(actual - expected) <= 3e-6 * np.linalg.norm(expected)


def test_its_conversion_gives_the_same_logits(ling, tmp_path):
    folder, expected = ling
    with open_model(folder) as opened:
        convert(opened, tmp_path / "ling.gguf", "f32")
    with LayerWiseInferenceEngine(tmp_path / "ling.gguf", backend="numpy", **EXACT) as engine:
        actual = engine.forward(TOKENS, last_only=False)
    assert np.linalg.norm(actual - expected) <= 3e-6 * np.linalg.norm(expected)


def test_an_older_model_of_that_name_is_refused(ling):
    folder, _ = ling
    _write_config(folder, {"use_qk_norm": False})
    with pytest.raises(FormatError, match="use_qk_norm is 'False'; expected True"):
        open_model(folder)
    _write_config(folder, {})

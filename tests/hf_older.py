"""What GGUF files have otherwise than folders of older models, and the numbers of Apertus."""

from typing import Any

import numpy as np
from hf_case import Case


def in_order(config: Any, name: str, values: np.ndarray) -> np.ndarray:
    """The rows of a matrix for Q, K and V, those of all heads' queries first; and the matrices of
    GPT-2, and of DBRX's experts, which are [k, n] in folders."""
    if "query_key_value." in name:
        n_heads = config.num_attention_heads
        head_dim = config.hidden_size // n_heads
        n_keys = (len(values) // head_dim - n_heads) // 2  # heads that share a key lie together
        groups = values.reshape(n_keys, n_heads // n_keys + 2, head_dim, *values.shape[1:])
        parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    if ".ffn.experts.mlp." in name:  # the rows of all experts' matrices, one after another
        matrices = values.reshape(config.ffn_config.moe_num_experts, -1, config.hidden_size)
        return matrices.swapaxes(1, 2) if name.endswith("w2") else matrices
    if config.model_type == "gpt2" and ".c_" in name and name.endswith("weight"):
        return np.ascontiguousarray(values.T)
    return values


def numbers_of_layers(case: Case, model: Any) -> dict[str, np.ndarray]:
    """What an activation has learned, as metadata."""
    if case.arch != "apertus":
        return {}
    activations = [layer.mlp.act_fn.state_dict() for layer in model.model.layers]
    return {
        f"xielu.{name}": np.array([float(each[name]) for each in activations], np.float32)
        for name in ("alpha_p", "alpha_n", "beta", "eps")
    }

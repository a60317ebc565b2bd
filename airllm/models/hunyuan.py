"""Hunyuan (Tencent), dense and Hunyuan-A13B, its mixture of experts: a Llama whose heads of Q and K
are normalised behind their rotation. Every layer of a mixture has an expert that all tokens use.
Maincoder is a dense one, of whose heads neighbours rotate."""

from functools import partial

import numpy as np

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace
from airllm.models.qwen2 import BIASES

_NAMES = {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"}
_EXPERT_NAMES = {
    **_NAMES,
    **EXPERT_NAMES,
    "mlp.gate.wg": "ffn_gate_inp",
    "mlp.shared_mlp.gate_proj": "ffn_gate_shexp",
    "mlp.shared_mlp.up_proj": "ffn_up_shexp",
    "mlp.shared_mlp.down_proj": "ffn_down_shexp",
}


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*BIASES, "attn_output")
    if r.architecture != "hunyuan-moe":
        return r.config(biases=biases, rope_interleaved=r.architecture == "maincoder")
    mixture = r.experts()
    shared = r.integer("expert_shared_count", 1) * mixture["expert_size"]
    return r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        biases=biases,
        shared_expert_size=r.integer("expert_shared_feed_forward_length", shared),
        **mixture,
    )


def _dense(config: HFReader) -> dict[str, object]:
    config.expect("num_experts", None, 1)
    config.expect("use_qk_norm", None, True)
    config.expect("norm_type", None, "rms")
    config.ignore("moe_topk", "moe_drop_tokens", "num_shared_expert", "moe_intermediate_size")
    config.ignore("moe_random_routing_dropped_token", "use_mixed_mlp_moe")
    return {}


def _experts(config: HFReader) -> dict[str, object]:
    """Some folders list what each layer has, alike."""
    config.expect("use_qk_norm", None, True)
    config.expect("norm_type", None, "rms")
    config.expect("norm_topk_prob", None, True)
    config.expect("use_mixed_mlp_moe", None, True)
    config.expect("moe_drop_tokens", None, False)
    config.ignore("moe_random_routing_dropped_token")
    size = config.integer("intermediate_size")
    if _alike(config, "moe_intermediate_size", size) != size:
        raise config.fault(f"moe_intermediate_size differs from intermediate_size, {size}")
    if _alike(config, "num_shared_expert", 1) != 1:
        raise config.fault("num_shared_expert has other numbers than 1")
    return {
        "expert_count": _alike(config, "num_experts", 1),
        "expert_used_count": _alike(config, "moe_topk", 1),
        "expert_feed_forward_length": size,
        "expert_shared_count": 1,
        "expert_shared_feed_forward_length": size,
    }


def _alike(config: HFReader, key: str, default: int) -> int:
    if key not in config:
        return default
    found = config.of_layers(key, config.integer("num_hidden_layers", low=1, high=2**12))
    if not isinstance(found, np.ndarray):
        return found
    if (found != found[0]).any():
        raise config.fault(f"{key} differs between layers; expected it alike")
    return int(found[0])


FAMILY = Family(
    ("hunyuan-dense", "hunyuan-moe", "maincoder"),
    (
        HuggingFace("hunyuan_v1_dense", "hunyuan-dense", _dense, _NAMES),
        HuggingFace("hunyuan_v1_moe", "hunyuan-moe", _experts, _EXPERT_NAMES),
    ),
    configure,
    partial(blocks.layer, normed="rotated heads"),
)

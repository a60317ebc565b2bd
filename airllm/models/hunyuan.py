"""Hunyuan (Tencent), dense and Hunyuan-A13B, its mixture of experts: a Llama whose heads of Q and K
are normalised behind their rotation. Every layer of a mixture has an expert that all tokens use.
Maincoder is a dense one, of whose heads neighbours rotate. HunyuanOCR's and Hunyuan-VL's language
models are dense ones, too. Their rotation has four positions for each token, equal for text."""

from dataclasses import replace
from functools import partial

import numpy as np

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.models.rope import Rotation, read_rotation

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
    if r.architecture == "hunyuan_vl":
        r.ignore("rope.dimension_sections")
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


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """Theta may be multiplied by a power of alpha, so that the slowest pair turns alpha times as
    slowly."""
    rotation, alpha = read_rotation(r, c), 0.0
    if r.architecture == "hunyuan_vl":
        alpha = r.number("rope.scaling.alpha", 0.0)
    if alpha == 0.0:
        return {"rope": rotation}
    if not 1.0 <= alpha <= 1e6 or c.rope_dims < 4:
        raise r.fault("rope.scaling.alpha", alpha, "expected 1 to 1000000, or 0 for none")
    slower = alpha ** -(np.arange(0, c.rope_dims, 2) / (c.rope_dims - 2))
    long = rotation.long_inv_freq
    long = None if long is None else slower * long
    return {"rope": replace(rotation, inv_freq=slower * rotation.inv_freq, long_inv_freq=long)}


def _dense(config: HFReader) -> dict[str, object]:
    config.expect("num_experts", None, 1)
    config.expect("use_qk_norm", None, True)
    config.expect("norm_type", None, "rms")
    config.ignore("moe_topk", "moe_drop_tokens", "num_shared_expert", "moe_intermediate_size")
    config.ignore("moe_random_routing_dropped_token", "use_mixed_mlp_moe")
    return {}


def _sees(config: HFReader) -> dict[str, object]:
    return {**_dense(config), **position_sections(config)}


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
    ("hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "maincoder"),
    (
        HuggingFace("hunyuan_v1_dense", "hunyuan-dense", _dense, _NAMES),
        HuggingFace("hunyuan_v1_moe", "hunyuan-moe", _experts, _EXPERT_NAMES),
        HuggingFace(
            "hunyuan_vl_text",
            "hunyuan_vl",
            _sees,
            _NAMES,
            tied=True,
            pictures="hunyuan_vl",
            defaults={"rms_norm_eps": 1e-5},
        ),
    ),
    configure,
    partial(blocks.layer, normed="rotated heads"),
    rotations=rotations,
)

"""Hy3 (Tencent): normalised heads of Q and K; experts behind a dense layer, chosen by a sigmoid
with a bias, beside one that all tokens use."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.dots1 import NAMES
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.own_heads import first_head, next_layer
from airllm.models.qwen2 import BIASES

_BIAS = "exp_probs_b."  # without ".bias" in files of this architecture


def configure(r: ConfigReader) -> ModelConfig:
    """Files do not say which layers are dense: their tensors show it."""
    r.leave_out_heads()
    tensors = r.file.tensors
    layers = [
        LayerConfig(has_experts=f"blk.{index}.ffn_gate_inp.weight" in tensors)
        for index in range(r.n_layers + len(r.left_out))
    ]
    mixture = r.experts(gating="sigmoid", normalized=False, bias_slot=_BIAS)
    return r.config(
        layers=layers[: r.n_layers],
        head_layer=first_head(r, layers),
        biases=r.optional_biases(*BIASES, "attn_output"),
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_feed_forward_length", mixture["expert_size"]),
        **mixture,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("route_norm", None, True)
    config.expect("moe_router_use_sigmoid", None, True)
    config.expect("moe_router_enable_expert_bias", None, True)
    config.expect("qk_norm", None, True)
    config.ignore("enable_moe_fp32_combine", "mlp_layer_types", "first_k_dense_replace")
    n_shared = config.integer("num_shared_experts", 1, high=2**12)
    size = config.integer("moe_intermediate_size", 1536)
    return {
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("router_scaling_factor", 2.826),
        "expert_shared_feed_forward_length": n_shared * size,
    }


FAMILY = Family(
    ("hy_v3",),
    (
        HuggingFace(
            "hy_v3",
            "hy_v3",
            _values,
            {
                **NAMES,
                "mlp.e_score_correction_bias": _BIAS,
                "mlp.expert_bias": _BIAS,
                "mlp.router.gate": "ffn_gate_inp",
                "mlp.shared_mlp.gate_proj": "ffn_gate_shexp",
                "mlp.shared_mlp.up_proj": "ffn_up_shexp",
                "mlp.shared_mlp.down_proj": "ffn_down_shexp",
            },
            defaults={
                **{"head_dim": 128, "num_experts": 192, "num_experts_per_tok": 8},
                "moe_intermediate_size": 1536,
            },
        ),
    ),
    configure,
    partial(blocks.layer, normed="heads"),
    next_layer=next_layer,
)

"""Qwen1.5-MoE and Qwen2-MoE (arXiv:2407.10671): Qwen2 with experts, of which all tokens use one,
times a gate."""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace
from airllm.models.qwen2 import BIASES

SHARED_NAMES = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        biases=BIASES,
        shared_expert_gated=True,
        shared_expert_size=r.integer(
            "expert_shared_feed_forward_length", r.feed_forward_length(), low=1
        ),
        **r.experts(normalized=False),
    )


def _values(config: HFReader) -> dict[str, object]:
    config.no_window()
    config.ignore("decoder_sparse_step", "mlp_only_layers")  # the tensors show dense layers
    return {
        **config.experts(),
        "expert_weights_norm": config.flag("norm_topk_prob", False),
        "expert_shared_feed_forward_length": config.integer("shared_expert_intermediate_size"),
    }


FAMILY = Family(
    ("qwen2moe",),
    (HuggingFace("qwen2_moe", "qwen2moe", _values, {**EXPERT_NAMES, **SHARED_NAMES}),),
    configure,
)

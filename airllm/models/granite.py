"""Granite 3 and 4 (dense, and mixtures of experts): a Llama whose embeddings, residuals, scores and
logits are multiplied by constants of the file."""

from airllm.formats.hf_config import Names
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.qwen2 import BIASES

_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
NAMES: Names = {
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "shared_mlp.input_linear": ("ffn_gate_shexp", "ffn_up_shexp"),
    "shared_mlp.output_linear": "ffn_down_shexp",
}


def configure(r: ConfigReader) -> ModelConfig:
    has_experts = r.architecture == "granitemoe"
    mixture = r.experts(shared_out=False) if has_experts else {}
    r.require_true("rope.scaling.finetuned")  # False turns rope off in llama.cpp
    return r.config(
        layers=[LayerConfig(has_experts=has_experts)] * r.n_layers,
        biases=r.optional_biases(*BIASES, "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        rope_interleaved=True,
        embedding_scale=r.positive("embedding_scale", 1.0),
        residual_scale=r.positive("residual_scale", 1.0),
        logit_scale=1.0 / r.positive("logit_scale", 1.0),
        shared_expert_size=r.integer("expert_shared_feed_forward_length", 0),
        **mixture,
    )


def _multipliers(config: HFReader) -> dict[str, object]:
    return {key: config.number(name, 1.0) for name, key in _MULTIPLIERS.items()}


def _experts(config: HFReader) -> dict[str, object]:
    shared = config.integer("shared_intermediate_size", 0)
    return {
        **_multipliers(config),
        **config.experts(size="intermediate_size"),
        **({"expert_shared_feed_forward_length": shared} if shared else {}),
    }


FAMILY = Family(
    ("granite", "granitemoe"),
    (
        HuggingFace("granite", "granite", _multipliers, gguf_interleaved=True),
        HuggingFace("granitemoe", "granitemoe", _experts, NAMES, gguf_interleaved=True),
        HuggingFace("granitemoeshared", "granitemoe", _experts, NAMES, gguf_interleaved=True),
    ),
    configure,
)

"""Phi-3.5-MoE (arXiv:2404.14219): a mixture of experts with LayerNorm, biases and LongRoPE. Experts
are chosen by SparseMixer, one after another; llama.cpp takes a softmax over all in its place.

Beyond the original context transformers stays with LongRoPE's divisors for short ones. Here, as in
the model's own code, the divisors for long ones count then.
"""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import SPARSE_NAMES, HFReader, HuggingFace
from airllm.models.qwen2 import BIASES


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*BIASES, "attn_output", "output")
    return r.config(
        layers=[LayerConfig(window, has_experts=True) for window in r.windows()],
        layer_norms=True,
        biases=biases | {"attn_norm", "ffn_norm", "output_norm"},
        **r.experts(gating="sparsemixer", normalized=False, shared_out=False),
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("router_jitter_noise", 0.01)
    config.ignore("input_jitter_noise", "lm_head_bias")  # of training; the tensors show a bias
    config.ignore("original_max_position_embeddings")
    return {**config.experts(size="intermediate_size"), **config.sliding()}


FAMILY = Family(
    ("phimoe",),
    (
        HuggingFace(
            "phimoe",
            "phimoe",
            _values,
            {**SPARSE_NAMES, "lm_head": "output", "mlp.router": "ffn_gate_inp"},
            defaults={"router_jitter_noise": 0.01, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
        ),
    ),
    configure,
)

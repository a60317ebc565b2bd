"""GLM-4.5 to 4.7 (arXiv:2508.06471), the text of GLM-4.5V, and Solar Open: experts behind a few
dense layers, chosen by a sigmoid with a bias, and one or more that all tokens use. Half of each
head rotates, in Solar Open the whole."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)
from airllm.models.qwen2 import BIASES

NAMES = {
    **EXPERT_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")  # see qwen2
    r.leave_out_heads()
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid")
    return r.config(
        layers=[LayerConfig(has_experts=index >= dense) for index in range(r.n_layers)],
        biases=r.optional_biases(*BIASES),
        head_norms="blk.0.attn_q_norm.weight" in r.file.tensors,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", 0) * mixture["expert_size"],
        **mixture,
    )


def next_layer(c: ModelConfig) -> LayerConfig:
    return LayerConfig(has_experts=True)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    normed: blocks.Normed = "heads" if c.head_norms else ""
    return blocks.layer(c, activations, layer, normed=normed, before=blocks.FOLDERS_BEFORE)


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("use_qk_norm")  # the tensors show it
    return {
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        **config.expert_groups(),
        "expert_shared_count": config.integer("n_shared_experts", 1),
        "leading_dense_block_count": config.integer("first_k_dense_replace", 1),
        **position_sections(config),
    }


FAMILY = Family(
    ("glm4moe",),
    (
        HuggingFace(
            "glm4_moe",
            "glm4moe",
            _values,
            NAMES,
            defaults={"partial_rotary_factor": 0.5},
            heads="layers",
        ),
        HuggingFace(
            "glm4v_moe_text",
            "glm4moe",
            _values,
            NAMES,
            defaults={"partial_rotary_factor": 0.5},
            heads="layers",
            pictures="glm4v_moe",
        ),
        HuggingFace(
            "solar_open",
            "glm4moe",
            _values,
            NAMES,
            # It has no dense layers, so no width of them.
            defaults={
                **{"first_k_dense_replace": 0, "head_dim": 128, "rope_theta": 1e6},
                "intermediate_size": 0,
            },
        ),
    ),
    configure,
    layer,
    next_layer=next_layer,
)

"""ERNIE 4.5 (Baidu): a Llama, dense or with experts behind the first layers. The experts are chosen
by their softmax plus a bias, beside one or more that all tokens use."""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_WIDTH, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)
from airllm.models.qwen2 import ALL_BIASES

_STEP = "interleave_moe_layer_step"
NAMES = {
    **EXPERT_NAMES,
    "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*ALL_BIASES)
    if r.architecture == "ernie4_5":
        r.ignore("rope.dimension_sections")  # see qwen2
        return r.config(biases=biases, rope_interleaved=True)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    step = r.integer(_STEP, 1, low=1)
    mixture = r.experts()
    n_shared = r.integer("expert_shared_count", 0)
    size = r.integer("expert_shared_feed_forward_length", n_shared * mixture["expert_size"])
    if n_shared and size != n_shared * mixture["expert_size"]:
        wanted = f"expected {n_shared * mixture['expert_size']}, of {n_shared} experts"
        raise r.fault("expert_shared_feed_forward_length", size, wanted)
    return r.config(
        layers=[
            LayerConfig(has_experts=index >= dense and (index + 1) % step == 0)
            for index in range(r.n_layers)
        ],
        biases=biases,
        rope_interleaved=True,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=size,
        **mixture,
    )


def _dense(config: HFReader) -> dict[str, object]:
    config.ignore("use_bias")  # the tensors show biases
    return {}


def _experts(config: HFReader) -> dict[str, object]:
    # Of training: what follows is as the numbers of experts say.
    config.ignore("moe_capacity", "moe_use_aux_free", "moe_norm_min", "use_bias")
    config.expect("moe_gate", None, "topk")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    config.expect("moe_layer_end_index", None, -1, n_layers - 1)
    size, n_shared = (
        config.integer("moe_intermediate_size"),
        config.integer("moe_num_shared_experts", high=MAX_WIDTH),
    )
    return {
        "expert_count": config.integer("moe_num_experts"),
        "expert_used_count": config.integer("moe_k"),
        "expert_feed_forward_length": size,
        "expert_shared_count": n_shared,
        "expert_shared_feed_forward_length": n_shared * size,
        "leading_dense_block_count": config.integer("moe_layer_start_index"),
        _STEP: config.integer("moe_layer_interval"),
    }


FAMILY = Family(
    ("ernie4_5", "ernie4_5-moe"),
    (
        HuggingFace(
            "ernie4_5",
            "ernie4_5",
            _dense,
            tied=True,
            rope_interleaved=True,
            gguf_interleaved=True,
            defaults={"rope_theta": 500000.0, "head_dim": 128},
        ),
        HuggingFace(
            "ernie4_5_moe",
            "ernie4_5-moe",
            _experts,
            NAMES,
            tied=True,
            rope_interleaved=True,
            gguf_interleaved=True,
            defaults={
                **{"rope_theta": 500000.0, "moe_k": 6, "moe_num_experts": 64},
                **{"moe_num_shared_experts": 2, "moe_intermediate_size": 1536},
                **{"moe_layer_start_index": 1, "moe_layer_interval": 1},
            },
        ),
    ),
    configure,
)

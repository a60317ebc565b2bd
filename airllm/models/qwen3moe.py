"""Qwen3's mixtures of experts (arXiv:2505.09388): a router chooses, for each token, a few of many
small feed-forward networks."""

from airllm.formats.hf_config import Names, Slots
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace
from airllm.models.qwen3 import layer


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")  # see qwen2
    layers = [LayerConfig(has_experts=True)] * r.n_layers
    return r.config(layers=layers, **r.experts())


def _values(config: HFReader) -> dict[str, object]:
    config.no_window()
    config.ignore("decoder_sparse_step", "mlp_only_layers")  # the tensors show dense layers
    norm = config.flag("norm_topk_prob")
    return {**config.experts(), "expert_weights_norm": norm, **position_sections(config)}


def _stacked_names(config: HFReader) -> Names:
    """Qwen3-VL's folders have all experts of a layer in one tensor: published ones as [k, n], as
    gpt-oss has them, those that transformers 5 writes as [n, k]."""
    hidden_size = config.integer("hidden_size", low=1)
    expert_size = config.integer("moe_intermediate_size", low=1)
    if hidden_size in (expert_size, 2 * expert_size):
        raise config.fault(
            f"hidden_size is {hidden_size} and moe_intermediate_size {expert_size}: experts are "
            "square, so that nothing says whether they are stored by rows or by columns"
        )
    return {
        **EXPERT_NAMES,
        "mlp.experts.gate_up_proj": Slots(("ffn_gate_exps", "ffn_up_exps"), columns=hidden_size),
        "mlp.experts.down_proj": Slots(("ffn_down_exps",), columns=expert_size),
    }


FAMILY = Family(
    ("qwen3moe", "qwen3vlmoe"),
    (
        HuggingFace(
            "qwen3_moe",
            "qwen3moe",
            _values,
            EXPERT_NAMES,
            defaults={"norm_topk_prob": False},
        ),
        HuggingFace(
            "qwen3_vl_moe_text",
            "qwen3vlmoe",
            _values,
            _stacked_names,
            defaults={"norm_topk_prob": True, "head_dim": 128, "rope_theta": 5e6},
            pictures="qwen3_vl_moe",
        ),
    ),
    configure,
    layer,
)

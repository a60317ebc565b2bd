"""DeepSeekMoE 16B (arXiv:2401.06066), Ling 1 and Ling-Coder-lite (arXiv:2503.05139): a Llama with
experts behind a few dense layers, chosen by their softmax, beside one or more that all tokens
use."""

from functools import partial

from airllm.models import dots1
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, SHARED_EXPERT_NAMES, HFReader, HuggingFace


def _values(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "softmax")
    config.expect("moe_layer_freq", None, 1)
    return {
        **config.experts(),
        "expert_weights_norm": config.flag("norm_topk_prob", False),
        "expert_shared_count": config.integer("n_shared_experts", 0),
        "leading_dense_block_count": config.dense_layers(0),
    }


FAMILY = Family(
    ("bailingmoe", "deepseek"),
    (
        HuggingFace(
            "deepseek",
            "deepseek",
            _values,
            {**EXPERT_NAMES, **SHARED_EXPERT_NAMES},
            gguf_interleaved=True,
        ),
    ),
    partial(dots1.configure, gating="softmax", rope_interleaved=True),
)

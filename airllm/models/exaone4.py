"""EXAONE 4 (arXiv:2507.11407) and K-EXAONE, its mixture of experts: normalised heads of Q and K.
Three of four layers of the larger models have a window; the fourth sees all positions and does not
rotate. EXAONE 4 has norms behind each half of a layer, and none before it."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)

PERIOD = 4
LAYERS_OF_32B = 64  # whose older files have no key for the window
_WINDOW = 4096
_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT_NAMES = {
    **EXPERT_NAMES,
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.e_score_correction_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(r: ConfigReader) -> ModelConfig:
    r.leave_out_heads()
    if r.architecture == "exaone4":
        windows = r.windows(_WINDOW if r.n_layers == LAYERS_OF_32B else 0, PERIOD)
        return r.config(layers=[_layer(window, windows) for window in windows])
    windows = r.windows(128, PERIOD)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid", normalized=False)
    shared = r.integer("expert_shared_count", 0) * mixture["expert_size"]
    return r.config(
        layers=[
            _layer(window, windows, has_experts=index >= dense)
            for index, window in enumerate(windows)
        ],
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_feed_forward_length", shared),
        **mixture,
    )


def _layer(window: int, windows: tuple[int, ...], *, has_experts: bool = False) -> LayerConfig:
    """windows: of all layers. Where none has a window, all rotate."""
    return LayerConfig(window, rotates=window > 0 or not any(windows), has_experts=has_experts)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    if c.n_experts:
        return blocks.layer(c, activations, layer, normed="heads")
    return blocks.layer(c, activations, layer, normed="heads", before=("", ""), after=blocks.AFTER)


def _windows(config: HFReader) -> dict[str, object]:
    """Older folders have a pattern, a period or a word such as LLLG, in place of layer_types."""
    said = config.get("sliding_window_pattern")
    if config.get("sliding_window") is None:
        config.ignore("layer_types")
        return {}
    if "layer_types" not in config and said not in (None, PERIOD, "LLLG"):
        raise config.fault(f"sliding_window_pattern is {str(said)[:40]!r}; expected {PERIOD}")
    return config.sliding(PERIOD)


def _experts(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sigmoid")
    config.expect("topk_method", None, "noaux_tc")
    config.ignore("is_moe_layer")  # dense layers come first
    n_shared = config.integer("num_shared_experts", 1, high=2**12)
    return {
        **_windows(config),
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor", 2.5),
        **config.expert_groups(),
        "expert_shared_count": n_shared,
        "expert_shared_feed_forward_length": n_shared * config.integer("moe_intermediate_size"),
        "leading_dense_block_count": config.dense_layers(1),
    }


FAMILY = Family(
    ("exaone4", "exaone-moe"),
    (
        HuggingFace("exaone4", "exaone4", _windows, _NAMES),
        HuggingFace("exaone4_5_text", "exaone4", _windows, _NAMES, pictures="exaone4_5"),
        HuggingFace("exaone_moe", "exaone-moe", _experts, _EXPERT_NAMES),
    ),
    configure,
    layer,
)

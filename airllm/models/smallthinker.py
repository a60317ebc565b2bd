"""SmallThinker 4B-A0.6B and 21B-A3B (arXiv:2507.20984): experts with ReLU, which a layer chooses by
what comes before its attention, so that they can be read meanwhile. In the larger model three of
four layers have a window, and the first of each four does not rotate."""

from collections.abc import Mapping

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.own_heads import rotations, windows_behind_first
from airllm.util.metadata import Metadata

PERIOD = 4


def configure(r: ConfigReader) -> ModelConfig:
    """If no layer has a window, all of them rotate."""
    windows = windows_behind_first(r, PERIOD)
    layers = [
        LayerConfig(window, rotates=window > 0 or not any(windows), has_experts=True)
        for window in windows
    ]
    return r.config(layers=layers, **r.experts(gating="sigmoid", shared_out=False))


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    route = blocks.route(g, c, x)  # [n, 2 * used]
    h = blocks.norm(g, c, x, "attn_norm")
    x = blocks.add(g, c, x, blocks.attention(g, c, layer, h))
    h = blocks.norm(g, c, x, "ffn_norm")
    blocks.add(g, c, x, blocks.routed_experts(g, c, h, route, activation="relu"))
    return g.build()


# ---- Hugging Face --------------------------------------------------------------------------------


# What other families have by these names.
_OTHER_NAMES = {
    "moe_ffn_hidden_size": ("moe_intermediate_size", "intermediate_size"),
    "moe_num_primary_experts": ("num_experts",),
    "moe_num_active_primary_experts": ("num_experts_per_tok",),
}


def _values(config: HFReader) -> dict[str, object]:
    """GGUF files say neither which layers have the window nor which ones rotate."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    config.expect("moe_layer_layout", None, [1] * n_layers)
    config.expect("norm_topk_prob", None, True)
    config.ignore(*_OTHER_NAMES)
    softmax = config.flag("moe_primary_router_apply_softmax", False)
    values = {**config.experts(), "expert_gating_func": 1 if softmax else 2}
    layout = [int(index % PERIOD != 0) for index in range(n_layers)]
    if config.get("sliding_window_layout") in (None, [0] * n_layers):
        config.expect("rope_layout", None, [1] * n_layers)
        config.ignore("sliding_window_size")
        return values
    config.expect("sliding_window_layout", layout)
    config.expect("rope_layout", layout)
    return {**values, "attention.sliding_window": config.integer("sliding_window_size", low=1)}


def _defaults(config: Metadata) -> Mapping[str, object]:
    others = _OTHER_NAMES
    return {name: config[key] for key in others if key in config for name in others[key]}


def _names() -> dict[str, str]:
    part = "block_sparse_moe"
    matrices = {f"{part}.experts.*.{name}": f"ffn_{name}_exps" for name in ("gate", "up", "down")}
    return {f"{part}.primary_router": "ffn_gate_inp", **matrices}


FAMILY = Family(
    ("smallthinker",),
    (
        HuggingFace(
            "smallthinker", "smallthinker", _values, _names(), activation="relu", defaults=_defaults
        ),
    ),
    configure,
    layer,
    rotations=rotations,
)

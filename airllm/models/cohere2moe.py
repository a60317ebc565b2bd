"""Command A+ and North Mini Code (Cohere): Command R7B with experts behind a few dense layers, all
of which rotate. The layer adds the mean of the experts' output and of that of an expert that all
tokens use."""

import numpy as np

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    FULL,
    SHARED_EXPERT_NAMES,
    SLIDING,
    HFReader,
    HuggingFace,
)
from airllm.models.own_heads import windows_behind_first
from airllm.util.metadata import Metadata

PERIOD = 4
_EPS, _RMS_EPS = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"


def configure(r: ConfigReader) -> ModelConfig:
    """A file that has the key of RMSNorm's epsilon has such norms, whatever else it has."""
    windows = windows_behind_first(r, PERIOD)  # of next-token heads, too
    r.leave_out_heads()
    dense = r.integer("leading_dense_block_count", high=r.n_layers)
    mixture = r.experts(gating="sigmoid", normalized=False)
    shared = r.integer("expert_shared_count", 0, high=2**8)
    width = r.integer("expert_shared_feed_forward_length", shared * mixture["expert_size"])
    by_rms = r.number(_RMS_EPS, 0.0) != 0.0
    r.ignore(_EPS, "rope.freq_base_swa")  # of windows: the base of others in all known files
    return r.config(
        layers=[
            LayerConfig(window, rotates=window > 0 or index < dense, has_experts=index >= dense)
            for index, window in enumerate(windows[: r.n_layers])
        ],
        eps_key=_RMS_EPS if by_rms else _EPS,
        layer_norms=not by_rms,
        rope_interleaved=True,
        logit_scale=r.positive("logit_scale", 1.0),
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=width if shared else 0,
        **mixture,
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.parallel_layer(c, activations, layer, feed_forward=_feed_forward)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    y = blocks.dense_or_experts(g, c, layer, h)
    return g.scale(y, 0.5, out=y) if layer.has_experts and c.shared_expert_size else y


# ---- Hugging Face --------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("expert_selection_fn", "softmax", "sigmoid")
    config.ignore("sliding_window_pattern", "first_k_dense_replace", "rms_norm_eps")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    dense = config.first_layers("dense", "sparse", n_layers)
    local = config.local_layers(np.zeros(n_layers, bool))
    if not local[:dense].all():  # such layers would not rotate
        config.expect("prefix_dense_sliding_window_pattern", 1)
    config.ignore("prefix_dense_sliding_window_pattern")
    n_shared, size = config.integer("num_shared_experts", 0), config.integer("intermediate_size")
    if n_shared:
        config.expect("shared_expert_combination_strategy", "average")
    config.ignore("shared_expert_combination_strategy")
    softmax = config["expert_selection_fn"] == "softmax"  # of the experts that are chosen
    normalized = config.flag("norm_topk_prob", True)
    values: dict[str, object] = {
        **config.experts(size="intermediate_size"),
        "attention.sliding_window": config.integer("sliding_window", 0),
        "attention.sliding_window_pattern": local,
        "expert_gating_func": 1 if softmax else 2,
        "expert_weights_norm": softmax or normalized,
        "expert_shared_count": n_shared,
        "expert_shared_feed_forward_length": n_shared * size,
        "feed_forward_length": config.integer("prefix_dense_intermediate_size", size),
        "leading_dense_block_count": dense,
        "logit_scale": config.number("logit_scale", 0.0625),
    }
    if "rms_norm_eps" in config:
        values[_RMS_EPS] = config.number("rms_norm_eps")
    return values


def _defaults(config: Metadata) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", 40, low=1, high=2**12)
    dense = config.integer("first_k_dense_replace", 0, high=n_layers)
    prefix = config.integer("prefix_dense_sliding_window_pattern", 1, low=1)
    period = config.integer("sliding_window_pattern", PERIOD, low=1)

    def kinds(n: int, every: int) -> list[str]:
        return [FULL if index % every == every - 1 else SLIDING for index in range(n)]

    return {
        **{"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528},
        **{"num_hidden_layers": n_layers, "num_attention_heads": 64, "head_dim": 128},
        **{"max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "sliding_window": 4096},
        **{"num_experts": 8, "num_experts_per_tok": 2, "expert_selection_fn": "softmax"},
        "shared_expert_combination_strategy": "average",
        "layer_types": kinds(dense, prefix) + kinds(n_layers - dense, period),
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (n_layers - dense),
        "prefix_dense_sliding_window_pattern": 1,
    }


FAMILY = Family(
    ("cohere2moe",),
    (
        HuggingFace(
            "cohere2_moe",
            "cohere2moe",
            _values,
            {**EXPERT_NAMES, **SHARED_EXPERT_NAMES},
            tied=True,
            rope_interleaved=True,
            gguf_interleaved=True,
            norm_eps=("layer_norm_eps", _EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    layer,
)

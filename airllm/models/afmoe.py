"""Trinity (Arcee): normalised heads of Q and K, and a gate behind attention, which has a window in
three of four layers; the fourth sees all positions and does not rotate. Norms stand before and
behind each half of a layer. Experts come behind a few dense layers, chosen by a sigmoid with a
bias, beside one or more that all tokens use."""

from functools import partial

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
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
NAMES = {
    **EXPERT_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_mlp_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "self_attn.gate_proj": "attn_gate",
    "mlp.router.gate": "ffn_gate_inp",
    "mlp.expert_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid", normalized=False)
    return r.config(
        layers=[
            LayerConfig(window, rotates=index % PERIOD != PERIOD - 1, has_experts=index >= dense)
            for index, window in enumerate(windows)
        ],
        embedding_scale=r.integer("embedding_length", low=1) ** 0.5,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", 0) * mixture["expert_size"],
        **mixture,
    )


def attend(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer) -> Buffer:
    """Heads' values are multiplied by the sigmoid of a gate."""
    a = blocks.attend_to_all(g, c, layer, q)  # [n, q_width]
    gate = g.linear(h, g.weight("attn_gate", c.q_width, c.hidden_size))  # [n, q_width]
    return g.multiply(a, g.sigmoid(gate, out=gate), out=a)


def _values(config: HFReader) -> dict[str, object]:
    config.expect("mup_enabled", True)  # readers of GGUF files always scale embeddings
    config.expect("score_func", None, "sigmoid")
    config.expect("route_norm", None, True)
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        config.expect(key, None, 1)
    config.expect("global_attn_every_n_layers", None, PERIOD)
    config.ignore("load_balance_coeff", "use_grouped_mm")  # of training, and of its kernels
    windows = config.sliding(PERIOD)
    if "attention.sliding_window_pattern" in windows:
        raise config.fault(f"layer_types says other than that every {PERIOD}th layer has no window")
    return {
        **windows,
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("route_scale", 1.0),
        "expert_shared_count": config.integer("num_shared_experts", 2),
        "leading_dense_block_count": config.integer("num_dense_layers", 1),
    }


FAMILY = Family(
    ("afmoe",),
    (
        HuggingFace(
            "afmoe", "afmoe", _values, NAMES, defaults={"head_dim": 128, "sliding_window": 1024}
        ),
    ),
    configure,
    partial(blocks.layer, normed="heads", attend=attend, after=blocks.AFTER),
)

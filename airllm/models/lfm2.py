"""LFM2, dense and with experts (arXiv:2511.23404): most layers see earlier tokens by a gated
convolution over a few of them, the others by attention with normalised heads."""

import functools

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, Mixer, ModelConfig
from airllm.models.config_reader import MAX_TAPS, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.util.metadata import Metadata

_OUTPUT_NORM = "token_embd_norm"  # GGUF's name of the norm before the logits
NAMES: Names = {
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "embedding_norm": _OUTPUT_NORM,
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv",
    "conv.out_proj": "shortconv.out_proj",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "feed_forward.gate": "ffn_gate_inp",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "feed_forward.experts.*.w1": "ffn_gate_exps",
    "feed_forward.experts.*.w3": "ffn_up_exps",
    "feed_forward.experts.*.w2": "ffn_down_exps",
    "feed_forward.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "feed_forward.experts.down_proj": "ffn_down_exps",
}
_MIXERS: dict[str, Mixer] = {"conv": "short_conv", "full_attention": "attention"}


def configure(r: ConfigReader) -> ModelConfig:
    kv_heads = r.kv_heads(differ=True, low=0)
    r.require_alike("attention.head_count_kv", kv_heads)
    has_experts = r.architecture == "lfm2moe"
    n_dense = r.n_layers
    if has_experts:
        n_dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    if not any(kv_heads):
        r.ignore_rope()
    windows = r.windows()
    return r.config(
        layers=[
            LayerConfig(
                window=windows[index] if heads else 0,
                has_experts=index >= n_dense,
                mixer="attention" if heads else "short_conv",
            )
            for index, heads in enumerate(kv_heads)
        ],
        kv_heads=kv_heads,
        intermediate_size=r.feed_forward_length(),
        short_conv_taps=r.integer("shortconv.l_cache", low=1, high=MAX_TAPS),
        **(r.experts(gating="sigmoid") if has_experts else {}),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = short_conv if layer.mixer == "short_conv" else None
    return blocks.layer(c, activations, layer, normed="heads", mixer=mixer)


def short_conv(g: GraphBuilder, c: ModelConfig, _: LayerConfig, h: Buffer) -> Buffer:
    """A convolution of each channel over a few tokens, between two gates."""
    n = c.hidden_size
    bcx = blocks.linear(g, c, h, "shortconv.in_proj", 3 * n)  # [n, 3 * hidden]
    before, after, x = (g.take_columns(bcx, part * n, n) for part in range(3))
    x = g.multiply(before, x, out=x)
    x = g.conv(x, g.weight("shortconv.conv", n, c.short_conv_taps), out=x)
    return blocks.linear(g, c, g.multiply(after, x, out=x), "shortconv.out_proj", n)


def _values(config: HFReader) -> dict[str, object]:
    config.expect("conv_bias", None, False)
    config.ignore("full_attn_idxs", "tie_embedding")  # see _defaults
    return {
        **config.heads_of(config.mixers(_MIXERS)),
        "feed_forward_length": _width(config),
        "shortconv.l_cache": config.integer("conv_L_cache"),
    }


def _width(config: HFReader) -> int:
    """Of the feed-forward networks, by the rule of the configuration class."""
    width = config.integer("block_ff_dim", config.integer("intermediate_size"))
    multiplier = config.number("block_ffn_dim_multiplier", 1.0)
    multiple = config.integer("block_multiple_of", 256, low=1)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    if not 0.0 < multiplier < 1e3:
        raise config.fault(f"block_ffn_dim_multiplier is {multiplier}; expected 0 to 1000")
    return -(-int(multiplier * int(2 * width / 3)) // multiple) * multiple


def _experts(config: HFReader) -> dict[str, object]:
    config.expect("conv_bias", None, False)
    config.ignore("tie_embedding", "use_expert_bias")  # see _defaults; the tensors show biases
    return {
        **config.heads_of(config.mixers(_MIXERS)),
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "leading_dense_block_count": config.integer("num_dense_layers", 2),
        "shortconv.l_cache": config.integer("conv_L_cache"),
    }


def _defaults(config: Metadata) -> dict[str, object]:
    """Older files name the layers with attention, and have other names of two keys."""
    values: dict[str, object] = {"rope_theta": 1e6, "norm_eps": 1e-5, "conv_L_cache": 3}
    values["tie_word_embeddings"] = config.get("tie_embedding", True)
    if "block_ff_dim" in config:
        values["intermediate_size"] = config["block_ff_dim"]
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    attending = config.get("full_attn_idxs")
    if attending is None:
        attending = list(range(n_layers))
    if not isinstance(attending, list):
        raise config.fault("full_attn_idxs is no list of layers")
    values["layer_types"] = [
        "full_attention" if index in attending else "conv" for index in range(n_layers)
    ]
    return values


_FOLDERS = functools.partial(
    HuggingFace,
    names=NAMES,
    tied=True,
    defaults=_defaults,
    norm_eps=("norm_eps", "attention.layer_norm_rms_epsilon"),
)
FAMILY = Family(
    ("lfm2", "lfm2moe"),
    (
        _FOLDERS("lfm2", "lfm2", _values, pictures="lfm2_vl"),
        _FOLDERS("lfm2_moe", "lfm2moe", _experts),
    ),
    configure,
    layer,
    head=functools.partial(blocks.head, norm_slot=_OUTPUT_NORM),
)

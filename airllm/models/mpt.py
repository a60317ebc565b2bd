"""MPT 7B and 30B: LayerNorm without biases, one matrix for Q, K and V, a network with GELU, and
biases by distance (ALiBi, arXiv:2108.12409) in place of rotation."""

from collections.abc import Mapping
from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.falcon import feed_forward
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS
from airllm.util.metadata import Metadata

_LARGEST = "attention.max_alibi_bias"
LIMIT = "attention.clamp_kqv"  # of queries, keys and values
_SLOTS = ("attn_norm", "ffn_norm", "output_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down")


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=r.unrotated_layers(),
        eps_key=EPS,
        layer_norms=True,
        biases=r.optional_biases(*_SLOTS),
        alibi=largest_bias(r, 0.0),
        qkv_limit=r.cap(LIMIT),
        learned_positions="position_embd.weight" in r.file.tensors,
    )


def largest_bias(r: ConfigReader, default: float) -> float:
    """Of a head's slope: 2 to the power of -largest_bias is the least."""
    found = r.number(_LARGEST, default)
    if not 0.0 <= found <= 64.0:
        raise r.fault(_LARGEST, found, "expected 0 to 64")
    return found


def _values(config: HFReader) -> dict[str, object]:
    attention = config.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise config.fault("attn_config is no object")
    r = HFReader(config.source, attention)
    for key, allowed in _PLAIN.items():
        r.expect(key, None, allowed)
    config.expect("norm_type", None, "low_precision_layernorm", "layernorm")
    config.ignore("no_bias")  # the tensors show biases
    return {_LARGEST: float(r.integer("alibi_bias_max", 8)), **qkv_limit(r)}


def qkv_limit(config: HFReader) -> dict[str, object]:
    """The limit of queries, keys and values, if there is one."""
    return {} if config.get("clip_qkv") is None else {LIMIT: config.number("clip_qkv")}


# What is implemented of the settings of attention.
_PLAIN = {
    **{"attn_type": "multihead_attention", "alibi": True, "softmax_scale": None},
    **{"qk_ln": False, "prefix_lm": False, "attn_uses_sequence_id": False},
}


def _defaults(config: Metadata) -> Mapping[str, object]:
    hidden = config.integer("d_model", low=1)
    return {
        "hidden_size": hidden,
        "num_attention_heads": config.integer("n_heads", low=1),
        "num_hidden_layers": config.integer("n_layers", low=1),
        "max_position_embeddings": config.integer("max_seq_len", 2048, low=1),
        "intermediate_size": config.integer("expansion_ratio", 4, low=1) * hidden,
        "layer_norm_epsilon": 1e-5,
    }


FAMILY = Family(
    ("mpt",),
    (
        HuggingFace(
            "mpt",
            "mpt",
            _values,
            {
                "wte": "token_embd",
                "norm_f": "output_norm",
                "norm_1": "attn_norm",
                "norm_2": "ffn_norm",
                "attn.Wqkv": "attn_qkv",
                "attn.out_proj": "attn_output",
                "ffn.up_proj": "ffn_up",
                "ffn.down_proj": "ffn_down",
            },
            tied=True,
            norm_eps=("layer_norm_epsilon", EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    partial(blocks.layer, fused=True, feed_forward=feed_forward),
)

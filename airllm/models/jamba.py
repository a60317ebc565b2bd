"""Jamba (arXiv:2403.19887): of eight layers one has attention, which does not rotate; the others
have the scan of Mamba, with norms of what depends on the token. Every other layer has experts."""

from dataclasses import replace

import numpy as np

from airllm.formats.hf_config import Names
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba import CHANGED, MIXER_NAMES, mamba, rank_of, read_mamba

_NAMES: Names = {
    "final_layernorm": "output_norm",
    "pre_ff_layernorm": "ffn_norm",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.experts.*.gate_proj": "ffn_gate_exps",
    "feed_forward.experts.*.up_proj": "ffn_up_exps",
    "feed_forward.experts.*.down_proj": "ffn_down_exps",
    **{f"mamba.{name}": slot for name, slot in MIXER_NAMES.items()},
    **{f"mamba.{part}_layernorm": f"ssm_{part}_norm" for part in ("dt", "b", "c")},
}
_OF_EXPERTS = "expert_count", "expert_used_count", "expert_feed_forward_length"


def configure(r: ConfigReader) -> ModelConfig:
    """The tensors show which layers have experts."""
    kv_heads = r.kv_heads(differ=True, low=0)
    r.require_alike("attention.head_count_kv", kv_heads)
    r.ignore_rope()
    layers = [
        LayerConfig(
            rotates=False,
            has_experts=f"blk.{index}.ffn_gate_inp.weight" in r.file.tensors,
            mixer="attention" if heads else "mamba",
        )
        for index, heads in enumerate(kv_heads)
    ]
    has_experts = any(layer.has_experts for layer in layers)
    if not has_experts:
        r.ignore(*_OF_EXPERTS)
    c = r.config(
        layers=layers,
        kv_heads=kv_heads,
        intermediate_size=r.feed_forward_length(),
        **(r.experts(normalized=False, shared_out=False) if has_experts else {}),
    )
    m = replace(read_mamba(r), norms="weighted", norm_eps=c.norm_eps)
    return replace(c, mamba=m if any(layer.mixer == "mamba" for layer in layers) else None)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(c, activations, layer, mixer=mamba if layer.mixer == "mamba" else None)


def _values(config: HFReader) -> dict[str, object]:
    config.expect("mamba_proj_bias", None, False)
    config.expect("sliding_window", None)
    config.ignore("mamba_conv_bias", "layers_block_type", "layer_types", "layers_num_experts")
    config.ignore("use_mamba_kernels", "expert_layer_period", "expert_layer_offset")
    period = config.integer("attn_layer_period", 8, low=1)
    offset = config.integer("attn_layer_offset", 4, high=period - 1)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    heads = config.integer("num_key_value_heads", config.integer("num_attention_heads"), low=1)
    attends = np.arange(n_layers) % period == offset
    return {
        "attention.head_count_kv": (heads * attends).astype(np.int32),
        "expert_count": config.integer("num_experts", 16),
        "expert_used_count": config.integer("num_experts_per_tok", 2),
        "ssm.conv_kernel": config.integer("mamba_d_conv", 4),
        "ssm.inner_size": config.integer("mamba_expand", 2) * config.integer("hidden_size"),
        "ssm.state_size": config.integer("mamba_d_state", 16),
        "ssm.time_step_rank": rank_of(config, "mamba_dt_rank"),
    }


FAMILY = Family(
    ("jamba",),
    (
        HuggingFace(
            "jamba",
            "jamba",
            _values,
            _NAMES,
            changed=CHANGED,
            defaults={
                **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
                **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
                **{"vocab_size": 65536, "max_position_embeddings": 262144},
            },
        ),
    ),
    configure,
    layer,
)

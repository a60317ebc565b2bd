"""Qwen3-Next and Qwen3.5, dense and with experts: three layers of linear attention (see delta_net)
to one of gated attention, of which a quarter of each head rotates. All tokens use one of the
experts, times a gate."""

import numpy as np

from airllm.formats.hf_config import HEADS_TILED, Names, Slots
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.delta_net import delta_net, delta_net_of, recurrent_layers
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import EXPERT_NAMES, FULL, HFReader, HuggingFace, Values
from airllm.models.mamba2 import CHANGED
from airllm.models.qwen2moe import SHARED_NAMES

LINEAR = "linear_attention"  # of layer_types


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")  # see qwen2
    r.leave_out_heads()
    mixture = {}
    if r.architecture != "qwen35":
        mixture = r.experts() | {
            "shared_expert_gated": True,
            "shared_expert_size": r.integer(
                "expert_shared_feed_forward_length", r.feed_forward_length(), low=1
            ),
        }
    layers = [
        LayerConfig(
            rotates=not recurrent,
            has_experts=bool(mixture),
            mixer="delta_net" if recurrent else "attention",
        )
        for recurrent in recurrent_layers(r)
    ]
    return r.config(
        layers=layers, delta_net=delta_net_of(r, tiled=r.architecture != "qwen3next"), **mixture
    )


def next_layer(c: ModelConfig) -> LayerConfig:
    return LayerConfig(has_experts=c.n_experts > 0)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(
        c,
        activations,
        layer,
        normed="heads",
        gated=True,
        mixer=delta_net if layer.mixer == "delta_net" else None,
        before=blocks.FOLDERS_BEFORE,
    )


NAMES: Names = {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
MOE_NAMES: Names = {**NAMES, **EXPERT_NAMES, **SHARED_NAMES}
SECTIONS = (11, 11, 10)  # of folders that do not say them
_DEFAULTS = {"partial_rotary_factor": 0.25, "head_dim": 256}
_NO_DENSE = {"intermediate_size": 0}  # models of which all layers have experts need not have it


def _next_names(config: HFReader) -> Names:
    """Qwen3-Next has queries, keys, values and gates of a head of keys together."""
    shared = config.integer("linear_num_value_heads", low=1) // config.integer(
        "linear_num_key_heads", low=1
    )
    keys = config.integer("linear_key_head_dim", low=1)
    values = max(shared, 1) * config.integer("linear_value_head_dim", low=1)
    parts = ((0, keys), (0, keys), (0, values), (1, values))
    return {
        **MOE_NAMES,
        "linear_attn.in_proj_qkvz": Slots(("attn_qkv", "attn_gate"), head_parts=parts),
        "linear_attn.in_proj_ba": "ssm_ba",
    }


def _values(config: HFReader) -> dict[str, object]:
    config.expect("attn_output_gate", None, True)
    return {**linear_values(config), **_layers(config)}


def linear_values(config: HFReader) -> dict[str, object]:
    """The sizes of layers with linear attention."""
    n_heads = config.integer("linear_num_value_heads")
    return {
        "ssm.conv_kernel": config.integer("linear_conv_kernel_dim"),
        "ssm.state_size": config.integer("linear_key_head_dim"),
        "ssm.group_count": config.integer("linear_num_key_heads"),
        "ssm.time_step_rank": n_heads,
        "ssm.inner_size": n_heads * config.integer("linear_value_head_dim", high=2**20),
    }


def _layers(config: HFReader) -> dict[str, object]:
    interval = config.integer("full_attention_interval", 4, low=1)
    found: dict[str, object] = {"full_attention_interval": interval}
    if "layer_types" not in config:
        return found
    types = config.layer_kinds((FULL, LINEAR))
    return {**found, "attention.recurrent_layers": np.array([each == LINEAR for each in types])}


def _moe_values(config: HFReader) -> dict[str, object]:
    config.ignore("decoder_sparse_step", "mlp_only_layers")  # the tensors show dense layers
    return {
        **_values(config),
        **config.experts(),
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_shared_feed_forward_length": config.integer("shared_expert_intermediate_size"),
    }


def _with_sections(values: Values) -> Values:
    return lambda config: {**values(config), **position_sections(config, SECTIONS)}


_OF_HEADS = {"attention.recurrent_layers": False}

FAMILY = Family(
    ("qwen35", "qwen35moe", "qwen3next"),
    (
        HuggingFace(
            "qwen3_5_text",
            "qwen35",
            _with_sections(_values),
            NAMES,
            changed=CHANGED,
            defaults=_DEFAULTS,
            own={HEADS_TILED: False},
            pictures="qwen3_5",
            plus_one=True,
            heads="mtp",
            of_heads=_OF_HEADS,
        ),
        HuggingFace(
            "qwen3_5_moe_text",
            "qwen35moe",
            _with_sections(_moe_values),
            MOE_NAMES,
            changed=CHANGED,
            defaults={**_DEFAULTS, **_NO_DENSE},
            own={HEADS_TILED: False},
            pictures="qwen3_5_moe",
            plus_one=True,
            heads="mtp",
            of_heads=_OF_HEADS,
        ),
        HuggingFace(
            "qwen3_next",
            "qwen3next",
            _moe_values,
            _next_names,
            changed=CHANGED,
            defaults={**_DEFAULTS, **_NO_DENSE},
            plus_one=True,
            heads="mtp",
            of_heads=_OF_HEADS,
        ),
    ),
    configure,
    layer,
    next_layer=next_layer,
)

"""Step-3.5-Flash and the text of Step-3.7-Flash: three of four layers have a window, more heads,
and a theta of their own; half of each head rotates in the fourth. Heads have a gate. Experts come
behind a few dense layers, chosen by a sigmoid with a bias, beside one that all tokens use; the last
layers limit what goes into their second matrices."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import FULL, SLIDING, HFReader, HuggingFace
from airllm.models.own_heads import (
    attend_gated,
    first_head,
    next_layer,
    read_head_dim,
    read_heads,
    windowed_rope_dims,
)
from airllm.models.rope import Rotation, windowed_rotations
from airllm.util.metadata import Metadata

NAMES = {
    "self_attn.g_proj": "attn_gate",
    "moe.gate": "ffn_gate_inp",
    "moe.router_bias": "exp_probs_b.bias",
    "moe.gate_proj": "ffn_gate_exps",
    "moe.up_proj": "ffn_up_exps",
    "moe.down_proj": "ffn_down_exps",
    "share_expert.gate_proj": "ffn_gate_shexp",
    "share_expert.up_proj": "ffn_up_shexp",
    "share_expert.down_proj": "ffn_down_shexp",
}
LIMITS = "swiglu_clamp_exp", "swiglu_clamp_shexp"  # GGUF's; of experts, and of the others


def configure(r: ConfigReader) -> ModelConfig:
    """The dimensions that rotate are said for layers with a window; others have half as many."""
    windows, heads = r.windows(), read_heads(r)  # of next-token heads, too
    limits = [r.numbers_of_layers(name, 0.0, high=1e6) for name in LIMITS]
    r.leave_out_heads()
    tensors = r.file.tensors
    head_dim = read_head_dim(r)
    whole = r.integer("rope.dimension_count", head_dim, low=4, high=head_dim)
    if whole % 4:
        raise r.fault("rope.dimension_count", whole, "expected a multiple of 4")
    every = "moe_every_n_layers"
    if r.integer(every, 1) > 1:
        raise r.fault(every, r.integer(every, 1), "expected 1")
    r.ignore("leading_dense_block_count")  # the tensors show which layers have experts
    rope_dims = windowed_rope_dims(r, whole, head_dim)
    mixture = r.experts(gating="sigmoid", normalized=True)
    layers = [
        LayerConfig(
            window,
            has_experts=f"blk.{index}.ffn_gate_inp.weight" in tensors,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            rope_dims=rope_dims if window else 0,
            expert_limit=expert_limit,
            shared_limit=shared_limit,
        )
        for index, (window, (n_heads, n_kv_heads), expert_limit, shared_limit) in enumerate(
            zip(windows, heads, *limits, strict=True)
        )
    ]
    c = r.config(
        layers=layers[: r.n_layers],
        head_layer=first_head(r, layers),
        head_dim=head_dim,
        n_heads=max(n_heads for n_heads, _ in heads),
        kv_heads=[n_kv_heads for _, n_kv_heads in heads],
        biases=r.optional_biases("attn_q", "attn_k", "attn_v", "attn_output"),
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_feed_forward_length", mixture["expert_size"]),
        **mixture,
    )
    return replace(c, rope_dims=whole // 2)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    attend = attend_gated("sigmoid")
    return blocks.layer(
        c.of(layer),
        activations,
        layer,
        normed="heads",
        attend=attend,
        feed_forward=limited_feed_forward,
    )


def limited_feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """A network, or experts, with the layer's limits."""
    for_all = replace(c, swiglu_limit=layer.shared_limit)
    if not layer.has_experts:
        return blocks.glu_mlp(g, for_all, h)
    y = blocks.experts(g, replace(c, swiglu_limit=layer.expert_limit), h)
    return g.add(y, blocks.shared_expert(g, for_all, h), out=y)


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """Files have a factor for each pair of a head; the first ones are of those that rotate."""
    theta = r.number("rope.freq_base", 10000.0)
    return windowed_rotations(r, c, layer, theta, n_factors=c.head_dim // 2)


# ---- Hugging Face --------------------------------------------------------------------------------

# Of published folders, and of those that transformers saves.
_OTHER_NAMES = {
    "num_attention_groups": "num_key_value_heads",
    "moe_num_experts": "n_routed_experts",
    "moe_top_k": "num_experts_per_tok",
    "max_seq_len": "max_position_embeddings",
    "share_expert_dims": "share_expert_dim",
}


def _defaults(config: Metadata) -> Mapping[str, object]:
    """Of the configuration class, and what published folders have by other names."""
    found: dict[str, object] = {
        **{"vocab_size": 128815, "hidden_size": 4096, "intermediate_size": 11264},
        **{"num_hidden_layers": 45, "num_attention_heads": 64, "num_key_value_heads": 8},
        **{"head_dim": 128, "max_position_embeddings": 128000, "rms_norm_eps": 1e-5},
        **{"num_experts_per_tok": 8, "n_routed_experts": 288, "moe_intermediate_size": 1280},
        "share_expert_dim": 1280,
    }
    found |= {name: config[key] for key, name in _OTHER_NAMES.items() if key in config}
    types = config.get("layer_types")
    if isinstance(types, list) and "rope_parameters" not in config:
        found["rope_parameters"] = {
            kind: _rotation(config, types.index(kind)) for kind in (FULL, SLIDING) if kind in types
        }
    return found


def _rotation(config: Metadata, index: int) -> dict[str, object]:
    """As rope_parameters has it, of the layer with that index."""
    found: dict[str, object] = {}
    for key, name in (
        ("rope_theta", "rope_theta"),
        ("partial_rotary_factors", "partial_rotary_factor"),
    ):
        value = config.get(key)
        if isinstance(value, list):
            if index >= len(value):
                raise config.fault(f"{key} has {len(value)} entries; expected one for each layer")
            value = value[index]
        if value is not None:
            found[name] = value
    return found


def _values(config: HFReader) -> dict[str, object]:
    for key in ("use_qk_norm", "use_moe", "norm_expert_weight", "use_moe_router_bias"):
        config.expect(key, None, True)
    config.expect("use_head_wise_attn_gate", None, True)
    config.expect("moe_router_activation", None, "sigmoid")
    config.expect("moe_every_n_layer", None, 1)
    config.expect("moe_layer_offset", None, 0)
    config.expect("sink", None, False)
    config.expect("use_rope_layers", None, [])
    config.expect("yarn_only_types", None, [FULL])
    config.expect("query_pre_attn_scalar", None, config.integer("head_dim"))
    # Of next-token heads; of the arithmetic of training; what the tensors show; other names.
    config.ignore("mtp_layer_types", "mtp_mlp_layer_types", "need_fp32_gate", "moe_layers_enum")
    config.ignore("mlp_layer_types", "rope_theta", "partial_rotary_factors", *_OTHER_NAMES)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    head_dim = config.integer("head_dim")
    for kind, share in ((FULL, 0.5), (SLIDING, 1.0)):
        if config.rotating_share(kind) not in (None, share):
            raise config.fault(f"{kind} layers rotate other than {share} of each head")
    local = _local(config, n_layers)
    heads, kv_heads = _windowed_heads(config)
    return {
        **config.experts(),
        **limits_of(config, "swiglu_limits", "swiglu_limits_shared"),
        "attention.head_count": _either(local, heads, config.integer("num_attention_heads")),
        "attention.head_count_kv": _either(local, kv_heads, config.integer("num_key_value_heads")),
        "attention.sliding_window": config.integer("sliding_window", 0),
        "attention.sliding_window_pattern": local,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("moe_router_scaling_factor", 1.0),
        "expert_shared_feed_forward_length": config.integer("share_expert_dim"),
        "rope.dimension_count": head_dim,
    }


def _local(config: HFReader, n_layers: int) -> NDArray[np.bool_]:
    """For each layer: whether it has a window. Published folders say it of heads behind it, too."""
    kinds = config.layer_kinds((FULL, SLIDING), [FULL] * n_layers, heads=True)
    return np.array([each == SLIDING for each in kinds], bool)


def _windowed_heads(config: HFReader) -> tuple[int, int]:
    """The heads, and those of keys, of layers with a window."""
    usual, of_keys = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
    other = config.get("attention_other_setting", {})
    if not isinstance(other, dict):
        raise config.fault("attention_other_setting is no object")
    other = Metadata(config.source, other)
    heads = config.integer("num_sliding_attention_heads", 0)
    return (
        heads or other.integer("num_attention_heads", usual),
        other.integer("num_attention_groups", of_keys),
    )


def _either(local: NDArray[np.bool_], windowed: int, other: int) -> NDArray[np.int32]:
    return np.where(local, windowed, other).clip(0, 2**31 - 1).astype(np.int32)


def limits_of(config: HFReader, *keys: str) -> dict[str, object]:
    """GGUF's keys of the limits, as far as the folder has these keys, in the order of LIMITS."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    return {
        name: np.array(_limits(config, key, n_layers), np.float32)
        for name, key in zip(LIMITS, keys, strict=True)
        if key in config
    }


def _limits(config: HFReader, key: str, n_layers: int) -> list[float]:
    """Of each layer; 0 or null: it has none."""
    said = config.get(key)
    numbers = [each or 0.0 for each in said[:n_layers]] if isinstance(said, list) else []
    if len(numbers) != n_layers or not all(
        isinstance(each, (int, float)) and 0.0 <= each < 1e6 for each in numbers
    ):
        raise config.fault(f"{key} is no list of {n_layers} numbers from 0 to below 1000000")
    return numbers


FAMILY = Family(
    ("step35",),
    (
        HuggingFace(
            "step3p5",
            "step35",
            _values,
            NAMES,
            defaults=_defaults,
            plus_one=True,
            pictures="step3p7",
        ),
    ),
    configure,
    layer,
    rotations=rotations,
    next_layer=next_layer,
    next_reads_normed=False,
)

"""Ling 3: Kimi Delta Attention (see kimi_linear) in most layers, latent attention whose heads have
a gate in the others, and experts behind a few dense layers.

Decays and the gate behind Kimi Delta Attention are products with one matrix each. Logarithms of
decays have a lower bound.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from airllm.formats.hf_config import MOST_HEADS, Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks, deepseek2, kimi_linear
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    FULL,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)
from airllm.models.own_heads import first_head, next_layer
from airllm.models.qwen35 import LINEAR
from airllm.models.rope import Rotation
from airllm.models.step35 import LIMITS, limited_feed_forward, limits_of
from airllm.util.metadata import Metadata

_SECTIONS = "rope.dimension_sections"  # of models that see pictures
_SHARED = "expert_shared_feed_forward_length"


def configure(r: ConfigReader) -> ModelConfig:
    kv_heads = kimi_linear.latent_heads(r)  # of next-token heads, too
    limits = [r.numbers_of_layers(name, 0.0, high=1e6) for name in LIMITS]
    r.leave_out_heads()
    r.require_true("kda.safe_gate")
    r.ignore("attention.value_length", _SECTIONS)  # the latent says it; see qwen2
    latent, rope_dims = deepseek2.latent_of(r)
    net = replace(kimi_linear.delta_net_of(r), decay_bound=kimi_linear.decay_bound(r))
    if not net.decay_bound:
        raise r.fault("kda.gate_lower_bound", 0.0, "expected it below 0")
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = deepseek2.experts_of(r, dense)
    of_shared = r.integer(_SHARED, mixture.get("shared_expert_size", 0))
    if 0 in kv_heads[r.n_layers :]:
        raise r.fault("attention.head_count_kv", 0, "expected 1 of a next-token head")
    layers = [
        LayerConfig(
            rotates=heads > 0,
            has_experts=index >= dense,
            mixer="attention" if heads else "delta_net",
            expert_limit=of_experts,
            shared_limit=of_others,
        )
        for index, (heads, of_experts, of_others) in enumerate(zip(kv_heads, *limits, strict=True))
    ]
    return r.config(
        head_dim=latent.rank + rope_dims,
        scaled_by=deepseek2.scaled_by(r, latent, rope_dims),
        kv_heads=kv_heads[: r.n_layers],
        rope_interleaved=not r.has(_SECTIONS),
        layers=layers[: r.n_layers],
        head_layer=first_head(r, layers),
        intermediate_size=r.feed_forward_length(),
        latent=replace(latent, gate="heads"),
        delta_net=net,
        **mixture | ({"shared_expert_size": of_shared} if mixture else {}),
    )


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    return deepseek2.rotations(r, c, layer) if layer.rotates else {}


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = _kda if layer.mixer == "delta_net" else deepseek2.attention
    return blocks.layer(c, activations, layer, mixer=mixer, feed_forward=limited_feed_forward)


def _log_decay(g: GraphBuilder, c: ModelConfig, h: Buffer) -> Buffer:
    """bound * sigmoid(a * (x + bias)). a: a number above 0 for each head, where files of Kimi have
    -a, as the op log_decay takes it."""
    d = c.delta_net
    assert d is not None
    x = kimi_linear.matrix("ssm_f_a")(g, c, h)  # [n, width]
    x = g.bias(x, g.weight("ssm_dt.bias", x.width), out=x)
    x = blocks.scaled_parts(g, x, g.weight("ssm_a", d.n_heads), d.n_heads)
    return g.scale(g.sigmoid(x, out=x), d.decay_bound, out=x)


_kda = partial(kimi_linear.kda, log_decay=_log_decay, gate=kimi_linear.matrix("ssm_g_a"))


# ---- Hugging Face --------------------------------------------------------------------------------

_NAMES = {
    **EXPERT_NAMES,
    **SHARED_EXPERT_NAMES,
    "word_embeddings": "token_embd",
    "mlp.gate.expert_bias": "exp_probs_b.bias",
    "attention.dense": "attn_output",
    "attention.q_a_proj": "attn_q_a",
    "attention.q_a_layernorm": "attn_q_a_norm",
    "attention.q_b_proj": "attn_q_b",
    "attention.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "attention.kv_a_layernorm": "attn_kv_a_norm",
    **{f"attention.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{f"attention.{part}_conv1d": f"ssm_conv1d_{part}" for part in "qkv"},
    "attention.f_proj": "ssm_f_a",
    "attention.b_proj": "ssm_beta",
    "attention.A_log": "ssm_a",
    "attention.dt_bias": "ssm_dt.bias",
    "attention.o_norm": "ssm_norm",
}


def _defaults(config: Metadata) -> Mapping[str, object]:
    usual: dict[str, object] = {
        **{"n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
        **{"n_group": 8, "topk_group": 4, "first_k_dense_replace": 2, "v_head_dim": 128},
        **{"head_dim": 128, "short_conv_kernel_size": 4, "kda_lower_bound": -5.0},
        **{"layer_group_size": 6, "rope_theta": 6e6},
    }
    return usual | kimi_linear.said_by_aliases(config)


def _values(config: HFReader) -> dict[str, object]:
    """Ling 2.5, whose linear attention is another, has the same model_type."""
    config.expect("kda_safe_gate", True)
    config.expect("no_kda_lora", None, True)
    config.expect("gated_attention_proj_granularity_type", None, "head_wise")
    config.expect("score_function", None, "sigmoid")
    config.expect("moe_router_enable_expert_bias", None, True)
    config.expect("use_rmsnorm", None, True)
    config.ignore("use_bias", "use_qkv_bias", "use_qk_norm", "norm_head", "norm_softmax")
    config.ignore("max_window_layers", "router_dtype", "mtp_loss_scaling_factor")
    config.ignore(*kimi_linear.ALIASES.values(), "linear_num_heads", "partial_rotary_factor")
    head_dim = config.integer("linear_head_dim", config.integer("head_dim"), low=1)
    taps = config.integer("short_conv_kernel_size")
    size, n_shared = config.integer("moe_intermediate_size"), config.integer("n_shared_experts")
    return {
        **deepseek2.latent_sizes(config),
        **config.experts(),
        **config.expert_groups(),
        **limits_of(config, "expert_swiglu_limit_list", "share_expert_swiglu_limit_list"),
        "leading_dense_block_count": config.dense_layers(0),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": n_shared,
        _SHARED: config.integer("moe_shared_expert_intermediate_size", size * n_shared),
        "attention.head_count_kv": np.array([each == FULL for each in _types(config)], np.int32),
        "ssm.conv_kernel": config.integer("linear_conv_kernel_dim", taps),
        "kda.head_dim": head_dim,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": config.number("kda_lower_bound"),
    }


def _types(config: HFReader) -> list[str]:
    """Of each layer: which attention it has. Without a list, the last of each group has latents."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    every = config.integer("layer_group_size", low=1)
    if "layer_types" not in config and n_layers % every:
        raise config.fault(f"layer_group_size is {every}; expected a divisor of {n_layers}")
    usual = [FULL if index % every == every - 1 else LINEAR for index in range(n_layers)]
    return config.layer_kinds((FULL, LINEAR), usual)


def _names(config: HFReader) -> Names:
    """The gates of both kinds of attention have one name in folders. Next-token heads have
    latents."""
    heads = config.integer("num_nextn_predict_layers", 0, high=MOST_HEADS)
    slots = {FULL: "attn_gate", LINEAR: "ssm_g_a"}
    rows = config.integer("qk_nope_head_dim", low=1), config.integer("v_head_dim", low=1)
    return {
        **_NAMES,
        "attention.kv_b_proj": Slots(("attn_k_b", "attn_v_b"), head_rows=rows),
        **{
            f"layers.{index}.attention.g_proj": slots[kind]
            for index, kind in enumerate(_types(config) + [FULL] * heads)
        },
    }


FAMILY = Family(
    ("bailingmoe3",),
    (
        HuggingFace(
            "bailing_hybrid",
            "bailingmoe3",
            _values,
            _names,
            changed={"ssm_a": np.exp},
            columns=frozenset(["ssm_a"]),
            defaults=_defaults,
            heads="layers",
            of_heads={"attention.head_count_kv": 1, **dict.fromkeys(LIMITS, 0.0)},
            rope_interleaved=True,
            gguf_interleaved=True,
        ),
    ),
    configure,
    layer,
    rotations=rotations,
    next_layer=next_layer,
)

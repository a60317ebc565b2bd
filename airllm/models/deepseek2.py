"""DeepSeek V2 and V3 (arXiv:2405.04434, arXiv:2412.19437), Kimi K2, GLM-4.7 Flash and Sarvam 105B:
multi-head latent attention, and experts behind a few dense layers, with one or more that all tokens
use. All layers of Youtu-LLM are dense.

All heads' keys and values are linear in one latent of a token, and in the part of its key that
rotates. Only these are kept. A head's product with its keys is computed as a product of the
latents with the query that `attn_k_b` has multiplied, and its values from the weighted sum of the
latents, by `attn_v_b`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from airllm.formats.hf_config import Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import Latent, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.deepseek2_older import renewed
from airllm.models.family import Family
from airllm.models.hf_rope import YARN
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)
from airllm.models.mistral3 import TEMPERATURE, temperature
from airllm.models.rope import Rotation, read_rotation
from airllm.util.metadata import Metadata

LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"  # a tenth of config.json's mscale_all_dim
_PERIOD = "attention.temperature_length"

_OF_EXPERTS = (
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_count"),
    *("expert_gating_func", "expert_weights_scale", "expert_weights_norm"),
    *("expert_group_count", "expert_group_used_count"),
)


def configure(r: ConfigReader) -> ModelConfig:
    r.leave_out_heads()
    latent, rope_dims = latent_of(r)
    length = r.integer("attention.value_length", latent.rank)
    if length != latent.rank:
        raise r.fault("attention.value_length", length, f"expected {latent.rank}, of a latent")
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    normalized = r.architecture == "mistral4"
    c = r.config(
        head_dim=latent.rank + rope_dims,
        scaled_by=scaled_by(r, latent, rope_dims),
        rope_interleaved=True,
        layers=[LayerConfig(has_experts=index >= dense) for index in range(r.n_layers)],
        intermediate_size=r.feed_forward_length(),
        latent=latent,
        attention_temperature=temperature(r),
        **experts_of(r, dense, normalized=normalized),
    )
    if c.n_kv_heads != 1:
        raise r.fault("attention.head_count_kv", c.n_kv_heads, "expected 1")
    return c


def next_layer(c: ModelConfig) -> LayerConfig:
    return LayerConfig(has_experts=c.n_experts > 0)


def latent_of(r: ConfigReader) -> tuple[Latent, int]:
    """And the dimensions of a head that rotate."""
    rope_dims = r.integer("rope.dimension_count", low=2, high=MAX_HEAD_DIM - 1)
    rank = r.integer("attention.kv_lora_rank", low=1, high=MAX_HEAD_DIM - rope_dims)
    whole = r.integer("attention.key_length", rank + rope_dims)
    if whole != rank + rope_dims:
        raise r.fault("attention.key_length", whole, f"expected {rank + rope_dims}, of a latent")
    length = r.integer("attention.key_length_mla", low=rope_dims + 1)
    latent = Latent(
        rank=rank,
        query_rank=r.integer("attention.q_lora_rank", 0),
        unrotated=length - rope_dims,
        value_dim=r.integer("attention.value_length_mla", low=1),
    )
    return latent, rope_dims


def scaled_by(r: ConfigReader, latent: Latent, rope_dims: int) -> float:
    """Scores are divided by the root of it."""
    return (latent.unrotated + rope_dims) / _magnitude(r) ** 4


def experts_of(r: ConfigReader, dense: int, *, normalized: bool = False) -> dict[str, Any]:
    """The fields of ModelConfig for experts behind `dense` layers; none if all are dense.
    normalized: whether shares sum to 1 where the file does not say."""
    if dense == r.n_layers:
        r.ignore(*_OF_EXPERTS)
        return {}
    biased = any(name.endswith(".exp_probs_b.bias") for name in r.file.tensors)
    found = r.experts(gating="sigmoid" if biased else "softmax", normalized=normalized)
    if found["router"].gating == "softmax":  # V2's groups
        found["router"] = replace(found["router"], group_score="max")
    shared = r.integer("expert_shared_count", 0) * found["expert_size"]
    return {**found, "shared_expert_size": shared}


def _magnitude(r: ConfigReader) -> float:
    """What queries, and keys, are multiplied by in a longer context."""
    if r.text("rope.scaling.type", "linear") != "yarn":
        return 1.0
    multiplier = r.number(LOG_MULTIPLIER, 0.0)
    factor = min(max(r.number("rope.scaling.factor", 1.0), 1.0), 1e6)
    magnitude = 1.0 + multiplier * math.log(factor)
    if not 0.0 < magnitude < 100.0:
        raise r.fault(LOG_MULTIPLIER, multiplier, "expected a magnitude between 0 and 100")
    return magnitude


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    rope = read_rotation(r, c)
    if r.number(LOG_MULTIPLIER, 0.0):  # `_magnitude` is for all dimensions
        rope = replace(rope, magnitude=r.positive("rope.scaling.attn_factor", 1.0))
    if not c.attention_temperature:
        return {"rope": rope}
    original = r.integer("rope.scaling.original_context_length", low=1, high=2**24)
    period = r.integer(_PERIOD, original, low=1, high=2**24)
    # One angle of 0 has a query's factor as its cosine.
    growth = Rotation(np.zeros(1), temperature=c.attention_temperature, period=period)
    return {"rope": rope, "growth": growth}


# What a head sees: (graph, config, layer, queries, the layer's input, the compressed queries)
# -> weighted sums of latents. queries: [n, heads * (rank + rope_dims)]; sums: [n, heads * rank]
Attend = Callable[[GraphBuilder, ModelConfig, LayerConfig, Buffer, Buffer, Buffer], Buffer]


def see_all(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer, h_q: Buffer
) -> Buffer:
    assert c.latent is not None
    return g.attention(
        q, c.n_heads, 1, c.head_dim, scale=c.attention_scale, value_dim=c.latent.rank
    )


def layer(
    c: ModelConfig, activations: Activations, layer: LayerConfig, attend: Attend = see_all
) -> Graph:
    return blocks.layer(c, activations, layer, mixer=partial(attention, attend=attend))


def attention(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer, attend: Attend = see_all
) -> Buffer:
    """h: [n, hidden] -> [n, hidden]"""
    m, heads, rope_dims = c.latent, c.n_heads, c.rope_dims
    assert m is not None
    of_latents = replace(c, norm_eps=m.norm_eps or c.norm_eps)

    def rotated(x: Buffer, n_heads: int) -> Buffer:
        if not layer.rotates:
            return x
        table = g.external("rope", rope_dims)  # [n, rope_dims]
        return g.rope(x, table, n_heads, rope_dims, interleaved=c.rope_interleaved, out=x)

    q_width, slot = heads * (m.unrotated + rope_dims), "attn_q"
    if m.query_rank:
        h_q = blocks.linear(g, c, h, "attn_q_a", m.query_rank)
        h_q, slot = blocks.norm(g, of_latents, h_q, "attn_q_a_norm"), "attn_q_b"
    else:
        h_q = h
    q = blocks.linear(g, c, h_q, slot, q_width)  # [n, q_width]
    kv = blocks.linear(g, c, h, "attn_kv_a_mqa", c.head_dim)  # [n, rank + rope_dims]
    latent = g.take_columns(kv, 0, m.rank)  # [n, rank]
    latent = blocks.norm(g, of_latents, latent, "attn_kv_a_norm")
    plain = g.take_head_columns(q, heads, 0, m.unrotated)  # [n, heads * unrotated]
    joined = g.head_linear(plain, g.weight("attn_k_b", heads, m.rank, m.unrotated))
    if rope_dims:
        key = rotated(g.take_columns(kv, m.rank, rope_dims), 1)  # [n, rope_dims]
        latent = g.join_heads(latent, key, 1)
        turning = rotated(g.take_head_columns(q, heads, m.unrotated, rope_dims), heads)
        joined = g.join_heads(joined, turning, heads)  # [n, heads * (rank + rope_dims)]
    g.latent_append(latent, 1, c.head_dim)
    if c.attention_temperature:
        factors = g.take_columns(g.external("growth", 2), 0, 1)  # [n, 1]
        joined = g.scale_rows(joined, factors, out=joined)
    a = attend(g, c, layer, joined, h, h_q)  # [n, heads * rank]
    v = g.head_linear(a, g.weight("attn_v_b", heads, m.value_dim, m.rank))  # [n, heads * value_dim]
    if m.gate:
        of_heads = m.gate == "heads"
        gate = blocks.linear(g, c, h, "attn_gate", heads if of_heads else heads * m.value_dim)
        v = (g.scale_rows if of_heads else g.multiply)(v, g.sigmoid(gate, out=gate), out=v)
    return blocks.linear(g, c, v, "attn_output", c.hidden_size)


# ---- Hugging Face --------------------------------------------------------------------------------


def names(config: HFReader) -> Names:
    rows = config.integer("qk_nope_head_dim", low=1), config.integer("v_head_dim", low=1)
    return {
        **EXPERT_NAMES,
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        **SHARED_EXPERT_NAMES,
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": Slots(("attn_k_b", "attn_v_b"), head_rows=rows),
    }


def latent_sizes(config: HFReader) -> dict[str, object]:
    """What all models with latents have."""
    config.expect("rope_interleave", None, True)
    config.ignore("qk_head_dim", "head_dim")
    rank, rope_dims = config.integer("kv_lora_rank", low=1), config.integer("qk_rope_head_dim")
    values: dict[str, object] = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope_dims,
        "attention.value_length": rank,
        "attention.key_length_mla": config.integer("qk_nope_head_dim") + rope_dims,
        "attention.value_length_mla": config.integer("v_head_dim"),
        "rope.dimension_count": rope_dims,
        **_yarn(config),
    }
    if config.get("q_lora_rank"):
        values["attention.q_lora_rank"] = config.integer("q_lora_rank")
    return values


def latent_values(config: HFReader) -> dict[str, object]:
    """And what those of DeepSeek's kind have."""
    config.expect("partial_rotary_factor", None, 1.0)
    config.expect("moe_layer_freq", None, 1)
    config.ignore("scoring_func", "topk_method")
    return {
        **latent_sizes(config),
        "leading_dense_block_count": config.dense_layers(0),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "expert_weights_norm": config.flag("norm_topk_prob", False),
        "expert_shared_count": config.integer("n_shared_experts", 0),
        **config.experts(),
    }


def _v2(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "softmax")
    config.expect("topk_method", "greedy", "group_limited_greedy", None)
    # DeepSeek's own code normalises in place of scaling, transformers never normalises, and
    # readers of GGUF do both.
    if config.flag("norm_topk_prob", False):
        config.expect("routed_scaling_factor", None, 1.0, 1)
    values = {**latent_values(config), "expert_gating_func": 1}
    groups = config.expert_groups()
    return values | (groups if config.get("topk_method") == "group_limited_greedy" else {})


def values_of_v3(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sigmoid")
    config.expect("topk_method", None, "noaux_tc")
    return {**latent_values(config), **config.expert_groups(), "expert_gating_func": 2}


def _mistral4(config: HFReader) -> dict[str, object]:
    config.expect("n_group", None, 1)
    config.expect("topk_group", None, 1)
    found = config.get("rope_parameters")
    rope = Metadata(config.source, found if isinstance(found, dict) else {})
    beta = rope.number("llama_4_scaling_beta", 0.0)
    values = {**latent_values(config), "expert_gating_func": 1}
    if beta:
        # llama.cpp stops if the second one is missing, which is the usual one here.
        values |= {TEMPERATURE: beta, _PERIOD: rope.integer("original_max_position_embeddings")}
    return values


def _sarvam(config: HFReader) -> dict[str, object]:
    config.ignore("num_shared_experts")  # see _defaults_of_sarvam
    return values_of_v3(config)


def _defaults_of_sarvam(config: Metadata) -> dict[str, object]:
    """Published folders have another name of the number of shared experts."""
    own = {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
    return {**DEFAULTS_OF_V3, **own, "n_shared_experts": config.get("num_shared_experts") or 1}


def _youtu(config: HFReader) -> dict[str, object]:
    """All layers are dense, of whose experts llama.cpp nevertheless wants to know the size."""
    return {
        **latent_sizes(config),
        "leading_dense_block_count": config.integer("num_hidden_layers", low=1, high=2**12),
        "expert_feed_forward_length": config.integer("intermediate_size"),
        "expert_shared_count": 0,
    }


def _yarn(config: HFReader) -> dict[str, object]:
    """GGUF's keys of YaRN's magnitude, where it is one for all dimensions."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    rope = Metadata(config.source, found if isinstance(found, dict) else {})
    if rope.get("rope_type", rope.get("type")) not in YARN or not rope.get("mscale_all_dim"):
        return {}
    scale = rope.number("mscale_all_dim")
    if rope.get("mscale") != scale or rope.get("attention_factor") is not None:
        raise config.fault(f"mscale is {str(rope.get('mscale'))[:40]}; expected {scale}")
    return {LOG_MULTIPLIER: 0.1 * scale, "rope.scaling.attn_factor": 1.0}


DEFAULTS_OF_V3 = {"n_shared_experts": 1, "norm_topk_prob": True, "v_head_dim": 128}
_DEFAULTS_OF_MISTRAL4 = {
    **{"n_shared_experts": 1, "n_routed_experts": 128, "num_experts_per_tok": 4},
    **{"norm_topk_prob": True, "v_head_dim": 128, "moe_intermediate_size": 2048},
}
_HF = partial(
    HuggingFace,
    architecture="deepseek2",
    names=names,
    rope_interleaved=True,
    gguf_interleaved=True,
    heads="layers",
)
_V3 = partial(_HF, values=values_of_v3, defaults=DEFAULTS_OF_V3)

FAMILY = Family(
    ("deepseek2", "mistral4"),
    (
        _HF("deepseek_v2", values=_v2),
        *(_V3(model_type) for model_type in ("deepseek_v3", "kimi_k2", "glm4_moe_lite")),
        _HF("sarvam_mla", values=_sarvam, defaults=_defaults_of_sarvam),
        _HF("youtu", values=_youtu, defaults={"v_head_dim": 128}, tied=True),
        _HF("mistral4", architecture="mistral4", values=_mistral4, defaults=_DEFAULTS_OF_MISTRAL4),
    ),
    configure,
    layer,
    rotations=rotations,
    renewed=renewed,
    next_layer=next_layer,
)

"""GLM-5.3 Flash: Kimi Delta Attention (see kimi_linear) in three of four layers, latents without
rotation in the fourth. Tokens have the residual streams of DeepSeek V4, whose mean is what the
logits are made of.

An index selects groups of positions. Each group has one key, a mean of its positions' keys with
shares of their own; a token sees the selected groups, and its own while that is not complete.
"""

from dataclasses import replace

import numpy as np

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.sparse import MOST_IN_GROUP
from airllm.graph.ops.streams import MOST_STREAMS
from airllm.models import blocks, deepseek2, deepseek4, deepseek32, glm_dsa, kimi_linear
from airllm.models.config import HyperConnections, Indexer, Latent, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED
from airllm.models.qwen35 import LINEAR
from airllm.util.metadata import Metadata

_INDEXED = "indexed_attention", "full_attention"  # of layer_types


def configure(r: ConfigReader) -> ModelConfig:
    kv_heads = kimi_linear.latent_heads(r)  # of next-token heads, too
    r.leave_out_heads()
    if rope_dims := r.integer("rope.dimension_count", 0):
        raise r.fault("rope.dimension_count", rope_dims, "expected 0: nothing rotates")
    r.ignore_rope()
    latent = _latent(r)
    limit = deepseek4.limit_of_all_experts(r)
    selects = r.flags("attention.indexer.types", r.n_layers) or [True] * r.n_layers
    selects = [own or not heads for own, heads in zip(selects, kv_heads, strict=False)]
    with_index = [own for own, heads in zip(selects, kv_heads, strict=False) if heads]
    if not all(with_index[:1]):
        raise r.metadata.fault(
            f"{r.key('attention.indexer.types')}: the first layer selects no positions"
        )
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    return r.config(
        head_dim=latent.rank,
        rope_dims=0,
        scaled_by=latent.unrotated,
        kv_heads=kv_heads[: r.n_layers],
        layers=[
            LayerConfig(
                rotates=False,
                has_experts=index >= dense,
                mixer="attention" if kv_heads[index] else "delta_net",
                selects=selects[index],
            )
            for index in range(r.n_layers)
        ],
        intermediate_size=r.feed_forward_length(),
        latent=latent,
        indexer=replace(_indexer(r), shared=not all(with_index)),
        delta_net=replace(kimi_linear.delta_net_of(r), decay_bound=kimi_linear.decay_bound(r)),
        n_streams=r.integer("hyper_connection.count", low=1, high=MOST_STREAMS),
        hyper=HyperConnections(
            r.integer("hyper_connection.sinkhorn_iterations", low=1, high=1000),
            deepseek4.hyper_eps(r),
        ),
        gate_limit=limit,
        gate_alpha=1.0,
        up_shift=0.0,
        **deepseek2.experts_of(r, dense),
    )


def _latent(r: ConfigReader) -> Latent:
    rank = r.integer("attention.kv_lora_rank", low=1, high=MAX_HEAD_DIM)
    for name in ("attention.key_length", "attention.value_length"):
        if (length := r.integer(name, rank)) != rank:
            raise r.fault(name, length, f"expected {rank}, of a latent")
    return Latent(
        rank=rank,
        query_rank=r.integer("attention.q_lora_rank", low=1),
        unrotated=r.integer("attention.key_length_mla", low=1),
        value_dim=r.integer("attention.value_length_mla", low=1),
    )


def _indexer(r: ConfigReader) -> Indexer:
    r.require_true("attention.indexer.kpool_select_tail")
    pool = r.integer("attention.indexer.kpool", low=2, high=MOST_IN_GROUP)
    n_positions = r.integer("attention.indexer.top_k", low=pool, high=deepseek32.MOST_TOP_K)
    if n_positions % pool:
        raise r.fault("attention.indexer.top_k", n_positions, f"expected a multiple of {pool}")
    return Indexer(
        n_heads=r.integer("attention.indexer.head_count", low=1, high=2**10),
        head_dim=r.integer("attention.indexer.key_length", low=1, high=MAX_HEAD_DIM),
        norm_eps=r.positive("attention.layer_norm_epsilon", 1e-6),
        n_selected=n_positions // pool,
        interleaved=False,
        pool=pool,
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = kimi_linear.kda if layer.mixer == "delta_net" else _attention
    return deepseek4.hyper_layer(c, activations, layer, mixer, blocks.dense_or_experts)


def head(c: ModelConfig, activations: Activations) -> Graph:
    """The mean of the streams to logits."""
    g = GraphBuilder("head", activations=activations)
    n = c.n_streams
    streams = g.external("residual", n * c.hidden_size)
    shares = g.clamp(g.take_columns(streams, 0, n), 1.0 / n, 1.0 / n)  # [n, n_streams]
    blocks.output_logits(g, c, g.mix_streams(streams, shares, n))
    return g.build()


def _attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return deepseek2.attention(g, c, layer, h, attend=_attend)


def _attend(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer, h_q: Buffer
) -> Buffer:
    """In place of deepseek2.see_all."""
    assert c.latent is not None
    assert c.indexer is not None
    return g.block_attention(
        q,
        _selection(g, c, layer, h, h_q),
        c.n_heads,
        1,
        c.head_dim,
        scale=c.attention_scale,
        block_size=c.indexer.pool,
        n_choices=1,
        value_dim=c.latent.rank,
    )


def _selection(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer, h_q: Buffer
) -> Buffer:
    """The groups that each token sees: [n, n_selected + 1]. h: [n, hidden], h_q: [n, query_rank]"""
    x = c.indexer
    assert x is not None
    n_groups = x.n_selected + 1
    carried = g.external("selection", n_groups) if x.shared else None
    if carried is not None and not layer.selects:
        return carried
    q = blocks.linear(g, c, h_q, "indexer.attn_q_b", x.n_heads * x.head_dim)
    k = deepseek32.index_key(g, c, x, h)
    gate = blocks.linear(g, c, h, "indexer_compressor_gate", x.head_dim)
    shares = g.weight("indexer_compressor_ape", x.pool, x.head_dim)
    g.index_append(g.pool_groups(k, gate, shares, of_index=True), every=x.pool)
    weights = blocks.linear(g, c, h, "indexer.proj", x.n_heads)  # [n, n_heads]
    selected = g.index_select(q, weights, x.n_heads, x.n_selected, every=x.pool)
    # A choice of one group tells the token's own group behind it, while that is not complete.
    one = g.choose_blocks(g.take_columns(q, 0, x.head_dim), 1, x.pool, 1, pooled=True)  # [n, 2]
    groups = g.join_heads(selected, g.take_columns(one, 1, 1), 1)
    return groups if carried is None else g.take_columns(groups, 0, n_groups, out=carried)


# ---- Hugging Face --------------------------------------------------------------------------------

# transformers' names of the keys of linear_attn_config, in which its authors have them.
_LINEAR = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
    "linear_lower_bound": "gate_lower_bound",
}


def _values(config: HFReader) -> dict[str, object]:
    config.expect("qk_rope_head_dim", None, 0)
    config.expect("n_group", None, 1)
    config.expect("topk_group", None, 1)
    config.expect("mla_use_nope", None, True)
    config.expect("mhc", None, True)
    config.expect("index_kpool_always_select_tail", None, True)
    config.ignore("scoring_func", "topk_method", "moe_layer_freq", "indexer_rope_interleave")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    kinds = _kinds(config, n_layers)
    linear, n_heads = _linear_attention(config), config.integer("num_attention_heads")
    if (found := linear.integer("linear_num_heads")) != n_heads:
        raise config.fault(
            f"linear attention has {found} heads; expected num_attention_heads, {n_heads}"
        )
    limit = config.number("swiglu_limit")
    if not 0.0 <= limit < 1e6:
        raise config.fault(f"swiglu_limit is {limit}; expected 0 to below 1000000")
    limits = np.full(n_layers, limit, np.float32)
    return {
        **deepseek2.latent_sizes(config),
        **config.experts(),
        "attention.head_count_kv": np.array([kind != LINEAR for kind in kinds], np.int32),
        "leading_dense_block_count": config.dense_layers(min(3, n_layers)),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": config.integer("n_shared_experts"),
        "swiglu_clamp_exp": limits,
        "swiglu_clamp_shexp": limits,
        "ssm.conv_kernel": linear.integer("linear_conv_kernel_dim"),
        "kda.head_dim": linear.integer("linear_head_dim"),
        "kda.gate_lower_bound": linear.number("linear_lower_bound"),
        "hyper_connection.count": config.integer("hc_mult", low=1),
        "hyper_connection.epsilon": config.number("hc_eps"),
        "hyper_connection.sinkhorn_iterations": config.integer("hc_sinkhorn_iters", low=1),
        "attention.indexer.head_count": config.integer("index_n_heads", low=1),
        "attention.indexer.key_length": config.integer("index_head_dim", low=1),
        "attention.indexer.top_k": config.integer("index_topk", low=1),
        "attention.indexer.kpool": config.integer("index_kpool", low=1),
        "attention.indexer.kpool_select_tail": True,
        "attention.indexer.types": np.array(_selecting(config, n_layers), bool),
    }


def _kinds(config: HFReader, n_layers: int) -> list[str]:
    """Of each layer: which attention it has. Without a list, one of four has latents."""
    usual = [LINEAR if index % 4 != 3 else _INDEXED[0] for index in range(n_layers)]
    return config.layer_kinds((LINEAR, *_INDEXED), usual)


def _selecting(config: HFReader, n_layers: int) -> list[bool]:
    """Of each layer, whether it selects positions."""
    config.expect("index_topk_pattern", None)
    config.expect("index_topk_freq", None, 1)
    config.ignore("index_skip_topk_offset")
    if "indexer_types" not in config:
        return [True] * n_layers
    return glm_dsa.selecting(config, "indexer_types", n_layers)


def _linear_attention(config: HFReader) -> Metadata:
    """Its sizes, by transformers' names."""
    sizes = {name: config[name] for name in _LINEAR}
    said = config.get("linear_attn_config", {})
    if not isinstance(said, dict) or said.get("safe_gate", True) is not True:
        raise config.fault("linear_attn_config is no object, or has no safe_gate")
    sizes |= {name: said[key] for name, key in _LINEAR.items() if said.get(key) is not None}
    return Metadata(config.source, sizes)


def _names(config: HFReader) -> Names:
    return {
        **deepseek32.names(config),
        **kimi_linear.MIXER_NAMES,
        "self_attn.indexer.index_kpool_compress_ape": "indexer_compressor_ape",
        "self_attn.indexer.index_kpool_compress_gate": "indexer_compressor_gate",
        **{
            f"hc_{half}_{part}": f"hc_{half}_{part}"
            for half in ("attn", "ffn")
            for part in ("fn", "base", "scale")
        },
    }


FAMILY = Family(
    ("glm5-next",),
    (
        HuggingFace(
            "glm5_next_text",
            "glm5-next",
            _values,
            _names,
            changed=CHANGED,
            defaults={
                **{"n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": True},
                **{"routed_scaling_factor": 2.5, "swiglu_limit": 10.0, "v_head_dim": 256},
                **{"hc_mult": 4, "hc_eps": 1e-6, "hc_sinkhorn_iters": 20, "index_kpool": 16},
                **{"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048},
                **{"linear_head_dim": 128, "linear_num_heads": 64, "linear_conv_kernel_dim": 4},
                **{"linear_lower_bound": -5.0, "qk_rope_head_dim": 0},
            },
            pictures="glm5_next",
            full_head_dim=lambda config: config.integer("qk_nope_head_dim", low=1),
        ),
    ),
    configure,
    layer,
    deepseek4.embed,
    head,
)

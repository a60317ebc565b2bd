"""Hy4 (Tencent): as GLM-5, latent attention to the positions that an index selects, with sinks and
a gate for each value. A token has several residual streams, as in DeepSeek V4, but nothing mixes
them: each half of a layer reads a sum of them, and adds its output to each.

All rotations take pairs of neighbours, as in llama.cpp, and in transformers' class of the models
that see pictures. transformers' class of models without pictures rotates halves.
"""

from dataclasses import replace

import numpy as np

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.streams import MOST_STREAMS
from airllm.models import blocks, deepseek2, deepseek4, deepseek32, glm_dsa
from airllm.models.config import HyperConnections, LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    """Models may have no index."""
    r.ignore("rope.dimension_sections")  # see qwen2
    selects = r.has("attention.indexer.top_k")
    c = glm_dsa.configure(r) if selects else deepseek2.configure(r)
    indexer, latent = c.indexer, c.latent
    assert latent is not None
    if indexer is not None:
        indexer = replace(indexer, rotates_last=True, norm_eps=c.norm_eps)
    # Iterations are of what mixes the streams.
    magnitude = r.positive("hyper_connection.magnitude", 2.0)
    return replace(
        c,
        latent=replace(latent, gate="values"),
        indexer=indexer,
        n_streams=r.integer("hyper_connection.count", low=1, high=MOST_STREAMS),
        hyper=HyperConnections(1, deepseek4.hyper_eps(r), magnitude),
        gate_limit=deepseek4.expert_limit(r),
        gate_alpha=1.0,
        up_shift=0.0,
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    for half, part in (("attn", _attention), ("ffn", _feed_forward)):
        into, back = _factors(g, c, streams, f"hc_{half}")
        x = g.mix_streams(streams, into, c.n_streams)  # [n, hidden]
        y = part(g, c, layer, blocks.norm(g, c, x, f"{half}_norm", out=x))  # [n, hidden]
        g.add(streams, g.mix_streams(y, back, 1), out=streams)
    return g.build()


def _factors(g: GraphBuilder, c: ModelConfig, streams: Buffer, slot: str) -> tuple[Buffer, Buffer]:
    """Of the streams' sum, sigmoid(a) + eps, and of what is added to each, magnitude * sigmoid(b) +
    eps; a and b: scale * x + base, with a scale for each of both: [n, n_streams], twice."""
    assert c.hyper is not None
    n = c.n_streams
    x = g.head_norm(streams, None, 1, c.norm_eps)  # [n, n_streams * hidden]
    x = g.linear(x, g.weight(f"{slot}_fn", 2 * n, streams.width))  # [n, 2 * n_streams]
    x = blocks.scaled_parts(g, x, g.weight(f"{slot}_scale", 2), 2)
    x = g.bias(x, g.weight(f"{slot}_base", 2 * n), out=x)
    x = g.sigmoid(x, out=x)
    eps = g.clamp(g.take_columns(x, 0, n), c.hyper.eps, c.hyper.eps)  # [n, n_streams]
    back = g.take_columns(x, n, n)
    back = g.scale(back, c.hyper.magnitude, out=back)
    return g.add(g.take_columns(x, 0, n), eps), g.add(back, eps, out=back)


def _attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return deepseek2.attention(g, c, layer, h, attend=_attend)


def _attend(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer, h_q: Buffer
) -> Buffer:
    """In place of deepseek2.see_all."""
    assert c.latent is not None
    sinks, scale, rank = g.weight("attn_sinks", c.n_heads), c.attention_scale, c.latent.rank
    if c.indexer is None:
        return g.attention(q, c.n_heads, 1, c.head_dim, scale=scale, value_dim=rank, sinks=sinks)
    selection = deepseek32.selection(g, c, layer, h, h_q)
    return g.sparse_attention(
        q, selection, c.n_heads, 1, c.head_dim, scale=scale, value_dim=rank, sinks=sinks
    )


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """Only experts that a router chooses have the limit."""
    unlimited = replace(c, gate_limit=0.0)
    if not layer.has_experts:
        return blocks.glu_mlp(g, unlimited, h)
    y = blocks.experts(g, c, h)
    return g.add(y, blocks.shared_expert(g, unlimited, h), out=y)


# ---- Hugging Face --------------------------------------------------------------------------------

_INDEXED = ("indexed_attention", "sparse_attention", "deepseek_sparse_attention")
_NUMBERS = "fn", "base", "scale"


def _values(config: HFReader) -> dict[str, object]:
    config.expect("n_group", None, 1)
    config.expect("topk_group", None, 1)
    config.ignore("learnable_sink_init", "enable_lm_head_fp32")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    limit = config.number("swiglu_limit", 0.0)
    if limit and not 1e-3 <= limit < 1e6:
        raise config.fault(f"swiglu_limit is {limit}; expected 0.001 to 1000000, or 0 for none")
    limits = np.full(n_layers, limit, np.float32) if limit > 0.0 else None
    return {
        **deepseek2.latent_sizes(config),
        **config.experts(),
        "leading_dense_block_count": config.dense_layers(1),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": config.integer("n_shared_experts"),
        "swiglu_clamp_exp": limits,
        "hyper_connection.count": config.integer("hc_mult", low=1),
        "hyper_connection.epsilon": config.number("hc_eps"),
        "hyper_connection.magnitude": config.number("hc_magnitude"),
        "attention.indexer.head_count": config.integer("index_n_heads", low=1),
        "attention.indexer.key_length": config.integer("index_head_dim", low=1),
        "attention.indexer.top_k": config.integer("index_topk", low=1),
        "attention.indexer.types": np.array(_selecting(config, n_layers), bool),
    }


def _selecting(config: HFReader, n_layers: int) -> list[bool]:
    """Of each layer, whether it selects positions; without a list, the first, and one of four."""
    config.layer_kinds(_INDEXED, ())
    if "indexer_types" not in config:
        return [index == 0 or index % 4 == 1 for index in range(n_layers)]
    return glm_dsa.selecting(config, "indexer_types", n_layers)


def _names(config: HFReader) -> Names:
    return {
        **deepseek32.names(config),
        "self_attn.linear_gate": "attn_gate",
        "self_attn.learnable_sink_param": "attn_sinks",
        **{
            f"hc_{layer}_layer.hc_pre.hc_{part}": f"hc_{half}_{part}"
            for half, layer in (("attn", "attn"), ("ffn", "mlp"))
            for part in _NUMBERS
        },
        **{f"hc_head.hc_head_{part}": f"output_hc_{part}" for part in _NUMBERS},
    }


FAMILY = Family(
    ("hy_v4",),
    tuple(
        HuggingFace(
            model_type,
            "hy_v4",
            _values,
            _names,
            defaults={
                **{"n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": True},
                **{"routed_scaling_factor": 2.827, "swiglu_limit": 10.0, "index_topk": 2048},
                **{"hc_mult": 4, "hc_eps": 1e-6, "hc_magnitude": 2.0, "v_head_dim": 256},
                **{"index_head_dim": 128, "index_n_heads": index_heads},
            },
            pictures=pictures,
            rope_interleaved=True,
            gguf_interleaved=True,
        )
        for model_type, pictures, index_heads in (
            ("hy_v4", "", 16),
            ("hy_v4_vl_text", "hy_v4_vl", 32),
        )
    ),
    configure,
    layer,
    deepseek4.embed,
    deepseek4.head,
    rotations=deepseek2.rotations,
)

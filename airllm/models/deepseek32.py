"""DeepSeek V3.2 (arXiv:2512.02556): V3, whose tokens see only the positions that an index selects.

The index has a key for each position, and a token a few queries. The Hadamard rotation that
DeepSeek's own code gives both changes no product of theirs, and the scale of the scores no
selection, so neither is here.
"""

from dataclasses import replace
from functools import partial

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks, deepseek2
from airllm.models.config import Indexer, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

# Of positions that a token selects: four times as many as known models. The kernels take more
# (MOST_SELECTED of the graph), but a batch of 512 tokens then needs more than these 16 MB.
MOST_TOP_K = 2**13


def configure(r: ConfigReader, *, interleaved: bool = False) -> ModelConfig:
    c = deepseek2.configure(r)
    if c.latent is None or not c.latent.query_rank:
        raise r.fault("attention.q_lora_rank", 0, "expected at least 1: the index needs it")
    indexer = Indexer(
        n_heads=r.integer("attention.indexer.head_count", low=1, high=2**10),
        head_dim=r.integer("attention.indexer.key_length", low=c.rope_dims, high=MAX_HEAD_DIM),
        n_selected=r.integer("attention.indexer.top_k", low=1, high=MOST_TOP_K),
        interleaved=interleaved,
    )
    return replace(c, indexer=indexer)


def see_selected(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer, h_q: Buffer
) -> Buffer:
    """In place of deepseek2.see_all."""
    assert c.latent is not None
    return g.sparse_attention(
        q,
        selection(g, c, layer, h, h_q),
        c.n_heads,
        1,
        c.head_dim,
        scale=c.attention_scale,
        value_dim=c.latent.rank,
    )


def selection(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer, h_q: Buffer
) -> Buffer:
    """The positions that each token sees: [n, n_selected]. h: [n, hidden], h_q: [n, query_rank]"""
    x = c.indexer
    assert x is not None
    carried = g.external("selection", x.n_selected) if x.shared else None
    if carried is not None and not layer.selects:
        return carried
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]

    offset = x.head_dim - c.rope_dims if x.rotates_last else 0

    def rotated(y: Buffer, n_heads: int) -> Buffer:
        pairs = x.interleaved
        return g.rope(y, table, n_heads, x.head_dim, interleaved=pairs, offset=offset, out=y)

    q = rotated(blocks.linear(g, c, h_q, "indexer.attn_q_b", x.n_heads * x.head_dim), x.n_heads)
    k = index_key(g, c, x, h)
    g.index_append(rotated(k, 1))
    weights = blocks.linear(g, c, h, "indexer.proj", x.n_heads)  # [n, n_heads]
    return g.index_select(q, weights, x.n_heads, x.n_selected, out=carried)


def index_key(g: GraphBuilder, c: ModelConfig, x: Indexer, h: Buffer) -> Buffer:
    """A token's key of the index, before it rotates: [n, head_dim]"""
    k = blocks.linear(g, c, h, "indexer.attn_k", x.head_dim)
    k = g.layer_norm(k, g.weight("indexer.k_norm", x.head_dim), x.norm_eps, out=k)
    return g.bias(k, g.weight("indexer.k_norm.bias", x.head_dim), out=k)


layer = partial(deepseek2.layer, attend=see_selected)


# ---- Hugging Face --------------------------------------------------------------------------------


def names(config: HFReader) -> Names:
    return {
        **deepseek2.names(config),
        "self_attn.indexer.wq_b": "indexer.attn_q_b",
        "self_attn.indexer.wk": "indexer.attn_k",
        "self_attn.indexer.k_norm": "indexer.k_norm",
        "self_attn.indexer.weights_proj": "indexer.proj",
    }


def values(config: HFReader) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    kind = "indexed_attention"
    if config.get("layer_types") is not None and config.texts("layer_types") != [kind] * n_layers:
        raise config.fault(
            f"layer_types does not say of each of {n_layers} layers that it is {kind!r}"
        )
    return {
        **deepseek2.values_of_v3(config),
        "attention.indexer.head_count": config.integer("index_n_heads", low=1),
        "attention.indexer.key_length": config.integer("index_head_dim", low=1),
        "attention.indexer.top_k": config.integer("index_topk", low=1),
    }


DEFAULTS = {**deepseek2.DEFAULTS_OF_V3, "index_head_dim": 128, "index_topk": 2048}

FAMILY = Family(
    ("deepseek32",),
    (
        HuggingFace(
            "deepseek_v32",
            architecture="deepseek32",
            values=values,
            names=names,
            defaults={**DEFAULTS, "index_n_heads": 64},
            rope_interleaved=True,
            gguf_interleaved=True,
            heads="layers",
        ),
    ),
    configure,
    layer,
    rotations=deepseek2.rotations,
    next_layer=deepseek2.next_layer,
)

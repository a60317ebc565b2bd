"""MiniMax M3 (text): in most layers each head of keys has a query of its own that chooses the
blocks of positions that a token sees, 16 blocks of 128. Dense layers come before the experts, which
a sigmoid with a bias chooses beside a shared one. The activation is gpt-oss's, half of each head
rotates.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_config import Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.sparse import MOST_IN_GROUP, MOST_SELECTED
from airllm.models import blocks
from airllm.models.config import BlockIndexer, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.family import Family
from airllm.models.gpt_oss import GATE_LIMIT
from airllm.models.hugging_face import FULL, SPARSE_NAMES, HFReader, HuggingFace

_HEADS, _KEYS, _CHOSEN, _BLOCK, _LOCAL, _TYPES = (
    f"attention.indexer.{name}"
    for name in ("head_count", "key_length", "top_k", "block_size", "local_blocks", "types")
)
# config.json's names of these, and the names in its sparse_attention_config.
_SPARSE = {
    _HEADS: ("index_n_heads", "sparse_num_index_heads"),
    _KEYS: ("index_head_dim", "sparse_index_dim"),
    _CHOSEN: ("index_topk_blocks", "sparse_topk_blocks"),
    _BLOCK: ("index_block_size", "sparse_block_size"),
    _LOCAL: ("index_local_blocks", "sparse_local_block"),
}
_INDEX = ("q_proj", "k_proj", "q_norm", "k_norm")

NAMES: Names = {
    **SPARSE_NAMES,
    "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
    **{
        f"block_sparse_moe.shared_experts.{part}_proj": f"ffn_{part}_shexp"
        for part in ("gate", "up", "down")
    },
    **{f"self_attn.index_{name}": f"indexer.{name}" for name in _INDEX},
}


def configure(r: ConfigReader) -> ModelConfig:
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid")
    chooses = r.flags(_TYPES, r.n_layers) or [index >= dense for index in range(r.n_layers)]
    c = r.config(
        layers=[
            LayerConfig(has_experts=index >= dense, chooses=chooses[index])
            for index in range(r.n_layers)
        ],
        gate_limit=GATE_LIMIT,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", low=1) * mixture["expert_size"],
        **mixture,
    )
    if not any(chooses):
        r.ignore(_HEADS, _KEYS, _CHOSEN, _BLOCK, _LOCAL)
        return c
    return replace(c, block_indexer=_indexer(r, c))


def _indexer(r: ConfigReader, c: ModelConfig) -> BlockIndexer:
    """FormatError unless each head of keys chooses by one of the index's heads."""
    n_heads = r.integer(_HEADS, low=1)
    if n_heads != c.n_kv_heads:
        raise r.fault(_HEADS, n_heads, f"expected {c.n_kv_heads}, the heads of keys")
    block_size = r.integer(_BLOCK, low=1, high=MOST_IN_GROUP)
    n_chosen = r.integer(_CHOSEN, low=1, high=MOST_SELECTED // block_size)
    return BlockIndexer(
        n_heads=n_heads,
        head_dim=r.integer(_KEYS, low=c.rope_dims, high=MAX_HEAD_DIM),
        block_size=block_size,
        n_chosen=n_chosen,
        n_local=r.integer(_LOCAL, 0, high=n_chosen),
    )


# ---- the graphs ----------------------------------------------------------------------------------


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    attend = _see_chosen if layer.chooses else None
    return blocks.layer(c, activations, layer, normed="heads", attend=attend)


def _see_chosen(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer
) -> Buffer:
    """Attention to the blocks that the index's heads choose. q: [n, q_width], h: [n, hidden]"""
    x = c.block_indexer
    assert x is not None

    def projected(name: str, n_heads: int) -> Buffer:  # normalised and rotated
        y = blocks.linear(g, c, h, f"indexer.{name}_proj", n_heads * x.head_dim)
        y = g.head_norm(y, g.weight(f"indexer.{name}_norm", x.head_dim), n_heads, c.norm_eps, out=y)
        return g.rope(
            y, g.external("rope", c.rope_dims), n_heads, x.head_dim, interleaved=False, out=y
        )

    g.index_append(projected("k", 1))
    index_q = projected("q", x.n_heads)
    chosen = g.choose_blocks(index_q, x.n_heads, x.block_size, x.n_chosen, n_local=x.n_local)
    return g.block_attention(
        q,
        chosen,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        scale=c.attention_scale,
        block_size=x.block_size,
        n_choices=x.n_heads,
    )


# ---- folders -------------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("swiglu_limit", None, GATE_LIMIT)
    config.expect("swiglu_alpha", None, 1.702)
    config.expect("scoring_func", None, "sigmoid")
    config.expect("use_qk_norm", None, True)
    config.expect("qk_norm_type", None, "per_head")
    config.expect("use_gemma_norm", None, True)
    config.expect("use_routing_bias", None, True)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    size = config.integer("intermediate_size", low=1)
    shared = config.integer("shared_intermediate_size", size)
    if not shared or shared % size:
        raise config.fault(f"shared_intermediate_size is {shared}; expected a multiple of {size}")
    config.expect("n_shared_experts", None, shared // size)
    sparse = config.get("sparse_attention_config")
    inner = HFReader(config.source, sparse if isinstance(sparse, dict) else {})
    dense = _dense_layers(config, n_layers)
    chooses = _choosing(config, inner, n_layers)
    usual = np.arange(n_layers) >= dense
    return {
        **({} if (chooses == usual).all() else {_TYPES: chooses}),
        **config.experts(size="intermediate_size"),
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_shared_count": shared // size,
        "leading_dense_block_count": dense,
        "feed_forward_length": config.integer("dense_intermediate_size"),
        "rope.dimension_count": config.integer("rotary_dim"),
        **{
            key: inner.integer(older, config.integer(newer))
            for key, (newer, older) in _SPARSE.items()
        },
    }


def _choosing(config: HFReader, inner: HFReader, n_layers: int) -> NDArray[np.bool_]:
    """For each layer: whether it chooses blocks. inner: of sparse_attention_config."""
    if "layer_types" in config:
        types, said = config.texts("layer_types"), "layer_types"
        words = {FULL: False, "minimax_m3_sparse": True}
        found = [words.get(each) for each in types]
    elif "sparse_attention_freq" in inner:
        said = "sparse_attention_freq"
        listed = inner.get(said)
        found = [
            bool(each) if type(each) in (int, bool) and each in (0, 1) else None
            for each in (listed if isinstance(listed, list) else [])
        ]
    else:
        return np.zeros(n_layers, bool)
    if len(found) != n_layers or None in found:
        raise config.fault(
            f"{said} does not say of each of {n_layers} layers whether it chooses blocks"
        )
    return np.array(found, bool)


def _dense_layers(config: HFReader, n_layers: int) -> int:
    """How many layers without experts come first. FormatError if others have none."""
    frequencies = config.get("moe_layer_freq", [1] * n_layers)
    kinds = config.get(
        "mlp_layer_types",
        ["sparse" if each else "dense" for each in frequencies]
        if isinstance(frequencies, list)
        else None,
    )
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * dense + ["sparse"] * (n_layers - dense):
        raise config.fault(
            f"mlp_layer_types, or moe_layer_freq, is no list of {n_layers} dense, then sparse "
            "layers"
        )
    return dense


FAMILY = Family(
    ("minimax-m3",),
    (
        HuggingFace(
            "minimax_m3_vl_text",
            "minimax-m3",
            _values,
            NAMES,
            activation=("silu", "swigluoai"),  # both stand for the latter
            pictures="minimax_m3_vl",
            plus_one=True,
            defaults={
                **{"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128},
                **{"vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 3072},
                **{"num_hidden_layers": 60, "max_position_embeddings": 524288},
                **{"rms_norm_eps": 1e-6, "rope_theta": 5e6, "num_experts_per_tok": 4},
                **{"num_local_experts": 128, "dense_intermediate_size": 12288},
                **{"shared_intermediate_size": 3072, "routed_scaling_factor": 2.0},
                **{"rotary_dim": 64, "index_n_heads": 4, "index_head_dim": 128},
                **{"index_block_size": 128, "index_topk_blocks": 16, "index_local_blocks": 1},
            },
        ),
    ),
    configure,
    layer,
)

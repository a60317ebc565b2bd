"""Qwen3.8-Flash-Next: Qwen3.5 with experts, in which a token has several residual streams (hyper-
connections, arXiv:2409.19606), attention chooses blocks of positions, and one layer adds rows of a
table that n-grams choose.

A gate of low rank mixes the streams into what a half of a layer sees, and what it gives is added to
each stream, times a factor. The key of a block of positions is the mean of its positions'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_config import HEADS_TILED, Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.sparse import MOST_IN_GROUP, MOST_SELECTED
from airllm.models import blocks, qwen35
from airllm.models.config import BlockIndexer, LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, MAX_TAPS, MAX_WIDTH, ConfigReader
from airllm.models.delta_net import delta_net, delta_net_of, recurrent_layers
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import FULL, HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED
from airllm.models.ngrams import CONSTANTS, TABLE, ngram_values, read_ngrams
from airllm.models.rope import Rotation, read_rotation

_STREAMS, _RANK = "hyper_connection.count", "hyper_connection.low_rank"
_INDEX = "attention.indexer."
_RATIOS = "attention.compress_ratios"  # of each layer: the positions of a block
_MOST_STREAMS = 16
_LEAST_GATE = 1e-6  # of what a gate's root is taken

_INDEXED = "indexed_attention"  # of layer_types, which published folders call full attention


# ---- the configuration ---------------------------------------------------------------------------


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")  # see qwen2
    recurrent = recurrent_layers(r)
    ngrams = read_ngrams(r)
    if ngrams is not None and not recurrent[ngrams[0]]:
        raise r.metadata.fault(
            f"{r.key('ple.layers')} has {ngrams[0]}; expected a layer of linear attention"
        )
    mixture = r.experts()
    # Files of a converter that did not know the layers' type have 0 for all: llama.cpp then sees
    # all positions, too.
    ratios = r.of_layers(_RATIOS, high=MOST_IN_GROUP)
    chooses = [ratio > 0 and not linear for ratio, linear in zip(ratios, recurrent, strict=True)]
    c = r.config(
        layers=[
            LayerConfig(
                rotates=not linear,
                has_experts=True,
                mixer="delta_net" if linear else "attention",
                chooses=chooses[index],
                has_ngrams=ngrams is not None and index == ngrams[0],
            )
            for index, linear in enumerate(recurrent)
        ],
        delta_net=replace(delta_net_of(r, tiled=True), gate="sigmoid"),
        ngrams=ngrams[1] if ngrams else None,
        ngram_taps=r.integer("ple.conv_kernel", low=1, high=MAX_TAPS) if ngrams else 0,
        n_streams=r.integer(_STREAMS, low=2, high=_MOST_STREAMS),
        stream_rank=r.integer(_RANK, low=1),
        shared_expert_gated=True,
        shared_expert_size=r.integer("expert_shared_feed_forward_length", low=1),
        idle_tensors=_idle_tensors(ngrams is not None, recurrent, chooses),
        **mixture,
    )
    if c.hidden_size * c.n_streams > MAX_WIDTH:
        raise r.fault(_STREAMS, c.n_streams, f"expected at most {MAX_WIDTH // c.hidden_size}")
    sizes = {ratio for ratio, own in zip(ratios, chooses, strict=True) if own}
    r.require_alike(_RATIOS, sorted(sizes))
    return replace(c, block_indexer=_indexer(r, c, max(sizes, default=0)))


def _idle_tensors(
    ngrams: bool, recurrent: Sequence[bool], chooses: Sequence[bool]
) -> frozenset[str]:
    """The table of n-grams, whose rows the engine looks up, and an index that is not used."""
    dense = [i for i, linear in enumerate(recurrent) if not (linear or chooses[i])]
    parts = "q_proj", "k_proj", "q_norm", "k_norm"
    unused = {f"blk.{index}.indexer.{part}.weight" for index in dense for part in parts}
    return frozenset(unused | ({TABLE} if ngrams else set()))


def _indexer(r: ConfigReader, c: ModelConfig, block_size: int) -> BlockIndexer | None:
    """None if no layer chooses blocks."""
    if not block_size:
        r.ignore(*(f"{_INDEX}{name}" for name in ("head_count", "key_length", "top_k")))
        return None
    budget = r.integer(f"{_INDEX}top_k", low=block_size, high=MOST_SELECTED - block_size)
    if budget % block_size:
        wanted = f"expected a multiple of {block_size}, the positions of a block"
        raise r.fault(f"{_INDEX}top_k", budget, wanted)
    return BlockIndexer(
        n_heads=r.integer(f"{_INDEX}head_count", low=1, high=2**10),
        head_dim=r.integer(f"{_INDEX}key_length", low=c.rope_dims, high=MAX_HEAD_DIM),
        block_size=block_size,
        n_chosen=budget // block_size,
        pooled=True,
    )


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> Mapping[str, Rotation]:
    """Also of the first position of each block, by which the block's key is rotated."""
    if not layer.rotates:
        return {}
    rotation = read_rotation(r, c)
    if not layer.chooses or c.block_indexer is None:
        return {"rope": rotation}
    return {"rope": rotation, "rope_of_block": replace(rotation, step=c.block_indexer.block_size)}


# ---- the graphs ----------------------------------------------------------------------------------


def embed(c: ModelConfig, activations: Activations) -> Graph:
    """Token ids to the streams, which are all the token's embedding."""
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    x = g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size))
    for stream in range(c.n_streams):
        g.put_columns(x, stream * c.hidden_size, out=streams)
    return g.build()


def head(c: ModelConfig, activations: Activations) -> Graph:
    """The mixed streams, which need no further norm, to logits."""
    g = GraphBuilder("head", activations=activations)
    streams = g.external("residual", c.n_streams * c.hidden_size)
    mixed, _ = _mix(g, c, streams, "output_hc")
    output = "token_embd" if c.tied_embeddings else "output"
    logits = g.external("logits", c.vocab_size)  # [n, vocab]
    g.linear(mixed, g.weight(output, c.vocab_size, c.hidden_size), out=logits)
    return g.build()


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    if layer.has_ngrams:
        _add_ngrams(g, c, streams)
    for name, half in (("attn", _mixer), ("ffn", blocks.dense_or_experts)):
        mixed, normed = _mix(g, c, streams, f"hc_{name}")
        factors = blocks.linear(g, c, normed, f"hc_{name}_inject", c.n_streams)
        factors = g.sigmoid(g.scale(factors, 1 / c.n_streams, out=factors), out=factors)
        factors = g.scale(factors, 2.0, out=factors)  # [n, n_streams]
        y = half(g, c, layer, mixed)  # [n, hidden]
        g.add(streams, g.mix_streams(y, factors, 1), out=streams)
    return g.build()


def _mix(g: GraphBuilder, c: ModelConfig, streams: Buffer, slot: str) -> tuple[Buffer, Buffer]:
    """The mean of the normalised streams times their gates, [n, hidden]; and the normalised
    streams, [n, n_streams * hidden]."""
    width = streams.width
    normed = _norm_streams(g, c, streams, f"{slot}_norm")
    low = blocks.linear(g, c, normed, f"{slot}_down", c.stream_rank)
    low = g.silu(g.scale(low, 1 / c.n_streams, out=low), out=low)
    gate = g.sigmoid(blocks.linear(g, c, low, f"{slot}_up", width))
    gated = g.multiply(gate, normed, out=gate)
    mixed = g.take_columns(gated, 0, c.hidden_size)
    others = g.take_columns(gated, c.hidden_size, width - c.hidden_size)
    mixed = g.merge_add(mixed, others, out=mixed)
    return g.scale(mixed, 1 / c.n_streams, out=mixed), normed


def _norm_streams(g: GraphBuilder, c: ModelConfig, x: Buffer, slot: str) -> Buffer:
    return g.group_norm(x, g.weight(slot, x.width), c.n_streams, c.norm_eps)


def _mixer(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    if layer.mixer == "delta_net":
        return delta_net(g, c, layer, h)
    attend = _see_chosen if layer.chooses else None
    return blocks.attention(g, c, layer, h, normed="heads", gated=True, attend=attend)


def _see_chosen(
    g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer
) -> Buffer:
    """Attention to the blocks that the index chooses. q: [n, q_width], h: [n, hidden]"""
    x = c.block_indexer
    assert x is not None

    def rotated(y: Buffer, name: str, n_heads: int, rope: str) -> Buffer:  # and normalised
        y = g.head_norm(y, g.weight(f"indexer.{name}", x.head_dim), n_heads, c.norm_eps, out=y)
        table = g.external(rope, c.rope_dims)  # [n, rope_dims]
        return g.rope(y, table, n_heads, x.head_dim, interleaved=c.rope_interleaved, out=y)

    k = blocks.linear(g, c, h, "indexer.k_proj", x.head_dim)
    k = rotated(g.block_mean(k, x.block_size, out=k), "k_norm", 1, "rope_of_block")
    g.index_append(k, every=x.block_size)
    index_q = blocks.linear(g, c, h, "indexer.q_proj", x.n_heads * x.head_dim)
    index_q = rotated(index_q, "q_norm", x.n_heads, "rope")
    chosen = g.choose_blocks(index_q, x.n_heads, x.block_size, x.n_chosen, pooled=True)
    return g.block_attention(
        q,
        chosen,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        scale=c.attention_scale,
        block_size=x.block_size,
        n_choices=1,
    )


def _add_ngrams(g: GraphBuilder, c: ModelConfig, streams: Buffer) -> None:
    """Adds a value that the n-grams' rows give to each stream, times a gate of the stream; and a
    convolution of that over the tokens, as far apart as an n-gram is long."""
    assert c.ngrams is not None
    rows, width = g.external("ngrams", c.ngrams.width), streams.width  # [n, ngrams.width]
    key = blocks.linear(g, c, rows, "ple_key", width)
    key = _norm_streams(g, c, key, "ple_norm_key")
    query = _norm_streams(g, c, streams, "ple_norm_query")
    gate = g.stream_products(key, query, c.n_streams, c.hidden_size**-0.5)  # [n, n_streams]
    gate = g.sigmoid(g.signed_root(gate, _LEAST_GATE, out=gate), out=gate)
    value = blocks.linear(g, c, rows, "ple_value", c.hidden_size)
    gated = g.mix_streams(value, gate, 1)  # [n, n_streams * hidden]
    h = _norm_streams(g, c, gated, "ple_norm_conv")
    taps = g.weight("ple_conv1d", width, c.ngram_taps)
    h = g.conv(h, taps, dilation=len(c.ngrams.multipliers), silu=True, out=h)
    g.add(streams, g.add(gated, h, out=h), out=streams)


# ---- folders -------------------------------------------------------------------------------------


_MIXES: Names = {
    f"{stem}_hyper_connection.{part}": f"hc_{name}_{slot}"
    for stem, name in (("attn", "attn"), ("mlp", "ffn"))
    for part, slot in (
        ("hc_norm", "norm"),
        ("input_mix_weight_down", "down"),
        ("input_mix_weight_up", "up"),
        ("block_inject_weight", "inject"),
    )
}


def _names(config: HFReader) -> Names:
    head_dim = config.integer("indexer_head_dim", low=1)
    of_q = config.integer("indexer_n_heads", low=1) * head_dim
    return {
        **qwen35.MOE_NAMES,
        **_MIXES,
        "hyper_connection_mixer.hc_norm": "output_hc_norm",
        "hyper_connection_mixer.input_mix_weight_down": "output_hc_down",
        "hyper_connection_mixer.input_mix_weight_up": "output_hc_up",
        "self_attn.indexer.index_qk_proj": Slots(
            ("indexer.q_proj", "indexer.k_proj"), head_parts=((0, of_q), (1, head_dim))
        ),
        "self_attn.indexer.q_layernorm": "indexer.q_norm",
        "self_attn.indexer.k_layernorm": "indexer.k_norm",
        "ple.key_proj": "ple_key",
        "ple.value_proj": "ple_value",
        "ple.norm_key": "ple_norm_key",
        "ple.norm_query": "ple_norm_query",
        "ple.norm_conv": "ple_norm_conv",
        "ple.conv1d": "ple_conv1d",
        "ple.ple_embedding.ngram_embedding.shard_*": Slots(("per_layer_token_embd",), joined=True),
    }


def _values(config: HFReader) -> dict[str, object]:
    config.expect("output_gate_type", "sigmoid")
    config.expect("indexer_kv_heads", 1)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    linear = _linear_layers(config, n_layers)
    ratio = config.integer("indexer_compress_ratio", low=1, high=MOST_IN_GROUP)
    return {
        **qwen35.linear_values(config),
        "attention.recurrent_layers": linear,
        _RATIOS: np.where(linear, 0, ratio),
        f"{_INDEX}head_count": config.integer("indexer_n_heads"),
        f"{_INDEX}key_length": config.integer("indexer_head_dim"),
        f"{_INDEX}top_k": config.integer("indexer_budget"),
        _STREAMS: config.integer("hc_count"),
        _RANK: config.integer("hc_lowrank"),
        **config.experts(),
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_shared_feed_forward_length": config.integer("shared_expert_intermediate_size"),
        **ngram_values(config, n_layers),
        **position_sections(config, qwen35.SECTIONS),
    }


def _linear_layers(config: HFReader, n_layers: int) -> NDArray[np.bool_]:
    """For each layer: whether its attention is linear."""
    interval = config.integer("full_attention_interval", 4, low=1)
    numbers = range(1, n_layers + 1)
    usual = [qwen35.LINEAR if number % interval else _INDEXED for number in numbers]
    types = config.layer_kinds((_INDEXED, FULL, qwen35.LINEAR), usual)
    return np.array([each == qwen35.LINEAR for each in types], bool)


FAMILY = Family(
    ("qwen4exp",),
    (
        HuggingFace(
            "qwen4_exp_text",
            "qwen4exp",
            _values,
            _names,
            changed=CHANGED,
            own={HEADS_TILED: False},
            pictures="qwen4_exp",
            plus_one=True,
            constants=CONSTANTS,
            defaults={
                **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256},
                **{"vocab_size": 248320, "hidden_size": 2048, "intermediate_size": 0},
                **{"num_hidden_layers": 40, "max_position_embeddings": 32768},
                **{"rms_norm_eps": 1e-6, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128},
                **{"linear_value_head_dim": 128, "linear_num_key_heads": 16},
                **{"linear_num_value_heads": 32, "moe_intermediate_size": 512},
                **{"shared_expert_intermediate_size": 512, "num_experts_per_tok": 10},
                **{"num_experts": 512, "hc_count": 4, "hc_lowrank": 320, "ngram_size": 3},
                **{"ple_conv_kernel_size": 4, "heads_per_ngram": 8, "seed": 1234},
                **{"ngram_vocab_size_base": 20000000},
            },
        ),
    ),
    configure,
    layer,
    embed,
    head,
    rotations=rotations,
)

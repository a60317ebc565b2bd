"""DeepSeek V4: tokens see a window, and groups of older tokens that have one key together. A token
has several residual streams, which hyper-connections (arXiv:2512.24880) mix.

All heads share one key of a token, which is the value, too. Its last dimensions rotate; so the
heads' outputs are turned back. Layers of three kinds alternate: with the window alone; with groups
of 4 tokens, of which an index selects (arXiv:2512.02556), and which overlap; and with groups of
128, all of which are seen. In the first layers a table has the experts of each token.

Layers that guess further tokens are left out. The index's Hadamard rotation and the scale of its
scores change no selection, so neither is here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.graph.ops.sparse import MOST_IN_GROUP
from airllm.graph.ops.streams import MOST_STREAMS
from airllm.models import blocks
from airllm.models import deepseek4_files as files
from airllm.models.config import HyperConnections, Indexer, LayerConfig, ModelConfig, SharedKey
from airllm.models.config_reader import MAX_HEAD_DIM, MAX_HEADS, ConfigReader
from airllm.models.deepseek32 import MOST_TOP_K
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.rope import Rotation, plain_rotation, read_rotation

# Keys of the scaling of rotations, which layers without groups do not have.
_SCALING = (
    *("type", "factor", "original_context_length", "attn_factor"),
    *("yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"),
)


# ---- the configuration ---------------------------------------------------------------------------


def configure(r: ConfigReader) -> ModelConfig:
    _leave_out(r)
    head_dim = r.integer("attention.key_length", low=2, high=MAX_HEAD_DIM)
    if (value_dim := r.integer("attention.value_length", head_dim)) != head_dim:
        raise r.fault("attention.value_length", value_dim, f"expected {head_dim}, the keys' length")
    ratios = _ratios(r)
    window = r.integer("attention.sliding_window", low=1, high=2**20)
    hashed = r.integer("hash_layer_count", 0, high=r.n_layers)
    limit = limit_of_all_experts(r)
    found = r.experts(gating="sqrtsoftplus")
    shared = r.integer("expert_shared_count", 1, low=1, high=2**10)
    r.ignore("attention.sliding_window_pattern")
    c = r.config(
        head_dim=head_dim,
        rope_interleaved=True,
        layers=[
            LayerConfig(window, has_experts=True, compression=ratio, hashed=index < hashed)
            for index, ratio in enumerate(ratios)
        ],
        shared_expert_size=shared * found["expert_size"],
        shared_key=_shared_key(r),
        indexer=_indexer(r, ratios),
        n_streams=r.integer("hyper_connection.count", low=1, high=MOST_STREAMS),
        hyper=_hyper(r),
        gate_limit=limit,
        gate_alpha=1.0,
        up_shift=0.0,
        idle_tensors=frozenset(_idle_tensors(r.n_layers, hashed)),
        **found,
    )
    if c.n_kv_heads != 1:
        raise r.fault("attention.head_count_kv", c.n_kv_heads, "expected 1")
    groups = _shared_key(r).n_groups
    if c.n_heads % groups:
        raise r.fault("attention.output_group_count", groups, f"expected a divisor of {c.n_heads}")
    if c.indexer is not None and c.indexer.head_dim < c.rope_dims:
        wanted = f"expected at least {c.rope_dims}, which rotate"
        raise r.fault("attention.indexer.key_length", c.indexer.head_dim, wanted)
    return c


def expert_limit(r: ConfigReader) -> float:
    """Of an expert's gate and up values; 0: none."""
    limit = r.alike("swiglu_clamp_exp", 0.0)
    if limit and not 1e-3 <= limit < 1e6:
        raise r.fault("swiglu_clamp_exp", limit, "expected 0.001 to 1000000, or 0 for none")
    return limit


def limit_of_all_experts(r: ConfigReader) -> float:
    """The same, where those that all tokens use have it, too."""
    limit = expert_limit(r)
    if (of_shared := r.alike("swiglu_clamp_shexp", limit)) != limit:
        raise r.fault("swiglu_clamp_shexp", of_shared, f"expected {limit}, that of the experts")
    return limit


def _idle_tensors(n_layers: int, hashed: int) -> Iterator[str]:
    """Biases of routers: for images, and of layers whose experts a table chooses."""
    for layer in range(n_layers):
        yield f"blk.{layer}.{files.OF_IMAGES}"
        if layer < hashed:
            yield f"blk.{layer}.exp_probs_b.bias"


def _leave_out(r: ConfigReader) -> None:
    """Files may count layers that guess further tokens, and not have them."""
    guess = r.integer("nextn_predict_layers", 0, high=r.n_layers - 1)
    if f"blk.{r.n_layers - guess}.nextn.eh_proj.weight" in r.file.tensors:
        r.leave_out_heads()


def _ratios(r: ConfigReader) -> list[int]:
    """Positions of a group of each layer; 0 for layers without groups. The file may have those of
    layers that guess, too."""
    name = "attention.compress_ratios"
    r.ignore(name)
    ratios = r.metadata.get(r.key(name))
    if not isinstance(ratios, np.ndarray) or ratios.dtype.kind not in "iu":
        raise r.metadata.fault(f"{r.key(name)} is no array of integers")
    if not r.n_layers <= ratios.size <= r.n_layers + 64:
        raise r.metadata.fault(
            f"{r.key(name)} has {ratios.size} entries; expected {r.n_layers}, one for each layer"
        )
    found: list[int] = ratios.tolist()[: r.n_layers]
    for ratio in found:
        if ratio == 1 or not 0 <= ratio <= MOST_IN_GROUP:
            wanted = f"expected 0 for none, or 2 to {MOST_IN_GROUP}"
            raise r.metadata.fault(f"{r.key(name)} has {ratio}; {wanted}")
    return found


def _shared_key(r: ConfigReader) -> SharedKey:
    return SharedKey(
        query_rank=r.integer("attention.q_lora_rank", low=1),
        n_groups=r.integer("attention.output_group_count", low=1, high=MAX_HEADS),
        output_rank=r.integer("attention.output_lora_rank", low=1),
    )


def _indexer(r: ConfigReader, ratios: Sequence[int]) -> Indexer | None:
    if files.SELECTED not in ratios:  # files have the keys all the same
        r.ignore(*(f"attention.indexer.{name}" for name in ("head_count", "key_length", "top_k")))
        return None
    return Indexer(
        n_heads=r.integer("attention.indexer.head_count", low=1, high=2**10),
        head_dim=r.integer("attention.indexer.key_length", low=2, high=MAX_HEAD_DIM),
        n_selected=r.integer("attention.indexer.top_k", low=1, high=MOST_TOP_K),
        interleaved=True,
    )


def hyper_eps(r: ConfigReader) -> float:
    eps = r.number("hyper_connection.epsilon")
    if not 0.0 <= eps < 1.0:
        raise r.fault("hyper_connection.epsilon", eps, "expected 0 to 1")
    return eps


def _hyper(r: ConfigReader) -> HyperConnections:
    if (magnitude := r.number("hyper_connection.magnitude", 2.0)) != 2.0:
        raise r.fault("hyper_connection.magnitude", magnitude, "expected 2.0")
    iterations = r.integer("hyper_connection.sinkhorn_iterations", low=1, high=1000)
    return HyperConnections(iterations, hyper_eps(r))


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """rope_back turns the other way, and rope_group by the first position of a token's group."""
    if layer.compression:
        rope = replace(read_rotation(r, c, files.THETA), magnitude=1.0)
    else:
        rope = plain_rotation(r, c, "rope.freq_base", 10000.0)
        # For files without layers that have groups.
        r.ignore(files.THETA, *(f"rope.scaling.{name}" for name in _SCALING))
    found = {"rope": rope, "rope_back": replace(rope, inv_freq=-rope.inv_freq)}
    if layer.compression:
        found["rope_group"] = replace(rope, step=layer.compression)
    return found


# ---- the graphs ----------------------------------------------------------------------------------


def embed(c: ModelConfig, activations: Activations) -> Graph:
    """Token ids to the streams, which begin alike, and to the experts of the first layers."""
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    streams = g.external("residual", c.n_streams * c.hidden_size)  # [n, n_streams * hidden]
    x = g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size))  # [n, hidden]
    for stream in range(c.n_streams):
        g.put_columns(x, stream * c.hidden_size, out=streams)
    if carried := _experts_of_tokens(g, c):
        for layer in range(carried.width // c.n_experts_used):
            table = g.weight(f"blk.{layer}.{files.TABLE}", c.vocab_size, c.n_experts_used)
            g.put_columns(g.embed(tokens, table), layer * c.n_experts_used, out=carried)
    return g.build()


def _experts_of_tokens(g: GraphBuilder, c: ModelConfig) -> Buffer | None:
    """The numbers of the experts that tables choose: [n, tables * used]. None without tables."""
    n_tables = sum(layer.hashed for layer in c.layers)
    return g.external("experts", n_tables * c.n_experts_used) if n_tables else None


def head(c: ModelConfig, activations: Activations) -> Graph:
    """A sum of the streams to logits."""
    g = GraphBuilder("head", activations=activations)
    streams = g.external("residual", c.n_streams * c.hidden_size)
    factors = _factors(g, c, streams, "output_hc", c.n_streams)  # [n, n_streams]
    blocks.output_logits(g, c, g.mix_streams(streams, factors, c.n_streams))
    return g.build()


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return hyper_layer(c, activations, layer, attention, experts)


def hyper_layer(
    c: ModelConfig,
    activations: Activations,
    layer: LayerConfig,
    mixer: blocks.Half,
    feed_forward: blocks.Half,
) -> Graph:
    """The streams to themselves, by both halves of a layer."""
    g = GraphBuilder("layer", activations=activations)
    n, hidden = c.n_streams, c.hidden_size
    streams = g.external("residual", n * hidden)  # [n, n_streams * hidden]
    for half, part in (("attn", mixer), ("ffn", feed_forward)):
        factors = _factors(g, c, streams, f"hc_{half}", n * (2 + n))
        x = g.mix_streams(streams, g.take_columns(factors, 0, n), n)  # [n, hidden]
        y = part(g, c, layer, blocks.norm(g, c, x, f"{half}_norm", out=x))  # [n, hidden]
        g.hyper_mix(streams, y, factors, n, out=streams)
    return g.build()


def _factors(g: GraphBuilder, c: ModelConfig, streams: Buffer, slot: str, width: int) -> Buffer:
    """See GraphBuilder.hyper_factors: [n, width]."""
    assert c.hyper is not None
    x = g.head_norm(streams, None, 1, c.norm_eps)  # [n, n_streams * hidden]
    mixes = g.linear(x, g.weight(f"{slot}_fn", width, streams.width))
    scale = g.weight(f"{slot}_scale", 1 if width == c.n_streams else 3)
    base = g.weight(f"{slot}_base", width)
    return g.hyper_factors(mixes, scale, base, c.n_streams, c.hyper.n_iterations, c.hyper.eps)


def attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """h: [n, hidden] -> [n, hidden]"""
    s, heads, d = c.shared_key, c.n_heads, c.head_dim
    assert s is not None
    h_q = blocks.linear(g, c, h, "attn_q_a", s.query_rank)
    h_q = blocks.norm(g, c, h_q, "attn_q_a_norm", out=h_q)  # [n, query_rank]
    q = blocks.linear(g, c, h_q, "attn_q_b", heads * d)
    q = _rotated(g, c, g.head_norm(q, None, heads, c.norm_eps, out=q), heads)  # [n, heads * d]
    key = blocks.linear(g, c, h, "attn_kv", d)
    key = _rotated(g, c, blocks.norm(g, c, key, "attn_kv_a_norm", out=key), 1)  # [n, d]
    g.latent_append(key, 1, d)
    sinks, scale, every = g.weight("attn_sinks", heads), c.attention_scale, layer.compression
    if not every:
        a = g.attention(q, heads, 1, d, scale=scale, window=layer.window, sinks=sinks)
    else:
        g.group_append(_pooled(g, c, h, "attn_compressor", d, every), every=every)
        selection = _selection(g, c, h, h_q) if every == files.SELECTED else None
        a = g.group_attention(
            q,
            heads,
            scale=scale,
            window=layer.window,
            every=every,
            selection=selection,
            sinks=sinks,
        )
    a = _rotated(g, c, a, heads, "rope_back")  # [n, heads * d]
    output = g.weight("attn_output_a", s.n_groups, s.output_rank, heads * d // s.n_groups)
    a = g.head_linear(a, output)  # [n, n_groups * output_rank]
    return blocks.linear(g, c, a, "attn_output_b", c.hidden_size)


def _rotated(
    g: GraphBuilder, c: ModelConfig, x: Buffer, n_heads: int, name: str = "rope"
) -> Buffer:
    """The last rope_dims of each head are turned. name: of the table."""
    table, head_dim = g.external(name, c.rope_dims), x.width // n_heads
    offset = head_dim - c.rope_dims
    return g.rope(x, table, n_heads, head_dim, interleaved=c.rope_interleaved, offset=offset, out=x)


def _pooled(
    g: GraphBuilder, c: ModelConfig, h: Buffer, slot: str, head_dim: int, every: int
) -> Buffer:
    """Keys of groups, in the rows of their last tokens: [n, head_dim]. Groups that overlap have
    two halves of values, one for the group and one for the next."""
    n_parts = 2 if every == files.SELECTED else 1
    width = n_parts * head_dim
    x = blocks.linear(g, c, h, f"{slot}_kv", width)
    gate = blocks.linear(g, c, h, f"{slot}_gate", width)
    of_index = slot != "attn_compressor"
    bias = g.weight(f"{slot}_ape", every, width)
    key = g.pool_groups(x, gate, bias, n_parts=n_parts, of_index=of_index)
    key = blocks.norm(g, c, key, f"{slot}_norm", out=key)
    return _rotated(g, c, key, 1, "rope_group")


def _selection(g: GraphBuilder, c: ModelConfig, h: Buffer, h_q: Buffer) -> Buffer:
    """The groups that each token sees: [n, n_selected]. h: [n, hidden], h_q: [n, query_rank]"""
    i = c.indexer
    assert i is not None
    key = _pooled(g, c, h, "indexer_compressor", i.head_dim, files.SELECTED)
    g.index_append(key, every=files.SELECTED)
    q = blocks.linear(g, c, h_q, "indexer.attn_q_b", i.n_heads * i.head_dim)
    q = _rotated(g, c, q, i.n_heads)
    weights = blocks.linear(g, c, h, "indexer.proj", i.n_heads)  # [n, n_heads]
    return g.index_select(q, weights, i.n_heads, i.n_selected, every=files.SELECTED)


def experts(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """Experts that a router or a table chooses, and those that all tokens use."""
    if layer.hashed:
        carried = _experts_of_tokens(g, c)
        assert carried is not None
        logits = blocks.linear(g, c, h, "ffn_gate_inp", c.n_experts)
        numbers = g.layer_columns(carried, c.n_experts_used)
        of = c.router
        route = g.route_to(
            logits, numbers, normalized=of.normalized, gating=of.gating, scale=of.scale
        )
    else:
        route = blocks.route(g, c, h)
    y = blocks.routed_experts(g, c, h, route)
    return g.add(y, blocks.shared_expert(g, c, h), out=y)


FAMILY = Family(
    ("deepseek4",),
    (
        HuggingFace(
            "deepseek_v4",
            architecture="deepseek4",
            values=files.values,
            names=files.names,
            defaults=files.defaults,
            rope_interleaved=True,
            gguf_interleaved=True,
        ),
    ),
    configure,
    layer,
    embed,
    head,
    rotations=rotations,
    renewed=files.renewed,
)

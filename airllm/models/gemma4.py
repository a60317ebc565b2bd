"""Gemma 4: Gemma 3 with wider heads where a layer sees all positions, whose keys may be the values,
too (31B, 26B-A4B); keys and values that the last layers share, and an embedding of each token for
each layer (E2B, E4B); and experts beside the dense network (26B-A4B).

Norms multiply by their weight as it is, unlike those of the earlier Gemmas.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, MAX_WIDTH, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.rope import Rotation, plain_rotation, read_rotation
from airllm.util.metadata import Metadata

PERIOD = 6  # every such layer sees all positions

NAMES: Mapping[str, str | tuple[str, ...]] = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "layer_scalar": "layer_output_scale",
    # The embedding of each layer
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    # Experts
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "experts.down_proj": "ffn_down_exps",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}


# ---- the configuration ---------------------------------------------------------------------------


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    shared = r.integer("attention.shared_kv_layers", 0, high=r.n_layers - 1)
    first_shared = r.n_layers - shared
    kv_heads = r.kv_heads(differ=True)
    widths = r.of_layers("feed_forward_length", low=1)
    head_dim, rope_dims = _windowed_heads(r)
    mixture = r.experts() if r.integer("expert_count", 0) else {}
    layers = []
    for index, window in enumerate(windows):
        shares = index >= first_shared
        has_values = f"blk.{index}.attn_v.weight" in r.file.tensors
        layer = LayerConfig(
            window,
            has_experts=bool(mixture),
            keys_of=last_like(r, windows[:first_shared], window) if shares else None,
            keys_are_values=not (window or shares or has_values),
            head_dim=head_dim if window else 0,
            rope_dims=rope_dims if window else 0,
            n_kv_heads=kv_heads[index],
            intermediate_size=widths[index],
        )
        if layer.keys_of is not None and kv_heads[layer.keys_of] != kv_heads[index]:
            wanted = f"expected that of layer {layer.keys_of}, whose keys layer {index} reads"
            raise r.fault("attention.head_count_kv", kv_heads[index], wanted)
        layers.append(layer)
    return r.config(
        layers=layers,
        kv_heads=kv_heads,
        scaled_by=1.0,
        embedding_scale=r.integer("embedding_length", low=1) ** 0.5,
        final_softcap=r.cap("final_logit_softcapping"),
        intermediate_size=max(widths),
        per_layer_size=r.integer("embedding_length_per_layer_input", 0),
        layers_scaled="blk.0.layer_output_scale.weight" in r.file.tensors,
        idle_tensors=idle_keys(first_shared, r.n_layers),
        **mixture,
    )


def _windowed_heads(r: ConfigReader) -> tuple[int, int]:
    """The width of the heads of layers with a window, and how many of their dimensions rotate."""
    full = r.integer("attention.key_length", low=1, high=MAX_HEAD_DIM)
    head_dim = r.integer("attention.key_length_swa", full, low=1, high=MAX_HEAD_DIM)
    value_dim = r.integer("attention.value_length_swa", head_dim)
    if value_dim != head_dim:
        wanted = f"expected {head_dim}, the keys' length"
        raise r.fault("attention.value_length_swa", value_dim, wanted)
    rope_dims = r.integer("rope.dimension_count_swa", head_dim, low=2, high=head_dim)
    if rope_dims % 2:
        raise r.fault("rope.dimension_count_swa", rope_dims, "expected it even")
    return head_dim, rope_dims


def idle_keys(first_shared: int, n_layers: int) -> frozenset[str]:
    """Of layers that share others' keys. Training has left them in the files of E2B and E4B."""
    return frozenset(
        f"blk.{index}.attn_{slot}.weight"
        for index in range(first_shared, n_layers)
        for slot in ("k", "v", "k_norm")
    )


def last_like(r: ConfigReader, windows: tuple[int, ...], window: int) -> int:
    """The last of the layers with these windows that has that window."""
    alike = [index for index, other in enumerate(windows) if other == window]
    if not alike:
        kind = f"with a window of {window}" if window else "without a window"
        wanted = f"expected a layer {kind} before those that share keys"
        raise r.fault("attention.shared_kv_layers", r.n_layers - len(windows), wanted)
    return alike[-1]


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """The factors of frequencies stop most of a head's pairs, in layers without a window."""
    c = c.of(layer)
    if layer.window:
        return {"rope": plain_rotation(r, c, "rope.freq_base_swa", 10000.0)}
    r.ignore("rope.freq_base_swa")
    if "rope_freqs.weight" not in r.file.tensors:
        raise r.metadata.fault("tensor rope_freqs.weight is missing")
    return {"rope": read_rotation(r, c)}


# ---- the graphs ----------------------------------------------------------------------------------


def embed(c: ModelConfig, activations: Activations) -> Graph:
    """Token ids to the residual, and to what each layer adds for the token."""
    if not c.per_layer_size:
        return blocks.embed(c, activations)
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    table = g.weight("token_embd", c.vocab_size, c.hidden_size)
    g.embed(tokens, table, scale=c.embedding_scale, out=x)
    embed_layers(g, c, tokens, x)
    return g.build()


def embed_layers(g: GraphBuilder, c: ModelConfig, tokens: Buffer, x: Buffer) -> None:
    """Writes what each layer adds for a token, side by side: half of it from a table, half
    projected from the token's embedding x."""
    size, all_sizes = c.per_layer_size, c.n_layers * c.per_layer_size
    per_layer = g.external("per_layer", all_sizes)  # [n, n_layers * size]
    table = g.weight("per_layer_token_embd", c.vocab_size, all_sizes)
    g.embed(tokens, table, scale=size**0.5, out=per_layer)
    h = g.linear(x, g.weight("per_layer_model_proj", all_sizes, c.hidden_size))
    h = g.scale(h, c.hidden_size**-0.5, out=h)
    h = g.head_norm(h, g.weight("per_layer_proj_norm", size), c.n_layers, c.norm_eps, out=h)
    g.scale(g.add(h, per_layer, out=h), 0.5**0.5, out=per_layer)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    c = c.of(layer)
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    a = attention(g, c, layer, blocks.norm(g, c, x, "attn_norm"))
    x = g.add(x, blocks.norm(g, c, a, "post_attention_norm", out=a), out=x)
    h = _feed_forward(g, c, layer, x)
    x = g.add(x, blocks.norm(g, c, h, "post_ffw_norm", out=h), out=x)
    if c.per_layer_size:
        of_all = g.external("per_layer", c.n_layers * c.per_layer_size)
        own = g.layer_columns(of_all, c.per_layer_size)  # [n, size]
        gate = blocks.linear(g, c, x, "inp_gate", c.per_layer_size)
        h = blocks.linear(g, c, g.geglu(gate, own, out=own), "proj", c.hidden_size)
        x = g.add(x, blocks.norm(g, c, h, "post_norm", out=h), out=x)
    if c.layers_scaled:
        g.scale(x, weight=g.weight("layer_output_scale", 1), out=x)
    return g.build()


def attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """Of normalised heads: Q and K with weights, V without."""
    table = g.external("rope", c.rope_dims)  # [n, rope_dims]

    def rotated(x: Buffer, slot: str, n_heads: int, out: Buffer | None = None) -> Buffer:
        x = g.head_norm(x, g.weight(slot, c.head_dim), n_heads, c.norm_eps, out=out)
        return g.rope(x, table, n_heads, c.head_dim, interleaved=c.rope_interleaved, out=x)

    q = blocks.linear(g, c, h, "attn_q", c.q_width)  # [n, q_width]
    q = rotated(q, "attn_q_norm", c.n_heads, q)
    if layer.keys_of is None:
        k = v = blocks.linear(g, c, h, "attn_k", c.kv_width)  # [n, kv_width]
        if not layer.keys_are_values:
            v = blocks.linear(g, c, h, "attn_v", c.kv_width)
        k = rotated(k, "attn_k_norm", c.n_kv_heads)
        v = g.head_norm(v, None, c.n_kv_heads, c.norm_eps, out=v)
        g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = g.attention(
        q, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.attention_scale, window=layer.window
    )  # [n, q_width]
    return blocks.linear(g, c, a, "attn_output", c.hidden_size)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, x: Buffer) -> Buffer:
    """The dense network, and the experts beside it. The router reads the residual itself."""
    y = blocks.glu_mlp(g, c, blocks.norm(g, c, x, "ffn_norm"), activation="gelu")
    if not layer.has_experts:
        return y
    y = blocks.norm(g, c, y, "post_ffw_norm_1", out=y)
    h = blocks.norm(g, c, x, "ffn_gate_inp.scale")
    route = blocks.route(g, c, g.scale(h, c.hidden_size**-0.5, out=h))
    route = g.scale_shares(route, g.weight("ffn_down_exps.scale", c.n_experts), out=route)
    h = blocks.norm(g, c, x, "pre_ffw_norm_2")
    h = blocks.routed_experts(g, c, h, route, activation="gelu")
    return g.add(y, blocks.norm(g, c, h, "post_ffw_norm_2", out=h), out=y)


# ---- folders -------------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("use_bidirectional_attention", None, "vision")  # of pictures
    config.ignore("attention_k_eq_v", "vocab_size_per_layer_input")  # the tensors show it
    local = _local(config)
    own_keys = np.arange(len(local)) < len(local) - config.integer("num_kv_shared_layers", 0)
    head_dim, kv_heads = config.integer("head_dim", low=1), config.integer("num_key_value_heads")
    width = config.integer("intermediate_size", high=MAX_WIDTH)
    double = 2 if config.flag("use_double_wide_mlp", False) else 1
    found: dict[str, object] = {
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": local,
        "attention.shared_kv_layers": int((~own_keys).sum()),
        "attention.key_length_swa": head_dim,
        "attention.value_length_swa": head_dim,
        "attention.head_count_kv": np.where(local, kv_heads, _full_heads(config)[1]),
        "rope.dimension_count_swa": head_dim,
        "feed_forward_length": np.where(own_keys, width, double * width),
        "embedding_length_per_layer_input": config.integer("hidden_size_per_layer_input"),
        "final_logit_softcapping": config.number("final_logit_softcapping", 0.0),
    }
    if config.flag("enable_moe_block", False):
        found |= {
            "expert_count": config.integer("num_experts", low=1),
            "expert_used_count": config.integer("top_k_experts", low=1),
            "expert_feed_forward_length": config.integer("moe_intermediate_size", low=1),
        }
    config.ignore("num_experts", "top_k_experts", "moe_intermediate_size")  # without effect
    return found


def _local(config: HFReader) -> NDArray[np.bool_]:
    """For each layer: whether it has a window. The last has none, whatever config.json says."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    usual = np.arange(n_layers) % PERIOD != PERIOD - 1
    local = config.local_layers(usual).copy()
    local[-1] = False
    return local


def _full_heads(config: HFReader) -> tuple[int, int]:
    """Width and number of the heads of keys, in layers without a window.

    Newer files have them in an object for each such layer, older ones have keys of their own.
    """
    usual = config.integer("num_key_value_heads", low=1)
    keys = {"head_dim": config.integer("global_head_dim", 512, low=1, high=MAX_HEAD_DIM)}
    if config.flag("attention_k_eq_v", False):
        keys["num_key_value_heads"] = config.integer("num_global_key_value_heads", usual, low=1)
    config.ignore("num_global_key_value_heads")
    own = config.get("per_layer_config")
    if own is not None:
        full = np.flatnonzero(~_local(config)).tolist()
        first = own.get(str(full[0])) if isinstance(own, dict) else None
        if not isinstance(first, dict) or own != {str(index): first for index in full}:
            raise config.fault(
                "per_layer_config does not say the same of all layers without a window, and "
                "nothing of the others"
            )
        if unknown := first.keys() - {"head_dim", "num_key_value_heads"}:
            raise config.fault(f"per_layer_config has {min(unknown)[:40]!r}, which is not known")
        keys = first
    heads = Metadata(config.source, keys)
    return (
        heads.integer("head_dim", low=1, high=MAX_HEAD_DIM),
        heads.integer("num_key_value_heads", usual, low=1),
    )


def _full_head_dim(config: HFReader) -> int:
    return _full_heads(config)[0]


_DEFAULTS = {
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    **{"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216},
    **{"num_hidden_layers": 30, "sliding_window": 512, "rms_norm_eps": 1e-6},
    **{"hidden_size_per_layer_input": 256, "max_position_embeddings": 131072},
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
        },
    },
}
_DEFAULTS_OF_UNIFIED = {
    **_DEFAULTS,
    **{"hidden_size_per_layer_input": 0, "sliding_window": 1024},
    "max_position_embeddings": 262144,
}
_HF = partial(
    HuggingFace,
    architecture="gemma4",
    values=_values,
    names=NAMES,
    activation="gelu_pytorch_tanh",
    tied=True,
    full_head_dim=_full_head_dim,
)

FAMILY = Family(
    ("gemma4",),
    (
        _HF("gemma4_text", defaults=_DEFAULTS, pictures="gemma4"),
        _HF("gemma4_unified_text", defaults=_DEFAULTS_OF_UNIFIED, pictures="gemma4_unified"),
    ),
    configure,
    layer,
    embed,
    rotations=rotations,
)

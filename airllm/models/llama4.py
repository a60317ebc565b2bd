"""Llama 4 Scout and Maverick (text): in three of four layers a token sees no further back than the
beginning of its chunk of 8192 positions. The fourth sees all and does not rotate (NoPE,
arXiv:2501.18795); its queries grow with their position (arXiv:2501.19399). One expert for each
token, whose input is multiplied by its share, beside one that all tokens use; Maverick has them in
every other layer.
"""

import numpy as np

from airllm.formats.hf_config import Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import FULL, HFReader, HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.models.rope import Rotation, read_rotation
from airllm.util.metadata import Metadata

PERIOD = 4  # every such layer does not rotate; GGUF files have no key for it
CHUNK = 8192
# Queries and keys are normalised, unless there are so many experts (Maverick). Nothing else in a
# GGUF file says it.
PLAIN_EXPERTS = 128
_CHUNK, _LENGTH, _SCALE = (
    f"attention.{name}" for name in ("sliding_window", "temperature_length", "temperature_scale")
)
_EVERY = "interleave_moe_layer_step"

NAMES: Names = {
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    # Folders have each matrix of an expert as its columns.
    "feed_forward.experts.gate_up_proj": Slots(("ffn_gate_exps", "ffn_up_exps"), transposed=True),
    "feed_forward.experts.down_proj": Slots(("ffn_down_exps",), transposed=True),
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
    "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
}


# ---- the configuration ---------------------------------------------------------------------------


def configure(r: ConfigReader) -> ModelConfig:
    chunk = r.integer(_CHUNK, CHUNK, low=1, high=2**24)
    every = r.integer(_EVERY, low=1)
    mixture = r.experts(gating="sigmoid", normalized=False)
    if mixture["n_experts_used"] != 1:
        raise r.fault("expert_used_count", mixture["n_experts_used"], "expected 1")
    temperature = r.number(_SCALE, 0.1)
    if not 0.0 <= temperature < 1e3:
        raise r.fault(_SCALE, temperature, "expected 0 to 1000")
    rotates = [index % PERIOD != PERIOD - 1 for index in range(r.n_layers)]
    return r.config(
        layers=[
            LayerConfig(
                window=chunk if rotating else 0,
                rotates=rotating,
                has_experts=index % every == every - 1,
            )
            for index, rotating in enumerate(rotates)
        ],
        rope_interleaved=True,
        biases=r.optional_biases(*BIASES, "attn_output"),
        attention_temperature=temperature,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=mixture["expert_size"],
        head_norms=mixture["n_experts"] != PLAIN_EXPERTS,
        **mixture,
    )


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """In layers that do not rotate, one angle of 0 has a query's factor as its cosine."""
    period = r.integer(_LENGTH, CHUNK, low=1, high=2**24)
    if layer.rotates:
        return {"rope": read_rotation(r, c)}
    if not c.attention_temperature:
        return {}
    temperature = c.attention_temperature
    return {"growth": Rotation(np.zeros(1), temperature=temperature, period=period, ahead=1)}


# ---- the graphs ----------------------------------------------------------------------------------


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(c, activations, layer, mixer=_attention, feed_forward=_feed_forward)


def _attention(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    q = blocks.linear(g, c, h, "attn_q", c.q_width)  # [n, q_width]
    k = blocks.linear(g, c, h, "attn_k", c.kv_width)  # [n, kv_width]
    v = blocks.linear(g, c, h, "attn_v", c.kv_width)  # [n, kv_width]

    def rotated(x: Buffer, n_heads: int) -> Buffer:
        table = g.external("rope", c.rope_dims)  # [n, rope_dims]
        x = g.rope(x, table, n_heads, c.head_dim, interleaved=c.rope_interleaved, out=x)
        return g.head_norm(x, None, n_heads, c.norm_eps, out=x) if c.head_norms else x

    if layer.rotates:
        q, k = rotated(q, c.n_heads), rotated(k, c.n_kv_heads)
    elif c.attention_temperature:
        factors = g.take_columns(g.external("growth", 2), 0, 1)  # [n, 1]
        q = g.scale_rows(q, factors, out=q)
    g.kv_append(k, v, c.n_kv_heads, c.head_dim)
    a = g.attention(
        q,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        scale=c.attention_scale,
        window=layer.window,
        chunked=layer.window > 0,
    )  # [n, q_width]
    return blocks.linear(g, c, a, "attn_output", c.hidden_size)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    if not layer.has_experts:
        return blocks.glu_mlp(g, c, h)
    route = blocks.route(g, c, h)  # [n, 2]: the expert and its share
    y = blocks.expert_outputs(g, c, g.scale_rows(h, g.take_columns(route, 1, 1)), route)
    return g.add(y, blocks.shared_expert(g, c, h), out=y)


# ---- folders -------------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    usual = [int(index % PERIOD != PERIOD - 1) for index in range(n_layers)]
    interval = config.integer("no_rope_layer_interval", PERIOD, low=1)
    by_interval = [int((index + 1) % interval != 0) for index in range(n_layers)]
    kinds = [("chunked_attention" if rotates else FULL) for rotates in usual]
    if (config.get("no_rope_layers") or by_interval) != usual:
        raise config.fault(
            f"no_rope_layers, or no_rope_layer_interval, says other than that every {PERIOD}th "
            "layer does not rotate"
        )
    if config.get("layer_types", kinds) != kinds:
        raise config.fault("layer_types says other than that the layers that rotate have chunks")
    every = config.integer(_EVERY, 1, low=1)
    if config.get("moe_layers") not in (None, list(range(every - 1, n_layers, every))):
        raise config.fault(f"moe_layers says other than {_EVERY}, {every}")
    mixture = config.experts(size="intermediate_size")
    config.expect("use_qk_norm", mixture["expert_count"] != PLAIN_EXPERTS)
    found: dict[str, object] = {
        _EVERY: every,
        "feed_forward_length": config.integer("intermediate_size_mlp"),
        _CHUNK: config.integer("attention_chunk_size", low=1),
        _LENGTH: config.integer("floor_scale", low=1),
        _SCALE: config.number("attn_scale") if config.get("attn_temperature_tuning") else 0.0,
    }
    config.ignore("floor_scale", "attn_scale", "for_llm_compressor")
    llama_cpp = {_CHUNK: CHUNK, _LENGTH: CHUNK, _SCALE: 0.1}  # what files do not say
    return mixture | {key: value for key, value in found.items() if value != llama_cpp.get(key)}


def _defaults(config: Metadata) -> dict[str, object]:
    if "attention_chunk_size" in config and config.get("attention_chunk_size") is None:
        raise config.fault("attention_chunk_size is null; expected the positions of a chunk")
    return {
        **{"num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
        **{"vocab_size": 202048, "hidden_size": 5120, "num_hidden_layers": 48},
        **{"intermediate_size": 8192, "intermediate_size_mlp": 16384, "rms_norm_eps": 1e-5},
        **{"num_local_experts": 16, "num_experts_per_tok": 1, "use_qk_norm": True},
        **{"attention_chunk_size": CHUNK, "attn_temperature_tuning": True, "attn_scale": 0.1},
        **{"floor_scale": CHUNK, "rope_theta": 500000.0, "max_position_embeddings": 131072},
    }


FAMILY = Family(
    ("llama4",),
    (
        HuggingFace(
            "llama4_text",
            "llama4",
            _values,
            NAMES,
            pictures="llama4",
            rope_interleaved=True,
            gguf_interleaved=True,
            defaults=_defaults,
        ),
    ),
    configure,
    layer,
    rotations=rotations,
)

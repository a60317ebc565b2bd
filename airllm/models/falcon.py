"""Falcon 7B, 11B, 40B and 180B (arXiv:2311.16867): attention and a network with GELU side by side,
and LayerNorm, of which larger models have two. All heads share one key, or groups of heads do."""

from collections.abc import Mapping

from airllm.formats.hf_config import Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS
from airllm.util.metadata import Metadata

_SECOND_NORM = "attn_norm_2"  # of attention; the first is then the network's


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases("attn_qkv", "attn_output", "ffn_up", "ffn_down", _SECOND_NORM)
    return r.config(eps_key=EPS, layer_norms=True, biases=biases | {"attn_norm", "output_norm"})


def feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return blocks.mlp(g, c, h, "gelu_erf")


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    of_attention = _SECOND_NORM if _SECOND_NORM in c.biases else "attn_norm"
    return blocks.parallel_layer(
        c,
        activations,
        layer,
        fused=True,
        before=(of_attention, "attn_norm"),
        feed_forward=feed_forward,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("alibi", None, False)
    if not config.flag("new_decoder_architecture", False):
        config.expect("parallel_attn", None, True)
    config.ignore("bias", "num_ln_in_parallel_attn")  # the tensors show them
    return {"attention.head_count_kv": _kv_heads(config)}


def _kv_heads(config: HFReader) -> int:
    grouped = config.flag("new_decoder_architecture", False)
    if config.flag("multi_query", True) and not grouped:
        return 1
    return config.integer("num_kv_heads", config.integer("num_attention_heads"), low=1)


def _names(config: HFReader) -> Names:
    """The rows of the heads that share a key lie before those of the key and the value."""
    n_heads = config.integer("num_attention_heads", low=1)
    head_dim = config.integer("hidden_size") // n_heads
    shared = n_heads // _kv_heads(config)
    return {
        "word_embeddings": "token_embd",
        "ln_f": "output_norm",
        "input_layernorm": "attn_norm",
        "ln_mlp": "attn_norm",
        "ln_attn": _SECOND_NORM,
        "self_attention.query_key_value": Slots(
            ("attn_qkv",), head_parts=((0, shared * head_dim), (0, head_dim), (0, head_dim))
        ),
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }


def _defaults(config: Metadata) -> Mapping[str, object]:
    width = config.get("ffn_hidden_size") or 4 * config.integer("hidden_size", low=1)
    return {
        "hidden_act": config.get("activation") or "gelu",
        "intermediate_size": width,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 2048,
    }


FAMILY = Family(
    ("falcon",),
    (
        HuggingFace(
            "falcon",
            "falcon",
            _values,
            _names,
            activation="gelu",
            tied=True,
            norm_eps=("layer_norm_epsilon", EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    layer,
)

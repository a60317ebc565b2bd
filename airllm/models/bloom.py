"""BLOOM (arXiv:2211.05100): embeddings that are normalised, LayerNorm, biases everywhere, a network
with GELU, and biases by distance (ALiBi, arXiv:2108.12409) in place of rotation."""

from collections.abc import Mapping
from functools import partial

from airllm.formats.hf_config import Names, Slots
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS, feed_forward
from airllm.util.metadata import Metadata

_NORMS = ("token_embd_norm", "attn_norm", "ffn_norm", "output_norm")
_BIASED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=r.unrotated_layers(),
        eps_key=EPS,
        layer_norms=True,
        biases=frozenset([*_NORMS, *_BIASED]),
        alibi=8.0,
    )


def embed(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size), out=x)
    blocks.norm(g, c, x, "token_embd_norm", out=x)
    return g.build()


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion")
    return {}


def _names(config: HFReader) -> Names:
    """The rows of a head's query, key and value are neighbours."""
    head_dim = config.integer("hidden_size") // config.integer("num_attention_heads", low=1)
    return {
        "word_embeddings": "token_embd",
        "word_embeddings_layernorm": "token_embd_norm",
        "ln_f": "output_norm",
        "self_attention.query_key_value": Slots(("attn_qkv",), head_parts=((0, head_dim),) * 3),
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }


def _defaults(config: Metadata) -> Mapping[str, object]:
    hidden = config.integer("hidden_size", config.integer("n_embed", 0), low=1)
    n_heads = config.integer("n_head", 0) or config.integer("num_attention_heads", low=1)
    return {
        "hidden_size": hidden,
        "num_attention_heads": n_heads,
        "num_hidden_layers": config.integer("n_layer", 0)
        or config.integer("num_hidden_layers", low=1),
        "max_position_embeddings": config.integer("seq_length", 2048, low=1),
        "intermediate_size": 4 * hidden,
        "layer_norm_epsilon": 1e-5,
    }


FAMILY = Family(
    ("bloom",),
    (
        HuggingFace(
            "bloom",
            "bloom",
            _values,
            _names,
            tied=True,
            norm_eps=("layer_norm_epsilon", EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    partial(blocks.layer, fused=True, feed_forward=feed_forward),
    embed,
)

"""GPT-NeoX (arXiv:2204.06745), and models of its shape: Pythia (arXiv:2304.01373), Dolly,
RedPajama-INCITE. LayerNorm, biases everywhere, a network with GELU, which may lie beside attention,
and a quarter of each head rotates."""

from collections.abc import Mapping

from airllm.formats.hf_config import Names, Slots
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.falcon import feed_forward
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS
from airllm.util.metadata import Metadata

_PARALLEL = "use_parallel_residual"


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases("attn_qkv", "attn_output")
    return r.config(
        eps_key=EPS,
        layer_norms=True,
        biases=biases | {"attn_norm", "ffn_norm", "output_norm", "ffn_up", "ffn_down"},
        parallel_halves=r.flag(_PARALLEL, True),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    make = blocks.parallel_layer if c.parallel_halves else blocks.layer
    return make(c, activations, layer, fused=True, before=blocks.BEFORE, feed_forward=feed_forward)


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("rotary_pct", "rotary_emb_base")  # _defaults has read them
    return {_PARALLEL: config.flag(_PARALLEL, True)}


def _names(config: HFReader) -> Names:
    """The rows of a head's query, key and value are neighbours."""
    head_dim = config.integer("hidden_size") // config.integer("num_attention_heads", low=1)
    return {
        "embed_in": "token_embd",
        "embed_out": "output",
        "final_layer_norm": "output_norm",
        "attention.query_key_value": Slots(("attn_qkv",), head_parts=((0, head_dim),) * 3),
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }


def _defaults(config: Metadata) -> Mapping[str, object]:
    return {
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": config.number("rotary_pct", 0.25),
        "rope_theta": config.number("rotary_emb_base", 10000.0),
    }


FAMILY = Family(
    ("gptneox",),
    (
        HuggingFace(
            "gpt_neox",
            "gptneox",
            _values,
            _names,
            activation="gelu",
            norm_eps=("layer_norm_eps", EPS),
            defaults=_defaults,
        ),
    ),
    configure,
    layer,
)

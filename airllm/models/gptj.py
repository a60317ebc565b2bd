"""GPT-J (Wang and Komatsuzaki, 2021), and models of its shape: GPT4All-J, Dolly 1. Attention and a
network with GELU side by side behind one LayerNorm. Neighbours rotate, in a part of each head."""

from functools import partial

from airllm.formats.hf_config import Names
from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.gpt2 import defaults
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS, feed_forward

_NAMES: Names = {
    "wte": "token_embd",
    "ln_f": "output_norm",
    "lm_head": "output",  # of its bias
    "ln_1": "attn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.out_proj": "attn_output",
    "mlp.fc_in": "ffn_up",
    "mlp.fc_out": "ffn_down",
}


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        eps_key=EPS,
        layer_norms=True,
        biases=r.optional_biases("output") | {"attn_norm", "output_norm", "ffn_up", "ffn_down"},
        rope_interleaved=True,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("rotary", None, True)
    config.expect("scale_attn_weights", None, True)
    config.ignore("summary_activation")
    if config.get("rotary_dim", 64) is None:
        return {}
    return {"rope.dimension_count": config.integer("rotary_dim", 64)}


FAMILY = Family(
    ("gptj",),
    (
        HuggingFace(
            "gptj",
            "gptj",
            _values,
            _NAMES,
            activation="gelu_new",
            norm_eps=("layer_norm_epsilon", EPS),
            defaults=defaults,
            rope_interleaved=True,
            gguf_interleaved=True,
        ),
    ),
    configure,
    partial(blocks.parallel_layer, feed_forward=feed_forward),
)

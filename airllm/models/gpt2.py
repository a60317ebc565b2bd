"""GPT-2 (Radford et al., 2019), Cerebras-GPT, and StarCoder (arXiv:2305.06161), whose heads share
one key: a table has what is added to a token at each position, and no head rotates. LayerNorm,
biases everywhere, and a network with GELU.

The context is no longer than the table.
"""

from collections.abc import Mapping
from functools import partial

from airllm.formats.hf_config import Names, Slots
from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.starcoder2 import EPS, feed_forward
from airllm.util.metadata import Metadata

_NAMES: Names = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_NORMS = frozenset(["attn_norm", "ffn_norm", "output_norm"])


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=r.unrotated_layers(),
        eps_key=EPS,
        layer_norms=True,
        biases=_NORMS | {"attn_qkv", "attn_output", "ffn_up", "ffn_down"},
        learned_positions=True,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("scale_attn_weights", None, True)
    config.ignore("summary_activation")
    # Of how its scores are rounded.
    config.ignore("scale_attention_softmax_in_fp32", "attention_softmax_in_fp32")
    config.expect("add_cross_attention", None, False)
    if config.get("model_type") == "gpt_bigcode" and config.flag("multi_query", True):
        return {"attention.head_count_kv": 1}
    return {}


def defaults(config: Metadata) -> Mapping[str, object]:
    hidden = config.integer("n_embd", low=1)
    return {
        "hidden_size": hidden,
        "num_attention_heads": config.integer("n_head", low=1),
        "num_hidden_layers": config.integer("n_layer", low=1),
        "max_position_embeddings": config.integer("n_positions", low=1),
        "intermediate_size": config.get("n_inner") or 4 * hidden,
        "hidden_act": config.get("activation_function"),
        "layer_norm_epsilon": 1e-5,
    }


def _folders(model_type: str, architecture: str, names: Names) -> HuggingFace:
    return HuggingFace(
        model_type,
        architecture,
        _values,
        names,
        activation=("gelu_new", "gelu_pytorch_tanh"),
        tied=True,
        norm_eps=("layer_norm_epsilon", EPS),
        defaults=defaults,
    )


# Whose matrices are those of linear layers, transposed.
_TRANSPOSED = {
    f"{stem}.weight": Slots((slot,), transposed=True)
    for stem, slot in _NAMES.items()
    if "c_" in stem and isinstance(slot, str)
}

FAMILY = Family(
    ("gpt2", "starcoder"),
    (
        _folders("gpt2", "gpt2", {**_NAMES, **_TRANSPOSED}),
        _folders("gpt_bigcode", "starcoder", _NAMES),
    ),
    configure,
    partial(blocks.layer, fused=True, feed_forward=feed_forward),
)

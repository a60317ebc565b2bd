"""EXAONE 3.0 and 3.5 (arXiv:2408.03541, arXiv:2412.04862): a Llama, whose folders name its parts as
GPT-2's do."""

from collections.abc import Mapping

from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.util.metadata import Metadata


def configure(r: ConfigReader) -> ModelConfig:
    return r.config()


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("layer_norm_epsilon")  # _defaults has read it
    return config.no_window()


def _defaults(config: Metadata) -> Mapping[str, object]:
    return {
        "num_hidden_layers": config.get("num_layers"),
        "rms_norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "hidden_act": config.get("activation_function"),
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
    }


FAMILY = Family(
    ("exaone",),
    (
        HuggingFace(
            "exaone",
            "exaone",
            _values,
            {
                "wte": "token_embd",
                "ln_f": "output_norm",
                "ln_1": "attn_norm",
                "ln_2": "ffn_norm",
                "attn.attention.q_proj": "attn_q",
                "attn.attention.k_proj": "attn_k",
                "attn.attention.v_proj": "attn_v",
                "attn.attention.out_proj": "attn_output",
                "mlp.c_fc_0": "ffn_gate",
                "mlp.c_fc_1": "ffn_up",
                "mlp.c_proj": "ffn_down",
            },
            defaults=_defaults,
        ),
    ),
    configure,
)

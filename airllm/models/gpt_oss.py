"""gpt-oss (arXiv:2508.10925): experts with biases and a clamped activation, attention with sinks, a
window on every other layer, and YaRN."""

from functools import partial

from airllm.formats.hf_config import Names, Slots
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

GATE_LIMIT = 7.0  # GGUF files have no key for it
BIASES = frozenset(
    [
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ]
)
PERIOD = 2

NAMES: Names = {
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.sinks": "attn_sinks",
    "mlp.router": "ffn_gate_inp",
    # Rows of gate and up alternate. Folders of floats have each matrix as its columns.
    "mlp.experts.gate_up_proj": Slots(
        ("ffn_gate_exps", "ffn_up_exps"), alternate=True, transposed=True
    ),
    "mlp.experts.gate_up_proj_bias": Slots(
        ("ffn_gate_exps.bias", "ffn_up_exps.bias"), alternate=True
    ),
    "mlp.experts.down_proj": Slots(("ffn_down_exps",), transposed=True),
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
}


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    return r.config(
        layers=[LayerConfig(window, has_experts=True) for window in windows],
        biases=BIASES,
        gate_limit=GATE_LIMIT,
        **r.experts(),
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("swiglu_limit", None, GATE_LIMIT)
    config.expect("swiglu_alpha", None, 1.702)
    if "rope_scaling" not in config and "rope_parameters" not in config:
        raise config.fault("has neither rope_parameters nor rope_scaling")
    config.ignore("experts_per_token")  # num_experts_per_tok, once more
    return {**config.experts(size="intermediate_size"), **config.sliding(PERIOD)}


FAMILY = Family(
    ("gpt-oss",),
    (
        HuggingFace(
            "gpt_oss",
            "gpt-oss",
            _values,
            NAMES,
            defaults={"head_dim": 64, "sliding_window": 128, "rope_theta": 150000.0},
        ),
    ),
    configure,
    partial(blocks.layer, sinks=True, before=blocks.FOLDERS_BEFORE),
)

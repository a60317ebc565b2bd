"""gpt-oss (arXiv:2508.10925): experts with biases and a clamped activation, attention with sinks, a
window on every other layer, and YaRN."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family

GATE_LIMIT = 7.0  # GGUF files have no key for it
BIASES = frozenset(
    [
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ]
)
PERIOD = 2


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    return r.config(
        layers=[LayerConfig(window, has_experts=True) for window in windows],
        biases=BIASES,
        gate_limit=GATE_LIMIT,
        **r.experts(),
    )


FAMILY = Family(
    ("gpt-oss",),
    (),
    configure,
    partial(blocks.layer, sinks=True, ffn_norm="post_attention_norm"),
)

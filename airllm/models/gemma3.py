"""Gemma 3 (arXiv:2503.19786): Gemma 2 with normalised heads of Q and K in place of capped scores.

Five of six layers have a window; their rope turns faster than that of the sixth.
"""

from functools import partial

from airllm.models import gemma2
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.rope import windowed_rotations

PERIOD = 6  # every such layer sees all positions


def configure(r: ConfigReader) -> ModelConfig:
    return gemma2.read(
        r,
        [LayerConfig(window) for window in r.windows(period=PERIOD)],
        layers_of_27b=62,
        final_softcap=r.cap("final_logit_softcapping"),
    )


def _values(config: HFReader) -> dict[str, object]:
    older = "sliding_window_pattern"
    key = f"_{older}" if f"_{older}" in config else older
    period = config.integer(key, low=1)
    config.ignore(older)
    return gemma2.values(config, PERIOD, period)


FAMILY = Family(
    ("gemma3",),
    (
        HuggingFace(
            "gemma3_text",
            "gemma3",
            _values,
            gemma2.NAMES,
            activation="gelu_pytorch_tanh",
            tied=True,
            plus_one=True,
            pictures="gemma3",
            # Files of the larger models have only the keys that differ from the class's defaults.
            defaults=gemma2.DEFAULTS
            | {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262208}
            | {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rms_norm_eps": 1e-6}
            | {"sliding_window_pattern": 6, "max_position_embeddings": 131072},
        ),
    ),
    configure,
    partial(gemma2.layer, normed="heads"),
    rotations=windowed_rotations,
)

"""PLaMo 3 (Preferred Networks): one matrix for Q, K and V, whose heads are normalised, and norms
before and behind each half of a layer. Seven of eight layers have a window, and a theta of their
own."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.rope import windowed_rotations

PERIOD = 8
AFTER = ("post_attention_norm.", "post_ffw_norm.")  # GGUF's, without a suffix


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(layers=[LayerConfig(window) for window in r.windows(period=PERIOD)])


layer = partial(
    blocks.layer, normed="heads", fused=True, after=AFTER, feed_forward=blocks.fused_glu_mlp
)

FAMILY = Family(("plamo3",), (), configure, layer, rotations=windowed_rotations)

"""OLMo 2 and OLMo 3 (arXiv:2501.00656, arXiv:2512.13961): norms behind each half of a layer, none
before it, and Q and K normalised over all heads of a token.

Three of four layers of OLMo 3 have a window, and a rotation without its scaling.
"""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.rope import Rotation, plain_rotation, read_rotation

PERIOD = 4  # every such layer of OLMo 3 sees all positions
NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(layers=[LayerConfig(window) for window in r.windows(period=PERIOD)])


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    if not layer.window:
        return {"rope": read_rotation(r, c)}
    theta = "rope.freq_base_swa" if r.has("rope.freq_base_swa") else "rope.freq_base"
    return {"rope": plain_rotation(r, c, theta, 10000.0)}


def _olmo3(config: HFReader) -> dict[str, object]:
    return config.sliding(PERIOD)


FAMILY = Family(
    ("olmo2",),
    (
        HuggingFace("olmo2", "olmo2", names=NAMES),
        HuggingFace("olmo3", "olmo2", _olmo3, NAMES, defaults={"sliding_window": 4096}),
    ),
    configure,
    partial(blocks.layer, normed="rows", before=("", ""), after=blocks.AFTER),
    rotations=rotations,
)

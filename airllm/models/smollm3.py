"""SmolLM3: a Llama in which every fourth layer does not rotate queries and keys (NoPE,
arXiv:2501.18795)."""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

PERIOD = 4  # every such layer does not rotate; GGUF files have no key for it


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(rotates=index % PERIOD != PERIOD - 1) for index in range(r.n_layers)]
    return r.config(layers=layers, rope_interleaved=True)


def _values(config: HFReader) -> dict[str, object]:
    config.no_window()
    interval = config.integer("no_rope_layer_interval", PERIOD, low=1)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    usual = [int((index + 1) % PERIOD != 0) for index in range(n_layers)]
    said = config.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(n_layers)])
    if said != usual:
        raise config.fault(
            f"no_rope_layers, or no_rope_layer_interval, says other than that every {PERIOD}th "
            "layer does not rotate"
        )
    return {}


FAMILY = Family(
    ("smollm3",),
    (
        HuggingFace(
            "smollm3",
            "smollm3",
            _values,
            tied=True,
            gguf_interleaved=True,
            defaults={"rope_theta": 2e6},
        ),
    ),
    configure,
)

"""Command R and Command R7B (Cohere): attention and feed-forward network side by side behind one
LayerNorm, and scaled logits. Three of four layers of Command R7B have a window; the fourth sees all
positions and does not rotate."""

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

PERIOD = 4
_EPS = ("layer_norm_eps", "attention.layer_norm_epsilon")


def configure(r: ConfigReader) -> ModelConfig:
    if r.architecture == "cohere2":
        layers = [LayerConfig(window, rotates=window > 0) for window in r.windows(period=PERIOD)]
    else:
        layers = [LayerConfig()] * r.n_layers
    return r.config(
        layers=layers,
        eps_key=_EPS[1],
        layer_norms=True,
        rope_interleaved=True,
        logit_scale=r.positive("logit_scale", 1.0),
    )


def _cohere(config: HFReader) -> dict[str, object]:
    config.expect("use_qk_norm", None, False)
    return {"logit_scale": config.number("logit_scale", 0.0625)}


def _cohere2(config: HFReader) -> dict[str, object]:
    config.expect("rotary_pct", None, 1.0)
    config.expect("use_parallel_block", None, True)
    config.expect("use_parallel_embedding", None, False)
    config.expect("use_gated_activation", None, True)
    config.expect("position_embedding_type", None, "rope_gptj")
    config.ignore("sliding_window_pattern", "_sliding_window_pattern", "use_embedding_sharing")
    return {**_cohere(config), **config.sliding(PERIOD)}


FAMILY = Family(
    ("command-r", "cohere2"),
    tuple(
        HuggingFace(
            model_type,
            architecture,
            values,
            tied=True,
            rope_interleaved=True,
            gguf_interleaved=True,
            norm_eps=_EPS,
            defaults={"layer_norm_eps": 1e-5},
        )
        for model_type, architecture, values in (
            ("cohere", "command-r", _cohere),
            ("cohere2", "cohere2", _cohere2),
        )
    ),
    configure,
    blocks.parallel_layer,
)

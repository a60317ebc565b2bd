"""MiniCPM3 4B: a Llama with the latents of DeepSeek V2, whose embeddings, residuals and logits are
multiplied by constants, and with LongRoPE."""

from collections.abc import Mapping
from dataclasses import replace

from airllm.formats.hf_config import LATENTS_JOINED
from airllm.formats.model_file import ModelParts
from airllm.models import deepseek2, deepseek2_older
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.util.metadata import Metadata

_LATENT_EPS = 1e-6  # whatever the file says of the other norms, which llama.cpp takes for these


def configure(r: ConfigReader) -> ModelConfig:
    """Files of llama.cpp's converter have no constants, which are those of the one model."""
    latent, rope_dims = deepseek2.latent_of(r)
    r.ignore("attention.value_length")  # the latent says it
    hidden = r.integer("embedding_length", low=1)
    c = r.config(
        head_dim=latent.rank + rope_dims,
        scaled_by=deepseek2.scaled_by(r, latent, rope_dims),
        latent=replace(latent, norm_eps=_LATENT_EPS),
        embedding_scale=r.positive("embedding_scale", 12.0),
        residual_scale=r.positive("residual_scale", 1.4 * r.n_layers**-0.5),
        logit_scale=1.0 / r.positive("logit_scale", hidden / 256.0),
    )
    if c.n_kv_heads != 1:
        raise r.fault("attention.head_count_kv", c.n_kv_heads, "expected 1")
    return c


def renewed(file: ModelParts) -> ModelParts:
    """With a matrix for keys and another for values, as in newer files of DeepSeek."""
    return deepseek2_older.renewed(file, {LATENTS_JOINED: True})


# ---- Hugging Face --------------------------------------------------------------------------------


def _defaults(config: Metadata) -> Mapping[str, object]:
    """null is another value than the default for three of them."""
    hidden, n_layers = (config.integer(key, low=1) for key in ("hidden_size", "num_hidden_layers"))
    for_null = {"scale_depth": n_layers**0.5, "dim_model_base": hidden, "q_lora_rank": 0}
    return {
        **{"kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32},
        **{"v_head_dim": hidden // config.integer("num_attention_heads", low=1)},
        **{"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
        **{key: value for key, value in for_null.items() if config.get(key, 0) is None},
    }


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("original_max_position_embeddings")
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    base = config.integer("dim_model_base", low=1)
    return {
        **deepseek2.latent_sizes(config),
        "embedding_scale": config.number("scale_emb"),
        "residual_scale": config.number("scale_depth") * n_layers**-0.5,
        "logit_scale": config.integer("hidden_size") / base,
    }


FAMILY = Family(
    ("minicpm3",),
    (
        HuggingFace(
            "minicpm3",
            "minicpm3",
            _values,
            deepseek2.names,
            defaults=_defaults,
            tied=True,
            own={LATENTS_JOINED: True},
        ),
    ),
    configure,
    deepseek2.layer,
    rotations=deepseek2.rotations,
    renewed=renewed,
)

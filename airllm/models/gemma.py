"""Gemma (arXiv:2403.08295), and CodeGemma: a Llama with GELU and scaled embeddings. See gemma2 for
its norms."""

from functools import partial

from airllm.models import blocks, gemma2
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(embedding_scale=r.integer("embedding_length", low=1) ** 0.5)


FAMILY = Family(
    ("gemma",),
    (
        HuggingFace(
            "gemma",
            "gemma",
            # Older folders say "gelu", and mean its approximation.
            activation=("gelu_pytorch_tanh", "gelu"),
            tied=True,
            plus_one=True,
            defaults={"head_dim": 256},
        ),
    ),
    configure,
    partial(blocks.layer, feed_forward=gemma2.feed_forward),
)

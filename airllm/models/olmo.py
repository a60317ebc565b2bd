"""OLMo 1B and 7B (arXiv:2402.00838): a Llama whose LayerNorms have no weights; queries, keys and
values of some are cut off at a limit."""

from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.mpt import LIMIT, qkv_limit
from airllm.models.starcoder2 import EPS


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        eps_key=EPS,
        layer_norms=True,
        plain_norms=True,
        qkv_limit=r.cap(LIMIT),
        rope_interleaved=True,
    )


FAMILY = Family(
    ("olmo",),
    (
        HuggingFace(
            "olmo",
            "olmo",
            qkv_limit,
            gguf_interleaved=True,
            norm_eps=("layer_norm_eps", EPS),
            defaults={"layer_norm_eps": 1e-5},  # always
        ),
    ),
    configure,
)

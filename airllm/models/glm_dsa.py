"""GLM-5 (arXiv:2602.15763): as DeepSeek V3.2, with an index that rotates pairs of neighbours. From
GLM-5.2 on, some layers see the positions that an earlier layer has selected (arXiv:2603.12201).
"""

from dataclasses import replace

import numpy as np

from airllm.models import deepseek2, deepseek32
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

_OF_INDEX = "attn_q_b.weight", "attn_k.weight", "proj.weight", "k_norm.weight", "k_norm.bias"
_LONG_CONTEXT = 2**20  # that files of GLM-5.2 and no earlier model have


def configure(r: ConfigReader) -> ModelConfig:
    c = deepseek32.configure(r, interleaved=True)
    assert c.indexer is not None
    name = "attention.indexer.types"
    selects = r.flags(name, r.n_layers)
    if selects is None:
        selects = [c.context_length < _LONG_CONTEXT or _selects(i, 4, 3) for i in range(r.n_layers)]
    if not selects[0]:
        raise r.metadata.fault(f"{r.key(name)}: the first layer selects no positions")
    idle = {
        f"blk.{layer}.indexer.{tensor}"
        for layer, own in enumerate(selects)
        for tensor in _OF_INDEX
        if not own
    }
    return replace(
        c,
        layers=tuple(
            replace(layer, selects=own) for layer, own in zip(c.layers, selects, strict=True)
        ),
        indexer=replace(c.indexer, shared=not all(selects)),
        idle_tensors=c.idle_tensors | idle,
    )


def _selects(layer: int, period: int, first: int) -> bool:
    """Whether a layer selects positions: the first ones do, and then one of each period."""
    return max(layer - first + 1, 0) % period == 0


# ---- Hugging Face --------------------------------------------------------------------------------


_PATTERN = "index_topk_pattern"  # "FFSS": of each layer a letter


def values(config: HFReader) -> dict[str, object]:
    config.expect("indexer_rope_interleave", None, True)
    selects = np.array(_selecting(config), bool)
    return {**deepseek32.values(config), "attention.indexer.types": selects}


def _selecting(config: HFReader) -> list[bool]:
    """Of each layer, whether it selects positions."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    keys = "indexer_types", _PATTERN, "index_topk_freq", "index_skip_topk_offset"
    config.ignore(*keys)
    key = next((key for key in keys[:2] if config.get(key) is not None), None)
    if key is None:
        period = max(config.integer(keys[2], 1), 1)
        offset = config.integer(keys[3], 2)
        return [_selects(layer, period, offset) for layer in range(n_layers)]
    return selecting(config, key, n_layers)


def selecting(config: HFReader, key: str, n_layers: int) -> list[bool]:
    """Of each layer, whether it selects positions, as a list or a pattern of config.json says."""
    said = config.get(key)
    words = {"full": True, "shared": False, **({"F": True, "S": False} if key == _PATTERN else {})}
    types = list(said) if isinstance(said, str) else config.texts(key)
    if len(types) != n_layers or set(types) - set(words):
        raise config.fault(
            f"{key} does not say of each of {n_layers} layers whether it is 'full' or 'shared'"
        )
    return [words[each] for each in types]


FAMILY = Family(
    ("glm-dsa",),
    (
        HuggingFace(
            "glm_moe_dsa",
            architecture="glm-dsa",
            values=values,
            names=deepseek32.names,
            defaults={**deepseek32.DEFAULTS, "index_n_heads": 32, "v_head_dim": 256},
            rope_interleaved=True,
            gguf_interleaved=True,
            heads="layers",
        ),
    ),
    configure,
    deepseek32.layer,
    rotations=deepseek2.rotations,
    next_layer=deepseek2.next_layer,
)

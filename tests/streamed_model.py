"""A model whose layers are what memory is for, and engines that open it with little of that."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_model import Sizes, TinyModel

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import BudgetError

# Layers of 1.2 MB in Q4_0, so that they, and not the reads under way, are what memory is for.
SIZES = Sizes(hidden=512, ffn=1024, n_layers=8, n_heads=8, head_dim=64, rope_dims=64)
TOKENS = np.random.default_rng(1).integers(0, 268, 70).tolist()

Open = Callable[..., LayerWiseInferenceEngine]


def smallest_budget(open_engine: Open, model: TinyModel, **settings: Any) -> int:
    with pytest.raises(BudgetError) as refusal:
        open_engine(model, ram_budget=1, **settings)
    return refusal.value.minimum

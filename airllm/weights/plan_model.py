"""A model's plan without the model: nothing but its header is read, and what a probe reads."""

import os
from contextlib import closing
from pathlib import Path

from airllm.backends import load_backend
from airllm.formats.opening import open_model
from airllm.graph.graph import Activations
from airllm.graph.rewrite import fusion_wanted
from airllm.models import load_model
from airllm.state.kv_cache import KVType
from airllm.weights.budget import granted_bytes
from airllm.weights.disk_probe import disk_bytes_per_second
from airllm.weights.open_weights import plan_weights
from airllm.weights.plan import Plan


def plan_model(
    model_path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    context: int | None = None,
    kv_type: KVType = "f16",
    activations: Activations = "auto",
    batch_size: int | None = None,
    fusion: bool | None = None,
    quantize: str | None = None,
    ram_budget: int | str | None = None,
    probe: bool = False,
) -> Plan:
    """What LayerWiseInferenceEngine would do with these arguments, and raise.

    probe: read for a fraction of a second, where the model would be streamed, for the speed of it.
    """
    budget = granted_bytes(ram_budget)
    runner = load_backend(backend)
    with closing(open_model(Path(model_path), quantize)) as gguf:
        model = load_model(gguf, activations, fusion=fusion_wanted(fusion))
        plan, _ = plan_weights(
            gguf,
            model,
            runner,
            budget=budget,
            context=context,
            kv_type=kv_type,
            batch_size=batch_size,
        )
        if not probe or not plan.streams:
            return plan
        return plan.with_disk(disk_bytes_per_second(gguf, runner))

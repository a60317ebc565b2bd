"""A model's plan without its weights: only its header is read, and a probe's bytes if wanted."""

import os
from collections.abc import Sequence
from typing import Self

from airllm.backends import Backend, load_backend
from airllm.formats.model_file import ModelFile
from airllm.graph.graph import Activations
from airllm.graph.rewrite import fusion_wanted
from airllm.models import Model, load_model
from airllm.models.opening import open_model
from airllm.state.layout import KVType
from airllm.util.closing import Closing
from airllm.weights.budget import granted_bytes
from airllm.weights.open_weights import plan_weights
from airllm.weights.plan import Part, Plan

__all__ = ["PlannedModel", "plan_model"]


class PlannedModel(Closing):
    """A model whose file is open and checked, and the plan of its memory.

    plan, parts: from plan_weights, for kv_type. activations: how the model's graphs round them.
    """

    file: ModelFile
    model: Model
    backend: Backend
    kv_type: KVType
    activations: Activations
    plan: Plan
    parts: Sequence[Part]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None,
        threads: int | None,
        context: int | None,
        kv_type: KVType,
        activations: Activations,
        batch_size: int | None,
        ram_budget: int | str | None,
        quantize: str | None,
        fusion: bool | None,
    ) -> Self:
        """See LayerWiseInferenceEngine for the arguments and the errors."""
        self = cls()
        budget = granted_bytes(ram_budget)
        self.backend, self.kv_type = load_backend(backend, threads), kv_type
        self.activations = activations
        self.file = open_model(path, quantize)
        try:
            self.model = load_model(self.file, activations, fusion=fusion_wanted(fusion))
            self.plan, self.parts = plan_weights(
                self.file,
                self.model,
                self.backend,
                budget=budget,
                context=context,
                kv_type=kv_type,
                batch_size=batch_size,
            )
        except BaseException:
            self.file.close()
            raise
        self.closed = False
        return self

    def probed_plan(self) -> Plan:
        """The plan; if the model is streamed, with the disk's speed, measured for a fraction of a
        second."""
        if not self.plan.streams:
            return self.plan
        from airllm.weights.disk_probe import disk_bytes_per_second

        return self.plan.with_disk(disk_bytes_per_second(self.file, self.backend))

    def release(self) -> None:
        self.file.close()

    def __repr__(self) -> str:
        return f"the model {str(self.file.path)!r}"


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
    """The plan that LayerWiseInferenceEngine would make of these arguments, with the same errors.

    probe: if the model would be streamed, measure the disk's speed for a fraction of a second.
    """
    with PlannedModel.open(
        model_path,
        backend=backend,
        threads=None,
        context=context,
        kv_type=kv_type,
        activations=activations,
        batch_size=batch_size,
        ram_budget=ram_budget,
        quantize=quantize,
        fusion=fusion,
    ) as planned:
        return planned.probed_plan() if probe else planned.plan

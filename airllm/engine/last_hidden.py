"""The last hidden states of tokens, from which embeddings are made."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.weights.layer_weights import tensor_of
from airllm.weights.plan_model import PlannedModel

__all__ = ["LastHidden"]


class LastHidden:
    """What the head does before it multiplies by the vocabulary: the last norm."""

    def __init__(self, planned: PlannedModel, batch_size: int) -> None:
        graph, backend, file = planned.model.last_hidden, planned.backend, planned.file
        self._executor = backend.executor(graph, batch_size)
        weights: dict[str, Any] = {}
        for slot in graph.weights:
            tensor = tensor_of(file, slot)
            data = file.read(tensor.name, np.empty(tensor.nbytes, np.uint8))
            weights[slot.name] = backend.weight(
                graph.roles[slot.name], data, tensor.type, tensor.shape
            )
        self._bound = self._executor.bind(weights)
        self._inputs = planned.model.carried_to(graph)
        self.width = next(buffer.width for buffer in graph.buffers if buffer.name == "hidden")

    def run(
        self, carried: dict[str, NDArray[np.float32]], hidden: NDArray[np.float32], threads: int
    ) -> None:
        """carried: what the layers leave, [n, width] each. hidden: float32 [n, self.width], is
        filled."""
        buffers = {name: carried[name] for name in self._inputs} | {"hidden": hidden}
        self._executor.run(self._bound, buffers, len(hidden), threads=threads)

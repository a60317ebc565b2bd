"""Sources of a model's weights. The engine asks for a layer and holds it while it computes:

    with source.layer(index) as bound:
        executor.run(bound, ...)

FileWeights prepares all weights once and keeps them. StreamWeights (stream_weights.py) keeps the
layers that the budget allows and streams the rest from the disk.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.backends.experts import Experts
from airllm.formats.model_file import ModelFile, Tensor, full_name
from airllm.graph.graph import MANY, MATRICES, Graph, Role, Weight
from airllm.models import Model
from airllm.models.rope import ROPE_TENSORS
from airllm.util.progress import OnProgress
from airllm.weights.ring import aligned_bytes

__all__ = [
    "OF_THE_MODEL",
    "FileWeights",
    "WeightSource",
    "check_tensors",
    "largest_tensor",
    "layers_at_once",
    "next_places",
    "places",
    "tensor_name",
    "tensor_of",
]

# The most bytes of layers that one call runs. Python adds 30 us between two calls, and Ctrl-C waits
# for the end of a call: reading so many bytes takes 10 ms.
_BYTES_AT_ONCE = 256 << 20

_VECTOR_TYPES = ("f32", "f16", "bf16")

# Slots of tensors that belong to no layer; a next-token head may use the model's.
OF_THE_MODEL = frozenset(["token_embd", "output_norm", "output"])


class WeightSource(Protocol):
    """Gives out weights that an executor's `bind` returned. They are valid inside the `with`.

    Where a pass goes several times through the layers, their numbers go on, and the weights are
    those of the first time."""

    streams: bool  # whether a pass waits for the disk, so that many tokens should share a layer
    layers_at_once: int  # the most consecutive layers to ask `layers` for

    def embed(self) -> AbstractContextManager[Any]: ...
    def layer(self, index: int) -> AbstractContextManager[Any]: ...
    def layers(self, start: int, stop: int) -> AbstractContextManager[Sequence[Any]]: ...
    def head(self) -> AbstractContextManager[Any]: ...
    def next_head(self) -> AbstractContextManager[Sequence[Any]]:
        """The weights of the next-token head's graphs, as many as HeadSteps has."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are kept, in the backend's layout."""

    def stream_stats(self) -> dict[str, Any] | None:
        """Counters of the stream, see tensor_ops_cpp.Stream.stats; None if nothing is streamed."""

    def close(self) -> None: ...


class FileWeights:
    """All weights of a GGUF file, bound to the executors of a model's graphs.

    Tensors that the backend repacks are read from the file. The others stay in the file's memory
    map; asking for them raises FormatError once the file has changed.
    """

    streams = False

    def __init__(
        self,
        gguf: ModelFile,
        model: Model,
        backend: Backend,
        *,
        embed: Executor,
        layers: Sequence[Executor],
        head: Executor,
        next_head: Sequence[Executor] = (),
        on_progress: OnProgress | None = None,
    ) -> None:
        """layers: the executor of each stored layer; layers of one kind share an executor.
        next_head: of the next-token head's graphs, if the model has them.
        on_progress(done, total) is called after each layer has been prepared."""
        check_tensors(gguf, model)
        self._gguf, self._n_layers = gguf, model.config.n_stored_layers
        self._layers_stay_in_map = "matrix" in backend.keeps
        self._prepared: dict[tuple[str, Role], Any] = {}
        largest = largest_tensor(gguf, model)
        memory = np.empty(largest, np.uint8)  # for each tensor in turn
        self._bound = []
        for (graph, index), executor in zip(places(model), (embed, *layers, head), strict=True):
            bound = executor.bind(self._prepare(backend, graph, index, memory))
            self._bound.append(nullcontext(bound))
            if on_progress is not None and index is not None:
                on_progress(index + 1, self._n_layers)
        read = sum(  # by a token
            weight.nbytes * (model.config.share_of_experts if role == "experts" else 1.0)
            for (_, role), weight in self._prepared.items()
        )
        self.layers_at_once = layers_at_once(self._n_layers, round(read))
        self._together: dict[tuple[int, int], AbstractContextManager[Sequence[Any]]] = {}
        self._next_head = nullcontext(
            [
                executor.bind(self._prepare(backend, graph, index, memory))
                for (graph, index), executor in zip(next_places(model), next_head, strict=True)
            ]
        )
        gguf.check_unchanged()

    def embed(self) -> AbstractContextManager[Any]:
        self._gguf.check_unchanged()  # a microsecond
        return self._bound[0]

    def layer(self, index: int) -> AbstractContextManager[Any]:
        if self._layers_stay_in_map:
            self._gguf.check_unchanged()
        return self._bound[1 + index % self._n_layers]

    def layers(self, start: int, stop: int) -> AbstractContextManager[Sequence[Any]]:
        if self._layers_stay_in_map:
            self._gguf.check_unchanged()
        if (start, stop) not in self._together:
            each = (self._bound[1 + index % self._n_layers] for index in range(start, stop))
            bound = tuple(bound.enter_result for bound in each)
            self._together[start, stop] = nullcontext(bound)
        return self._together[start, stop]

    def head(self) -> AbstractContextManager[Any]:
        if self._layers_stay_in_map:
            self._gguf.check_unchanged()
        return self._bound[-1]

    def next_head(self) -> AbstractContextManager[Sequence[Any]]:
        self._gguf.check_unchanged()
        return self._next_head

    def stream_stats(self) -> None:
        return None

    def close(self) -> None:
        pass

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in the backend's layout, in memory and in the map."""
        return sum(weight.nbytes for weight in self._prepared.values())

    def _prepare(
        self, backend: Backend, graph: Graph, index: int | None, memory: NDArray[np.uint8]
    ) -> dict[str, Any]:
        """The weights of a graph's slots; a tensor is prepared once for each role it has."""
        weights, packed = {}, list[tuple[Role, Tensor]]()
        for slot in graph.weights:
            role, tensor = graph.roles[slot.name], tensor_of(self._gguf, slot, index)
            key = tensor.name, role
            weights[slot.name] = key
            if key in self._prepared:
                continue
            if role in backend.keeps:
                data = self._gguf.data(tensor.name)
                self._fetch_soon(tensor)
            elif role in MATRICES:
                packed.append((role, tensor))
                continue
            else:
                data = self._gguf.read(tensor.name, memory)
            self._prepared[key] = backend.weight(role, data, tensor.type, tensor.shape)
        self._pack(backend, packed, memory)
        return {slot: self._prepared[key] for slot, key in weights.items()}

    def _pack(
        self,
        backend: Backend,
        tensors: Sequence[tuple[Role, Tensor]],
        read_to: NDArray[np.uint8],
    ) -> None:
        """Packs matrices one behind the other, so that they lie in huge pages: a matrix of 2.4 MB
        alone has one of them, and 100 small pages."""
        rooms = []  # (count, shape, bytes) of the matrices of each tensor
        for _, tensor in tensors:
            *of_each, n, k = tensor.shape
            packed = backend.packed_bytes(tensor.type, (n, k))
            rooms.append((math.prod(of_each), (n, k), aligned_bytes(packed)))
        memory, offset = backend.memory(sum(count * n_bytes for count, _, n_bytes in rooms)), 0
        for (role, tensor), (count, shape, n_bytes) in zip(tensors, rooms, strict=True):
            made = []
            for rows in self._gguf.read(tensor.name, read_to).reshape(count, -1):
                matrix, target = backend.matrix_in(memory, offset, tensor.type, shape)
                backend.fill(target, rows)
                made.append(matrix)
                offset += n_bytes
            self._prepared[tensor.name, role] = Experts(made) if role in MANY else made[0]

    def _fetch_soon(self, tensor: Tensor) -> None:
        """Ask the system to read this part of the map now, so that no token waits for the disk."""
        for extent in tensor.extents:
            first = extent.offset // mmap.PAGESIZE * mmap.PAGESIZE
            if hasattr(mmap, "MADV_WILLNEED"):
                n_bytes = extent.offset + extent.nbytes - first
                self._gguf.parts[extent.part].map.madvise(mmap.MADV_WILLNEED, first, n_bytes)


def layers_at_once(n_layers: int, n_bytes: int) -> int:
    """How many layers one call may run. n_bytes: what a token reads of all layers."""
    return max(1, n_layers * _BYTES_AT_ONCE // max(n_bytes, 1))


def tensor_name(slot: str, layer: int | None = None) -> str:
    """The GGUF tensor of a weight slot: "attn_q" of layer 3 is "blk.3.attn_q.weight", and
    "attn_q.bias" "blk.3.attn_q.bias"; likewise for scales."""
    name = full_name(slot)
    return name if layer is None or slot in OF_THE_MODEL else f"blk.{layer}.{name}"


def tensor_of(gguf: ModelFile, slot: Weight, layer: int | None = None) -> Tensor:
    """The tensor of a weight slot, in the slot's shape, see _fits."""
    return replace(gguf.tensors[tensor_name(slot.name, layer)], shape=slot.shape)


def largest_tensor(gguf: ModelFile, model: Model) -> int:
    """Bytes of the largest tensor that a graph has a slot for."""
    return max(
        gguf.tensors[tensor_name(slot.name, index)].nbytes
        for graph, index in places(model)
        for slot in graph.weights
    )


def check_tensors(gguf: ModelFile, model: Model) -> None:
    """Compare a file's tensors with the slots of a model's graphs, before any tensor is read.

    FormatError names a tensor that is missing, has the wrong shape or type, or has no slot: a model
    that ignored some of its weights would run and give wrong answers.
    """
    unused = gguf.tensors.keys() - ROPE_TENSORS  # LayerKind.rotations has them
    used = None if model.next_head is None else model.next_head.index
    left_out = tuple(f"blk.{layer}." for layer in model.config.left_out if layer != used)
    unused -= {name for name in unused if name.startswith(left_out)} | model.config.idle_tensors
    for graph, index in (*places(model), *next_places(model)):
        for slot in graph.weights:
            name = tensor_name(slot.name, index)
            tensor = gguf.tensors.get(name)
            if tensor is None:
                raise gguf.metadata.fault(f"tensor {name} is missing")
            if not _fits(tensor.shape, slot.shape):
                raise gguf.metadata.fault(
                    f"tensor {name} has shape {list(tensor.shape)}; expected {list(slot.shape)}, "
                    f"as the metadata says"
                )
            kept = graph.roles[slot.name] in ("vector", "vectors")
            if kept and tensor.type not in _VECTOR_TYPES:
                raise gguf.metadata.fault(
                    f"tensor {name} is {tensor.type}; expected one of {', '.join(_VECTOR_TYPES)}"
                )
            unused.discard(name)
            if graph.roles[slot.name] in MATRICES:
                # What activations were rounded by; nothing here is rounded by it.
                unused.discard(f"{name.removesuffix('.weight')}.input_scale")
    if unused:
        name = min(unused)
        if name.endswith((".scale", ".input_scale")):
            raise gguf.metadata.fault(
                f"tensor {name} scales no matrix that a {model.config.architecture} model "
                "multiplies by"
            )
        raise gguf.metadata.fault(
            f"tensor {name} has no place in a {model.config.architecture} model"
        )


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Files store a matrix of one row as a vector, and a few vectors as matrices: ssm_norm with a
    row for each group, ssm_a with one value in each row. Filters of short convolutions may have
    axes of length 1 before that of the taps. Square matrices below each other may be stored as a
    stack, altup_proj, and a stack as matrices below each other, attn_output_a."""
    if len(wanted) == 1 and len(stored) > 1:
        return math.prod(stored) == wanted[0]
    if len(wanted) == 2:
        n, k = wanted
        if stored in ((n, 1, k), (1, n, 1, k)):
            return True
        if len(stored) == 3:
            count, rows, columns = stored
            return count > 1 and rows == columns and wanted == (count * rows, columns)
    if len(wanted) == 3 and len(stored) == 2:
        count, rows, columns = wanted
        return stored == (count * rows, columns)
    return wanted in (stored, (1, *stored))


def places(model: Model) -> Iterator[tuple[Graph, int | None]]:
    """Each graph of a forward pass with weights of its own, in order, and the index of its layer
    (None: no layer). Where a pass goes through the layers again, it has no others."""
    yield model.embed, None
    for index, kind in enumerate(model.kind_of_layer[: model.config.n_stored_layers]):
        yield model.kinds[kind].graph, index
    yield model.head, None


def next_places(model: Model) -> list[tuple[Graph, int]]:
    """Likewise of the next-token head, if the model has one."""
    head = model.next_head
    return [] if head is None else [(graph, head.index) for graph in head.graphs]

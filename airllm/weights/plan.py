"""Decides which parts of a model stay in memory and which are streamed, within a budget.

As many of the layers and the head as fit stay in memory; the others pass through a ring, see
airllm.weights.residency. The embedding stays in memory only if everything else does: a token needs
one row of it, a few kilobytes, and the whole of it would take the place of layers, which are read
whole.

Of a mixture of experts, everything but the experts stays in memory if it fits. A token then reads
the few experts that the router chooses, unless they are among the last used.

The budget covers the model: weights, full KV cache, and buffers. Python, NumPy and the tokeniser
take about 60 MB more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from airllm.backends import Backend
from airllm.formats.model_file import ModelFile, Tensor
from airllm.graph.graph import MATRICES, Role
from airllm.models import Model
from airllm.weights.budget import BudgetError, format_bytes, in_words
from airllm.weights.residency import Residency, least_bytes, read_buffer_bytes, reside
from airllm.weights.ring import Matrix, aligned_bytes

__all__ = ["Part", "Plan", "make_plan", "model_parts", "next_head_part"]

# The most tokens of a prompt in one batch, by default. The buffers of large batches would take the
# place of layers, which would then be streamed: batches of 144 tokens are as fast within a few
# percent and take 27 MB less for a model of 1.1B. A longer prompt is cut into even batches of more
# than 64 tokens each, so that activations="auto" rounds the same with either size.
BATCH_SIZE, STREAMED_BATCH_SIZE = 512, 144

# The longest default context, in tokens: the KV cache of a longer one would be most of a small
# model's memory.
DEFAULT_CONTEXT = 4096

# The share of the budget that the KV cache of a default context may take.
KV_SHARE = 0.25
CONTEXT_STEP = 256  # a default context is a multiple of it, or the model's limit


@dataclass(frozen=True)
class Part:
    """The weights that a graph runs with: the embedding's, a layer's, or the head's."""

    name: str  # "layer 3"
    matrices: tuple[Matrix, ...]  # a stream can read these
    # (slot, role, tensor) of vectors, and of matrices that are not in one piece in a file
    kept: tuple[tuple[str, Role, Tensor], ...]
    kept_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices in memory."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def multiplied_bytes(self) -> int:
        """Likewise of those that are no tables."""
        return self.nbytes - self.rows().nbytes

    @property
    def file_bytes(self) -> int:
        return sum(matrix.file_bytes for matrix in self.matrices)

    def without_experts(self) -> "Part":
        others = tuple(matrix for matrix in self.matrices if matrix.role != "experts")
        return replace(self, matrices=others)

    def rows(self) -> "Part":
        """With the tables only, of which a token needs a row."""
        return replace(self, matrices=tuple(m for m in self.matrices if m.role == "rows"))

    def experts(self) -> list[list[Matrix]]:
        """The matrices of each expert."""
        found: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.role == "experts":
                found.setdefault(matrix.slot, []).append(matrix)
        return [list(of_one) for of_one in zip(*found.values(), strict=True)]


@dataclass(frozen=True)
class Plan:
    """The use of a model's memory, and the bytes that each pass through its layers reads.

    budget_bytes: None if there is no limit. head: "pinned" or "streamed". embedding: "pinned", or
    "looked up": each token reads a row, from the page cache or the disk. batch_size: the most
    tokens of a prompt in one batch. ring_bytes: slots of the ring, and buffers of the reads under
    way. streamed_bytes_per_pass: read from the files in a pass, which is a token of an answer, a
    whole prompt, or a token of each sequence of a batch. disk_bytes_per_second and
    expected_tokens_per_second: None if the disk was not probed or nothing is streamed.
    expert_places: experts that fit in ring_bytes if experts are read one by one, else 0;
    streamed_bytes_per_pass is then the mean for a token whose experts are all equally likely.
    next_head_bytes: of pinned_bytes those of the next-token head; 0: there is none, or it is not
    wanted.
    """

    budget_bytes: int | None
    model_bytes: int
    context: int
    batch_size: int
    kv_cache_bytes: int
    buffer_bytes: int
    pinned_bytes: int
    ring_bytes: int
    slots: int
    pinned_layers: tuple[int, ...]
    streamed_layers: tuple[int, ...]
    head: Literal["pinned", "streamed"]
    embedding: Literal["pinned", "looked up"]
    streamed_bytes_per_pass: int
    expert_places: int = 0
    next_head_bytes: int = 0
    disk_bytes_per_second: float | None = None
    expected_tokens_per_second: float | None = None

    @property
    def streams(self) -> bool:
        return self.streamed_bytes_per_pass > 0

    @property
    def guesses_pay(self) -> bool:
        """Whether a pass of several tokens waits for the disk no longer than a pass of one. Not if
        experts are read one by one: each token may need other experts."""
        return self.streams and not self.expert_places

    @property
    def total_bytes(self) -> int:
        """The most memory that the model takes, in bytes."""
        return self.kv_cache_bytes + self.buffer_bytes + self.pinned_bytes + self.ring_bytes

    def with_disk(self, bytes_per_second: float) -> "Plan":
        """The same plan with the disk's speed, and the speed of answers that it allows."""
        expected = bytes_per_second / self.streamed_bytes_per_pass if self.streams else None
        return replace(
            self, disk_bytes_per_second=bytes_per_second, expected_tokens_per_second=expected
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def make_plan(
    parts: Sequence[Part],
    *,
    budget: int | None,
    context: int,
    batch_size: int,
    kv_cache_bytes: int,
    buffer_bytes: int,
    by_expert_bytes: int = 0,
    experts_used: int = 0,
    n_loops: int = 1,
    next_head: Part | None = None,
    may_stream: bool = True,
) -> Plan:
    """parts: from model_parts: the embedding, the layers, the head.
    by_expert_bytes: of the buffers if experts are read one by one, in place of buffer_bytes.
    experts_used: experts of a layer that a token uses; 0 for a model without experts.
    n_loops: times that a pass goes through the layers.
    next_head: from next_head_part. It is used several times in a pass, and the head with it, so
    that both stay in memory.
    may_stream: whether layers or experts may be streamed.

    BudgetError, with the smallest budget that would do, if the model does not fit.
    """
    embedding, *layers, head = parts
    whole = [*parts, *([next_head] if next_head else [])]
    kept = sum(part.kept_bytes for part in whole)
    # The embedding's graph may multiply by a matrix: of that, no token needs a row only.
    fixed, tables = embedding.multiplied_bytes, embedding.rows().nbytes
    head_bytes = head.nbytes
    if next_head is not None:
        fixed += next_head.multiplied_bytes + head_bytes
        tables += next_head.rows().nbytes
        head_bytes = 0
    base = kv_cache_bytes + buffer_bytes + kept + fixed
    sizes = [*(layer.nbytes for layer in layers), head_bytes]
    longest = max((matrix.file_bytes for part in whole[1:] for matrix in part.matrices), default=0)
    reads = read_buffer_bytes(longest)

    def plan(found: Residency, *, keeps_rows: bool = False) -> Plan:
        streamed = [index for index in range(len(sizes)) if index not in found.pinned]
        return Plan(
            budget_bytes=budget,
            # A tied embedding is counted twice: the head has the same matrix, but packed.
            model_bytes=sum(part.file_bytes for part in whole) + kept,
            context=context,
            batch_size=batch_size,
            kv_cache_bytes=kv_cache_bytes,
            buffer_bytes=buffer_bytes,
            pinned_bytes=kept + fixed + found.pinned_bytes + (tables if keeps_rows else 0),
            ring_bytes=found.ring_bytes,
            slots=found.slots,
            pinned_layers=tuple(sorted(found.pinned - {len(layers)})),
            streamed_layers=tuple(index for index in streamed if index < len(layers)),
            head="pinned" if len(layers) in found.pinned else "streamed",
            embedding="pinned" if keeps_rows else "looked up",
            streamed_bytes_per_pass=sum(
                parts[1 + index].file_bytes * (n_loops if index < len(layers) else 1)
                for index in streamed
            ),
            next_head_bytes=next_head.kept_bytes + next_head.multiplied_bytes if next_head else 0,
        )

    everything = base + sum(sizes)
    if budget is None or everything <= budget:
        has_room = budget is None or everything + tables <= budget
        all_of_it = Residency(frozenset(range(len(sizes))), sum(sizes))
        return plan(all_of_it, keeps_rows=has_room)
    left = budget - base
    minimum = base + least_bytes(sizes, reads) if may_stream else everything
    routed = [layer for layer in layers if layer.experts()]
    kept_experts = any(role == "experts" for layer in layers for _, role, _ in layer.kept)
    if may_stream and experts_used and routed and not kept_experts:
        others = sum(layer.without_experts().nbytes for layer in layers)
        experts = [expert for layer in layers for expert in layer.experts()]
        place = max(sum(matrix.nbytes for matrix in expert) for expert in experts)
        fewest = max(len(layer.experts()) for layer in routed)
        room = left - head_bytes - others - reads + buffer_bytes - by_expert_bytes
        minimum = min(minimum, budget - room + fewest * place)
        if room >= fewest * place:
            places = min(room // place, len(experts))
            file_bytes = sum(matrix.file_bytes for matrix in experts[0])
            missing = n_loops * len(routed) * experts_used * (1 - places / len(experts))
            stay = frozenset([len(layers)])
            return replace(
                plan(Residency(stay, head_bytes + others, ring_bytes=places * place + reads)),
                buffer_bytes=by_expert_bytes,
                streamed_bytes_per_pass=max(int(missing * file_bytes), 1),
                expert_places=places,
            )
    if may_stream and (found := reside(sizes, left, reads)) is not None:
        return plan(found)
    mib = -(-minimum // 2**20)  # rounded up, so that the number in the message is enough
    raise BudgetError(
        f"the model does not run in {in_words(budget)}: it needs at least {mib} MiB "
        f"({minimum} bytes), of which {format_bytes(kv_cache_bytes)} are the KV cache "
        f"of a context of {context} tokens and {format_bytes(buffer_bytes)} buffers"
        f"{_hint_to_do_without(next_head)}"
        f"{_hint_to_convert(parts)}",
        minimum,
    )


def _hint_to_do_without(next_head: Part | None) -> str:
    if next_head is None:
        return ""
    size = format_bytes(next_head.kept_bytes + next_head.multiplied_bytes)
    return f", and {size} the next-token head (`mtp`), which no model needs"


def _hint_to_convert(parts: Sequence[Part]) -> str:
    """A hint for models with matrices that cannot be streamed; empty for the others."""
    made = any(role in MATRICES for part in parts for _, role, _ in part.kept)
    if not made:
        return ""
    return (
        ". Weights that are converted while they are read (`quantize`, quantised folders) stay in "
        "memory; `airllm convert` writes them to a file, which can be streamed"
    )


def default_context(
    longest: int, shortest: int, state_bytes: Callable[[int], int], budget: int | None
) -> int:
    """The default context: `longest`, or less if its state would take more than KV_SHARE of the
    budget, but not below `shortest`. state_bytes: of a context."""
    context = longest
    while budget is not None and context > shortest and state_bytes(context) > KV_SHARE * budget:
        context = max(shortest, (context - 1) // CONTEXT_STEP * CONTEXT_STEP)
    return context


def model_parts(gguf: ModelFile, model: Model, backend: Backend) -> list[Part]:
    """The parts in the order of a pass: embedding, layers, head. The tensors must have been checked
    (layer_weights.check_tensors)."""
    from airllm.weights.layer_weights import places, tensor_of

    parts = []
    for graph, index in places(model):
        name = graph.name if index is None else f"layer {index}"
        tensors = {slot.name: tensor_of(gguf, slot, index) for slot in graph.weights}
        parts.append(_part(name, graph.roles, tensors, backend))
    return parts


def next_head_part(gguf: ModelFile, model: Model, backend: Backend) -> Part | None:
    """What the next-token head has of its own, without the tensors of the model that it uses; None
    if the model has no head. Checked as those of model_parts."""
    from airllm.weights.layer_weights import OF_THE_MODEL, next_places, tensor_of

    roles: dict[str, Role] = {}
    tensors: dict[str, Tensor] = {}
    for graph, index in next_places(model):
        for slot in graph.weights:
            if slot.name not in OF_THE_MODEL:
                roles[slot.name] = graph.roles[slot.name]
                tensors[slot.name] = tensor_of(gguf, slot, index)
    return _part("next-token head", roles, tensors, backend) if roles else None


def _part(
    name: str, roles: Mapping[str, Role], tensors: Mapping[str, Tensor], backend: Backend
) -> Part:
    matrices: list[Matrix] = []
    kept: list[tuple[str, Role, Tensor]] = []
    kept_bytes = 0
    for slot, role in roles.items():
        tensor = tensors[slot]
        vectors = role in ("vector", "vectors")
        found = None if vectors else _matrices(slot, role, tensor, backend)
        if found is None:
            kept.append((slot, role, tensor))
            kept_bytes += 4 * math.prod(tensor.shape) if vectors else tensor.nbytes
        else:
            matrices += found
    return Part(name, tuple(matrices), tuple(kept), kept_bytes)


def _matrices(slot: str, role: Role, tensor: Tensor, backend: Backend) -> list[Matrix] | None:
    """The matrices of a tensor; None if one of them is not in one piece in a file."""
    n, k = tensor.shape[-2:]
    file_bytes = n * tensor.row_bytes
    packed = file_bytes if role == "rows" else backend.packed_bytes(tensor.type, (n, k))
    nbytes = aligned_bytes(packed)
    matrices = []
    for first in range(0, tensor.nbytes, file_bytes):
        place = _place(tensor, first, file_bytes)
        if place is None:
            return None
        matrices.append(
            Matrix(slot, role, tensor.name, tensor.type, (n, k), *place, file_bytes, nbytes)
        )
    return matrices


def _place(tensor: Tensor, first: int, n_bytes: int) -> tuple[int, int] | None:
    """File and offset of n_bytes of a tensor from byte `first` on; None if not in one piece."""
    for extent in tensor.extents:
        if first + n_bytes <= extent.nbytes:
            return extent.part, extent.offset + first
        if first < extent.nbytes:
            return None
        first -= extent.nbytes
    return None

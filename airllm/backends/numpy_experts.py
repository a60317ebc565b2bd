"""Mixtures of experts in NumPy: the choice, the products, the sum."""

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op

__all__ = [
    "expert_bias",
    "expert_linear",
    "expert_scale",
    "expert_sum",
    "route",
    "route_to",
    "scale_shares",
]

_SPARSEMIXER_BAND = np.float32(0.02)  # twice the noise that Phi-3.5-MoE was trained with
_LOWEST = np.finfo(np.float32).min


def route(op: Op, batch: TokenBatch) -> None:
    logits, out = arrays(op, batch)
    if op.attrs["gating"] == "sparsemixer":
        _write_sparsemixer(op, logits, out)
        return
    n_used, shares = int(op.attrs["n_used"]), _shares(op, logits)
    ranks = _ranks(shares + batch.weights[op.weights[0]] if op.weights else shares)
    if int(op.attrs["n_groups_used"]) < int(op.attrs["n_groups"]):
        ranks = _best_groups(op, ranks)
    experts = np.argsort(-ranks, axis=-1, kind="stable")[:, :n_used]  # lowest number first
    _write_route(op, shares, experts, out)


def route_to(op: Op, batch: TokenBatch) -> None:
    logits, numbers, out = arrays(op, batch)
    _write_route(op, _shares(op, logits), numbers.astype(np.int64), out)


def _shares(op: Op, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if op.attrs["gating"] == "softmax":
        return numpy_ops.softmax(logits)
    if op.attrs["gating"] == "sigmoid":
        return numpy_ops.sigmoid_apply(logits).astype(np.float32)
    return np.sqrt(np.logaddexp(0.0, logits.astype(np.float64))).astype(np.float32)


def _write_route(
    op: Op, shares: NDArray[np.float32], experts: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    _write_shares(op, experts, np.take_along_axis(shares, experts, axis=-1), out)


def _write_sparsemixer(op: Op, logits: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """See the op's definition. logits: [n_tokens, n_experts]"""
    n_used, ranks = int(op.attrs["n_used"]), _ranks(logits)
    experts, chosen = np.empty((2, len(logits), n_used))
    for u in range(n_used):
        best = np.argmax(ranks, axis=-1, keepdims=True)  # lowest number first: [n_tokens, 1]
        highest = np.take_along_axis(logits, best, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # of infinite logits, and of 0
            far = (highest - logits) / np.maximum(highest, np.abs(logits)) > _SPARSEMIXER_BAND
        near = np.where(far | (ranks == -np.inf), np.float32(-np.inf), logits)
        shares = numpy_ops.softmax(near)
        experts[:, u], chosen[:, u] = best[:, 0], np.take_along_axis(shares, best, axis=-1)[:, 0]
        np.put_along_axis(ranks, best, np.float32(-np.inf), axis=-1)
    _write_shares(op, experts.astype(np.int64), chosen.astype(np.float32), out)


def _write_shares(
    op: Op, experts: NDArray[np.int64], chosen: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    n_used = experts.shape[1]
    if op.attrs["normalized"]:
        chosen /= chosen.sum(axis=-1, keepdims=True) + np.float32(1e-20)
    out[:, :n_used] = experts
    np.multiply(chosen, np.float32(op.attrs["scale"]), out=out[:, n_used:])


def _ranks(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is sorted: NaN counts as the highest score, -inf stays for experts out of the choice."""
    return np.where(np.isnan(scores), np.float32(np.inf), np.maximum(scores, _LOWEST))


def _best_groups(op: Op, ranks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The ranks, with -inf outside of the groups that are used."""
    n_groups, n_used = int(op.attrs["n_groups"]), int(op.attrs["n_groups_used"])
    groups = ranks.reshape(len(ranks), n_groups, -1)
    counted = 1 if op.attrs["group_score"] == "max" else 2
    scores = _ranks(np.sort(groups, axis=-1)[..., -counted:].sum(axis=-1))
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :n_used]
    used = np.zeros(scores.shape, bool)
    np.put_along_axis(used, best, True, axis=1)
    return np.where(used[..., np.newaxis], groups, np.float32(-np.inf)).reshape(ranks.shape)


def _experts(op: Op, route: NDArray[np.float32]) -> NDArray[np.int64]:
    """The experts of each token: [n_tokens, n_used]."""
    return route[:, : int(op.attrs["n_used"])].astype(np.int64)


def expert_linear(op: Op, batch: TokenBatch) -> None:
    x, route, out = arrays(op, batch)
    experts, matrices = _experts(op, route), batch.weights[op.weights[0]]
    n_used = experts.shape[1]
    _, n, k = matrices.shape
    inputs = x.reshape(batch.n_tokens, x.shape[1] // k, k)  # one for all, or one for each
    rows = np.broadcast_to(inputs, (batch.n_tokens, n_used, k))
    result = out.reshape(batch.n_tokens, n_used, n)
    for expert in np.unique(experts):
        chosen = experts == expert
        part = np.empty((int(chosen.sum()), n), np.float32)
        each = [slice(row, row + 1) for row in range(len(part))]  # see TokenBatch.multiply
        parts = each if len(batch.sequences) > 1 else [slice(None)]
        numpy_ops.linear_apply(rows[chosen], matrices[expert], part, parts)
        result[chosen] = part


def expert_bias(op: Op, batch: TokenBatch) -> None:
    x, route, out = arrays(op, batch)
    biases = batch.weights[op.weights[0]]  # [n_experts, n]
    experts = _experts(op, route)
    parts = (batch.n_tokens, experts.shape[1], biases.shape[1])
    np.add(x.reshape(parts), biases[experts], out=out.reshape(parts))


def expert_scale(op: Op, batch: TokenBatch) -> None:
    x, route, out = arrays(op, batch)
    factors = batch.weights[op.weights[0]]  # [n_experts]
    experts = _experts(op, route)
    parts = (*experts.shape, x.shape[1] // experts.shape[1])
    np.multiply(x.reshape(parts), factors[experts][..., None], out=out.reshape(parts))


def scale_shares(op: Op, batch: TokenBatch) -> None:
    route, out = arrays(op, batch)
    n_used, factors = int(op.attrs["n_used"]), batch.weights[op.weights[0]]
    experts = _experts(op, route)
    out[:, :n_used] = route[:, :n_used]
    np.multiply(route[:, n_used:], factors[experts], out=out[:, n_used:])


def expert_sum(op: Op, batch: TokenBatch) -> None:
    x, route, out = arrays(op, batch)
    n_used = int(op.attrs["n_used"])
    parts = x.reshape(batch.n_tokens, n_used, x.shape[1] // n_used)
    np.einsum("tu,tuj->tj", route[:, n_used:], parts, out=out)

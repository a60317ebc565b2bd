"""Choosing a token by the probabilities that a model gives."""

import math

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.checks import Float32

_GROUP = 64  # logits, see _top_k


def sample(
    logits: Float32,
    draw: float,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """The token that a draw falls on.

    logits: float32 [vocab]; draw: a number from 0 to below 1.
    top_k: only so many of the likeliest; 0 is all. top_p: of these only the likeliest that together
    reach this share. min_p, 0 to 1: only those at least this fraction as likely as the likeliest.
    What is left is drawn from, each by its probability to the power of 1 / temperature; 0 takes the
    likeliest. Among equals the lower id is the likelier.
    ValueError where the largest logit is NaN or infinite. Returns the token's id.
    """
    logits = checks.float32("sample", "logits", logits)
    checks.axes("sample", "logits", logits, "[vocab]")
    if not logits.size:
        raise ValueError("sample: logits has shape (0,); expected at least one token's.")
    draw = _up_to_one("draw", draw, inclusive=False)
    temperature = checks.number("sample", "temperature", temperature, minimum=0.0, inclusive=True)
    top_k = checks.count("sample", "top_k", top_k, minimum=0)
    top_p = checks.number("sample", "top_p", top_p, minimum=0.0, inclusive=False)
    min_p = _up_to_one("min_p", min_p, inclusive=True)
    best = int(np.argmax(logits))  # the first of equals; NaN if there is one
    if not math.isfinite(logits[best]):
        raise ValueError(f"sample: the largest logit is {logits[best]}; expected a finite number.")
    if temperature == 0.0:
        return best
    ids, probabilities = candidates(logits, temperature, top_k, top_p, min_p)
    cumulative = np.cumsum(probabilities)
    drawn = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
    return int(ids[min(drawn, len(ids) - 1)])  # the product may round up to the last sum


def candidates(
    logits: Float32, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, likeliest first, and the probability of each.

    Settings as `sample` has them, temperature above 0. Returns int64 [n], float64 [n] with a sum
    of 1.
    """
    ids = _top_k(logits, top_k)
    values = logits[ids].astype(np.float64)
    values -= values.max()
    relative = np.exp(values)  # probability, relative to the likeliest's
    total = relative.sum()
    # min-p first: it takes the same tokens away as after top-p, and spares sorting them.
    likely = np.flatnonzero(relative >= min_p)
    likely = likely[np.argsort(-relative[likely], kind="stable")]
    # As many as reach top_p: the one that crosses it is the last.
    share = np.cumsum(relative[likely]) / total
    likely = likely[: int(np.searchsorted(share, top_p)) + 1]
    with np.errstate(over="ignore"):  # a tiny temperature: only the likeliest is left
        shaped = np.exp(values[likely] / temperature)
    return ids[likely], shaped / shaped.sum()


def _top_k(logits: Float32, k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits, lower ids first among equals; all of them if k is 0."""
    n_groups = len(logits) // _GROUP
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    if k < n_groups:
        # k groups have a largest value of at least `floor`, so the k largest are not below it.
        # That takes 20 us for 49,152 logits, where np.partition on all of them takes 250.
        groups = logits[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
        floor = np.partition(groups, -k)[-k]
        ids = np.flatnonzero(logits >= floor)
    else:
        ids = np.arange(len(logits))
    return ids[np.argsort(-logits[ids], kind="stable")[:k]]


def _up_to_one(name: str, value: object, *, inclusive: bool) -> float:
    number = checks.number("sample", name, value, minimum=0.0, inclusive=True)
    if number > 1.0 or (number == 1.0 and not inclusive):
        bound = "at most" if inclusive else "below"
        raise ValueError(f"sample: {name} is {number}; expected {bound} 1.")
    return number

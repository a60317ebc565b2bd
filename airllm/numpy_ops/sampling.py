"""Chooses a token by the probabilities that a model gives."""

import math

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.checks import Float32

_GROUP = 64  # logits in a group, see _top_k


def sample(
    logits: Float32,
    draw: float,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """Samples a token: the id on which the random number `draw` falls.

    logits: float32 [vocab]; draw: from 0 to below 1.
    top_k: keeps only this many of the likeliest tokens; 0 keeps all. top_p: of these, keeps the
    fewest likeliest tokens that together reach this share. min_p: 0 to 1, keeps tokens at least
    this fraction as likely as the likeliest. The remaining tokens are drawn in proportion to their
    probability to the power of 1 / temperature; temperature 0 takes the likeliest token. Of equally
    likely tokens, the one with the lower id counts as likelier.
    ValueError if the largest logit is NaN or infinite.
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
    best = int(np.argmax(logits))  # the first of equal logits; a NaN if there is one
    if not math.isfinite(logits[best]):
        raise ValueError(f"sample: the largest logit is {logits[best]}; expected a finite number.")
    if temperature == 0.0:
        return best
    ids, probabilities = candidates(logits, temperature, top_k, top_p, min_p)
    cumulative = np.cumsum(probabilities)
    drawn = np.searchsorted(cumulative, draw * cumulative[-1], side="right")
    return int(ids[min(drawn, len(ids) - 1)])  # draw * sum may round up to the sum


def candidates(
    logits: Float32, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, likeliest first, and their probabilities.

    The arguments are those of `sample`, with a temperature above 0. Returns int64 [n], and float64
    [n] with a sum of 1.
    """
    ids = _top_k(logits, top_k)
    values = logits[ids].astype(np.float64)
    values -= values.max()
    relative = np.exp(values)  # to the probability of the likeliest token
    total = relative.sum()
    # min_p comes before top_p, which gives the same tokens and leaves fewer to sort.
    likely = np.flatnonzero(relative >= min_p)
    likely = likely[np.argsort(-relative[likely], kind="stable")]
    # The token whose cumulative share reaches top_p is the last to stay.
    share = np.cumsum(relative[likely]) / total
    likely = likely[: int(np.searchsorted(share, top_p)) + 1]
    with np.errstate(over="ignore"):  # with a tiny temperature only the likeliest stays
        shaped = np.exp(values[likely] / temperature)
    return ids[likely], shaped / shaped.sum()


def _top_k(logits: Float32, k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits, of equal logits the lower ids first; all ids if k is 0."""
    n_groups = len(logits) // _GROUP
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    if k < n_groups:
        # k groups have a maximum of at least `floor`, so the k largest logits are not below it.
        # This takes 20 us for 49,152 logits; np.partition on all of them takes 250 us.
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

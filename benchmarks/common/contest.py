"""One operation, several implementations: verified, timed in turn, compared with each other and
with what the machine can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import limits, timing, verify
from common.limits import Limits
from common.timing import Call, Timing

# The calls that make one sample; several where each must find other memory.
Form = tuple[Call, ...]


@dataclass(frozen=True)
class Contender:
    """An implementation. Each call returns its result.

    forms: ways to write it (with out= and without...); the fastest one competes.
    prepare: runs before its samples; picks the ISA.
    """

    name: str
    forms: tuple[Form, ...]
    tolerance: float  # see verify.check
    prepare: Call | None = None
    to_numpy: Callable[[Any], NDArray[Any]] = np.asarray


@dataclass(frozen=True)
class Work:
    """What one call needs at least of the machine; `limit` is the scarcest of it."""

    limit: limits.Name | None  # None: small enough for the caches
    amount: float  # bytes or operations of that limit
    nbytes: float  # read and written
    flops: float


@dataclass(frozen=True)
class Case:
    exact: NDArray[np.float64]
    contenders: tuple[Contender, ...]
    work: Work


@dataclass(frozen=True)
class Outcome:
    work: Work
    timings: Mapping[str, Timing]  # by contender; the limit is one of them
    errors: Mapping[str, float]  # relative, by contender
    limit_seconds: float | None  # what the work takes at the best rate that was ever probed


def run(case: Case, machine: Limits | None, *, seconds: float, settle: bool) -> Outcome:
    """Verify every form of every contender, then time the fastest of each for `seconds` in all.

    machine: takes part as the contender named after the limit: the time that the case's work takes
        at that rate.
    Raises verify.WrongResultError.
    """
    errors, samplers = {}, dict[str, Callable[[], float]]()
    for contender in case.contenders:
        errors[contender.name] = max(
            _verify(contender, form, case.exact) for form in contender.forms
        )
    for contender in case.contenders:
        if settle:
            timing.wait_until_idle()
        forms = [timing.Sampler(form, contender.prepare) for form in contender.forms]
        samplers[contender.name] = min(forms, key=lambda form: form.seconds)
    work, name = case.work, case.work.limit
    if machine is None or name is None:
        timings = timing.interleave(samplers, seconds, settle=settle)
        return Outcome(work, timings, errors, None)
    samplers[name] = lambda: work.amount / machine.rate(name)
    idle = (name, work.amount / machine.best[name])
    timings = timing.interleave(samplers, seconds, settle=settle, reference=idle)
    return Outcome(work, timings, errors, work.amount / machine.best[name])


def _verify(contender: Contender, form: Form, exact: NDArray[np.float64]) -> float:
    if contender.prepare is not None:
        contender.prepare()
    return max(
        verify.check(contender.name, contender.to_numpy(call()), exact, contender.tolerance)
        for call in form
    )

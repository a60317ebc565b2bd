"""Runs one operation in several implementations: verifies them, times them in turn, and compares
them with each other and with the limits of the machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import limits, timing, verify
from common.limits import Limits
from common.timing import Call, Timing

# The calls of one sample. Several calls use different memory, so that none finds it in the caches.
Form = tuple[Call, ...]


@dataclass(frozen=True)
class Contender:
    """An implementation. Each call returns its result.

    forms: ways to call it (with out=, without...); the fastest form competes.
    prepare: runs before its samples; chooses the ISA.
    """

    name: str
    forms: tuple[Form, ...]
    tolerance: float  # see verify.check
    prepare: Call | None = None
    to_numpy: Callable[[Any], NDArray[Any]] = np.asarray


@dataclass(frozen=True)
class Work:
    """The least that one call needs of the machine. limit: the resource that bounds its speed."""

    limit: limits.Name | None  # None: the data fit into the caches
    amount: float  # of bytes or operations of that limit
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
    timings: Mapping[str, Timing]  # by contender; the limit is one, too
    errors: Mapping[str, float]  # relative, by contender
    limit_seconds: float | None  # time of the work at the best rate of all probes


def run(case: Case, machine: Limits | None, *, seconds: float, settle: bool) -> Outcome:
    """Verify every form of every contender, then time the fastest of each for `seconds` in all.

    machine: takes part as a contender named after the limit. Its samples are the time of the work
        at the rate of a new probe.
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

"""What the benchmark scripts are made of: verification that can fail, fair timing, verdicts."""

import functools
import itertools
import math
import os
from dataclasses import replace

import benchmark_scripts  # noqa: F401 (makes the modules of benchmarks/ importable)
import numpy as np
import pytest
from extension import ISAS

if not ISAS:
    pytest.skip("the extension is what is measured", allow_module_level=True)

import compare_ops
import compare_pages
from common import contest, process, shapes, table, timing, verify, weights
from common.contest import Case, Contender, Work
from common.extension import cpp
from common.rows import Check, Row, ratios_of
from common.timing import Timing
from ops import Participants, elementwise
from ops.contests import Contest

RUN = compare_ops.Run(ISAS[-1], 1, (), 0.001, True)
PARTICIPANTS = Participants((ISAS[-1],), cycle_bytes=1)


# ---- random models -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(shapes.SHAPES))
def test_a_shape_of_todays_families_has_a_billion_active_weights_and_three_in_all(architecture):
    metadata = shapes.metadata_of(architecture)
    share = metadata.get(f"{architecture}.expert_used_count", 1) / metadata.get(
        f"{architecture}.expert_count", 1
    )
    total = active = 0.0
    for tensor in shapes.tensors_of(metadata, "q4_0"):
        size = math.prod(tensor.shape)
        total += size
        if tensor.name != "token_embd.weight":
            active += size * (share if "_exps." in tensor.name else 1)
    assert 0.65e9 < active < 1.2e9
    assert 2.5e9 < total < 3.2e9 or (share == 1 and total - active == shapes.VOCAB * 2048)


# ---- verification --------------------------------------------------------------------------------


def exact_rows():
    return np.random.default_rng(0).standard_normal((3, 1000))


def test_a_rounded_result_is_right_and_its_error_is_told():
    exact = exact_rows()
    error = verify.check("x", exact.astype(np.float32), exact, 1e-6)
    assert 1e-9 < error < 1e-7


def test_one_wrong_element_among_thousands_is_found():
    exact = exact_rows()
    actual = exact.astype(np.float32)
    actual[1, 7] += 0.2
    with pytest.raises(verify.WrongResultError, match=r"element is off by 0\.2"):
        verify.check("x", actual, exact, 0.01)


def test_one_wrong_row_is_found_though_the_others_are_exact():
    exact = exact_rows()
    actual = exact.astype(np.float32)
    actual[2] *= 1.02
    with pytest.raises(verify.WrongResultError, match=r"row 2 is off by 0\.02"):
        verify.check("x", actual, exact, 0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_found(bad):
    exact = exact_rows()
    actual = exact.astype(np.float32)
    actual[0, 0] = bad
    with pytest.raises(verify.WrongResultError):
        verify.check("x", actual, exact, 0.01)


def test_another_shape_is_found():
    exact = exact_rows()
    with pytest.raises(verify.WrongResultError, match=r"shape \(1000,\); expected \(3, 1000\)"):
        verify.check("x", exact[0].astype(np.float32), exact, 0.01)


def test_an_operation_that_computes_something_else_is_never_timed(monkeypatch):
    def almost_silu(x, *, out):
        cpp.silu(x, out=out)
        out[-1, -1] += 1e-3
        return out

    class Broken:
        silu = staticmethod(almost_silu)
        set_isa = staticmethod(cpp.set_isa)

    monkeypatch.setattr(elementwise, "cpp", Broken)
    make = functools.partial(elementwise.silu, rows=2, n=300)
    item = Contest("elementwise", "silu", "2 x 300", make, ())
    row = compare_ops.hold(item, PARTICIPANTS, None, RUN)
    assert row.is_wrong
    assert row.passed is False
    assert row.verdict().startswith(f"FAIL: wrong result: {ISAS[-1]}: ")
    assert row.seconds_best == 0.0


def test_a_peer_that_computes_something_else_is_found_too():
    exact = np.ones((1, 8))
    right = Contender("right", ((lambda: np.ones((1, 8), np.float32),),), 1e-6)
    wrong = Contender("wrong", ((lambda: np.full((1, 8), 2, np.float32),),), 1e-6)
    case = Case(exact, (right, wrong), Work(None, 0, 32, 8))
    with pytest.raises(verify.WrongResultError, match=r"^wrong: "):
        contest.run(case, None, seconds=0.001, settle=False)


@pytest.mark.parametrize("changed", [1, 2])  # contiguous rows; their pages
def test_pages_that_compute_something_else_are_never_timed(monkeypatch, changed):
    results, begun = compare_pages.Contexts.results, itertools.count(1)

    def almost(contexts, q):
        error = np.float32(0.1 if next(begun) == changed else 0)
        return (found + error for found in results(contexts, q))

    monkeypatch.setattr(compare_pages.Contexts, "results", almost)
    shape = compare_pages.Shape("f32", 64, 1, 70, cached=True)
    with pytest.raises(verify.WrongResultError, match=["contiguous", "change"][changed - 1]):
        next(compare_pages.compare(shape, [64], 0.0, 1))


def test_a_type_that_is_not_supported_is_a_failure_that_is_not_wrong():
    def make(participants):
        raise ValueError("no such type")

    row = compare_ops.hold(Contest("g", "op", "shape", make, ()), PARTICIPANTS, None, RUN)
    assert row.verdict() == "FAIL: not supported: no such type"
    assert not row.is_wrong


# ---- timing --------------------------------------------------------------------------------------


def test_contenders_take_turns():
    order = []
    samplers = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    taken = timing.interleave(samplers, 0.0, settle=False)
    assert order == ["a", "b", "c"] * timing.LEAST_ROUNDS
    assert taken["b"].seconds == (1.0,) * timing.LEAST_ROUNDS


class Clock:
    """Stands still but for the calls that take time on it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def taking(self, seconds, result=None):
        def call():
            self.now += seconds
            return result

        return call


def test_a_sample_is_the_mean_of_its_calls(monkeypatch):
    clock = Clock(monkeypatch)
    sampler = timing.Sampler([clock.taking(0.5), clock.taking(1.0)])
    assert sampler() == 0.75


def test_what_prepares_a_sample_is_not_timed(monkeypatch):
    clock = Clock(monkeypatch)
    sampler = timing.Sampler([clock.taking(0.5)], prepare=clock.taking(100.0))
    before = clock.now
    assert sampler() == 0.5
    assert clock.now == before + 100.5


def test_short_calls_are_repeated_until_a_sample_is_long_enough(monkeypatch):
    clock = Clock(monkeypatch)
    sampler = timing.Sampler([clock.taking(1e-5)])
    before = clock.now
    assert sampler() == pytest.approx(1e-5)
    assert clock.now - before >= timing.SAMPLE_SECONDS


def test_the_ratio_is_that_of_the_best_and_of_the_median_neighbours():
    slow, fast = Timing((4.0, 8.0, 6.0)), Timing((2.0, 1.0, 3.0))
    assert (slow.best, slow.median) == (4.0, 6.0)
    assert timing.ratio(slow, fast) == 4.0
    assert timing.median_ratio(slow, fast) == 2.0


def test_the_fastest_form_of_a_contender_competes(monkeypatch):
    clock = Clock(monkeypatch)
    forms = tuple((clock.taking(seconds, np.ones((1, 1), np.float32)),) for seconds in (3, 1, 2))
    case = Case(np.ones((1, 1)), (Contender("x", forms, 1e-6),), Work(None, 0, 4, 1))
    outcome = contest.run(case, None, seconds=1, settle=False)
    assert set(outcome.timings["x"].seconds) == {1.0}


class Machine:
    """Whose read bandwidth is probed as these bytes a second, one probe after the other."""

    def __init__(self, *rates):
        self.rates = itertools.chain(rates, itertools.repeat(rates[-1]))
        self.best = {"read": max(rates)}

    def rate(self, name):
        assert name == "read"
        return next(self.rates)


def test_a_limit_takes_part_with_the_time_that_the_work_takes_there():
    contender = Contender("x", ((lambda: np.ones((1, 1), np.float32),),), 1e-6)
    case = Case(np.ones((1, 1)), (contender,), Work("read", 1000, 1000, 1))
    outcome = contest.run(case, Machine(500.0), seconds=0.001, settle=False)
    assert outcome.timings["read"].best == 2.0
    assert outcome.limit_seconds == 2.0


def test_sampling_goes_on_until_there_was_a_quiet_moment(monkeypatch):
    clock = Clock(monkeypatch)
    probes = iter([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 9.0])
    samplers = {"x": clock.taking(1.0, 1.0), "limit": lambda: next(probes)}
    taken = timing.interleave(samplers, 4.5, settle=False, reference=("limit", 1.0))
    assert len(taken["limit"].seconds) == 7


def test_sampling_does_not_wait_forever_for_a_quiet_moment(monkeypatch):
    clock = Clock(monkeypatch)
    samplers = {"x": clock.taking(1.0, 1.0), "limit": lambda: 9.0}
    taken = timing.interleave(samplers, 4.5, settle=False, reference=("limit", 1.0))
    assert len(taken["limit"].seconds) == 4 * 4.5 + 1


def test_the_share_of_a_limit_is_that_of_its_best_probe():
    work = Work("read", 1000, 1000, 1)
    timings = {"x": Timing((4.0, 5.0)), "numpy": Timing((12.0, 5.0)), "read": Timing((3.0, 3.0))}
    ratios = ratios_of(contest.Outcome(work, timings, {}, limit_seconds=2.0), "x")
    assert (ratios["read"].best, ratios["read"].other_seconds) == (0.5, 2.0)
    assert (ratios["numpy"].best, ratios["numpy"].other_seconds) == (1.25, 5.0)


# ---- verdicts ------------------------------------------------------------------------------------


def row_with(*checks):
    return Row("g", "op", "shape", "avx2", 1, checks=checks)


def test_a_row_passes_when_every_bar_is_reached():
    row = row_with(Check("numpy", 3.0, None, 3.0), Check("read", 0.85, 0.95, 0.9))
    assert row.passed is True
    assert row.verdict() == "pass"
    assert row.bars() == "3x NumPy, 85% of read bandwidth"


def test_a_row_fails_by_what_it_missed():
    row = row_with(Check("numpy", 3.0, None, 4.0), Check("torch", 1.2, 2.0, 1.19))
    assert row.passed is False
    assert row.verdict() == "FAIL: 1.19x PyTorch"


def test_what_was_not_measured_is_neither_passed_nor_failed():
    row = row_with(Check("numpy", 3.0, None, 4.0), Check("torch", 1.2, 2.0, None))
    assert row.passed is None
    assert row.verdict() == "not measured"
    assert replace(row, checks=(*row.checks, Check("read", 0.8, None, 0.5))).passed is False


def test_an_aim_alone_cannot_be_missed():
    assert row_with(Check("multiply_add", None, 0.85, 0.1)).passed is True


# ---- processes and files -------------------------------------------------------------------------


def thread_variables():
    yield from (os.environ.get(name) for name in process.THREAD_VARIABLES)


def two_and_a_fault():
    yield 1
    yield 2
    raise KeyError("the fault")


def sudden_death():
    yield 1
    os._exit(7)


def test_a_process_has_its_number_of_threads_in_the_environment_and_this_one_keeps_its_own():
    before = dict(os.environ)
    assert set(process.iterate(thread_variables, threads=3)) == {"3"}
    assert dict(os.environ) == before


def test_a_fault_in_the_process_is_raised_here_after_what_came_before_it():
    items = process.iterate(two_and_a_fault, threads=1)
    assert list(itertools.islice(items, 2)) == [1, 2]
    with pytest.raises(process.FailedError, match="KeyError: 'the fault'"):
        next(items)


def test_a_process_that_dies_is_told_by_its_status():
    with pytest.raises(process.FailedError, match="died with status 7"):
        list(process.iterate(sudden_death, threads=1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00123, "1.23 ms"), (0.99949, "999 ms"), (0.99951, "1 s"), (1234.5, "1234 s"), (0, "0 ns")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert table.duration(seconds) == text


def test_a_file_without_markers_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- performance:begin --> and no end", encoding="utf-8")
    with pytest.raises(ValueError, match="has no <!-- performance:begin -->"):
        table.replace_marked(readme, "text")
    assert readme.read_text(encoding="utf-8") == "<!-- performance:begin --> and no end"


@pytest.mark.parametrize("type", weights.NAMES)
def test_random_weights_of_every_type_have_the_deviation_asked_for(type):
    data = weights.random_rows(type, 64, 1024, np.random.default_rng(3), deviation=0.05)
    values = weights.values(data, type)
    assert values.shape == (64, 1024)
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(0.05, rel=0.15)
    assert np.abs(values).max() < 1

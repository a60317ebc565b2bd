"""The tests of FlashAttention-3 (hopper/test_flash_attn.py), by their names, on a CPU.

Each runs a sample of the points of its grid, and more of them with the marker `fuzz`;
AIRLLM_ATTENTION_POINTS says how many in all. `tests/flash_grids.py` has the grids, and says what is
smaller than there. The criterion is theirs: the error of a result is at most twice that of the
same attention in plain half precision, plus 1e-5; that of log-sum-exps is at most 1e-4.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from extension import require_cpp
from flash_grids import GRIDS, call_of, points, refusal, sample, shorter
from flash_library import values
from test_flash_attention import Case
from test_flash_attention_python import BF16, FUNCTIONS, call_python

import airllm.flash_attention as fa

ROOT = Path(__file__).parent.parent

HALVES = {"f16": np.dtype(np.float16), "bf16": BF16, "e4m3": BF16, "f32": np.dtype(np.float32)}


@pytest.fixture(autouse=True)
def _library():
    require_cpp()


def of_grid(few, many):
    """Gives a test the first points of its grid's sample, and with `fuzz` those that follow."""
    many = int(os.environ.get("AIRLLM_ATTENTION_POINTS", many))
    first = pytest.param(slice(few), id=f"first {few}")
    others = pytest.param(slice(few, many), id="others", marks=pytest.mark.fuzz)
    return pytest.mark.parametrize("some", [first, others])


def plain(q, k, v, scale, seen, softcap, dtype):
    """out of one sequence, each step rounded to half precision, as a plain program computes it."""

    def rounded(x):
        return x.astype(dtype).astype(np.float32)

    group = q.shape[1] // k.shape[1]
    q, k, v = (rounded(x).transpose(1, 0, 2) for x in (q, k, v))
    k, v = (np.repeat(x, group, 0) for x in (k, v))
    scores = rounded(q @ rounded(k * scale).transpose(0, 2, 1))
    if softcap:
        scores = rounded(np.tanh(rounded(scores / softcap)) * softcap)
    scores = np.where(seen, scores, -np.inf)
    top = scores.max(2, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(2, keepdims=True)
    return rounded(rounded(weights / np.where(total == 0, 1, total)) @ v).transpose(1, 0, 2)


def check_error(case):
    """FlashAttention-3's criterion; `Case.check` has a closer one, and that of the log-sum-exps."""
    case.check()
    error, allowed, dtype = 0.0, 0.0, HALVES[case.call["q_kind"]]
    for i in range(case.call["batch"]):
        exact, _ = case.expected(i)
        half = plain(*case.attended(i), case.call["softcap"], dtype)
        error = max(error, np.abs(values(case.results(i)[0]) - exact).max(initial=0))
        allowed = max(allowed, np.abs(half - exact).max(initial=0))
    assert error <= 2 * allowed + 1e-5


def check_point(name, number, point):
    case = Case(call_of(name, number, point))
    function = FUNCTIONS[list(GRIDS).index(name)]
    if reason := refusal(name, point):
        with pytest.raises(NotImplementedError, match=reason):
            call_python(function, case)
        return
    pack_gqa = {} if "new_kv" in point else {"pack_gqa": bool(number % 2)}
    call_python(function, case, **pack_gqa)
    check_error(case)


@of_grid(25, 80)
def test_flash_attn_output(some):
    for number, point in sample("test_flash_attn_output")[some]:
        check_point("test_flash_attn_output", number, point)


@of_grid(25, 100)
def test_flash_attn_varlen_output(some):
    for number, point in sample("test_flash_attn_varlen_output")[some]:
        check_point("test_flash_attn_varlen_output", number, point)


@of_grid(30, 110)
def test_flash_attn_kvcache(some):
    for number, point in sample("test_flash_attn_kvcache")[some]:
        check_point("test_flash_attn_kvcache", number, point)


@of_grid(25, 100)
def test_flash_attn_race_condition(some):
    """The same bits each time, whatever the number of threads; there are no gradients here."""
    for number, point in sample("test_flash_attn_race_condition")[some]:
        rng = np.random.default_rng(number)
        s_q, s_k = shorter(*point["lengths"])
        q, k, v = (
            rng.standard_normal((2, s, 4, point["d"]), np.float32).astype(BF16)
            for s in (s_q, s_k, s_k)
        )
        first = fa.flash_attn_func(q, k, v, causal=point["causal"], threads=1)
        for _ in range(5):
            again = fa.flash_attn_func(q, k, v, causal=point["causal"], threads=2)
            assert again.tobytes() == first.tobytes()


@of_grid(25, 80)
def test_flash_attn_combine(some):
    """With strides, and parts that have seen nothing, as there; of 2 sequences, 2 heads, and up to
    33 queries."""
    for number, point in sample("test_flash_attn_combine")[some]:
        rng = np.random.default_rng(number)
        splits, d, s = point["num_splits"], point["d"], min(point["seqlen"], 33)
        dtype = HALVES[point["dtype"]]
        partial = rng.standard_normal((splits * 2, 2, 2, s, d), np.float32)
        partial = partial.swapaxes(2, 3)[:splits]
        lse_partial = rng.standard_normal((splits, 2, 4, s), np.float32)
        lse_partial = lse_partial.swapaxes(2, 3)[..., :2]
        lse_partial[splits // 2 :, :1] = -np.inf
        out, lse = fa.flash_attn_combine(partial, lse_partial, out_dtype=dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted_lse = np.log(np.exp(lse_partial.astype(np.float64)).sum(0))
            weights = np.nan_to_num(np.exp(lse_partial - wanted_lse))
        wanted = (weights[..., None] * partial).sum(0)
        error = np.abs(out.astype(np.float64) - wanted).max()
        rounding = np.abs(wanted.astype(dtype).astype(np.float64) - wanted).max()
        assert error <= 2 * rounding + 1e-5
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.fuzz
def test_the_longest_cache_of_a_grid_is_read_as_long_as_it_is(monkeypatch):
    monkeypatch.setenv("AIRLLM_ATTENTION_LENGTHS", "1")
    wanted = {"lengths": (16, 20000), "dtype": "bf16", "mask": "causal", "new_kv": True}
    name = "test_flash_attn_kvcache"
    found = [(i, p) for i, p in points(name) if wanted.items() <= p.items()]
    check_point(name, *found[len(found) // 2])


@pytest.mark.parametrize("name", GRIDS)
def test_the_page_says_how_many_points_a_grid_has_and_how_many_are_refused(name):
    page = (ROOT / "docs/pages/attention.md").read_text(encoding="utf-8")
    [row] = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
    every = [point for _, point in points(name)]
    refused = sum(1 for point in every if refusal(name, point))
    assert [int(n.replace(",", "")) for n in row.split("|")[2:4]] == [len(every), refused]


@pytest.mark.parametrize("name", GRIDS)
def test_a_sample_has_every_value_of_every_parameter(name):
    chosen = [point for _, point in sample(name)[:25]]
    for parameter, listed in GRIDS[name].items():
        assert {point[parameter] for point in chosen} == set(listed), parameter

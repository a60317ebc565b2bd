"""sample: the token that a draw falls on, of the C++ extension and of NumPy."""

import math

import numpy as np
import pytest
from extension import require_cpp

from airllm import numpy_ops


@pytest.fixture(params=["numpy", "cpp"])
def ops(request):
    return numpy_ops if request.param == "numpy" else require_cpp()


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def test_draws_go_through_the_tokens_from_the_likeliest_on(ops):
    logits = logits_of(0.2, 0.5, 0.3)
    draws = {0.0: 1, 0.49: 1, 0.51: 2, 0.79: 2, 0.81: 0, math.nextafter(1, 0): 0}
    assert {draw: ops.sample(logits, draw) for draw in draws} == draws


def test_a_temperature_of_zero_takes_the_likeliest_and_the_first_of_equals(ops):
    assert ops.sample(np.array([1, 3, 3], np.float32), 0.99, temperature=0) == 1


def test_top_k_top_p_and_min_p_leave_tokens_out(ops):
    logits, last = logits_of(0.4, 0.3, 0.2, 0.1), math.nextafter(1, 0)
    assert ops.sample(logits, last) == 3
    assert ops.sample(logits, last, top_k=2) == 1
    assert ops.sample(logits, last, top_p=0.69) == 1
    assert ops.sample(logits, last, top_k=2, top_p=0.56) == 0  # 0.4 / 0.7 = 0.57
    assert ops.sample(logits, last, min_p=0.4) == 2
    assert ops.sample(logits, last, min_p=1.0) == 0


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 4099])
def test_both_take_the_same_token(n):
    cpp, random = require_cpp(), np.random.default_rng(n)
    for round in range(200):
        logits = (3 * random.standard_normal(n)).astype(np.float32)
        if round % 3 == 0:
            logits = np.round(logits)  # equals, and zeros of both signs
        if round % 5 == 0:
            logits[1:] = np.where(random.random(n - 1) < 0.5, -np.inf, logits[1:])
        settings = {
            "temperature": float(random.choice([0, 0.1, 0.8, 1, 2])),
            "top_k": int(random.choice([0, 1, 5, 40, 10**6])),
            "top_p": float(random.choice([0.1, 0.5, 0.95, 1])),
            "min_p": float(random.choice([0, 0.05, 0.5, 1])),
        }
        draw = float(random.random())
        expected = numpy_ops.sample(logits, draw, **settings)
        assert cpp.sample(logits, draw, **settings) == expected, (round, settings, draw)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 64, 99])
def test_a_largest_logit_that_is_no_finite_number_is_refused(ops, bad, at):
    logits = np.zeros(100, np.float32)
    logits[at] = bad
    with pytest.raises(ValueError, match=r"^sample: the largest logit is (nan|inf); expected a f"):
        ops.sample(logits, 0.5)


def test_logits_that_rule_out_every_token_are_refused(ops):
    with pytest.raises(ValueError, match=r"^sample: the largest logit is -inf; expected"):
        ops.sample(np.full(70, -np.inf, np.float32), 0.5)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("draw", 1.0, ValueError),
        ("draw", -0.1, ValueError),
        ("draw", "half", TypeError),
        ("temperature", -1.0, ValueError),
        ("top_k", -1, ValueError),
        ("top_k", 2.5, TypeError),
        ("top_k", True, TypeError),
        ("top_p", 0.0, ValueError),
        ("min_p", 1.5, ValueError),
        ("min_p", math.nan, ValueError),
        ("logits", np.zeros(3), TypeError),
        ("logits", np.zeros(0, np.float32), ValueError),
        ("logits", np.zeros((1, 3), np.float32), ValueError),
    ],
)
def test_both_refuse_an_argument_in_the_same_words(name, value, error):
    arguments = {"logits": np.zeros(3, np.float32), "draw": 0.5} | {name: value}
    said = []
    for ops in (numpy_ops, require_cpp()):
        with pytest.raises(error, match=f"^sample: {name} ") as caught:
            ops.sample(**arguments)
        said.append(str(caught.value))
    assert said[0] == said[1]

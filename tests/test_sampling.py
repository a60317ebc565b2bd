"""Sampling: what each setting does to a distribution, and that a seed fixes the draws."""

import math

import numpy as np
import pytest

from airllm.engine.sampling import Sampler, log_probabilities
from airllm.engine.settings import Sampling
from airllm.numpy_ops import sampling as numpy_sampling

WINDOW = Sampling().penalty_window
NO_CUT = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def random_logits(n: int = 1000, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def candidates(logits: np.ndarray, **settings: float) -> dict[int, float]:
    """The probability of each token that may be drawn."""
    ids, probabilities = numpy_sampling.candidates(
        logits, **({"temperature": 0.8} | NO_CUT | settings)
    )
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


# ---- greedy --------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_likeliest_token():
    logits = random_logits()
    assert Sampler(Sampling(temperature=0)).sample(logits) == int(logits.argmax())


def test_temperature_zero_takes_the_lowest_id_of_equals():
    logits = np.array([0.0, 5.0, 5.0, 5.0], np.float32)
    assert Sampler(Sampling(temperature=0)).sample(logits) == 1


# ---- the distribution ----------------------------------------------------------------------------


def test_temperature_one_draws_from_the_models_own_distribution():
    logits = logits_of(0.5, 0.3, 0.15, 0.05)
    sampler = Sampler(Sampling(temperature=1.0, seed=3, **NO_CUT))
    n = 4000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=4)
    expected = n * np.array([0.5, 0.3, 0.15, 0.05])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.0])
def test_temperature_raises_probabilities_to_its_inverse_power(temperature):
    found = candidates(logits_of(0.6, 0.3, 0.1), temperature=temperature)
    powers = np.array([0.6, 0.3, 0.1]) ** (1 / temperature)
    assert [found[i] for i in range(3)] == pytest.approx(list(powers / powers.sum()), rel=1e-6)


def test_a_tiny_temperature_is_greedy_and_finite():
    found = candidates(logits_of(0.6, 0.3, 0.1), temperature=1e-300)
    assert found == {0: 1.0, 1: 0.0, 2: 0.0}


@pytest.mark.parametrize("n", [50, 1000, 49152])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_top_k_keeps_the_k_likeliest(n, k):
    logits = random_logits(n)
    assert set(candidates(logits, top_k=k)) == set(np.argsort(-logits)[:k].tolist())


def test_top_k_keeps_the_lower_ids_of_equals():
    assert set(candidates(np.zeros(1000, np.float32), top_k=5)) == {0, 1, 2, 3, 4}


def test_top_k_of_zero_or_beyond_the_vocabulary_keeps_all():
    logits = random_logits(100)
    assert len(candidates(logits, top_k=0)) == len(candidates(logits, top_k=500)) == 100


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = logits_of(0.1, 0.4, 0.3, 0.2)
    assert set(candidates(logits, top_p=0.39)) == {1}
    assert set(candidates(logits, top_p=0.5)) == {1, 2}
    assert set(candidates(logits, top_p=0.8)) == {1, 2, 3}
    assert set(candidates(logits, top_p=1.0)) == {0, 1, 2, 3}


def test_top_p_counts_shares_of_what_top_k_left():
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert set(candidates(logits, top_k=2, top_p=0.56)) == {0}  # 0.4 / 0.7 = 0.57
    assert set(candidates(logits, top_k=2, top_p=0.58)) == {0, 1}


def test_min_p_keeps_tokens_at_least_that_fraction_as_likely_as_the_likeliest():
    logits = logits_of(0.5, 0.3, 0.14, 0.06)
    assert set(candidates(logits, min_p=0.25)) == {0, 1, 2}
    assert set(candidates(logits, min_p=1.0)) == {0}


def test_min_p_does_not_change_what_top_p_counts():
    # 0.5 and 0.3 are 0.8 of the whole, though min-p alone leaves 0.94 of it.
    logits = logits_of(0.5, 0.3, 0.14, 0.06)
    assert set(candidates(logits, min_p=0.25, top_p=0.79)) == {0, 1}


def test_candidates_come_likeliest_first_and_add_up_to_one():
    ids, probabilities = numpy_sampling.candidates(random_logits(), 0.8, 40, 0.95, 0.05)
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert len(ids) == len(probabilities) <= 40


def test_a_token_that_is_ruled_out_is_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], np.float32)
    sampler = Sampler(Sampling(temperature=1.0, seed=0, **NO_CUT))
    assert {sampler.sample(logits) for _ in range(100)} == {1, 3}


# ---- the repetition penalty ----------------------------------------------------------------------


def test_the_penalty_divides_positive_and_multiplies_negative_logits():
    sampler = Sampler(Sampling(temperature=0, repeat_penalty=2.0))
    assert sampler.sample(np.array([4.0, 3.0], np.float32), [0]) == 1  # 2 against 3
    assert sampler.sample(np.array([-1.0, -1.5], np.float32), [0]) == 1  # -2 against -1.5


def test_the_penalty_counts_a_token_once_however_often_it_came():
    sampler = Sampler(Sampling(temperature=0, repeat_penalty=1.5))
    assert sampler.sample(np.array([4.0, 2.0], np.float32), [0] * 20) == 0  # 2.67 against 2


def test_the_penalty_forgets_tokens_that_are_long_past():
    sampler = Sampler(Sampling(temperature=0, repeat_penalty=2.0))
    logits = np.array([4.0, 3.0, 0.0], np.float32)
    assert sampler.sample(logits, [0] + [2] * (WINDOW - 1)) == 1
    assert sampler.sample(logits, [0] + [2] * WINDOW) == 0


def test_the_penalty_leaves_the_callers_logits_alone():
    logits = np.array([4.0, 3.0], np.float32)
    Sampler(Sampling(repeat_penalty=2.0)).sample(logits, [0, 1])
    assert logits.tolist() == [4.0, 3.0]


def test_the_window_of_the_penalty_may_be_anything():
    logits = np.array([4.0, 3.0, 0.0], np.float32)
    for window, expected in ((0, 0), (1, 0), (3, 1), (4, 1), (100, 1), (-1, 1)):
        sampler = Sampler(Sampling(temperature=0, repeat_penalty=2.0, penalty_window=window))
        assert sampler.sample(logits, [0, 2, 2]) == expected


def changed(logits, history, allowed=None, token_bytes=None, **settings):
    """The logits from which a token would be drawn."""
    return Sampler(Sampling(**settings), token_bytes)._changed(logits, history, allowed)


def test_presence_and_frequency_penalties_are_subtracted():
    logits = np.zeros(4, np.float32)
    history = [1, 1, 1, 3]
    assert changed(logits, history, presence_penalty=0.5).tolist() == [0, -0.5, 0, -0.5]
    assert changed(logits, history, frequency_penalty=0.5).tolist() == [0, -1.5, 0, -0.5]
    both = changed(logits, history, presence_penalty=-1, frequency_penalty=0.25)
    assert both.tolist() == [0, 0.25, 0, 0.75]


def test_the_repetition_penalty_comes_before_the_subtracted_ones():
    logits = np.array([4.0, -4.0], np.float32)
    found = changed(logits, [0, 1], repeat_penalty=2.0, presence_penalty=1.0)
    assert found.tolist() == [1.0, -9.0]


@pytest.mark.parametrize("penalty", [1e38, -1e38])
def test_no_penalty_makes_a_logit_infinite(penalty):
    logits = np.array([3e38, -3e38], np.float32)
    found = changed(logits, [0, 1] * 30, frequency_penalty=penalty)
    assert np.isfinite(found).all()


def test_biases_are_added_and_may_rule_out():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    found = changed(logits, [], logit_bias={0: 4.0, 2: -math.inf})
    assert found.tolist() == [5.0, 2.0, -math.inf]
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_only_what_is_allowed_is_drawn_whatever_its_probability():
    logits = np.array([9.0, 1.0, 8.0, 1.5], np.float32)
    allowed = np.array([False, True, False, True])
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    assert {sampler.sample(logits, [], allowed) for _ in range(50)} == {1, 3}
    assert Sampler(Sampling(temperature=0)).sample(logits, [], allowed) == 3
    assert Sampler(Sampling(temperature=0)).sample(logits - 1e6, [], allowed) == 3


# ---- typical tokens ------------------------------------------------------------------------------


def drawn(logits: np.ndarray, n: int = 300, **settings: float) -> set[int]:
    sampler = Sampler(Sampling(**({"temperature": 1.5, "seed": 1} | NO_CUT | settings)))
    return {sampler.sample(logits) for _ in range(n)}


def test_typical_tokens_are_those_with_the_expected_surprise():
    # Surprises 0.92, 1.20, 1.90 and 3.00; their mean is 1.46: the order is 1, 2, 0, 3.
    logits = logits_of(0.4, 0.3, 0.15, 0.05)
    logits = np.append(logits, logits_of(0.05, 0.05))
    assert drawn(logits, typical_p=0.2) == {1}
    assert drawn(logits, typical_p=0.4) == {1, 2}
    assert drawn(logits, typical_p=0.8) == {0, 1, 2}
    assert drawn(logits, typical_p=1.0) == {0, 1, 2, 3, 4, 5}


def test_typical_tokens_are_chosen_among_the_top_k():
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert drawn(logits, top_k=2, typical_p=0.5) <= {0, 1}
    assert drawn(logits, top_k=1, typical_p=0.01) == {0}


@pytest.mark.parametrize("typical_p", [0.1, 0.5, 0.9])
def test_typical_tokens_are_those_of_the_definition(typical_p):
    logits = random_logits(200)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    mean = -(p * np.log(p)).sum()
    order = sorted(range(len(p)), key=lambda i: abs(-math.log(p[i]) - mean))
    stay, total = set(), 0.0
    for token in order:
        stay.add(token)
        total += p[token]
        if total >= typical_p:
            break
    assert drawn(logits, 3000, typical_p=typical_p) <= stay
    assert drawn(logits, 3000, typical_p=typical_p, temperature=50.0) >= set(
        order[: len(stay) // 2]
    )


def test_greedy_takes_the_likeliest_whether_it_is_typical_or_not():
    logits = random_logits()
    assert Sampler(Sampling(temperature=0, typical_p=0.1)).sample(logits) == logits.argmax()


# ---- DRY -----------------------------------------------------------------------------------------

DRY = {"dry_multiplier": 0.5, "dry_base": 2.0, "penalty_window": -1}


def repeated(history: list[int], breakers: frozenset[int], allowed: int) -> dict[int, int]:
    """By definition: the longest end of the text that each token has followed before."""
    found: dict[int, int] = {}
    for length in range(1, len(history)):
        end = history[-length:]
        if breakers & set(end):
            break
        for at in range(len(history) - length):
            if history[at : at + length] == end and length >= allowed:
                found[history[at + length]] = length
    return found


@pytest.mark.parametrize("breakers", [frozenset(), frozenset([2])])
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_dry_penalises_what_would_continue_a_repetition(allowed, breakers):
    random = np.random.default_rng(5)
    n_found = 0
    for _ in range(200):
        history = random.integers(0, 4, int(random.integers(1, 40))).tolist()
        expected = np.zeros(4, np.float32)
        for token, length in repeated(history, breakers, allowed).items():
            expected[token] -= 0.5 * 2.0 ** (length - allowed)
            n_found += 1
        found = changed(
            np.zeros(4, np.float32),
            history,
            None,
            lambda token: b"|" if token == 2 else b"x",
            **DRY,
            dry_allowed_length=allowed,
            dry_breakers="|" if breakers else (),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert n_found > 20


def test_a_breaker_may_reach_over_several_tokens():
    def token_bytes(token):
        return [b"a", b"b", b"x<", b"/p", b">y"][token]

    history = [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 0, 1]
    settings = {**DRY, "dry_allowed_length": 2}
    free = changed(np.zeros(5, np.float32), history, None, token_bytes, **settings)
    assert free[0] == pytest.approx(-0.5 * 2.0**5)  # seven tokens stand there twice
    cut = changed(
        np.zeros(5, np.float32), history, None, token_bytes, **settings, dry_breakers="</p>"
    )
    assert cut[0] == pytest.approx(-0.5)  # of which the last two come after the breaker


def test_a_long_repetition_rules_out_and_overflows_nothing():
    found = changed(np.zeros(4, np.float32), [1] * 5000, **DRY)
    assert np.isfinite(found).all()
    assert found[1] < -1e30


def test_a_base_of_one_penalises_all_repetitions_alike():
    found = changed(np.zeros(4, np.float32), [1, 2, 3, 1, 2], **{**DRY, "dry_base": 1.0})
    assert found.tolist() == [0, 0, 0, -0.5]


# ---- what is reported ----------------------------------------------------------------------------


def test_log_probabilities_of_huge_logits_are_finite():
    found = log_probabilities(np.array([5000.0, 4990.0, -5000.0], np.float32))
    np.testing.assert_allclose(found, [-4.54e-5, -10.0000454, -10000.0000454], rtol=1e-3)


def test_log_probabilities_are_those_of_the_models_distribution():
    logits = random_logits()
    exact = logits.astype(np.longdouble)
    exact -= np.log(np.exp(exact).sum())
    np.testing.assert_allclose(log_probabilities(logits), exact.astype(np.float64), rtol=1e-12)


# ---- seeds ---------------------------------------------------------------------------------------


def draws(seed: int | None) -> list[int]:
    sampler = Sampler(Sampling(temperature=1.0, seed=seed, **NO_CUT))
    return [sampler.sample(random_logits(seed=step)) for step in range(20)]


def test_the_same_seed_draws_the_same_tokens():
    assert draws(7) == draws(7)


def test_different_seeds_and_no_seed_draw_different_tokens():
    assert len({tuple(draws(seed)) for seed in (7, 8, None, None)}) == 4


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", -1.0),
        ("seed", -1),
        ("typical_p", 0.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("penalty_window", -2),
        ("dry_multiplier", -0.5),
        ("dry_base", 0.9),
        ("dry_allowed_length", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("top_k", 2.5), ("top_k", True), ("seed", "7"), ("min_p", None)],
)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=f"^{name} is {value!r}; expected"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        ([1.0], TypeError, "logit_bias is"),
        ({-1: 1.0}, ValueError, "a token of logit_bias is -1"),
        ({"1": 1.0}, TypeError, "a token of logit_bias is '1'"),
        ({1: "x"}, TypeError, r"logit_bias\[1\] is 'x'"),
        ({1: math.inf}, ValueError, r"logit_bias\[1\] is inf"),
    ],
)
def test_a_bias_that_makes_no_sense_is_refused(bias, error, message):
    with pytest.raises(error, match=message):
        Sampling(logit_bias=bias)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(typical_p=0.5), Sampling(temperature=0.0)]
)
@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_that_are_no_numbers_are_an_error_not_a_token(logits, sampling):
    with pytest.raises(ValueError, match=r"largest logit is (nan|inf|-inf)"):
        Sampler(sampling).sample(np.array(logits, np.float32))

"""The op `route`, which chooses a token's experts: both backends against its definition."""

import numpy as np
import pytest
from one_op import assert_close, backend_named, random, run

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import GraphError

N_TOKENS, N_EXPERTS, N_USED = 9, 12, 3
GATINGS = ["softmax", "sigmoid", "sqrtsoftplus"]


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def route(backend, logits, n_used=N_USED, *, bias=None, normalized=False, **options):
    """Experts and shares of each row."""
    weights = {} if bias is None else {"probs.bias": bias}

    def build(g, x, *slots):
        named = dict(zip(["bias"], slots, strict=False))
        return g.route(x, n_used, normalized=normalized, **named, **options)

    out = run(backend, build, {"x": logits}, weights)
    return out[:, :n_used].astype(int), out[:, n_used:]


def shares_of(row, gating="softmax"):
    row = row.astype(np.float64)
    if gating == "sigmoid":
        return 1 / (1 + np.exp(-row))
    if gating == "sqrtsoftplus":
        return np.sqrt(np.log1p(np.exp(row)))
    return np.exp(row) / np.exp(row).sum()


def sparsemixer(row, n_used):
    """Experts, and their shares, float64."""
    left, experts, shares = dict(enumerate(row.tolist())), [], []
    for _ in range(n_used):
        expert = max(left, key=lambda e: left[e])
        highest = left[expert]
        near = [x for x in left.values() if (highest - x) / max(highest, abs(x)) <= 0.02]
        experts.append(expert)
        shares.append(1 / sum(np.exp(x - highest) for x in near))
        del left[expert]
    return experts, np.array(shares)


def best(scores, n):
    """The numbers of the n highest scores, the lower number first."""
    return sorted(range(len(scores)), key=lambda e: -scores[e])[:n]


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_largest_shares_are_chosen_in_order(backend, gating, normalized, scale):
    logits = random(N_TOKENS, N_EXPERTS)
    experts, shares = route(backend, logits, normalized=normalized, gating=gating, scale=scale)
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        share = shares_of(row, gating)
        assert chosen.tolist() == best(share, N_USED)
        assert_close(given, scale * share[chosen] / (share[chosen].sum() if normalized else 1.0))


@pytest.mark.parametrize("centre", [-20.0, 0.0, 20.0])  # near are up to 0.4 below, none, 0.4
def test_sparsemixer_chooses_one_expert_after_another(backend, centre):
    logits = (centre + 0.3 * random(N_TOKENS, N_EXPERTS)).astype(np.float32)
    logits[0, 3:6] = logits[0].max()  # equals
    experts, shares = route(backend, logits, gating="sparsemixer", scale=1.5)
    alone = 0
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        expected, share = sparsemixer(row, N_USED)
        assert chosen.tolist() == expected
        assert_close(given, 1.5 * share)
        alone += int((share == 1).sum())
    assert alone > 20 if centre == 0.0 else alone < 5


def test_sparsemixer_of_logits_that_are_no_numbers(backend):
    logits = np.zeros((3, N_EXPERTS), np.float32)
    logits[0, 5], logits[1, 4], logits[2, 1:] = np.nan, np.inf, -np.inf
    experts, shares = route(backend, logits, gating="sparsemixer")
    assert experts.tolist() == [[5, 0, 1], [4, 0, 1], [0, 1, 2]]
    assert np.isnan(shares[:2, 0]).all()
    assert_close(shares[1, 1:], np.array([1 / 11, 1 / 10]))
    assert shares[2, 0] == 1


def test_sparsemixer_takes_no_bias_no_groups_and_no_given_experts():
    g = GraphBuilder("layer")
    x, experts = g.external("x", 8), g.external("experts", 2)
    chosen = {"normalized": False, "gating": "sparsemixer"}
    for more in ({"bias": g.weight("b", 8)}, {"n_groups": 4, "n_groups_used": 2}):
        with pytest.raises(GraphError, match="sparsemixer takes no bias and no groups"):
            g.route(x, 2, **chosen, **more)
    with pytest.raises(GraphError, match="sparsemixer chooses by itself"):
        g.route_to(x, experts, **chosen)


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("normalized", [True, False])
def test_given_experts_get_the_shares_of_a_route(backend, gating, normalized):
    logits = random(N_TOKENS, N_EXPERTS)
    order = np.argsort(random(N_TOKENS, N_EXPERTS, seed=1), axis=1)
    given = order[:, :N_USED].astype(np.float32)

    def build(g, x, experts):
        return g.route_to(x, experts, normalized=normalized, gating=gating, scale=1.5)

    out = run(backend, build, {"x": logits, "experts": given}, {})
    np.testing.assert_array_equal(out[:, :N_USED], given)
    for row, chosen, shares in zip(logits, given.astype(int), out[:, N_USED:], strict=True):
        share = shares_of(row, gating)[chosen]
        assert_close(shares, 1.5 * share / (share.sum() if normalized else 1.0))


def test_a_given_number_that_is_no_experts_has_no_share():
    backend = backend_named("cpp")
    given = np.array([[2, 12], [-1, 3], [np.nan, 0]], np.float32)
    out = run(
        backend,
        lambda g, x, experts: g.route_to(x, experts, normalized=False),
        {"x": random(3, N_EXPERTS), "experts": given},
        {},
    )
    np.testing.assert_array_equal(np.isnan(out[:, 2:]), [[0, 1], [1, 0], [1, 0]])


def test_the_normalized_softmax_over_all_is_that_over_the_chosen_logits(backend):
    logits = 4 * random(N_TOKENS, N_EXPERTS)
    experts, shares = route(backend, logits, normalized=True)
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        assert_close(given, shares_of(row[chosen]))


@pytest.mark.parametrize("gating", GATINGS)
def test_a_bias_changes_the_choice_and_not_the_shares(backend, gating):
    logits, bias = random(N_TOKENS, N_EXPERTS), random(N_EXPERTS, seed=1)
    experts, shares = route(backend, logits, bias=bias, gating=gating)
    unbiased, _ = route(backend, logits, gating=gating)
    assert (experts != unbiased).any()
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        share = shares_of(row, gating)
        assert chosen.tolist() == best(share + bias, N_USED)
        assert_close(given, share[chosen])


def test_a_bias_may_make_every_score_negative(backend):
    bias = np.full(N_EXPERTS, -10, np.float32)
    bias[7] = -np.inf
    logits = np.zeros((1, N_EXPERTS), np.float32)
    experts, _ = route(backend, logits, N_EXPERTS, bias=bias)
    assert experts[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 7]


@pytest.mark.parametrize("group_score", ["top2", "max"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("used", [1, 2, 3])
def test_experts_come_from_the_best_groups_alone(backend, group_score, biased, used):
    logits, bias = random(N_TOKENS, N_EXPERTS), random(N_EXPERTS, seed=1) * biased
    options = {"n_groups": 4, "n_groups_used": used, "group_score": group_score}
    experts, shares = route(
        backend, logits, bias=bias if biased else None, gating="sigmoid", **options
    )
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        share = shares_of(row, "sigmoid")
        groups = (share + bias).reshape(4, 3)
        highest = np.sort(groups, axis=-1)[:, ::-1]
        kept = best(highest[:, 0] + (highest[:, 1] if group_score == "top2" else 0), used)
        scores = [s if e // 3 in kept else -np.inf for e, s in enumerate(share + bias)]
        assert chosen.tolist() == best(scores, N_USED)
        assert_close(given, share[chosen])


def test_the_two_group_scores_differ(backend):
    logits = np.array([[3.0, -9.0, 2.0, 2.0]], np.float32)
    options = {"gating": "sigmoid", "n_groups": 2, "n_groups_used": 1}
    assert route(backend, logits, 1, **options)[0].tolist() == [[2]]
    assert route(backend, logits, 1, group_score="max", **options)[0].tolist() == [[0]]


def test_of_equal_scores_the_lower_number_comes_first(backend):
    logits = np.array([[1.0, 2.0, 2.0, 2.0, 1.0]], np.float32)
    experts, shares = route(backend, logits, 2, normalized=True)
    assert (experts.tolist(), shares.tolist()) == ([[1, 2]], [[0.5, 0.5]])


def test_of_equal_groups_the_lower_number_comes_first(backend):
    experts, _ = route(
        backend, np.zeros((1, 8), np.float32), 4, gating="sigmoid", n_groups=4, n_groups_used=2
    )
    assert experts.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_row_of_nan_names_distinct_experts_with_shares_of_nan(backend, gating, groups):
    logits = random(3, N_EXPERTS)
    logits[1] = np.nan
    used = max(1, groups // 2)
    experts, shares = route(
        backend, logits, gating=gating, normalized=True, n_groups=groups, n_groups_used=used
    )
    assert experts[1].tolist() == [0, 1, 2]
    assert np.isnan(shares[1]).all()
    assert np.isfinite(shares[[0, 2]]).all()


def test_a_nan_among_sigmoids_is_chosen_first_so_that_it_is_seen(backend):
    logits = np.array([[5.0, 1.0, np.nan, 7.0]], np.float32)
    experts, shares = route(backend, logits, 3, gating="sigmoid")
    assert experts.tolist() == [[2, 3, 0]]
    assert np.isnan(shares[0, 0])
    assert np.isfinite(shares[0, 1:]).all()
    experts, _ = route(backend, logits, 1, gating="sigmoid", n_groups=2, n_groups_used=1)
    assert experts.tolist() == [[2]]


def test_shares_that_are_all_zero_stay_zero_when_they_are_normalized(backend):
    logits = np.full((1, 4), -1000, np.float32)
    experts, shares = route(backend, logits, 2, gating="sigmoid", normalized=True)
    assert (experts.tolist(), shares.tolist()) == ([[0, 1]], [[0.0, 0.0]])


@pytest.mark.parametrize("n_experts", [2, 37, 256])
def test_all_experts_may_be_used(backend, n_experts):
    logits = random(2, n_experts)
    experts, shares = route(backend, logits, n_experts, normalized=True)
    for row, chosen, given in zip(logits, experts, shares, strict=True):
        assert sorted(chosen) == list(range(n_experts))
        assert_close(given, shares_of(row)[chosen])


FAULTS = [
    ({"gating": "tanh"}, "gating is 'tanh', expected one of ('softmax', 'sigmoid', 'sqrtsof"),
    ({"group_score": "sum"}, "group_score is 'sum', expected one of ('top2', 'max')"),
    ({"scale": float("nan")}, "scale is nan, expected a finite float"),
    ({"scale": 2}, "scale is 2, expected a finite float"),
    ({"n_groups": 0}, "n_groups is 0, expected 1 or more"),
    ({"n_groups": 5}, "n_groups is 5, expected to divide the 12 experts"),
    ({"n_groups": 4, "n_groups_used": 5}, "n_groups_used is 5, expected at most the 4 groups"),
    ({"n_groups": 12}, "n_groups is 12, expected groups of two experts or more"),
    ({"n_groups": 6, "n_used": 3}, "n_used is 3, expected at most the 2 experts"),
    ({"n_used": 13}, "n_used is 13, expected at most the 12 experts"),
    ({"bias": 11}, "input 'x' has width 12, expected 11 (the length of weight 'b')"),
]


@pytest.mark.parametrize(("options", "says"), FAULTS)
def test_a_choice_that_cannot_be_made_is_refused(options, says):
    g = GraphBuilder("broken")
    x = g.external("x", N_EXPERTS)
    given = {"n_used": 2, "normalized": True} | options
    if "bias" in given:
        given["bias"] = g.weight("b", given["bias"])
    with pytest.raises(GraphError) as error:
        g.route(x, **given)
    assert says in str(error.value)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize("in_place", [False, True])
def test_shares_are_scaled_by_a_factor_of_each_expert(backend, n_tokens, in_place):
    route, factors = random(n_tokens, 2 * N_USED), random(N_EXPERTS, seed=1)
    route[:, :N_USED] = np.arange(n_tokens * N_USED).reshape(n_tokens, N_USED) % N_EXPERTS
    given = {"route": route.copy()}

    def build(g, r, w):
        return g.scale_shares(r, w, out=r if in_place else None)

    out = run(backend, build, given, {"w": factors})
    chosen = route[:, :N_USED].astype(int)
    np.testing.assert_array_equal(out[:, :N_USED], route[:, :N_USED])
    np.testing.assert_array_equal(out[:, N_USED:], route[:, N_USED:] * factors[chosen])


def test_the_share_of_an_expert_that_is_not_there_is_no_number():
    route, factors = np.array([[1, 12, 0.5, 0.5]], np.float32), random(N_EXPERTS)
    backend = backend_named("cpp")
    out = run(backend, lambda g, r, w: g.scale_shares(r, w), {"route": route}, {"w": factors})
    np.testing.assert_array_equal(np.isnan(out), [[False, False, False, True]])

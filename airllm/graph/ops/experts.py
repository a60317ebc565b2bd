"""Routing, and products of experts."""

from collections.abc import Mapping
from typing import get_args

from airllm.graph.vocabulary import Call, Gating, Signature, signature


def route(call: Call) -> int:
    logits, attrs = call.inputs[0], call.op.attrs
    for weight in call.weights:
        call.require_width(0, weight.shape[0], f"the length of weight {weight.name!r}")
    call.check_one_of("gating", *get_args(Gating))
    call.check_one_of("group_score", "top2", "max")
    call.check_float("scale")
    n_groups, n_groups_used = call.count("n_groups"), call.count("n_groups_used")
    size = logits.width // n_groups
    call.require(
        size * n_groups == logits.width,
        f"n_groups is {n_groups}, expected to divide the {logits.width} experts",
    )
    call.require(
        n_groups_used <= n_groups,
        f"n_groups_used is {n_groups_used}, expected at most the {n_groups} groups",
    )
    call.require(
        n_groups_used == n_groups or attrs["group_score"] == "max" or size >= 2,
        f"n_groups is {n_groups}, expected groups of two experts or more, whose scores are added",
    )
    chosen_apart = bool(call.weights) or n_groups_used < n_groups
    call.require(
        attrs["gating"] != "sparsemixer" or not chosen_apart,
        "sparsemixer takes no bias and no groups",
    )
    n_used, most = call.count("n_used"), n_groups_used * size
    call.require(n_used <= most, f"n_used is {n_used}, expected at most the {most} experts")
    return 2 * n_used


def route_to(call: Call) -> int:
    logits, n_used = call.inputs[0], call.count("n_used")
    call.check_one_of("gating", *get_args(Gating))
    call.require(call.op.attrs["gating"] != "sparsemixer", "sparsemixer chooses by itself")
    call.check_float("scale")
    call.require_width(1, n_used, "the numbers of the experts")
    call.require(
        n_used <= logits.width, f"n_used is {n_used}, expected at most the {logits.width} experts"
    )
    return 2 * n_used


def expert_linear(call: Call) -> int:
    n_used, weight = call.count("n_used"), call.weights[0]
    _, n, k = weight.shape
    inputs = 1 if call.op.attrs["shared"] else n_used
    call.require_width(0, inputs * k, f"{inputs} for weight {weight.name!r}, {list(weight.shape)}")
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    call.check_activations()
    return n_used * n


def expert_bias(call: Call) -> int:
    n_used, weight = call.count("n_used"), call.weights[0]
    n = weight.shape[1]
    call.require_width(0, n_used * n, f"{n_used} for weight {weight.name!r}, {list(weight.shape)}")
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    return n_used * n


def expert_scale(call: Call) -> int:
    return call.count("n_used") * _width_of_experts(call)


def expert_sum(call: Call) -> int:
    return _width_of_experts(call)


def _width_of_experts(call: Call) -> int:
    """Of each expert's output; the inputs are all outputs, and the route."""
    n_used, x = call.count("n_used"), call.inputs[0]
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    call.require(
        x.width % n_used == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {n_used}",
    )
    return x.width // n_used


def scale_shares(call: Call) -> int:
    n_used = call.count("n_used")
    call.require_width(0, 2 * n_used, f"a route to {n_used} experts")
    return 2 * n_used


SIGNATURES: Mapping[str, Signature] = {
    # chooses n_used experts for a token. logits: [n_experts]; the shares are their softmax, sigmoid
    # or the root of their softplus ("sqrtsoftplus", gating), and the scores the shares plus the
    # weight, a bias. The experts with the highest scores are chosen, of n_groups_used of n_groups
    # equal groups: those whose two highest scores have the highest sum (group_score "top2"), or
    # whose highest score is highest ("max"). out: the numbers of the experts, highest score first,
    # and then their shares; normalized: divided by their sum + 1e-20; then multiplied by scale. NaN
    # counts as the highest score; of equal ones the lower number comes first. "sparsemixer"
    # (arXiv:2409.12136) chooses the highest logits, one after another; a share is the softmax among
    # the logits x of those that are left and for which (highest - x) / max(highest, |x|) <= 0.02.
    "route": signature(
        "logits",
        route,
        flops=5,
        per="logits",
        weights=("vector",),
        attrs="n_used normalized gating scale n_groups n_groups_used group_score",
        optional=True,
    ),
    # a route to the given experts, the numbers of n_used: their shares as `route` computes them
    "route_to": signature(
        "logits experts",
        route_to,
        flops=5,
        per="logits",
        attrs="n_used normalized gating scale",
    ),
    # out: x @ weight[e].T for each expert e of the token's route, side by side; shared: all experts
    # have the same x, [k]; otherwise each has its own, [n_used * k]; reads no other expert
    "expert_linear": signature(
        "x route",
        expert_linear,
        flops=0,
        weights=("experts",),
        attrs="n_used shared activations",
    ),
    # x: the outputs of a token's experts, [n_used * n]; out: their sum, weighted by shares: [n]
    "expert_sum": signature("x route", expert_sum, flops=2, per="x", attrs="n_used"),
    # x: the outputs of a token's experts, [n_used * n]; out: each plus weight[e] of its expert e
    "expert_bias": signature(
        "x route",
        expert_bias,
        flops=1,
        weights=("vectors",),
        attrs="n_used",
        in_place="x",
    ),
    # x: the outputs of a token's experts, [n_used * n]; out: each times weight[e] of its expert e
    "expert_scale": signature(
        "x route",
        expert_scale,
        flops=1,
        weights=("vector",),
        attrs="n_used",
        in_place="x",
    ),
    # out = the route, with the share of each expert e multiplied by weight[e]
    "scale_shares": signature(
        "route",
        scale_shares,
        flops=1,
        weights=("vector",),
        attrs="n_used",
        in_place="route",
    ),
}

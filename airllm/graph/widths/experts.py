"""Routing, and products of experts."""

from typing import get_args

from airllm.graph.vocabulary import Call, Gating


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
    n_used, most = call.count("n_used"), n_groups_used * size
    call.require(n_used <= most, f"n_used is {n_used}, expected at most the {most} experts")
    return 2 * n_used


def route_to(call: Call) -> int:
    logits, n_used = call.inputs[0], call.count("n_used")
    call.check_one_of("gating", *get_args(Gating))
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

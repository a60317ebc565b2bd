"""What works on each element of a row."""

from collections.abc import Mapping

from airllm.graph.vocabulary import Call, Signature, signature


def softcap(call: Call) -> int:
    call.check_float("cap", least=1e-6)
    return call.inputs[0].width


def elementwise(call: Call) -> int:
    first = call.inputs[0]
    call.require_width(1, first.width, f"the width of {first.name!r}")
    return first.width


def swiglu_oai(call: Call) -> int:
    call.check_float("alpha", least=1e-6)
    call.check_float("limit", least=1e-6)
    call.check_float("shift")
    return elementwise(call)


def scale(call: Call) -> int:
    call.check_float("factor")
    for weight in call.weights:
        call.require(
            weight.shape in ((1,), (call.inputs[0].width,)),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [1] or "
            f"[{call.inputs[0].width}]",
        )
    return call.inputs[0].width


def scale_rows(call: Call) -> int:
    x, factors = call.inputs
    call.require(
        factors.width >= 1 and x.width % factors.width == 0,
        f"input {factors.name!r} has width {factors.width}, expected a divisor of {x.width}",
    )
    return x.width


def clamp(call: Call) -> int:
    call.check_float("low")
    call.check_float("high", least=float(call.op.attrs["low"]))
    return call.inputs[0].width


def signed_root(call: Call) -> int:
    call.check_float("least", least=0.0)
    return call.inputs[0].width


def keep_above(call: Call) -> int:
    call.check_float("factor")
    return call.inputs[0].width


def xielu(call: Call) -> int:
    for attr in ("positive", "negative", "beta"):
        call.check_float(attr, least=0.0)
    call.check_float("eps")
    eps = call.op.attrs["eps"]
    call.require(isinstance(eps, float) and eps <= 0.0, f"eps is {eps}, expected at most 0")
    return call.inputs[0].width


def activation(call: Call) -> int:
    return call.inputs[0].width


SIGNATURES: Mapping[str, Signature] = {
    "add": signature("a b", elementwise, flops=1, in_place="a b"),
    "multiply": signature("a b", elementwise, flops=1, in_place="a b"),
    # out = factor * x, or factor * weight * x; weight: [1] or [width]
    "scale": signature(
        "x",
        scale,
        flops=1,
        weights=("vector",),
        attrs="factor",
        in_place="x",
        optional=True,
    ),
    # out[t] = factors[t] * x[t]; factors: [n_tokens, m], each for width / m columns of x
    "scale_rows": signature("x factors", scale_rows, flops=1, in_place="x"),
    # out = min(max(x, low), high)
    "clamp": signature("x", clamp, flops=2, attrs="low high", in_place="x"),
    # out = cap * tanh(x / cap)
    "softcap": signature("x", softcap, flops=3, attrs="cap", in_place="x"),
    # out = silu(gate) * up
    "swiglu": signature("gate up", elementwise, flops=5, in_place="gate up"),
    # out = gelu(gate) * up, with the tanh approximation
    "geglu": signature("gate up", elementwise, flops=10, in_place="gate up"),
    "silu": signature("x", activation, flops=4, in_place="x"),
    # out = log(1 + exp(x))
    "softplus": signature("x", activation, flops=5, in_place="x"),
    # the tanh approximation
    "gelu": signature("x", activation, flops=9, in_place="x"),
    # x * (1 + erf(x / sqrt 2)) / 2
    "gelu_erf": signature("x", activation, flops=12, in_place="x"),
    # positive * x^2 + beta * x for x > 0, negative * (exp(min(x, eps)) - 1 - x) + beta * x for the
    # others (arXiv:2411.13010)
    "xielu": signature("x", xielu, flops=8, attrs="positive negative beta eps", in_place="x"),
    "sigmoid": signature("x", activation, flops=3, in_place="x"),
    # out = max(x, 0)^2
    "relu_squared": signature("x", activation, flops=2, in_place="x"),
    # out = g * sigmoid(alpha * g) * (u + shift), with g = min(gate, limit) and u = up, held between
    # -limit and limit
    "swiglu_oai": signature(
        "gate up", swiglu_oai, flops=8, attrs="alpha limit shift", in_place="gate up"
    ),
    # out = sign(x) * sqrt(max(|x|, least))
    "signed_root": signature("x", signed_root, flops=3, attrs="least", in_place="x"),
    # out = max(x - (mean + factor * deviation), 0), with those of the row
    "keep_above": signature("x", keep_above, flops=5, attrs="factor", in_place="x"),
}

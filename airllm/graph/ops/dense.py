"""Looking up, norms, and products with matrices."""

from collections.abc import Mapping

from airllm.graph.vocabulary import Call, Signature, signature


def embed(call: Call) -> int:
    tokens = call.inputs[0]
    call.require(tokens.dtype == "int32", f"input {tokens.name!r} is {tokens.dtype}, not int32")
    return call.weights[0].shape[1]


def vector(call: Call) -> int:
    for weight in call.weights:
        call.require_width(0, weight.shape[0], f"the length of weight {weight.name!r}")
    return call.inputs[0].width


def head_norm(call: Call) -> int:
    n_heads, width = call.count("n_heads"), call.inputs[0].width
    for weight in call.weights:
        wanted = n_heads * weight.shape[0]
        call.require_width(0, wanted, f"{n_heads} heads of weight {weight.name!r}'s length")
    call.require(width % n_heads == 0, f"a width of {width} is no {n_heads} heads")
    return width


def linear(call: Call) -> int:
    weight = call.weights[0]
    n, k = weight.shape
    call.require_width(0, k, f"weight {weight.name!r} is [{n}, {k}]")
    call.check_activations()
    return n


def quantized_norm(call: Call) -> int:
    call.check_activations()
    return vector(call)


def linear_many(call: Call) -> int:
    for weight in call.weights:
        n, k = weight.shape
        call.require_width(0, k, f"weight {weight.name!r} is [{n}, {k}]")
    call.check_activations()
    return call.weights[0].shape[0]


def linear_add(call: Call) -> int:
    n = linear(call)
    call.require_width(1, n, f"the rows of weight {call.weights[0].name!r}")
    return n


def glu_linear(call: Call) -> int:
    gate, up = call.weights
    call.require(
        gate.shape == up.shape, f"weight {up.name!r} is {list(up.shape)}, expected that of the gate"
    )
    call.check_one_of("activation", "silu", "gelu")
    return linear(call)


SIGNATURES: Mapping[str, Signature] = {
    # out[t] = scale * weight[tokens[t]]
    "embed": signature("tokens", embed, flops=1, weights=("rows",), attrs="scale"),
    # out = x / sqrt(mean(x^2) + eps) * weight
    "rms_norm": signature("x", vector, flops=4, weights=("vector",), attrs="eps", in_place="x"),
    # out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight; without a weight it is 1
    "layer_norm": signature(
        "x",
        vector,
        flops=7,
        weights=("vector",),
        attrs="eps",
        in_place="x",
        optional=True,
    ),
    # rms_norm of each of x's heads by itself; without a weight it is 1
    "head_norm": signature(
        "x",
        head_norm,
        flops=4,
        weights=("vector",),
        attrs="n_heads eps",
        in_place="x",
        optional=True,
    ),
    # out = x + weight
    "bias": signature("x", vector, flops=1, weights=("vector",), in_place="x"),
    # out = x @ weight.T; activations: how x is rounded for a quantised weight, see
    # tensor_ops_cpp.linear
    "linear": signature("x", linear, flops=0, weights=("matrix",), attrs="activations"),
    # ---- made by graph.rewrite ------------------------------------------------------------------
    # rms_norm whose output only matrix products read, so it is quantised at once; activations: as
    # those of the products
    "quantized_norm": signature(
        "x",
        quantized_norm,
        flops=4,
        weights=("vector",),
        attrs="eps activations",
        in_place="x",
    ),
    # x @ weight.T for each of the weights
    "linear_many": signature(
        "x", linear_many, flops=0, weights=("matrix",), attrs="activations", many=True
    ),
    # out = a + x @ weight.T
    "linear_add": signature(
        "x a", linear_add, flops=1, weights=("matrix",), attrs="activations", in_place="a"
    ),
    # out = activation(x @ gate.T) * (x @ up.T); activation: "silu" or "gelu"
    "glu_linear": signature(
        "x",
        glu_linear,
        flops=5,
        weights=("matrix", "matrix"),
        attrs="activations activation",
    ),
}

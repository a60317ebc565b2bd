"""Several residual streams of a token."""

from collections.abc import Mapping

from airllm.graph.ops.dense import vector
from airllm.graph.vocabulary import Call, Signature, signature

# That the kernels take: streams of hyper-connections, and earlier residuals.
MOST_STREAMS, MOST_EARLIER = 16, 256


def mix_streams(call: Call) -> int:
    x, factors = call.inputs
    n_streams = call.count("n_streams")
    for each in (x, factors):
        call.require(
            each.width % n_streams == 0,
            f"input {each.name!r} has width {each.width}, expected a multiple of {n_streams}, the "
            "streams",
        )
    return factors.width // n_streams * (x.width // n_streams)


def hyper_factors(call: Call) -> int:
    x, (scale, base), n = call.inputs[0], call.weights, call.count("n_streams")
    call.check_float("eps", least=0.0)
    call.require(n <= MOST_STREAMS, f"n_streams is {n}, expected at most {MOST_STREAMS}")
    call.count("n_iterations")
    call.require(
        x.width in (n, n * (2 + n)),
        f"input {x.name!r} has width {x.width}, expected {n} or {n * (2 + n)}",
    )
    n_scales = 1 if x.width == n else 3
    for weight, wanted in ((scale, n_scales), (base, x.width)):
        call.require(
            weight.shape == (wanted,),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [{wanted}]",
        )
    return x.width


def hyper_mix(call: Call) -> int:
    (x, part, _), n = call.inputs, call.count("n_streams")
    call.require(n <= MOST_STREAMS, f"n_streams is {n}, expected at most {MOST_STREAMS}")
    call.require_width(0, n * part.width, f"{n} streams as wide as {part.name!r}")
    call.require_width(2, n * (2 + n), f"the factors of {n} streams")
    return x.width


def _each_stream(call: Call) -> int:
    x, part = call.inputs
    call.require(
        x.width % part.width == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {part.width}, a stream",
    )
    return x.width


def add_to_streams(call: Call) -> int:
    call.count("first", least=0)
    return _each_stream(call)


def match_rms(call: Call) -> int:
    call.check_float("eps", least=0.0)
    return _each_stream(call)


def stream_products(call: Call) -> int:
    n_streams, width = call.count("n_streams"), call.inputs[0].width
    call.check_float("factor")
    call.require_width(1, width, f"that of {call.inputs[0].name!r}")
    call.require(width % n_streams == 0, f"a width of {width} is no {n_streams} streams")
    return n_streams


def residual_attention(call: Call) -> int:
    x, earlier = call.inputs
    n_earlier, width = call.count("n_earlier"), vector(call)
    call.require(
        earlier.width % x.width == 0 and n_earlier * x.width <= earlier.width,
        f"input {earlier.name!r} has width {earlier.width}, expected a multiple of {x.width}, and "
        f"{n_earlier} rows or more",
    )
    call.require(n_earlier <= MOST_EARLIER, f"n_earlier is {n_earlier}, above {MOST_EARLIER}")
    call.check_float("eps", least=0.0)
    return width


SIGNATURES: Mapping[str, Signature] = {
    # A mean of x and of n_earlier earlier rows, the first that lie side by side in `earlier`: the
    # shares are the softmax of sum(rms_norm(row) * weight) of each row.
    "residual_attention": signature(
        "x earlier",
        residual_attention,
        flops=6,
        per="earlier",
        weights=("vector",),
        attrs="n_earlier eps",
    ),
    # ---- several residual streams of a token, side by side (AltUp, arXiv:2301.13310) -------------
    # out[i] = sum over j of factors[i * n_streams + j] * x[j], for n_streams streams x[j]; flops:
    # of four streams
    "mix_streams": signature("x factors", mix_streams, flops=8, attrs="n_streams"),
    # How n_streams streams go through a part of a layer (hyper-connections, arXiv:2512.24880). The
    # columns of x, times scale and plus base, are a for each stream, b for each stream, and c, a
    # matrix [n_streams, n_streams]. out: sigmoid(a) + eps, by which the streams are summed up for
    # the part; 2 * sigmoid(b), by which its output is added to each; and the matrix, transposed, by
    # which the streams are mixed: softmax(c) + eps of each row, whose columns, and then
    # n_iterations - 1 times its rows and its columns, are divided by their sums + eps. x may have a
    # alone; so has out then. scale: [3], or [1]; flops: of 20 iterations
    "hyper_factors": signature(
        "x",
        hyper_factors,
        flops=55,
        weights=("vector", "vector"),
        attrs="n_streams n_iterations eps",
    ),
    # out[i] = sum over j of m[i, j] * x[j], plus b[i] * part, with m and b of what hyper_factors
    # gave: its last n_streams^2 columns, and those before; flops: of four streams
    "hyper_mix": signature("x part factors", hyper_mix, flops=10, attrs="n_streams", in_place="x"),
    # out = x, plus part in each stream from `first` on; part is as wide as a stream
    "add_to_streams": signature("x part", add_to_streams, flops=1, attrs="first", in_place="x"),
    # out = x * rms(like) / sqrt(max(mean(x^2), eps)) of each stream; like is as wide as a stream
    "match_rms": signature("x like", match_rms, flops=3, attrs="eps", in_place="x"),
    # out[i] = factor * sum(a[i] * b[i]) of each of n_streams streams
    "stream_products": signature(
        "a b", stream_products, flops=2, per="a", attrs="n_streams factor"
    ),
}

"""Several residual streams of a token."""

from airllm.graph.vocabulary import Call
from airllm.graph.widths.dense import vector


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


# That the kernels take: streams of hyper-connections, and earlier residuals.
MOST_STREAMS, MOST_EARLIER = 16, 256


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

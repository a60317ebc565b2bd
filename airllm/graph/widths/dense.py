"""Products, norms, rotation, attention to all positions, and what works on each element."""

from airllm.graph.vocabulary import Call


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


def rope_append(call: Call) -> None:
    kv_append(call)
    head_dim, table = call.count("head_dim"), call.inputs[2]
    call.require(
        table.width % 2 == 0 and table.width <= head_dim,
        f"table {table.name!r} has width {table.width}, expected an even number up to {head_dim}",
    )


def rope(call: Call) -> int:
    n_heads, head_dim = call.count("n_heads"), call.count("head_dim")
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    table, most = call.inputs[1], head_dim - call.count("offset", least=0)
    call.require(
        table.width % 2 == 0 and table.width <= most,
        f"table {table.name!r} has width {table.width}, expected an even number up to {most}",
    )
    return n_heads * head_dim


def kv_append(call: Call) -> None:
    n_kv_heads, head_dim = call.count("n_kv_heads"), call.count("head_dim")
    call.require_width(0, n_kv_heads * head_dim, f"{n_kv_heads} KV heads of {head_dim}")
    values = call.inputs[1]
    call.require(
        values.width % n_kv_heads == 0,
        f"input {values.name!r} has width {values.width}, expected a multiple of {n_kv_heads}, "
        "the KV heads",
    )


def latent_append(call: Call) -> None:
    n_kv_heads, head_dim = call.count("n_kv_heads"), call.count("head_dim")
    call.require_width(0, n_kv_heads * head_dim, f"{n_kv_heads} KV heads of {head_dim}")


def attention(call: Call) -> int:
    n_heads, n_kv_heads = call.count("n_heads"), call.count("n_kv_heads")
    head_dim = call.count("head_dim")
    call.require(
        n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads} KV heads evenly"
    )
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    for weight in call.weights:
        call.require(
            weight.shape == (n_heads,),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [{n_heads}], the heads",
        )
    window = call.count("window", least=0)
    call.require(window > 0 or not call.op.attrs["chunked"], "chunked without a window")
    call.check_float("softcap", least=0.0)
    call.check_float("alibi", least=0.0)
    return n_heads * call.count("value_dim")


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

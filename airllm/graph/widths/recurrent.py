"""What recurrent ops write, and the floats of their memory."""

from airllm.graph.vocabulary import Call
from airllm.graph.widths.dense import vector

MOST_TAPS, _MOST_KEY_DIM = 8, 256  # that the kernels take

MOST_DILATION = 64


def conv(call: Call) -> int:
    x, weight, taps = call.inputs[0], call.weights[0], call.count("taps")
    call.require(taps <= MOST_TAPS, f"taps is {taps}, expected at most {MOST_TAPS}")
    dilation = call.count("dilation")
    call.require(
        dilation <= MOST_DILATION, f"dilation is {dilation}, expected at most {MOST_DILATION}"
    )
    call.require(
        weight.shape == (x.width, taps),
        f"weight {weight.name!r} is {list(weight.shape)}, expected [{x.width}, {taps}]",
    )
    return x.width


def conv_state(call: Call) -> int:
    return (call.count("taps") - 1) * call.count("dilation") * call.inputs[0].width


def delta_rule(call: Call) -> int:
    q, _, v, decay, _ = call.inputs
    n_heads, n_kv_heads = call.count("n_heads"), call.count("n_kv_heads")
    call.check_float("scale")
    call.require(
        n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads} heads of keys evenly"
    )
    d_k = q.width // n_kv_heads
    call.require(1 <= d_k <= _MOST_KEY_DIM, f"keys of {d_k}, expected 1 to {_MOST_KEY_DIM}")
    call.require_width(0, n_kv_heads * d_k, f"{n_kv_heads} heads of {d_k}")
    call.require_width(1, q.width, f"the width of {q.name!r}")
    call.require(v.width % n_heads == 0, f"input {v.name!r} is no {n_heads} heads")
    call.require(
        decay.width in (n_heads, n_heads * d_k),
        f"input {decay.name!r} has width {decay.width}, expected {n_heads} or {n_heads * d_k}",
    )
    call.require_width(4, n_heads, "one for each head")
    return v.width


def delta_rule_state(call: Call) -> int:
    return call.inputs[2].width * (call.inputs[0].width // call.count("n_kv_heads"))


def ssm_scan(call: Call) -> int:
    x, dt, b, _ = call.inputs
    n_groups = call.count("n_groups")
    call.check_float("dt_min", least=0.0)
    call.check_float("dt_max", least=float(call.op.attrs["dt_min"]))
    call.require(x.width % dt.width == 0, f"input {x.name!r} is no {dt.width} heads")
    call.require(
        dt.width % n_groups == 0 and b.width % n_groups == 0,
        f"n_groups is {n_groups}, expected to divide {dt.width} heads and {b.width} values of b",
    )
    call.require_width(3, b.width, f"the width of {b.name!r}")
    for weight in call.weights:
        call.require(
            weight.shape == (dt.width,),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [{dt.width}], the heads",
        )
    return x.width


def ssm_scan_state(call: Call) -> int:
    return call.inputs[0].width * (call.inputs[2].width // call.count("n_groups"))


def selective_scan(call: Call) -> int:
    x, _, b, _ = call.inputs
    call.require_width(1, x.width, f"the width of {x.name!r}")
    call.require_width(3, b.width, f"the width of {b.name!r}")
    weight = call.weights[0]
    call.require(
        weight.shape == (x.width, b.width),
        f"weight {weight.name!r} is {list(weight.shape)}, expected [{x.width}, {b.width}]",
    )
    return x.width


def selective_scan_state(call: Call) -> int:
    return call.inputs[0].width * call.inputs[2].width


def l2_norm(call: Call) -> int:
    x, n_heads = call.inputs[0], call.count("n_heads")
    call.check_float("eps", least=0.0)
    call.require(x.width % n_heads == 0, f"input {x.name!r} is no {n_heads} heads")
    return x.width


def log_decay(call: Call) -> int:
    x, (a, bias) = call.inputs[0], call.weights
    call.require_width(0, bias.shape[0], f"the length of weight {bias.name!r}")
    call.require(
        a.shape[0] >= 1 and x.width % a.shape[0] == 0,
        f"weight {a.name!r} is {list(a.shape)}, expected a length that divides {x.width}",
    )
    call.check_float("bound")
    bound = float(call.op.attrs["bound"])
    call.require(bound <= 0.0, f"bound is {bound}, expected it below 0, or 0 for none")
    return x.width


def group_norm(call: Call) -> int:
    width, n_groups = vector(call), call.count("n_groups")
    call.require(width % n_groups == 0, f"{width} values are no {n_groups} equal groups")
    return width

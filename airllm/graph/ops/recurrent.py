"""Ops with memory that each token of a sequence changes, and what goes with them.

The functions named ..._state give the floats of that memory.
"""

from collections.abc import Mapping

from airllm.graph.ops.dense import vector
from airllm.graph.vocabulary import Call, Signature, signature

MOST_TAPS, MOST_DILATION, _MOST_KEY_DIM = 8, 64, 256  # that the kernels take


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


SIGNATURES: Mapping[str, Signature] = {
    # out[c] = sum over j of weight[c, j] * x[c] of the token (taps - 1 - j) * dilation before, or
    # silu of that
    "conv": signature(
        "x",
        conv,
        flops=2,
        per="state",
        weights=("vectors",),
        attrs="taps dilation silu",
        in_place="x",
        state=conv_state,
    ),
    # The gated delta rule (arXiv:2412.06464), for each head a matrix S, [d_k, d_v]:
    # S = exp(decay) S; d = beta * (v - S^T k); S = S + k d^T; out = scale * S^T q.
    # q, k: [n_kv_heads * d_k], v: [n_heads * d_v], beta: [n_heads]; decay: [n_heads], or
    # [n_heads * d_k], a number for each row of S (arXiv:2510.26692). Head h uses q and k of head
    # h // (n_heads / n_kv_heads), or if tiled of head h % n_kv_heads.
    "delta_rule": signature(
        "q k v decay beta",
        delta_rule,
        flops=7,
        per="state",
        attrs="n_heads n_kv_heads tiled scale",
        state=delta_rule_state,
    ),
    # The scan of Mamba-2 (arXiv:2405.21060), for each head a matrix h [head_dim, d_state]:
    # s = softplus(dt + bias), held between dt_min and dt_max; h = exp(s a) h + s x b^T;
    # out = h c + skip * x. x: [n_heads * head_dim]; dt, weights a, skip, bias: [n_heads]; b, c:
    # [n_groups * d_state], each group for n_heads / n_groups heads.
    "ssm_scan": signature(
        "x dt b c",
        ssm_scan,
        flops=5,
        per="state",
        weights=("vector", "vector", "vector"),
        attrs="n_groups dt_min dt_max",
        state=ssm_scan_state,
    ),
    # The scan of Mamba (arXiv:2312.00752), for each channel a vector h [d_state]:
    # h = exp(dt a) h + dt x b; out = h . c. x, dt: [channels], dt above 0; b, c: [d_state]; weight
    # a: [channels, d_state].
    "selective_scan": signature(
        "x dt b c",
        selective_scan,
        flops=10,
        per="state",
        weights=("vectors",),
        state=selective_scan_state,
    ),
    # x / sqrt(sum(x^2) + eps) of each of x's heads
    "l2_norm": signature("x", l2_norm, flops=3, attrs="n_heads eps", in_place="x"),
    # out = a * softplus(x + bias), or with a bound below 0 out = bound * sigmoid(-a * (x + bias));
    # weights a, bias: [width], or a: [width / m], each for m columns
    "log_decay": signature(
        "x", log_decay, flops=5, weights=("vector", "vector"), attrs="bound", in_place="x"
    ),
    # rms_norm of each of n_groups equal parts of a row by itself; weight: [width]
    "group_norm": signature(
        "x", group_norm, flops=4, weights=("vector",), attrs="n_groups eps", in_place="x"
    ),
}

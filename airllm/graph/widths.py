"""How wide the output of each kind of op is, and what its attributes must be.

Each function checks a call, GraphError for a fault, and returns the width; None without an output.
"""

import math
from typing import get_args

from airllm.graph.vocabulary import Activations, Call, Gating


def embed(call: Call) -> int:
    tokens = call.inputs[0]
    call.require(tokens.dtype == "int32", f"input {tokens.name!r} is {tokens.dtype}, not int32")
    return call.weights[0].shape[1]


def vector(call: Call) -> int:
    weight = call.weights[0]
    call.require_width(0, weight.shape[0], f"the length of weight {weight.name!r}")
    return weight.shape[0]


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
    _check_activations(call)
    return n


def quantized_norm(call: Call) -> int:
    _check_activations(call)
    return vector(call)


def linear_many(call: Call) -> int:
    for weight in call.weights:
        n, k = weight.shape
        call.require_width(0, k, f"weight {weight.name!r} is [{n}, {k}]")
    _check_activations(call)
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
    _one_of(call, "activation", "silu", "gelu")
    return linear(call)


def rope_append(call: Call) -> None:
    kv_append(call)
    head_dim, table = call.count("head_dim"), call.inputs[2]
    call.require(
        table.width % 2 == 0 and table.width <= head_dim,
        f"table {table.name!r} has width {table.width}, expected an even number up to {head_dim}",
    )


def _check_activations(call: Call) -> None:
    _one_of(call, "activations", *get_args(Activations))


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
    _check_float(call, "softcap", least=0.0)
    return n_heads * call.count("value_dim")


MOST_SELECTED = 2**16  # that the kernels take
MOST_IN_GROUP = 2**12  # positions; the known models have groups and blocks of 4 and 128


def index_append(call: Call) -> None:
    head_dim = call.count("head_dim")
    _check_every(call)
    call.require_width(0, head_dim, f"a key of {head_dim}")


def index_select(call: Call) -> int:
    n_heads, head_dim = call.count("n_heads"), call.count("head_dim")
    n_selected = call.count("n_selected")
    _check_every(call)
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    call.require_width(1, n_heads, "a weight for each head")
    call.require(
        n_selected <= MOST_SELECTED,
        f"n_selected is {n_selected}, expected at most {MOST_SELECTED}",
    )
    return n_selected


def sparse_attention(call: Call) -> int:
    n_heads, n_kv_heads = call.count("n_heads"), call.count("n_kv_heads")
    head_dim, n_selected = call.count("head_dim"), call.inputs[1].width
    call.require(
        n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads} KV heads evenly"
    )
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    call.require(
        n_selected <= MOST_SELECTED,
        f"{n_selected} positions are selected, expected at most {MOST_SELECTED}",
    )
    return n_heads * call.count("value_dim")


def block_mean(call: Call) -> int:
    _check_block_size(call)
    return call.inputs[0].width


def block_mean_state(call: Call) -> int:
    return call.inputs[0].width  # the sum over the block that is not complete


def choose_blocks(call: Call) -> int:
    n_heads, head_dim = call.count("n_heads"), call.count("head_dim")
    n_chosen, n_local = call.count("n_chosen"), call.count("n_local", least=0)
    pooled = bool(call.op.attrs["pooled"])
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    n_entries, most = n_chosen + pooled, 0 if pooled else n_chosen
    call.require(n_local <= most, f"n_local is {n_local}, expected at most {most}")
    _check_blocks(call, n_entries)
    return (1 if pooled else n_heads) * n_entries


def _check_block_size(call: Call) -> int:
    size = call.count("block_size")
    call.require(size <= MOST_IN_GROUP, f"block_size is {size}, expected at most {MOST_IN_GROUP}")
    return size


def _check_blocks(call: Call, n_entries: int) -> None:
    block_size = _check_block_size(call)
    call.require(
        block_size * n_entries <= MOST_SELECTED,
        f"{n_entries} blocks of {block_size} positions, expected at most {MOST_SELECTED} positions",
    )


def block_attention(call: Call) -> int:
    n_heads, n_kv_heads = call.count("n_heads"), call.count("n_kv_heads")
    head_dim, blocks = call.count("head_dim"), call.inputs[1]
    n_choices = call.count("n_choices")
    call.require(
        n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads} KV heads evenly"
    )
    call.require(
        n_kv_heads % n_choices == 0,
        f"{n_kv_heads} KV heads cannot share {n_choices} choices evenly",
    )
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    call.require(
        blocks.width % n_choices == 0,
        f"input {blocks.name!r} has width {blocks.width}, expected a multiple of {n_choices}",
    )
    _check_blocks(call, blocks.width // n_choices)
    return n_heads * call.count("value_dim")


def _check_every(call: Call) -> int:
    every = call.count("every")
    call.require(every <= MOST_IN_GROUP, f"every is {every}, expected at most {MOST_IN_GROUP}")
    return every


def pool_groups(call: Call) -> int:
    x, n_parts, every = call.inputs[0], call.count("n_parts"), _check_every(call)
    call.require(n_parts <= 2, f"n_parts is {n_parts}, expected 1 or 2")
    call.require(x.width % n_parts == 0, f"input {x.name!r} is no {n_parts} equal parts")
    call.require_width(1, x.width, f"the width of {x.name!r}")
    weight = call.weights[0]
    call.require(
        weight.shape == (every, x.width),
        f"weight {weight.name!r} is {list(weight.shape)}, expected [{every}, {x.width}]",
    )
    return x.width // n_parts


def group_attention(call: Call) -> int:
    n_heads, head_dim = call.count("n_heads"), call.count("head_dim")
    call.count("window")
    _check_every(call)
    call.require_width(0, n_heads * head_dim, f"{n_heads} heads of {head_dim}")
    for weight in call.weights:
        call.require(
            weight.shape == (n_heads,),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [{n_heads}], the heads",
        )
    return n_heads * head_dim


def sparse_group_attention(call: Call) -> int:
    n_selected = call.inputs[1].width
    call.require(
        n_selected <= MOST_SELECTED,
        f"{n_selected} groups are selected, expected at most {MOST_SELECTED}",
    )
    return group_attention(call)


def softcap(call: Call) -> int:
    _check_float(call, "cap", least=1e-6)
    return call.inputs[0].width


def _check_float(call: Call, attr: str, least: float | None = None) -> None:
    value = call.op.attrs[attr]
    good = isinstance(value, float) and math.isfinite(value) and (least is None or value >= least)
    wanted = "a finite float" if least is None else f"a float of at least {least}"
    call.require(good, f"{attr} is {value!r}, expected {wanted}")


def _one_of(call: Call, attr: str, *allowed: str) -> None:
    value = call.op.attrs[attr]
    call.require(value in allowed, f"{attr} is {value!r}, expected one of {allowed}")


def route(call: Call) -> int:
    logits, attrs = call.inputs[0], call.op.attrs
    for weight in call.weights:
        call.require_width(0, weight.shape[0], f"the length of weight {weight.name!r}")
    _one_of(call, "gating", *get_args(Gating))
    _one_of(call, "group_score", "top2", "max")
    _check_float(call, "scale")
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
    _one_of(call, "gating", *get_args(Gating))
    _check_float(call, "scale")
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
    _check_activations(call)
    return n_used * n


def head_linear(call: Call) -> int:
    n_heads, weight = call.count("n_heads"), call.weights[0]
    heads, n, k = weight.shape
    call.require(
        heads == n_heads,
        f"weight {weight.name!r} is {list(weight.shape)}, expected {n_heads} heads",
    )
    call.require_width(0, n_heads * k, f"a row of {k} for each head of weight {weight.name!r}")
    _check_activations(call)
    return n_heads * n


def _of_each_head(call: Call, index: int) -> int:
    """The width of each head of an input."""
    n_heads, x = call.count("n_heads"), call.inputs[index]
    call.require(
        x.width % n_heads == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {n_heads}, the heads",
    )
    return x.width // n_heads


def take_head_columns(call: Call) -> int:
    own, offset, width = _of_each_head(call, 0), call.count("offset", least=0), call.count("width")
    call.require(
        offset + width <= own,
        f"columns {offset} to {offset + width} of each head of {call.inputs[0].name!r}, which has "
        f"{own}",
    )
    return call.count("n_heads") * width


def join_heads(call: Call) -> int:
    return call.count("n_heads") * (_of_each_head(call, 0) + _of_each_head(call, 1))


def expert_bias(call: Call) -> int:
    n_used, weight = call.count("n_used"), call.weights[0]
    n = weight.shape[1]
    call.require_width(0, n_used * n, f"{n_used} for weight {weight.name!r}, {list(weight.shape)}")
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    return n_used * n


def expert_sum(call: Call) -> int:
    n_used, x = call.count("n_used"), call.inputs[0]
    call.require_width(1, 2 * n_used, f"a route to {n_used} experts")
    call.require(
        x.width % n_used == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {n_used}",
    )
    return x.width // n_used


def elementwise(call: Call) -> int:
    first = call.inputs[0]
    call.require_width(1, first.width, f"the width of {first.name!r}")
    return first.width


def swiglu_oai(call: Call) -> int:
    _check_float(call, "alpha", least=1e-6)
    _check_float(call, "limit", least=1e-6)
    _check_float(call, "shift")
    return elementwise(call)


def scale(call: Call) -> int:
    _check_float(call, "factor")
    for weight in call.weights:
        call.require(
            weight.shape in ((1,), (call.inputs[0].width,)),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [1] or "
            f"[{call.inputs[0].width}]",
        )
    return call.inputs[0].width


def scale_shares(call: Call) -> int:
    n_used = call.count("n_used")
    call.require_width(0, 2 * n_used, f"a route to {n_used} experts")
    return 2 * n_used


def layer_columns(call: Call) -> int:
    x, width = call.inputs[0], call.count("width")
    call.require(
        x.width % width == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {width}",
    )
    return width


def scale_rows(call: Call) -> int:
    call.require_width(1, 1, "a factor for each token")
    return call.inputs[0].width


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


MOST_STREAMS = 16  # that the kernels of hyper-connections take


def hyper_factors(call: Call) -> int:
    x, (scale, base), n = call.inputs[0], call.weights, call.count("n_streams")
    _check_float(call, "eps", least=0.0)
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
    _check_float(call, "eps", least=0.0)
    return _each_stream(call)


def stream_products(call: Call) -> int:
    n_streams, width = call.count("n_streams"), call.inputs[0].width
    _check_float(call, "factor")
    call.require_width(1, width, f"that of {call.inputs[0].name!r}")
    call.require(width % n_streams == 0, f"a width of {width} is no {n_streams} streams")
    return n_streams


def signed_root(call: Call) -> int:
    _check_float(call, "least", least=0.0)
    return call.inputs[0].width


def keep_above(call: Call) -> int:
    _check_float(call, "factor")
    return call.inputs[0].width


def activation(call: Call) -> int:
    return call.inputs[0].width


def _whole_blocks(call: Call, n: int, what: str) -> None:
    call.require(n % 32 == 0, f"{what} is {n}, expected a multiple of 32, a block of Q8_0")


def round_q8(call: Call) -> int:
    _whole_blocks(call, call.inputs[0].width, f"the width of {call.inputs[0].name!r}")
    return call.inputs[0].width


def merge_add(call: Call) -> int:
    x, parts = call.inputs
    call.require(
        parts.width % x.width == 0,
        f"input {parts.name!r} has width {parts.width}, expected a multiple of {x.width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, x.width, f"the width of {x.name!r}")
    return x.width


def take_columns(call: Call) -> int:
    x, offset, width = call.inputs[0], call.count("offset", least=0), call.count("width")
    call.require(
        offset + width <= x.width,
        f"columns {offset} to {offset + width} of {x.name!r}, which has {x.width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, offset, "offset")
        _whole_blocks(call, width, "width")
    return width


def put_columns(call: Call) -> int:
    x, offset, width = call.inputs[0], call.count("offset", least=0), call.count("width")
    call.require(
        offset + x.width <= width,
        f"columns {offset} to {offset + x.width} of {call.op.output!r}, which has {width}",
    )
    if call.op.attrs["quantized"]:
        _whole_blocks(call, offset, "offset")
        _whole_blocks(call, x.width, f"the width of {x.name!r}")
    return width


# ---- recurrent ops: what they write, and the floats of their memory ------------------------------

MOST_TAPS, _MOST_KEY_DIM, MOST_EARLIER = 8, 256, 256  # that the kernels take
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
    _check_float(call, "scale")
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
    _check_float(call, "dt_min", least=0.0)
    _check_float(call, "dt_max", least=float(call.op.attrs["dt_min"]))
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


def l2_norm(call: Call) -> int:
    x, n_heads = call.inputs[0], call.count("n_heads")
    _check_float(call, "eps", least=0.0)
    call.require(x.width % n_heads == 0, f"input {x.name!r} is no {n_heads} heads")
    return x.width


def log_decay(call: Call) -> int:
    x, (a, bias) = call.inputs[0], call.weights
    call.require_width(0, bias.shape[0], f"the length of weight {bias.name!r}")
    call.require(
        a.shape[0] >= 1 and x.width % a.shape[0] == 0,
        f"weight {a.name!r} is {list(a.shape)}, expected a length that divides {x.width}",
    )
    _check_float(call, "bound")
    bound = float(call.op.attrs["bound"])
    call.require(bound <= 0.0, f"bound is {bound}, expected it below 0, or 0 for none")
    return x.width


def residual_attention(call: Call) -> int:
    x, earlier = call.inputs
    n_earlier, width = call.count("n_earlier"), vector(call)
    call.require(
        earlier.width % x.width == 0 and n_earlier * x.width <= earlier.width,
        f"input {earlier.name!r} has width {earlier.width}, expected a multiple of {x.width}, and "
        f"{n_earlier} rows or more",
    )
    call.require(n_earlier <= MOST_EARLIER, f"n_earlier is {n_earlier}, above {MOST_EARLIER}")
    _check_float(call, "eps", least=0.0)
    return width


def group_norm(call: Call) -> int:
    width, n_groups = vector(call), call.count("n_groups")
    call.require(width % n_groups == 0, f"{width} values are no {n_groups} equal groups")
    return width

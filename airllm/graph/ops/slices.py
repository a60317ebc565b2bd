"""Columns, heads and rows of Q8_0 as parts of wider buffers."""

from collections.abc import Mapping

from airllm.graph.vocabulary import Call, Signature, signature


def head_linear(call: Call) -> int:
    n_heads, weight = call.count("n_heads"), call.weights[0]
    heads, n, k = weight.shape
    call.require(
        heads == n_heads,
        f"weight {weight.name!r} is {list(weight.shape)}, expected {n_heads} heads",
    )
    call.require_width(0, n_heads * k, f"a row of {k} for each head of weight {weight.name!r}")
    call.check_activations()
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


def layer_columns(call: Call) -> int:
    x, width = call.inputs[0], call.count("width")
    call.require(
        x.width % width == 0,
        f"input {x.name!r} has width {x.width}, expected a multiple of {width}",
    )
    return width


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


SIGNATURES: Mapping[str, Signature] = {
    # out: x[h] @ weight[h].T for each head h, side by side; x: [n_heads * k]
    "head_linear": signature(
        "x", head_linear, flops=0, weights=("heads",), attrs="n_heads activations"
    ),
    # out: the columns offset to offset + width of each of x's heads, side by side
    "take_head_columns": signature("x", take_head_columns, flops=0, attrs="n_heads offset width"),
    # out: of each head the columns of a, then those of b
    "join_heads": signature("a b", join_heads, flops=0, attrs="n_heads"),
    # out = the columns of x that belong to layer i: x[:, i * width : (i + 1) * width]
    "layer_columns": signature("x", layer_columns, flops=0, attrs="width"),
    # ---- what nodes of a cluster exchange --------------------------------------------------------
    # out = x rounded to the values that blocks of Q8_0 can hold
    "round_q8": signature("x", round_q8, flops=2, in_place="x"),
    # out = x + the parts, added in order; parts: [n_tokens, n_parts * width of x]
    "merge_add": signature(
        "x parts",
        merge_add,
        flops=1,
        per="parts",
        attrs="quantized",
        in_place="x",
        q8_0="parts",
    ),
    # out = x[:, offset : offset + width]
    "take_columns": signature("x", take_columns, flops=0, attrs="offset width quantized", q8_0="x"),
    # out[:, offset : offset + width of x] = x; other columns of out, an external buffer, stay
    "put_columns": signature("x", put_columns, flops=0, attrs="offset width quantized", q8_0="out"),
}

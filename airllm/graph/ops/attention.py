"""Rotation, keys and values, and attention to all positions that a token sees."""

from collections.abc import Mapping

from airllm.graph.vocabulary import Call, Signature, signature


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


def rope_append(call: Call) -> None:
    kv_append(call)
    head_dim, table = call.count("head_dim"), call.inputs[2]
    call.require(
        table.width % 2 == 0 and table.width <= head_dim,
        f"table {table.name!r} has width {table.width}, expected an even number up to {head_dim}",
    )


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


SIGNATURES: Mapping[str, Signature] = {
    # rotates pairs of each head's dimensions, from dimension `offset` on; table:
    # [n_tokens, n_dims], n_dims / 2 cos, then sin
    "rope": signature(
        "x table", rope, flops=3, attrs="n_heads head_dim interleaved offset", in_place="x"
    ),
    # writes the batch's k and v behind the `past` tokens in the layer's KV cache
    "kv_append": signature("k v", kv_append, flops=0, attrs="n_kv_heads head_dim"),
    # writes x, the latents of MLA, as keys; their first dimensions are the values, too
    "latent_append": signature("x", latent_append, flops=0, attrs="n_kv_heads head_dim"),
    # causal attention of q over the layer's KV cache, which includes the batch; window: the number
    # of positions that a token sees, its own included (0: all); chunked: those from the last
    # multiple of the window on; softcap: a score s becomes softcap * tanh(s / softcap) (0: scores
    # stay); alibi: unless 0, a head's slope times (position - token's) is added to a score, see
    # numpy_ops.alibi_slopes; weight: [n_heads], for each head one more score, as it is, without a
    # value
    "attention": signature(
        "q",
        attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads n_kv_heads head_dim value_dim scale window chunked softcap alibi",
        optional=True,
    ),
    # kv_append of rope(k) and v; made by graph.rewrite
    "rope_append": signature(
        "k v table", rope_append, flops=3, per="k", attrs="n_kv_heads head_dim interleaved"
    ),
}

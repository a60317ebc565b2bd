"""Attention to positions, blocks and groups of positions that an index selects."""

from airllm.graph.vocabulary import Call

MOST_SELECTED = 2**16  # positions, or groups, that the kernels take for a token
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

"""Attention to positions, blocks and groups of positions that an index selects."""

from collections.abc import Mapping

from airllm.graph.vocabulary import Call, Signature, signature

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
    _check_sinks(call, n_heads)
    return n_heads * call.count("value_dim")


def _check_sinks(call: Call, n_heads: int) -> None:
    for weight in call.weights:
        call.require(
            weight.shape == (n_heads,),
            f"weight {weight.name!r} is {list(weight.shape)}, expected [{n_heads}], the heads",
        )


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
    _check_sinks(call, n_heads)
    return n_heads * head_dim


def sparse_group_attention(call: Call) -> int:
    n_selected = call.inputs[1].width
    call.require(
        n_selected <= MOST_SELECTED,
        f"{n_selected} groups are selected, expected at most {MOST_SELECTED}",
    )
    return group_attention(call)


SIGNATURES: Mapping[str, Signature] = {
    # writes x as keys of the layer's index, by which tokens select the positions that they see;
    # every: if above 1, the x of the last token of each group of `every` positions is the group's
    # key, and other tokens have none
    "index_append": signature("x", index_append, flops=0, attrs="head_dim every"),
    # out: the n_selected positions, up to the token's own, with the highest scores, ascending, as
    # float32; or all of them, and then -1, if they are fewer. A position's score is the sum over
    # heads h of weights[h] * max(q[h] . key, 0), where a product that is NaN counts as 0. NaN is
    # the highest score; of equal ones the earlier position is selected. every: if above 1, groups
    # of positions are selected in their place, of those that end at the token's position or before.
    "index_select": signature(
        "q weights", index_select, flops=0, attrs="n_heads head_dim n_selected every"
    ),
    # attention of q over the positions that index_select wrote for the token; a token at a position
    # below n_selected sees all up to its own, whatever is selected. weight: as attention has it
    "sparse_attention": signature(
        "q selection",
        sparse_attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads n_kv_heads head_dim value_dim scale",
        optional=True,
    ),
    # ---- attention over blocks: block b is the block_size positions from b * block_size on -------
    # out: of the last token of each block, the mean of x over the block; of other tokens 0
    "block_mean": signature(
        "x",
        block_mean,
        flops=1,
        per="x",
        attrs="block_size",
        in_place="x",
        state=block_mean_state,
    ),
    # out: of each choice, numbers of blocks, ascending, and then -1. With keys of positions each
    # head chooses n_chosen blocks that begin at or before the token: the last n_local, and those of
    # the others with the highest products of q[h] with a key of a position, up to the token's own;
    # NaN is the lowest. With keys of blocks (pooled) the heads choose together: the n_chosen
    # complete blocks with the highest sum over heads of max(q[h] . key, 0), where NaN counts as 0,
    # and one more, the token's own block while it is incomplete. Of equal blocks the earlier is
    # chosen. The index has keys `every` block_size positions if pooled.
    "choose_blocks": signature(
        "q",
        choose_blocks,
        flops=0,
        attrs="n_heads head_dim block_size n_chosen n_local pooled",
    ),
    # attention of q over the positions, up to the token's own, of the blocks that choose_blocks
    # wrote: n_choices choices, each for as many KV heads; a token at a position from which the
    # blocks of a choice reach further back than the first position sees all
    "block_attention": signature(
        "q blocks",
        block_attention,
        flops=0,
        attrs="n_heads n_kv_heads head_dim value_dim scale block_size n_choices",
    ),
    # ---- groups of positions (DeepSeek V4, compressed attention) --------------------------------
    # Keeps x and gate of each token. out: of the last token of each group of `every` positions, for
    # each column a mean of x over the group, whose shares are the softmax of gate + weight[i] of
    # the group's token i; of other tokens 0. n_parts 2: out is half as wide, and a mean over the
    # first half of the columns for the group before, and the second half for the group itself.
    # of_index: out is for the index; a layer may have one of either.
    "pool_groups": signature(
        "x gate",
        pool_groups,
        flops=7,
        per="x",
        weights=("vectors",),
        attrs="every n_parts of_index",
    ),
    # writes the x of the last token of each group as a key of all its positions together
    "group_append": signature("x", index_append, flops=0, attrs="head_dim every"),
    # attention of q, with one KV head, over the last `window` positions and over the groups that
    # end at the token's position or before. Values are the keys. weight: as attention has it
    "group_attention": signature(
        "q",
        group_attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads head_dim scale window every",
        optional=True,
    ),
    # the same over those groups only that index_select wrote for the token; the first ones for a
    # token with fewer than are selected
    "sparse_group_attention": signature(
        "q selection",
        sparse_group_attention,
        flops=0,
        weights=("vector",),
        attrs="n_heads head_dim scale window every",
        optional=True,
    ),
}

"""Attention to blocks of positions that an index chooses: which these are, and what the ops
compute, in float64; and that neither batches nor pages nor threads change a bit."""

from dataclasses import dataclass

import numpy as np
import pytest
from one_op import assert_close, backend_named, random
from sequence_states import new_state, run_in_batches, run_together

from airllm.backends.profiling import Profile
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Graph, GraphError
from airllm.graph.state import KeysValues, LayerState, state_of
from airllm.state.layout import StateLayout

HEADS, KV, DIM, VALUES, INDEX = 6, 2, 64, 32, 16
LENGTH = 700  # several pages, and more than a part of the work


@dataclass(frozen=True)
class Choice:
    """A way of choosing: by keys of positions, each KV head by itself; or by those of blocks."""

    block_size: int
    n_chosen: int
    n_local: int = 0
    pooled: bool = False

    @property
    def n_heads(self) -> int:
        return 3 if self.pooled else KV

    @property
    def n_choices(self) -> int:
        return 1 if self.pooled else KV

    @property
    def n_entries(self) -> int:
        return self.n_chosen + self.pooled


OF_POSITIONS = Choice(25, 11, 2)
OF_BLOCKS = Choice(7, 30, pooled=True)
OTHERS = {
    "single": Choice(1, 50),
    "single pooled": Choice(1, 50, pooled=True),
    "large": Choice(128, 2, 1),
}
CHOICES = pytest.mark.parametrize(
    "choice",
    [
        pytest.param(OF_POSITIONS, id="positions"),
        pytest.param(OF_BLOCKS, id="blocks"),
        *(pytest.param(c, id=name, marks=pytest.mark.variant) for name, c in OTHERS.items()),
    ],
)


def widths(choice: Choice) -> dict[str, int]:
    return {
        **{"q": HEADS * DIM, "k": KV * DIM, "v": KV * VALUES, "index_k": INDEX},
        "index_q": choice.n_heads * INDEX,
    }


def graph(choice: Choice) -> Graph:
    """`blocks` and `out` are its results."""
    g = GraphBuilder("blocks")
    q, k, v, index_k, index_q = (g.external(name, n) for name, n in widths(choice).items())
    chosen = g.external("blocks", choice.n_choices * choice.n_entries)
    g.kv_append(k, v, KV, DIM)
    if choice.pooled:
        g.index_append(g.block_mean(index_k, choice.block_size), every=choice.block_size)
    else:
        g.index_append(index_k)
    g.choose_blocks(
        index_q,
        choice.n_heads,
        choice.block_size,
        choice.n_chosen,
        n_local=choice.n_local,
        pooled=choice.pooled,
        out=chosen,
    )
    g.block_attention(
        q,
        chosen,
        HEADS,
        KV,
        DIM,
        scale=0.2,
        block_size=choice.block_size,
        n_choices=choice.n_choices,
        value_dim=VALUES,
        out=g.external("out", HEADS * VALUES),
    )
    return g.build()


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def inputs(choice: Choice, length: int = LENGTH) -> dict[str, np.ndarray]:
    return {name: random(length, n, seed=len(name) + n) for name, n in widths(choice).items()}


def run(backend, choice: Choice, *args, **options) -> dict[str, np.ndarray]:
    return run_in_batches(backend, graph(choice), *args, **options)


def wanted(choice: Choice, given: dict[str, np.ndarray], token: int) -> list[list[int]]:
    """The blocks that a token sees, of each choice, in float64."""
    seen, size = token + 1, choice.block_size
    q = given["index_q"][token].reshape(choice.n_heads, INDEX).astype(np.float64)
    keys = given["index_k"][:seen].astype(np.float64)
    n_blocks = -(-seen // size)
    if choice.pooled:
        complete = seen // size
        means = keys[: complete * size].reshape(complete, size, INDEX).mean(axis=1)
        scores = np.maximum(q @ means.T, 0.0).sum(axis=0)
        ranked = sorted(range(complete), key=lambda b: (-scores[b], b))[: choice.n_chosen]
        return [sorted(ranked) + list(range(complete, n_blocks))]
    last = min(choice.n_local, n_blocks)
    others = n_blocks - last
    found = []
    for products in q @ keys.T:
        scores = [products[b * size : (b + 1) * size].max() for b in range(others)]
        ranked = sorted(range(others), key=lambda b: (-scores[b], b))[: choice.n_chosen - last]
        found.append(sorted(ranked) + list(range(others, n_blocks)))
    return found


def attended(
    choice: Choice, given: dict[str, np.ndarray], token: int, blocks: list[list[int]]
) -> np.ndarray:
    q = given["q"][token].reshape(KV, -1, DIM).astype(np.float64)
    k, v = (
        given[name].astype(np.float64).reshape(-1, KV, n) for name, n in (("k", DIM), ("v", VALUES))
    )
    out = []
    for head in range(KV):
        of_head = blocks[head * choice.n_choices // KV]
        positions = [
            p
            for b in of_head
            for p in range(b * choice.block_size, min((b + 1) * choice.block_size, token + 1))
        ]
        weights = np.exp(0.2 * q[head] @ k[positions, head].T)
        out.append(weights / weights.sum(axis=1, keepdims=True) @ v[positions, head])
    return np.concatenate(out).reshape(-1)


# ---- what is computed ----------------------------------------------------------------------------


@CHOICES
def test_tokens_see_the_blocks_with_the_highest_scores(backend, choice):
    given = inputs(choice)
    found = run(backend, choice, given, [LENGTH])
    rows = found["blocks"].reshape(LENGTH, choice.n_choices, choice.n_entries)
    for token in (*range(0, LENGTH, 13), LENGTH - 1):
        blocks = wanted(choice, given, token)
        for row, own in zip(rows[token], blocks, strict=True):
            np.testing.assert_array_equal(row[: len(own)], own, err_msg=f"token {token}")
            assert (row[len(own) :] == -1).all()
        expected = attended(choice, given, token, blocks)
        assert_close(found["out"][token], expected, 4e-6)


def test_a_mean_is_written_where_a_block_ends(backend):
    g = GraphBuilder("mean")
    g.block_mean(g.external("x", 5), 3, out=g.external("y", 5))
    made, x = g.build(), random(11, 5)
    state, y = new_state(backend, [state_of(made)], 64, "f32"), np.full((11, 5), 7, np.float32)
    executor, begin = backend.executor(made, 11), 0
    for end in (1, 4, 5, 11):
        part = {"x": x[begin:end], "y": y[begin:end]}
        executor.run_layers([executor.bind({})], part, [(end - begin, begin, state.backing)])
        begin = end
    expected = np.zeros((11, 5))
    expected[2::3] = x[:9].astype(np.float64).reshape(3, 3, 5).mean(axis=1)
    assert_close(y, expected, 2e-7)


@pytest.mark.parametrize(("kv_type", "bound"), [("f16", 2e-3), ("q8_0", 3e-2)])
def test_keys_and_values_of_other_types_are_read(backend, kv_type, bound):
    """All heads are 32 wide: q8_0 has blocks of 32. The blocks are given."""
    g = GraphBuilder("blocks")
    names = {"q": 4 * 32, "k": 2 * 32, "v": 2 * 32, "blocks": 2 * 3}
    q, k, v, blocks = (g.external(name, width) for name, width in names.items())
    g.kv_append(k, v, 2, 32)
    g.block_attention(
        q, blocks, 4, 2, 32, scale=0.2, block_size=8, n_choices=2, out=g.external("out", 4 * 32)
    )
    made = g.build()
    given = {name: random(60, width, seed=width) for name, width in names.items()}
    given["blocks"] = np.tile(np.array([0, 1, 4, 0, 3, -1], np.float32), (60, 1))
    given["out"] = np.full((60, 4 * 32), 7, np.float32)
    state = new_state(backend, [state_of(made)], 64, kv_type)
    state.make_room(0, 1, 0, 60)
    executor = backend.executor(made, 60)
    executor.run_layers([executor.bind({})], given, [(60, 0, state.backing)])
    keys, values = (given[name].astype(np.float64).reshape(60, 2, 32) for name in "kv")
    for token in range(40, 60):
        for head, of_head in enumerate(([0, 1, 4], [0, 3])):
            seen = np.concatenate([np.arange(8 * b, 8 * b + 8) for b in of_head])
            own = given["q"][token].astype(np.float64).reshape(2, 2, 32)[head]
            weights = np.exp(0.2 * own @ keys[seen, head].T)
            expected = weights / weights.sum(axis=1, keepdims=True) @ values[seen, head]
            found = given["out"][token].reshape(2, 2, 32)[head]
            assert_close(found, expected, bound)


@pytest.mark.parametrize("choice", [OF_POSITIONS, OF_BLOCKS], ids=["positions", "blocks"])
def test_of_equal_scores_the_earlier_blocks_are_chosen(backend, choice):
    given = inputs(choice, 400)
    given["index_q"][:] = 0.0
    given["index_q"][350:, 0] = -0.0
    rows = run(backend, choice, given, [400])["blocks"].reshape(400, choice.n_choices, -1)
    n_first = choice.n_chosen - choice.n_local
    for token in range(320, 400):
        for row in rows[token]:
            np.testing.assert_array_equal(row[:n_first], np.arange(n_first))


def test_a_product_that_is_no_number_counts_for_nothing(backend):
    """With keys of positions the others of the block count; with keys of blocks it is 0."""
    for choice, lowest in ((OF_POSITIONS, -1e30), (OF_BLOCKS, 0.0)):
        given = inputs(choice, 400)
        given["index_q"] = np.abs(given["index_q"])
        given["index_k"][40] = np.nan
        found = run(backend, choice, given, [400])["blocks"]
        if choice.pooled:
            given["index_k"][35:42] = lowest
        else:
            given["index_k"][40] = lowest
        np.testing.assert_array_equal(found, run(backend, choice, given, [400])["blocks"])


def attended_to(
    backend, blocks: np.ndarray, size: int = 4, at_once: int | None = None
) -> np.ndarray:
    """Attention of tokens to the blocks of `size` positions that are given for each: [n, n_blocks].
    at_once: the tokens that an executor takes; None for all."""
    n = len(blocks)
    g = GraphBuilder("blocks")
    q, k, v = g.external("q", HEADS * DIM), g.external("k", KV * DIM), g.external("v", KV * VALUES)
    chosen, out = g.external("blocks", blocks.shape[1]), g.external("out", HEADS * VALUES)
    g.kv_append(k, v, KV, DIM)
    g.block_attention(
        q,
        chosen,
        HEADS,
        KV,
        DIM,
        scale=0.2,
        block_size=size,
        n_choices=1,
        value_dim=VALUES,
        out=out,
    )
    made, given = g.build(), inputs(Choice(4, 2), n)
    arrays = {name: given[name] for name in "qkv"} | {"blocks": blocks}
    arrays["out"] = np.full((n, HEADS * VALUES), 7, np.float32)
    state = new_state(backend, [state_of(made)], n + 34, "f32")
    state.make_room(0, 1, 0, n)
    for page in state._pages[0].values():  # what lies behind the last position
        page.memory.view(np.float32)[:] = np.inf
    step = at_once or n
    executor = backend.executor(made, step)
    bound = executor.bind({})
    for past in range(0, n, step):
        some = {name: array[past : past + step] for name, array in arrays.items()}
        executor.run_layers([bound], some, [(len(some["out"]), past, state.backing)])
    return arrays["out"]


@pytest.mark.parametrize("wrong", [-3.0, np.nan, 1e9, np.inf])
def test_blocks_that_a_token_does_not_see_are_taken_for_the_nearest(backend, wrong):
    blocks = np.full((30, 2), wrong, np.float32)
    blocks[:, 1] = -1.0
    found, given = attended_to(backend, blocks), inputs(Choice(4, 2), 30)
    for token in range(7, 30):
        block = token // 4 if wrong > 0 else 0
        expected = attended(Choice(4, 2, pooled=True), given, token, [[block]])
        assert_close(found[token], expected, 4e-6)


def test_an_executor_for_one_token_has_room_for_all_blocks_that_it_sees():
    backend, blocks = backend_named("cpp"), np.tile(np.arange(5, dtype=np.float32), (330, 1))
    blocks[:, 4] = np.arange(330) // 64
    found = attended_to(backend, blocks, 64, at_once=1)
    assert_close(found[320:], attended_to(backend, blocks, 64)[320:])


def test_nan_ends_a_choice_of_blocks(backend):
    with_nan = attended_to(backend, np.tile(np.float32([1, np.nan]), (30, 1)))
    without = attended_to(backend, np.tile(np.float32([1, -1]), (30, 1)))
    np.testing.assert_array_equal(with_nan, without)


def test_a_block_in_which_the_token_stands_reaches_no_further_wherever_it_is_chosen():
    blocks = np.zeros((30, 3), np.float32)
    blocks[:, 0] = np.arange(30) // 4  # the token's own, and then earlier ones
    blocks[:, 1] = 1
    found, expected = (attended_to(backend_named(name), blocks) for name in ("cpp", "numpy"))
    assert np.isfinite(found).all()
    assert_close(found[11:], expected[11:], 4e-6)


# ---- what changes no bit -------------------------------------------------------------------------


@CHOICES
@pytest.mark.parametrize("cuts", [[1, LENGTH], [270, 300, 301, 302, LENGTH], [333, 666, LENGTH]])
def test_the_batches_that_tokens_come_in_change_no_choice_and_no_chosen_bit(backend, choice, cuts):
    given = inputs(choice)
    whole, cut = (run(backend, choice, given, each) for each in ([LENGTH], cuts))
    np.testing.assert_array_equal(cut["blocks"], whole["blocks"])
    first = choice.block_size * choice.n_entries
    np.testing.assert_array_equal(cut["out"][first:], whole["out"][first:])
    assert_close(cut["out"], whole["out"])


@pytest.mark.parametrize("choice", [OF_POSITIONS, OF_BLOCKS], ids=["positions", "blocks"])
@pytest.mark.parametrize("dense", [1, 2, 30])
def test_batches_of_more_than_64_tokens_change_no_bit(choice, dense):
    """dense: tokens of the second batch that see all positions."""
    backend, given = backend_named("cpp"), inputs(choice)
    end = choice.block_size * choice.n_entries - 1
    whole, cut = (run(backend, choice, given, each) for each in ([LENGTH], [end - dense, LENGTH]))
    np.testing.assert_array_equal(cut["out"], whole["out"])


@pytest.mark.parametrize("choice", [OF_POSITIONS, OF_BLOCKS], ids=["positions", "blocks"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(choice, threads):
    backend, given = backend_named("cpp"), inputs(choice)
    cuts = [LENGTH - 1, LENGTH]
    whole = run(backend, choice, given, cuts)
    few = run(backend, choice, given, cuts, threads=threads)
    for name in ("blocks", "out"):
        np.testing.assert_array_equal(few[name], whole[name])


@pytest.mark.parametrize("choice", [OF_POSITIONS, OF_BLOCKS], ids=["positions", "blocks"])
def test_sequences_of_a_batch_do_not_touch_each_other(backend, choice):
    """One that sees all positions, one that crosses the limit, and one beyond it."""
    made, given = graph(choice), inputs(choice)
    counts, pasts = [10, 120, 30], [0, 200, 500]
    ends = [past + n for n, past in zip(counts, pasts, strict=True)]
    alone = run(backend, choice, given, sorted({*ends, *pasts[1:], LENGTH}))
    batch, rows = run_together(backend, made, alone, counts, pasts)
    np.testing.assert_array_equal(batch["blocks"], alone["blocks"][rows])
    assert_close(batch["out"], alone["out"][rows])


# ---- what is kept, counted and refused -----------------------------------------------------------


def test_a_layer_keeps_one_key_of_its_index_for_each_block():
    state = state_of(graph(OF_BLOCKS))
    keys = KeysValues(KV, DIM, VALUES)
    index = KeysValues(1, INDEX, INDEX, 0, True, every=7)
    assert state == LayerState(keys, recurrent_floats=INDEX, index=index)
    layout = StateLayout([state], "f16")
    kept = layout.nbytes(64 * 7 * 10, 64)
    of_checkpoints = 3 * 4 * INDEX
    assert kept - of_checkpoints == (
        64 * 7 * 10 * 2 * KV * (DIM + VALUES) + 64 * 10 * 2 * INDEX + 4 * INDEX
    )
    assert state_of(graph(OF_POSITIONS)).index == KeysValues(1, INDEX, INDEX, 0, True)


def profiled(choice: Choice, n: int, past: int):
    backend, made, profile = backend_named("numpy"), graph(choice), Profile(lambda width: 4 * width)
    executor = profile.wrap(backend.executor(made, n), made)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    state.make_room(0, 1, 0, past + n)
    arrays = {b.name: np.zeros((n, b.width), np.float32) for b in made.buffers if b.external}
    executor.run_layers([executor.bind({})], arrays, [(n, past, state.backing)])
    return {op.name: op for op in profile.ops()}


def test_a_profile_counts_the_keys_that_are_scored_and_the_positions_that_are_seen():
    found = profiled(Choice(10, 4, 1), 2, 104)  # 11 blocks, the last of 5 and of 6 positions
    assert found["choose_blocks"].flops == 2 * 100 * KV * (2 * INDEX + 1)
    rows = 4 * 2 * KV * (INDEX + 4)
    assert found["choose_blocks"].nbytes == rows + 100 * 4 * INDEX
    assert found["block_attention"].flops == (35 + 36) * 2 * HEADS * (DIM + VALUES)
    rows = 4 * 2 * (HEADS * (DIM + VALUES) + KV * 4)
    assert found["block_attention"].nbytes == rows + (35 + 36) * 4 * KV * (DIM + VALUES)


def test_a_profile_counts_keys_of_blocks():
    found = profiled(Choice(10, 4, pooled=True), 2, 108)  # 10 whole blocks, then 11
    assert found["choose_blocks"].flops == (10 + 11) * 3 * (2 * INDEX + 2)
    assert found["block_attention"].flops == (49 + 40) * 2 * HEADS * (DIM + VALUES)
    assert found["block_mean"].nbytes == 4 * 2 * 2 * INDEX + 2 * 4 * INDEX


@pytest.mark.parametrize("choice", [Choice(10, 4, 1), Choice(10, 4, pooled=True)])
def test_a_profile_counts_no_scores_of_tokens_that_see_all_blocks(choice):
    assert profiled(choice, 1, 35)["choose_blocks"].flops == 0


def test_an_index_of_other_keys_is_refused():
    for every, pooled, own in ((5, True, 7), (7, False, 1)):
        g = GraphBuilder("blocks")
        g.index_append(g.external("k", INDEX), every=every)
        g.choose_blocks(g.external("q", 3 * INDEX), 3, 7, 4, pooled=pooled)
        said = f"choose_blocks.*groups of {own}, the index has groups of {every}"
        with pytest.raises(GraphError, match=said):
            g.build()


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        ({"n_chosen": 0}, "n_chosen is 0, expected 1 or more"),
        ({"n_local": 5}, "n_local is 5, expected at most 4"),
        ({"n_local": 1, "pooled": True}, "n_local is 1, expected at most 0"),
        ({"block_size": 0}, "block_size is 0, expected 1 or more"),
        ({"block_size": 4097}, "block_size is 4097, expected at most 4096"),
        (
            {"block_size": 4096, "n_chosen": 17},
            "17 blocks of 4096 positions, expected at most 65536",
        ),
    ],
)
def test_choices_that_make_no_sense_are_refused(choose, said):
    g = GraphBuilder("blocks")
    options = {"n_heads": 2, "block_size": 10, "n_chosen": 4} | choose
    with pytest.raises(GraphError, match=said):
        g.choose_blocks(g.external("q", 2 * INDEX), **options)


@pytest.mark.parametrize(
    ("n_choices", "width", "said"),
    [
        (2, 6, "1 KV heads cannot share 2 choices evenly"),
        (0, 6, "n_choices is 0, expected 1 or more"),
        (3, 7, "'blocks' has width 7, expected a multiple of 3"),
    ],
)
def test_choices_that_kv_heads_cannot_share_are_refused(n_choices, width, said):
    n_kv = 1 if n_choices == 2 else 3
    g = GraphBuilder("blocks")
    q, blocks = g.external("q", 3 * 8), g.external("blocks", width)
    with pytest.raises(GraphError, match=said):
        g.block_attention(q, blocks, 3, n_kv, 8, scale=1.0, block_size=4, n_choices=n_choices)

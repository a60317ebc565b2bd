"""Groups of positions that have a key together: what the ops compute, in float64; and that neither
batches nor pages nor threads change a bit."""

import numpy as np
import pytest
from one_op import assert_close, backend_named, random
from sequence_states import bound_weights, new_state, run_in_batches

from airllm.backends.profiling import Profile
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Graph, GraphError
from airllm.graph.state import KeysValues, LayerState, state_of
from airllm.state import checkpoints
from airllm.state.layout import StateLayout
from airllm.state.table import PAGE_ROWS

HEADS, DIM, INDEX_HEADS, INDEX = 6, 40, 5, 24
WINDOW, N_SELECTED, LENGTH = 100, 30, 700
SCALE = 0.2


def graph(every: int, n_parts: int, n_selected: int = 0) -> Graph:
    """What a layer does with keys, groups and, if groups are selected, an index. `pooled`,
    `selection` and `out` are its results."""
    g = GraphBuilder("groups")
    q, out = g.external("q", HEADS * DIM), g.external("out", HEADS * DIM)
    key, width = g.external("key", DIM), n_parts * DIM
    x, gate = g.external("x", width), g.external("gate", width)
    g.latent_append(key, 1, DIM)
    pooled = g.pool_groups(x, gate, g.weight("bias", every, width), n_parts=n_parts)
    g.take_columns(pooled, 0, DIM, out=g.external("pooled", DIM))
    g.group_append(pooled, every=every)
    selection = None
    if n_selected:
        g.index_append(g.external("index_key", INDEX), every=every)
        index_q, weights = g.external("index_q", INDEX_HEADS * INDEX), g.external("weights", 5)
        selection = g.external("selection", n_selected)
        g.index_select(index_q, weights, INDEX_HEADS, n_selected, every=every, out=selection)
    sinks = g.weight("sinks", HEADS)
    a = g.group_attention(
        q, HEADS, scale=SCALE, window=WINDOW, every=every, selection=selection, sinks=sinks
    )
    g.take_columns(a, 0, HEADS * DIM, out=out)
    return g.build()


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def inputs(made: Graph, length: int = LENGTH) -> dict[str, np.ndarray]:
    names = ("q", "key", "x", "gate", "index_key", "index_q", "weights")
    widths = {buffer.name: buffer.width for buffer in made.buffers}
    return {
        name: random(length, widths[name], seed=index)
        for index, name in enumerate(names)
        if name in widths
    }


def weights_of(made: Graph) -> dict[str, np.ndarray]:
    return {
        each.name: random(*each.shape, seed=len(each.shape)).reshape(each.shape)
        for each in made.weights
    }


def run(backend, made: Graph, *args, **options) -> dict[str, np.ndarray]:
    return run_in_batches(backend, made, *args, weights=weights_of(made), **options)


def exact_keys(made: Graph, given: dict[str, np.ndarray], every: int, n_parts: int) -> np.ndarray:
    """The keys of all groups, float64 [groups, DIM]."""
    bias = weights_of(made)["bias"].astype(np.float64)
    x, gate = given["x"].astype(np.float64), given["gate"].astype(np.float64)
    found = []
    for end in range(every, len(x) + 1, every):
        values, scores = [], []
        for part in range(n_parts):
            last = end - (n_parts - 1 - part) * every
            if last:
                columns = slice(part * DIM, (part + 1) * DIM)
                values.append(x[last - every : last, columns])
                scores.append(gate[last - every : last, columns] + bias[:, columns])
        shares = np.exp(np.concatenate(scores))
        found.append((shares * np.concatenate(values)).sum(axis=0) / shares.sum(axis=0))
    return np.array(found).reshape(-1, DIM)


def exact_attention(
    made: Graph, given: dict[str, np.ndarray], groups: np.ndarray, every: int, seen=None
) -> np.ndarray:
    """seen: of a token, the numbers of the groups that it sees; None: all that have ended."""
    keys, sinks = given["key"].astype(np.float64), weights_of(made)["sinks"].astype(np.float64)
    queries = given["q"].astype(np.float64).reshape(len(keys), HEADS, DIM)
    found = np.empty((len(keys), HEADS * DIM))
    for t, q in enumerate(queries):
        own = np.arange((t + 1) // every) if seen is None else seen(t)
        kv = np.concatenate([keys[max(0, t + 1 - WINDOW) : t + 1], groups[own]])
        shares = np.exp(SCALE * q @ kv.T)
        total = shares.sum(axis=1) + np.exp(sinks)
        found[t] = (shares @ kv / total[:, np.newaxis]).reshape(-1)
    return found


@pytest.mark.parametrize(("every", "n_parts"), [(4, 2), (4, 1), (128, 1), (7, 2)])
def test_tokens_see_a_window_and_the_groups_that_have_ended(backend, every, n_parts):
    made = graph(every, n_parts)
    given = inputs(made)
    found = run(backend, made, given, [LENGTH])
    groups = exact_keys(made, given, every, n_parts)
    pooled = np.zeros((LENGTH, DIM))
    pooled[every - 1 :: every] = groups
    assert_close(found["pooled"], pooled)
    assert_close(found["out"], exact_attention(made, given, groups, every))


def test_tokens_see_the_groups_that_an_index_selects(backend):
    made = graph(4, 2, N_SELECTED)
    given = inputs(made)
    found = run(backend, made, given, [LENGTH])
    keys = given["index_key"][3::4].astype(np.float64)

    def seen(t: int) -> np.ndarray:
        n = (t + 1) // 4
        if n <= N_SELECTED:
            return np.arange(n)
        q = given["index_q"][t].astype(np.float64).reshape(INDEX_HEADS, INDEX)
        scores = given["weights"][t].astype(np.float64) @ np.maximum(q @ keys[:n].T, 0.0)
        return np.sort(np.argsort(-scores, kind="stable")[:N_SELECTED])

    chosen = [
        np.pad(seen(t), (0, max(0, N_SELECTED - (t + 1) // 4)), constant_values=-1)
        for t in range(LENGTH)
    ]
    np.testing.assert_array_equal(found["selection"], chosen)
    groups = exact_keys(made, given, 4, 2)
    assert_close(found["out"], exact_attention(made, given, groups, 4, seen))


@pytest.mark.parametrize("wrong", [-3.0, np.nan, 1e9, np.inf])
def test_groups_that_a_token_does_not_see_are_taken_for_the_nearest(backend, wrong):
    g = GraphBuilder("groups")
    q, out = g.external("q", HEADS * DIM), g.external("out", HEADS * DIM)
    key, chosen = g.external("key", DIM), g.external("chosen", 2)
    g.latent_append(key, 1, DIM)
    g.group_append(key, every=4)
    a = g.group_attention(q, HEADS, scale=SCALE, window=WINDOW, every=4, selection=chosen)
    g.take_columns(a, 0, HEADS * DIM, out=out)
    made = g.build()
    given = inputs(made, 30) | {"chosen": np.full((30, 2), wrong, np.float32)}
    found = run_in_batches(backend, made, given, [30], weights={})
    for t in range(11, 30):  # with more than two groups
        given["chosen"][t] = (t + 1) // 4 - 1 if wrong > 0 else 0
    expected = run_in_batches(backend, made, given, [30], weights={})
    np.testing.assert_array_equal(found["out"], expected["out"])
    assert np.isfinite(found["out"]).all()


@pytest.mark.parametrize("n_selected", [0, N_SELECTED])
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_neither_pieces_nor_threads_change_a_bit(backend, n_selected, kv_type):
    made = graph(4, 2, n_selected)
    given = inputs(made, 300)
    expected = run(backend, made, given, [300], kv_type)
    for cuts in ([1, 2, 5, 130, 131, 300], [*range(1, 40), 300]):
        found = run(backend, made, given, cuts, kv_type, threads=1)
        for name in ("pooled", "out"):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_sequence_may_come_token_by_token_in_one_batch(backend):
    """As lookahead does it: each token is a sequence of its own, of the same state."""
    made = graph(4, 2)
    given = inputs(made, 50)
    expected = run(backend, made, given, [30, *range(31, 51)])
    executor = backend.executor(made, 50)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    bound = bound_weights(backend, executor, made, weights_of(made))
    everything = given | {
        buffer.name: np.empty((50, buffer.width), np.float32)
        for buffer in made.buffers
        if buffer.external and buffer.name not in given
    }
    state.make_room(0, 1, 0, 50)
    sequences = [(30, 0, state.backing), *((1, 30 + i, state.backing) for i in range(20))]
    executor.run_layers([bound], everything, sequences)
    np.testing.assert_array_equal(everything["out"], expected["out"])


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_steps_gives_the_numbers_of_going_there_at_once(backend, seed, monkeypatch):
    """Appending, going back and snapshots; groups that several sequences share are copied before
    one of them writes."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_TOKENS", 20)
    monkeypatch.setattr(checkpoints, "PAGE_ROWS", 16)
    steps, made = np.random.default_rng(seed), graph(4, 2)
    given = inputs(made, 900)
    expected = run(backend, made, given, [900])["out"]
    executor = backend.executor(made, 200)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    bound, snapshots = bound_weights(backend, executor, made, weights_of(made)), [state.snapshot()]
    for step in steps.choice(["append", "append", "trim", "snapshot", "restore"], 60):
        past = state.length
        if step == "trim" and past:
            reached = int(steps.integers(max(0, past - 90), past + 1))
            assert state.trim(reached) <= reached
        elif step == "snapshot":
            snapshots.append(state.snapshot())
        elif step == "restore":
            state.restore(snapshots[steps.integers(len(snapshots))])
        elif step == "append" and past < 700:
            n = int(steps.choice([1, 3, 40, 200]))
            part = {name: array[past : past + n] for name, array in given.items()}
            for buffer in made.buffers:
                if buffer.external and buffer.name not in given:
                    part[buffer.name] = np.empty((n, buffer.width), np.float32)
            state.begin()
            state.make_room(0, 1, past, n)
            executor.run_layers([bound], part, [(n, past, state.backing)])
            state.let_go(0, 1, past + n)
            state.advance(range(past, past + n))
            np.testing.assert_array_equal(part["out"], expected[past : past + n])


# ---- what is kept, counted and refused -----------------------------------------------------------


def test_a_layer_keeps_a_window_its_groups_and_what_the_next_group_is_made_of():
    state = state_of(graph(4, 2, N_SELECTED))
    assert state == LayerState(
        KeysValues(1, DIM, DIM, WINDOW, True),
        index=KeysValues(1, INDEX, INDEX, 0, True, every=4),
        groups=KeysValues(1, DIM, DIM, 0, True, every=4),
        pending=KeysValues(2, DIM, DIM, window=8, exact=True),
    )
    layout = StateLayout([state, state], "f16")
    every = [table for table in layout.tables if table.every == 4]
    assert [table.page_bytes for table in every] == [2 * 2 * PAGE_ROWS * (DIM + INDEX)]
    windows = sorted((table.window, table.page_rows) for table in layout.tables if table.window)
    assert windows == [(8, 16), (8, 16), (WINDOW, 64), (WINDOW, 64)]
    assert list(every[0].pages(4 * PAGE_ROWS + 3)) == [0]
    assert list(every[0].pages(4 * PAGE_ROWS + 4)) == [0, 1]
    assert not layout.can_be_cut


def test_a_group_of_two_parts_needs_the_tokens_of_the_group_before_it():
    backend, every = backend_named("cpp"), 4
    g = GraphBuilder("groups")
    x, gate = (g.external(name, 2 * DIM) for name in ("x", "gate"))
    pooled = g.pool_groups(x, gate, g.weight("bias", every, 2 * DIM), n_parts=2)
    g.take_columns(pooled, 0, DIM, out=g.external("pooled", DIM))
    made = g.build()
    executor, part = backend.executor(made, 1), 4 * 2 * 16 * DIM
    pending = 0, 0, part, "f32", 2, DIM, DIM
    state = backend.sequence_state([(16, 2 * part)], [(None, 0, 0, None, None, pending, None)])
    state.set_page(0, 1, np.zeros(2 * part, np.uint8))  # positions 16 to 31
    bound = bound_weights(backend, executor, made, weights_of(made))
    arrays = {b.name: np.ones((1, b.width), np.float32) for b in made.buffers if b.external}
    executor.run_layers([bound], arrays, [(1, 23, state)])  # a part of positions 16 to 19
    with pytest.raises(ValueError, match="position 12 is needed, and tokens for groups begin"):
        executor.run_layers([bound], arrays, [(1, 19, state)])


def test_an_executor_has_room_for_the_longest_sequence_whichever_it_is():
    backend, made, taken = backend_named("cpp"), graph(4, 2), []
    for pasts in ((2999, 0), (0, 2999)):
        executor, states = backend.executor(made, 2), []
        for past in pasts:
            states.append(new_state(backend, [state_of(made)], 4096, "f32"))
            states[-1].make_room(0, 1, 0, past + 1)
        arrays = {b.name: np.zeros((2, b.width), np.float32) for b in made.buffers if b.external}
        sequences = [(1, past, its.backing) for past, its in zip(pasts, states, strict=True)]
        bound = bound_weights(backend, executor, made, weights_of(made))
        executor.run_layers([bound], arrays, sequences)
        taken.append(executor._executor.nbytes)
    assert taken[0] == taken[1]


def test_a_profile_counts_the_groups_that_are_made_scored_and_seen(backend):
    made, profile = graph(4, 2, 16), Profile(lambda width: 4 * width)
    executor = profile.wrap(backend.executor(made, 4), made)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    state.make_room(0, 1, 0, 205)
    arrays = {b.name: np.zeros((4, b.width), np.float32) for b in made.buffers if b.external}
    bound = bound_weights(backend, executor, made, weights_of(made))
    executor.run_layers([bound], arrays, [(4, 201, state.backing)])
    found = {op.name: op for op in profile.ops()}
    scored = 50 + 50 + 51 + 51  # tokens 202 to 205
    assert found["index_select"].flops == scored * INDEX_HEADS * (2 * INDEX + 3)
    near, far = 4 * WINDOW, 4 * 16
    attention = found["sparse_group_attention sinks"]
    assert attention.flops == (near + far) * 2 * HEADS * 2 * DIM
    rows = 4 * 4 * (2 * HEADS * DIM + 16) + 4 * HEADS
    assert attention.nbytes == rows + 4 * DIM * (WINDOW + 3 + min(far, 51))
    pool = found["pool_groups bias"]
    assert pool.flops == 4 * 7 * 2 * DIM
    rows = 4 * 4 * (2 * 2 * DIM + DIM) + 4 * 4 * 2 * DIM
    assert pool.nbytes == rows + 2 * 4 * 2 * DIM * (4 + 4)  # one group ends, at token 204
    assert found["group_append"].nbytes == 4 * 4 * DIM + 4 * DIM


def test_groups_are_appended_once_and_before_they_are_read():
    g = GraphBuilder("groups")
    q = g.external("q", 2 * DIM)
    g.group_attention(q, 2, scale=1.0, window=4, every=4)
    with pytest.raises(GraphError, match="reads keys of 40, the cache has None"):
        g.build()
    g = GraphBuilder("groups")
    q, key = g.external("q", 2 * DIM), g.external("key", DIM)
    g.latent_append(key, 1, DIM)
    g.group_append(key, every=4)
    g.group_attention(q, 2, scale=1.0, window=4, every=5)
    with pytest.raises(GraphError, match=r"groups \(head_dim, every\) \(40, 5\), there are"):
        g.build()
    g = GraphBuilder("groups")
    key = g.external("key", DIM)
    g.group_append(key, every=4)
    g.group_append(key, every=4)
    with pytest.raises(GraphError, match="keys of groups are appended twice"):
        g.build()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda g, x: g.pool_groups(x, x, g.weight("b", 4, 39)), r"expected \[4, 40\]"),
        (lambda g, x: g.pool_groups(x, x, g.weight("b", 5000, 40)), "every is 5000, expected at"),
        (lambda g, x: g.pool_groups(x, x, g.weight("b", 4, 40), n_parts=3), "n_parts is 3"),
        (lambda g, x: g.group_append(x, every=0), "every is 0, expected 1 or more"),
        (lambda g, x: g.group_attention(x, 2, scale=1.0, window=0, every=4), "window is 0"),
    ],
)
def test_groups_that_make_no_sense_are_refused(build, said):
    g = GraphBuilder("groups")
    with pytest.raises(GraphError, match=said):
        build(g, g.external("x", DIM))

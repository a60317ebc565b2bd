"""Attention to the positions that an index selects: which these are, and what the ops compute, in
float64; and that neither batches nor pages nor threads change a bit."""

from collections.abc import Sequence

import numpy as np
import pytest
from one_op import assert_close, backend_named, random
from sequence_states import new_state, run_together
from sequence_states import run_in_batches as run

from airllm.backends.numpy_sparse import highest
from airllm.backends.profiling import Profile
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Graph, GraphError
from airllm.graph.state import KeysValues, LayerState, state_of
from airllm.state.layout import PAGE_ROWS, StateLayout

HEADS, LATENT, VALUES = 6, 40, 32
INDEX_HEADS, INDEX = 5, 24
N_SELECTED, LENGTH = 300, 700  # more than a part of the work, and several pages
WIDTHS = {
    **{"q": HEADS * LATENT, "latent": LATENT},
    **{"index_q": INDEX_HEADS * INDEX, "index_k": INDEX, "weights": INDEX_HEADS},
}


def graph(n_selected: int = N_SELECTED, heads: int = HEADS, sinks: bool = False) -> Graph:
    """What a layer does, on latents that are values, too; `selection` and `out` are its results."""
    g = GraphBuilder("sparse")
    q = g.external("q", heads * LATENT)
    latent, index_q, index_k, weights = (
        g.external(name, WIDTHS[name]) for name in ("latent", "index_q", "index_k", "weights")
    )
    selection, out = g.external("selection", n_selected), g.external("out", heads * VALUES)
    g.latent_append(latent, 1, LATENT)
    g.index_append(index_k)
    g.index_select(index_q, weights, INDEX_HEADS, n_selected, out=selection)
    of_heads = g.weight("sinks", heads) if sinks else None
    g.sparse_attention(
        q, selection, heads, 1, LATENT, scale=0.2, value_dim=VALUES, sinks=of_heads, out=out
    )
    return g.build()


def dense_graph() -> Graph:
    g = GraphBuilder("dense")
    q, latent = g.external("q", HEADS * LATENT), g.external("latent", LATENT)
    out = g.external("out", HEADS * VALUES)
    g.latent_append(latent, 1, LATENT)
    g.attention(q, HEADS, 1, LATENT, scale=0.2, value_dim=VALUES, out=out)
    return g.build()


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def inputs(length: int = LENGTH, heads: int = HEADS) -> dict[str, np.ndarray]:
    widths = WIDTHS | {"q": heads * LATENT}
    return {name: random(length, width, seed=len(name)) for name, width in widths.items()}


def wanted(given: dict[str, np.ndarray], n_selected: int) -> list[np.ndarray]:
    """The positions that each token sees, in float64."""
    length = len(given["q"])
    q = given["index_q"].reshape(length, INDEX_HEADS, INDEX).astype(np.float64)
    found = []
    for t in range(length):
        products = np.einsum("hd,pd->hp", q[t], given["index_k"][: t + 1].astype(np.float64))
        scores = given["weights"][t].astype(np.float64) @ np.maximum(products, 0.0)
        ranked = sorted(range(t + 1), key=lambda p: (-scores[p], p))
        found.append(np.array(sorted(ranked[:n_selected])))
    return found


def attended(
    given: dict[str, np.ndarray],
    selection: Sequence[np.ndarray],
    sinks: float | np.ndarray = -np.inf,
) -> np.ndarray:
    """sinks: of each head"""
    length = len(given["q"])
    q = given["q"].reshape(length, -1, LATENT).astype(np.float64)
    out = np.empty((length, q.shape[1], VALUES))
    for t in range(length):
        keys = given["latent"][selection[t]].astype(np.float64)
        weights = np.exp(0.2 * q[t] @ keys.T)
        total = weights.sum(axis=1) + np.exp(sinks)
        out[t] = weights / total[:, np.newaxis] @ keys[:, :VALUES]
    return out.reshape(length, -1)


# ---- what is computed ----------------------------------------------------------------------------


def test_tokens_see_the_positions_with_the_highest_scores(backend):
    given = inputs()
    selection = wanted(given, N_SELECTED)
    found = run(backend, graph(), given, [LENGTH])
    for t in range(LENGTH):
        n = min(t + 1, N_SELECTED)
        np.testing.assert_array_equal(found["selection"][t, :n], selection[t], err_msg=f"token {t}")
        assert (found["selection"][t, n:] == -1).all()
    assert_close(found["out"], attended(given, selection), 4e-6)


@pytest.mark.parametrize("heads", [1, 3, 8, 70])
def test_any_number_of_heads_sees_them(backend, heads):
    given = inputs(40, heads)
    found = run(backend, graph(16, heads), given, [40])
    assert_close(found["out"], attended(given, wanted(given, 16)), 4e-6)


def test_a_sink_takes_its_share_of_each_head(backend):
    """Also of tokens that see all positions, and of more than a part of the work."""
    given, sinks = inputs(), random(HEADS, seed=5) + 5.0
    found = run(backend, graph(sinks=True), given, [LENGTH], weights={"sinks": sinks})
    expected = attended(given, wanted(given, N_SELECTED), sinks.astype(np.float64))
    assert_close(found["out"], expected, 4e-6)


@pytest.mark.parametrize("n_sinks", [HEADS - 1, HEADS + 1])
def test_another_number_of_sinks_than_of_heads_is_refused(n_sinks):
    g = GraphBuilder("sparse")
    q, selection = g.external("q", HEADS * LATENT), g.external("selection", 2)
    sinks = g.weight("sinks", n_sinks)
    with pytest.raises(GraphError, match=rf"'sinks' is \[{n_sinks}\], expected \[{HEADS}\]"):
        g.sparse_attention(q, selection, HEADS, 1, LATENT, scale=0.2, sinks=sinks)


@pytest.mark.parametrize(("kv_type", "bound"), [("f16", 2e-3), ("q8_0", 3e-2)])
def test_rows_of_other_types_are_read(backend, kv_type, bound):
    """latents of 64 in place of 40: q8_0 has blocks of 32."""
    g = GraphBuilder("sparse")
    widths = {"q": 4 * 64, "latent": 64, "selection": 16}
    q, latent, selection = (g.external(name, width) for name, width in widths.items())
    g.latent_append(latent, 1, 64)
    g.sparse_attention(
        q, selection, 4, 1, 64, scale=0.1, value_dim=32, out=g.external("out", 4 * 32)
    )
    given = {name: random(60, width, seed=width) for name, width in widths.items()}
    given["selection"] = np.sort(np.random.default_rng(1).random((60, 16)) * 60 // 1, axis=1)
    given["selection"] = np.minimum(given["selection"], np.arange(60)[:, None]).astype(np.float32)
    found = run(backend, g.build(), given, [60], kv_type)["out"][16:]
    keys = given["latent"].astype(np.float64)[given["selection"][16:].astype(int)]  # [n, 16, 64]
    weights = np.exp(0.1 * given["q"][16:].reshape(-1, 4, 64) @ keys.swapaxes(1, 2))
    expected = weights / weights.sum(axis=2, keepdims=True) @ keys[:, :, :32]
    assert_close(found, expected.reshape(44, -1), bound)


def test_of_equal_scores_the_earlier_positions_are_selected(backend):
    given = inputs(40)
    given["weights"][:] = 0.0
    given["weights"][30:, 0] = -0.0
    found = run(backend, graph(16), given, [40])["selection"]
    np.testing.assert_array_equal(found[15:], np.broadcast_to(np.arange(16), (25, 16)))


def test_a_product_that_is_no_number_counts_as_0(backend):
    given = inputs(40)
    given["index_k"][[7, 21]], given["weights"][30:] = np.nan, np.abs(given["weights"][30:])
    found = run(backend, graph(24), given, [40])["selection"]
    given["index_k"][[7, 21]] = 0.0
    expected = run(backend, graph(24), given, [40])["selection"]
    np.testing.assert_array_equal(found, expected)


def test_of_scores_that_are_no_numbers_the_earlier_positions_are_selected(backend):
    given = inputs(40)
    given["weights"][30:] = np.nan
    found = run(backend, graph(16), given, [40])["selection"]
    np.testing.assert_array_equal(found[30:], np.broadcast_to(np.arange(16), (10, 16)))


def test_numpy_ranks_nan_first_and_equal_scores_by_position():
    scores = np.array([1, np.nan, 3, 3, np.inf, 3, -np.inf], np.float32)
    assert highest(scores, 3).tolist() == [1, 2, 4]
    assert highest(scores, 4).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("selected", [-3.0, np.nan, 1e9, np.inf])
def test_positions_that_a_token_does_not_see_are_taken_for_the_nearest(backend, selected):
    g = GraphBuilder("sparse")
    q, latent = g.external("q", HEADS * LATENT), g.external("latent", LATENT)
    selection, out = g.external("selection", 2), g.external("out", HEADS * VALUES)
    g.latent_append(latent, 1, LATENT)
    g.sparse_attention(q, selection, HEADS, 1, LATENT, scale=0.2, value_dim=VALUES, out=out)
    given = inputs(9) | {"selection": np.full((9, 2), selected, np.float32)}
    found = run(backend, g.build(), given, [9])["out"].reshape(9, HEADS, VALUES)
    for t in range(2, 9):
        row = t if selected > 0 else 0
        assert_close(found[t], np.tile(given["latent"][row, :VALUES], (HEADS, 1)))


# ---- what changes no bit -------------------------------------------------------------------------


def test_where_all_positions_are_selected_attention_is_as_without_an_index(backend):
    given = inputs(200)
    for cuts in ([200], [130, 131, 200]):
        sparse, dense = (run(backend, made, given, cuts) for made in (graph(), dense_graph()))
        np.testing.assert_array_equal(sparse["out"], dense["out"])


@pytest.mark.parametrize("cuts", [[1, LENGTH], [290, 310, 311, LENGTH], [250, 500, 501, LENGTH]])
def test_the_batches_that_tokens_come_in_change_no_selection_and_no_selected_bit(backend, cuts):
    given = inputs()
    whole, cut = run(backend, graph(), given, [LENGTH]), run(backend, graph(), given, cuts)
    np.testing.assert_array_equal(cut["selection"], whole["selection"])
    np.testing.assert_array_equal(cut["out"][N_SELECTED:], whole["out"][N_SELECTED:])
    assert_close(cut["out"], whole["out"])


def test_batches_of_more_than_64_tokens_change_no_bit():
    """The first 20 tokens of the second batch see all positions, more than attention divides."""
    backend, given = backend_named("cpp"), inputs(1100)
    whole = run(backend, graph(900), given, [1100])
    cut = run(backend, graph(900), given, [880, 1100])
    np.testing.assert_array_equal(cut["out"], whole["out"])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(threads):
    backend, given = backend_named("cpp"), inputs()
    whole = run(backend, graph(), given, [LENGTH - 1, LENGTH])
    few = run(backend, graph(), given, [LENGTH - 1, LENGTH], threads=threads)
    for name in ("selection", "out"):
        np.testing.assert_array_equal(few[name], whole[name])


def test_sequences_of_a_batch_do_not_touch_each_other(backend):
    """One that sees all positions, one that crosses the limit, and one beyond it."""
    made, given = graph(16), inputs(60)
    alone = run(backend, made, given, [30, 50, 60])
    batch, rows = run_together(backend, made, alone, [10, 20, 10], [0, 0, 30])
    np.testing.assert_array_equal(batch["selection"], alone["selection"][rows])
    assert_close(batch["out"], alone["out"][rows])


# ---- what is kept, counted and refused -----------------------------------------------------------


def test_a_layer_keeps_the_keys_of_its_index_in_the_pages_of_its_latents():
    state = state_of(graph())
    assert state == LayerState(
        KeysValues(1, LATENT, VALUES, 0, True), index=KeysValues(1, INDEX, INDEX, 0, True)
    )
    layout = StateLayout([state, state], "f16")
    assert len(layout.tables) == 1
    assert layout.page_bytes == [2 * 2 * PAGE_ROWS * (LATENT + INDEX)]
    places = [place for layer in layout.layers for place in (layer.keys, layer.index)]
    assert [place.k_offset for place in places] == [
        2 * PAGE_ROWS * n for n in (0, LATENT, LATENT + INDEX, 2 * LATENT + INDEX)
    ]


def test_a_profile_counts_the_positions_that_are_scored_and_those_that_are_seen(backend):
    made, profile = graph(16), Profile(lambda width: 4 * width)
    executor = profile.wrap(backend.executor(made, 4), made)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    state.make_room(0, 1, 0, 104)
    arrays = {b.name: np.zeros((4, b.width), np.float32) for b in made.buffers}
    executor.run_layers([executor.bind({})], arrays, [(4, 100, state.backing)])
    found = {op.name: op for op in profile.ops()}
    scored = 101 + 102 + 103 + 104
    assert found["index_select"].flops == scored * INDEX_HEADS * (2 * INDEX + 3)
    assert found["sparse_attention"].flops == 4 * 16 * 2 * HEADS * (LATENT + VALUES)
    rows = 4 * 4 * (HEADS * (LATENT + VALUES) + 16)
    assert found["sparse_attention"].nbytes == rows + 4 * 16 * 4 * LATENT
    rows = 4 * 4 * (INDEX_HEADS * (INDEX + 1) + 16)
    assert found["index_select"].nbytes == rows + 104 * 4 * INDEX


def test_a_profile_counts_no_scores_of_tokens_that_see_all_positions(backend):
    made, profile = graph(16), Profile(lambda width: 4 * width)
    executor = profile.wrap(backend.executor(made, 4), made)
    state = new_state(backend, [state_of(made)], 4096, "f32")
    state.make_room(0, 1, 0, 18)
    arrays = {b.name: np.zeros((4, b.width), np.float32) for b in made.buffers}
    executor.run_layers([executor.bind({})], arrays, [(4, 14, state.backing)])
    found = {op.name: op for op in profile.ops()}
    assert found["index_select"].flops == (17 + 18) * INDEX_HEADS * (2 * INDEX + 3)
    rows = 4 * 4 * (INDEX_HEADS * (INDEX + 1) + 16)
    assert found["index_select"].nbytes == rows + 18 * 4 * INDEX


def test_an_index_is_appended_once_and_before_it_is_read():
    g = GraphBuilder("sparse")
    q, weights = g.external("q", 48), g.external("weights", 2)
    g.index_select(q, weights, 2, 8, out=g.external("selection", 8))
    with pytest.raises(GraphError, match=r"index_select.*reads keys of 24, the index has None"):
        g.build()
    g = GraphBuilder("sparse")
    k = g.external("k", 24)
    g.index_append(k)
    g.index_append(k)
    with pytest.raises(GraphError, match=r"index_append.*keys of the index are appended twice"):
        g.build()


def test_more_positions_than_the_kernels_take_are_refused():
    g = GraphBuilder("sparse")
    with pytest.raises(GraphError, match="n_selected is 65537, expected at most 65536"):
        g.index_select(g.external("q", 24), g.external("weights", 1), 1, 65537)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (None, "this graph needs an index"),
        ((0, 0, 0, "f32", 1, 16, 16), "the index has 1 heads of 16, expected 1 heads of 24"),
        ((0, 0, 0, "f32", 2, 24, 24), "the index has 2 heads of 24"),
        ((0, 0, 0, "f32", 1, 24, 24), r"60 \+ 5 positions do not fit the index of 64"),
    ],
)
def test_a_state_without_the_right_index_is_refused(index, says):
    with pytest.raises(ValueError, match=says):
        append_to_index(index, 60, (64, 1 << 16))


def test_a_sequence_that_is_longer_than_its_index_is_refused():
    with pytest.raises(ValueError, match=r"100 \+ 5 positions do not fit the index of 64"):
        append_to_index((0, 0, 0, "f32", 1, 24, 24), 100, (64, 1 << 16))


def test_positions_whose_numbers_are_no_float32_are_refused():
    """A selection holds positions as float32, which has every whole number up to 2^24."""
    page, row = (1 << 20, 24 << 22), (0, 0, 0, "f32", 1, 24, 24)
    append_to_index(row, (1 << 24) - 5, page, n_pages=17)
    with pytest.raises(ValueError, match=r"16777212 \+ 5 positions do not fit .* of 16777216"):
        append_to_index(row, (1 << 24) - 4, page, n_pages=17)


def append_to_index(index, past: int, page: tuple[int, int], n_pages: int = 1) -> None:
    """Five keys after `past` others. page: its rows and bytes; all pages are one memory."""
    backend = backend_named("cpp")
    g = GraphBuilder("index")
    g.index_append(g.external("k", 24))
    executor = backend.executor(g.build(), 8)
    state, memory = backend.sequence_state([page], [(None, 0, 0, index)]), np.zeros(page[1], "u1")
    for number in range(n_pages):
        state.set_page(0, number, memory)
    executor.run_layers([executor.bind({})], {"k": random(5, 24)}, [(5, past, state)])

"""SequenceState: what a sequence keeps, where it can go back to, and what it shares.

Memory is plain NumPy here; what executors compute from it is tested in test_cpp_executor.py and
through models in test_family_paths.py.
"""

import gc
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequence_states import heads_of, new_state

from airllm.backends.numpy_backend import NumpyBackend
from airllm.backends.numpy_state import NumpyState
from airllm.graph.state import KeysValues, LayerState
from airllm.state.layout import StateLayout
from airllm.state.pages import Page, PagePool
from airllm.state.sequence import SequenceState
from airllm.state.table import CHECKPOINT_TOKENS, CHECKPOINTS, PAGE_ROWS, SLACK

WIDTH = 4
PAGE_BYTES = 2 * PAGE_ROWS * WIDTH * 4  # keys and values of a layer in float32
WINDOW = 100
RECURRENT = LayerState(recurrent_floats=3)
RECURRENT_BYTES = 3 * 4


def state_with(*layers: LayerState, capacity: int = 4096) -> SequenceState:
    return new_state(NumpyBackend(), list(layers), capacity, "f32")


def whole() -> SequenceState:
    return state_with(heads_of(1, WIDTH), heads_of(1, WIDTH))


def windowed() -> SequenceState:
    return state_with(heads_of(1, WIDTH, WINDOW), heads_of(1, WIDTH))


def chunked() -> SequenceState:
    return state_with(heads_of(1, WIDTH, WINDOW, chunked=True), heads_of(1, WIDTH))


def recurrent() -> SequenceState:
    return state_with(RECURRENT, heads_of(1, WIDTH))


def another(state: SequenceState) -> SequenceState:
    """A sequence without tokens, which shares pages with `state`."""
    return SequenceState(state.layout, state._pool, NumpyBackend().sequence_state, 4096)


def append(state: SequenceState, tokens: Sequence[int]) -> None:
    """What a pass does: the keys of a token are its number, and recurrent memory adds tokens up."""
    state.begin()
    past, n_layers = state.length, len(state.layout.layers)
    state.make_room(0, n_layers, past, len(tokens))
    for layer, place in enumerate(state.layout.layers):
        if place.keys is not None:
            rows = np.repeat(np.float32(tokens), WIDTH).reshape(-1, 1, WIDTH)
            state.backing.write(state.backing.keys(layer), past, [rows, -rows])
    state.recurrent[:] += sum(tokens)
    state.advance(list(tokens))


def keys(state: SequenceState, layer: int) -> list[int]:
    """The tokens whose keys a layer has, from the first one on that the next token sees."""
    place = state.layout.layers[layer].keys
    assert place is not None
    first, _ = state.rows_needed(place, state.length)
    if first == state.length:
        return []
    found, values = state.backing.read(state.backing.keys(layer), first, state.length)
    np.testing.assert_array_equal(found, -values)
    return found[0, :, 0].astype(int).tolist()


def check(state: SequenceState) -> None:
    """Whether the state is that of its tokens."""
    tokens = state.tokens
    for layer, place in enumerate(state.layout.layers):
        if place.keys is not None and tokens:
            shape, first = place.keys.shape, 0
            if shape.window:
                chunk = len(tokens) // WINDOW * WINDOW
                first = chunk if shape.chunked else max(0, len(tokens) + 1 - WINDOW)
            assert keys(state, layer) == tokens[first:]
    assert not state.recurrent.size or (state.recurrent == sum(tokens)).all()


# ---- memory --------------------------------------------------------------------------------------


def test_memory_grows_with_the_tokens_a_page_at_a_time() -> None:
    state = whole()
    assert state.nbytes == 0
    append(state, [1])
    assert state.nbytes == 2 * PAGE_BYTES
    append(state, range(PAGE_ROWS))
    assert state.nbytes == 2 * 2 * PAGE_BYTES
    check(state)


@pytest.mark.parametrize("make", [windowed, chunked])
def test_a_layer_with_a_window_keeps_its_window_and_no_more(make) -> None:
    state = make()
    for start in range(0, 3000, 50):
        append(state, range(start, start + 50))
    own_pages = (state.nbytes - 47 * PAGE_BYTES) // PAGE_BYTES  # 47: of the other layer
    assert own_pages <= -(-(WINDOW + SLACK) // PAGE_ROWS) + 1
    check(state)


class CountedPool(PagePool):
    """most: bytes of the pages that were handed out at once."""

    def __init__(self, layout: StateLayout) -> None:
        super().__init__(lambda n: np.empty(n, np.uint8), layout.page_bytes)
        self.now = self.most = 0

    def take(self, table: int) -> Page:
        page = super().take(table)
        self.now += len(page.memory)
        self.most = max(self.most, self.now)
        return page

    def release(self, page: Page) -> None:
        self.now -= len(page.memory) * (page.holders == 1)
        super().release(page)


def counted(layout: StateLayout, capacity: int) -> tuple[SequenceState, CountedPool]:
    pool = CountedPool(layout)
    return SequenceState(layout, pool, NumpyState, capacity), pool


def layer_by_layer(state: SequenceState, n_tokens: int, most: int) -> None:
    """A pass in batches of up to `most` tokens, layer by layer, as the decoder runs it."""
    state.begin()
    batches = [(at, min(most, n_tokens - at)) for at in range(0, n_tokens, most)]
    for layer in range(len(state.layout.layers)):
        for at, count in batches:
            state.make_room(layer, layer + 1, state.length + at, count)
            if count > 1:
                state.let_go(layer, layer + 1, state.length + at + count)
    state.advance([0] * n_tokens)


WINDOWS = st.sampled_from([4, 8, 12, 20, 32, 100, 128, 512, 1024, 2047, 4096])


@given(
    st.lists(st.tuples(WINDOWS, st.booleans(), st.booleans()), min_size=1, max_size=2),
    st.integers(30, 5000),
    st.sampled_from([1, 64, 144, 512]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_no_way_to_a_length_takes_more_than_the_layout_says(
    windows, capacity, most, streamed, recurrent, data
) -> None:
    """windows: their lengths, whether they are chunks, and whether another layer reads them."""
    layers = [heads_of(1, WIDTH)]
    for window, is_chunked, is_shared in windows:
        of_window = heads_of(1, WIDTH, window, chunked=is_chunked)
        layers += [of_window, of_window]
        layers += [LayerState(keys_of=len(layers) - 1)] * is_shared
    layers += [RECURRENT] * recurrent
    layout = StateLayout(layers, "f32")
    state, pool = counted(layout, capacity)
    planned = layout.nbytes(capacity, most, capacity if streamed else 0)
    most_recurrent = 0
    for _ in range(40):
        left, past = capacity - state.length, state.length
        if data.draw(st.sampled_from([True] * 9 + [False])) and left:
            longest = left if streamed else min(left, most)
            n_tokens = data.draw(st.one_of(st.integers(1, longest), st.just(longest), st.just(1)))
            layer_by_layer(state, n_tokens, most)
        else:
            assert state.trim(data.draw(st.integers(0, past))) <= past
        copies = 1 + len(state._checkpoints.all)
        most_recurrent = max(most_recurrent, copies * state.recurrent.nbytes)
        assert pool.most + most_recurrent <= planned


@pytest.mark.parametrize(
    ("window", "is_chunked", "capacity", "most", "ends"),
    [
        (20, False, 1280, 192, [1, 257, 513, 769, 961, 1280]),  # most: 1 behind a page
        (8, False, 2048, 512, [256, 512, 768, 961, 1473]),
        (128, False, 4096, 512, [256, 512, 768, 961, 1473]),
        (512, False, 4096, 512, [512, 1024, 1536, 1729, 2241]),
        (1024, False, 1280, 512, [512, 1024, 1280]),
        (4096, False, 8192, 512, range(512, 8193, 512)),
        (1024, True, 1280, 512, [960, 1087, 1280]),
    ],
)
def test_a_window_takes_all_that_the_layout_says(window, is_chunked, capacity, most, ends) -> None:
    layout = StateLayout([heads_of(1, WIDTH, window, chunked=is_chunked)] * 3, "f32")
    state, pool = counted(layout, capacity)
    for end in ends:
        while state.length < end:
            layer_by_layer(state, min(most, end - state.length), most)
    while state.length < capacity and state.length < ends[-1] + 70:
        layer_by_layer(state, 1, most)
    assert pool.most == layout.nbytes(capacity, most)


def test_tokens_that_are_guessed_take_one_more_copy_of_the_recurrent_memory() -> None:
    layout = StateLayout([RECURRENT], "f32")
    copies = [layout.nbytes(length, 64) // RECURRENT_BYTES for length in (255, 256, 512, 4096)]
    assert copies == [1, 2, 3, 1 + CHECKPOINTS]
    assert layout.nbytes(255, 64, guesses=True) == 2 * RECURRENT_BYTES


def test_layers_that_read_anothers_keys_take_no_memory_of_their_own() -> None:
    alone = StateLayout([heads_of(1, WIDTH)])
    shared = StateLayout([heads_of(1, WIDTH), LayerState(keys_of=0)])
    assert shared.page_bytes == alone.page_bytes
    assert shared.argument(shared.layers[0]) == shared.argument(shared.layers[1])


def sharing() -> SequenceState:
    return state_with(heads_of(1, WIDTH, WINDOW), heads_of(1, WIDTH), LayerState(keys_of=0))


@pytest.mark.parametrize("step", [1, 50])
def test_a_window_that_layers_share_is_kept_and_no_more(step: int) -> None:
    state = sharing()
    for start in range(0, 1000, step):
        append(state, range(start, start + step))
    own_pages = (state.nbytes - 16 * PAGE_BYTES) // PAGE_BYTES  # 16: of the layer without a window
    assert own_pages <= -(-(WINDOW + SLACK) // PAGE_ROWS) + 1 + step // PAGE_ROWS + 1
    assert state.nbytes <= state.layout.nbytes(1000, step)
    check(state)


def test_a_shared_window_stays_for_the_first_batch_of_a_pass_until_all_layers_are_done() -> None:
    state = sharing()
    append(state, range(300))
    state.begin()
    for past in range(300, 900, 100):  # the first layer, batch by batch
        state.make_room(0, 1, past, 100)
        state.let_go(0, 1, past + 100)
    assert state.layout.layers[2].keys is not None
    assert state.backing.read(state.backing.keys(2), 300 - WINDOW + 1, 900)[0].shape == (
        1,
        600 + WINDOW - 1,
        WIDTH,
    )
    assert state._pages[0][900 // PAGE_ROWS]
    in_pass = sum(len(page.memory) for page in state._pages[0].values())
    whole = StateLayout([heads_of(1, WIDTH)], "f32")  # the second layer appends later
    assert in_pass <= state.layout.nbytes(900, 100, pass_size=600) - whole.nbytes(900, 100)


@pytest.mark.parametrize(("window", "rows"), [(1, 16), (16, 16), (33, 32), (64, 64), (4096, 64)])
def test_small_windows_have_small_pages(window: int, rows: int) -> None:
    (table,) = StateLayout([heads_of(1, WIDTH, window)]).tables
    assert table.page_rows == rows


def test_tokens_may_reach_over_both_ends_of_a_sequence() -> None:
    state = whole()
    append(state, [5, 6, 7])
    assert state.tokens_between(-2, 2, [8]).tolist() == [-1, -1, 5, 6]
    assert state.tokens_between(1, 5, [8, 9, 10]).tolist() == [6, 7, 8, 9]
    assert state.tokens_between(4, 6, [8, 9, 10]).tolist() == [9, 10]


def test_exact_keys_are_float32_whatever_the_others_are() -> None:
    pending = KeysValues(1, WIDTH, WIDTH, exact=True)
    (layer,) = StateLayout([LayerState(KeysValues(1, WIDTH, WIDTH), pending=pending)], "f16").layers
    assert [place.type for place in layer.places] == ["f16", "f32"]


def test_latents_take_no_memory_for_values() -> None:
    latents = LayerState(KeysValues(1, 576, 512, 0, True))
    assert StateLayout([latents]).page_bytes == [PAGE_ROWS * 576 * 2]


def test_heads_that_are_no_whole_blocks_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"'q8_0' keeps blocks of 32 .* have 4, .* use 'f16'"):
        StateLayout([heads_of(1, WIDTH)], "q8_0")
    with pytest.raises(ValueError, match=r"'q8_0' keeps blocks of 32 .* have 40, .* use 'f16'"):
        StateLayout([LayerState(KeysValues(1, 64, 40, 0, True))], "q8_0")


def test_memory_that_there_is_not_is_an_error_with_its_size() -> None:
    state = whole()
    append(state, range(10))

    def refuse(n_bytes: int) -> None:
        raise MemoryError

    state._pool.memory = refuse
    with pytest.raises(MemoryError, match=r"no memory for 0.0 MiB more; ask for a smaller context"):
        state.make_room(0, 2, 10, 100)
    state.recover()
    assert state.tokens == list(range(10))
    check(state)


def test_pages_of_a_sequence_that_is_gone_are_used_again() -> None:
    first = whole()
    append(first, range(100))
    pool = first._pool
    taken = pool.nbytes
    first.clear()
    append(first, range(100))
    assert pool.nbytes == taken
    check(first)


def test_a_sequence_that_is_dropped_gives_its_pages_back() -> None:
    first = whole()
    append(first, range(100))
    pool = first._pool
    del first
    gc.collect()
    pool.shrink()
    assert pool.nbytes == 0


def test_memory_of_which_somebody_holds_a_page_stays() -> None:
    state = whole()
    append(state, range(10 * PAGE_ROWS))
    pool, held = state._pool, state._pool.hold(state._pages[0][5])
    state.clear()
    pool.shrink()
    assert pool.nbytes == held.memory.base.nbytes > len(held.memory)
    held.memory[:] = 1
    others = [pool.take(0) for _ in range(20)]
    for page in others:
        page.memory[:] = 2
    assert (held.memory == 1).all()
    for page in [held, *others]:
        pool.release(page)
    pool.shrink()
    assert pool.nbytes == 0


def test_a_sequence_that_cannot_be_filled_is_empty_and_has_no_pages() -> None:
    state = whole()

    def fail(state: SequenceState, length: int) -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        state.load(range(100), fail)
    assert (state.length, state.nbytes) == (0, 0)


# ---- going back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 100, 199, 200])
def test_a_sequence_without_windows_can_be_cut_anywhere(length: int) -> None:
    state = whole()
    append(state, range(200))
    assert state.trim(length) == length
    assert state.tokens == list(range(length))
    check(state)
    append(state, [7, 8, 9])
    check(state)


@pytest.mark.parametrize("step", [1, 64])
@pytest.mark.parametrize("make", [windowed, chunked])
def test_a_window_can_be_cut_as_far_as_guesses_reach(make, step: int) -> None:
    for tail in range(0, 64, 3):
        state = make()
        append(state, range(1000))
        append(state, range(1000, 1000 + tail))  # too few for a checkpoint there
        for start in range(0, 64, step):
            append(state, range(start, start + step))
        assert state.trim(1000 + tail) == 1000 + tail
        check(state)


@pytest.mark.parametrize("make", [windowed, chunked, recurrent])
def test_going_further_back_leads_to_a_checkpoint(make) -> None:
    state = make()
    for start in range(0, 3000, 100):
        append(state, range(start, start + 100))
    for wanted in (2990, 2700, 2100, 1000, 400, 200):
        before = state.length
        kept = state.trim(wanted)
        assert kept <= wanted
        assert state.tokens == list(range(kept))
        check(state)
        distance = before - wanted
        assert kept == 0 or wanted - kept <= 2 * max(distance, CHECKPOINT_TOKENS)
        append(state, range(kept, before))
        check(state)


def test_going_back_further_may_evaluate_more_again_but_not_for_ever_more() -> None:
    state = state_with(RECURRENT, capacity=65_536)
    for length in range(CHECKPOINT_TOKENS, 65_536, CHECKPOINT_TOKENS):
        append(state, range(CHECKPOINT_TOKENS))
        at = [0, *(checkpoint.length for checkpoint in state._checkpoints.all)]
        assert len(at) <= 1 + CHECKPOINTS
        for older, newer in pairwise(at):
            back, again = length - newer + 1, newer - 1 - older  # to just before a checkpoint
            assert again <= 15 * (back + CHECKPOINT_TOKENS)
        assert at[-1] == length
    assert len(state._checkpoints.all) == CHECKPOINTS


def test_a_pass_that_fails_leaves_a_state_of_fewer_tokens_or_the_same() -> None:
    for make, kept in ((whole, 300), (windowed, 300), (chunked, 300), (recurrent, 256)):
        state = make()
        append(state, range(256))
        append(state, range(256, 300))
        state.begin()
        state.make_room(0, 1, 300, 20)
        state.recurrent[:] += 1000
        state.recover()
        assert state.length == kept
        check(state)


def test_a_sequence_that_ends_with_a_chunk_needs_nothing_of_it() -> None:
    state = chunked()
    append(state, range(1100))  # leaves pages from position 960 on
    assert state.trim(900) == 900
    check(state)
    append(state, range(900, 950))
    check(state)


@pytest.mark.parametrize("make", [windowed, chunked])
def test_a_pass_that_lets_a_window_go_and_fails_leads_to_a_checkpoint(make) -> None:
    state = make()
    append(state, range(350))
    state.begin()
    state.make_room(0, 1, 350, 1000)
    state.let_go(0, 1, 1350)
    state.recover()
    assert state.length == 320  # whose pages are full
    check(state)


@pytest.mark.parametrize("make", [whole, windowed, chunked, recurrent])
def test_of_tokens_evaluated_ahead_those_that_were_wrong_leave_nothing(make) -> None:
    state = make()
    append(state, range(300))
    state.begin(ahead=True)
    for i, token in enumerate((1, 2, 3, 4)):
        state.make_room(0, 2, 300 + i, 1)
        for layer, place in enumerate(state.layout.layers):
            if place.keys is not None:
                rows = np.full((1, 1, WIDTH), token, np.float32)
                state.backing.write(state.backing.keys(layer), 300 + i, [rows, -rows])
        state.recurrent[:] += token
    again = state.accept([1, 2], 4)
    assert [*state.tokens, *again] == [*range(300), 1, 2]
    assert bool(again) == (make is recurrent)
    append(state, again)
    check(state)


@pytest.mark.parametrize("make", [whole, recurrent])
def test_tokens_evaluated_ahead_that_were_all_right_are_not_evaluated_again(make) -> None:
    state = make()
    append(state, range(300))
    state.begin(ahead=True)
    state.make_room(0, 2, 300, 2)
    assert not state.accept([1, 2], 2)
    assert state.tokens == [*range(300), 1, 2]


# ---- snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [whole, windowed, chunked, recurrent])
def test_a_restored_snapshot_is_the_sequence_as_it_was(make) -> None:
    state = make()
    append(state, range(500))
    snapshot = state.snapshot()
    append(state, range(900, 1000))
    state.restore(snapshot)
    assert state.tokens == list(range(500))
    check(state)
    append(state, range(40))
    check(state)
    state.restore(snapshot)
    check(state)


def test_a_sequence_goes_on_in_the_pages_of_its_snapshot() -> None:
    state = whole()
    append(state, range(10 * PAGE_ROWS + 5))
    snapshot = state.snapshot()
    append(state, [1])
    assert state._pages[0] == snapshot.pages[0]
    state.trim(10 * PAGE_ROWS + 3)  # what it appends now, the snapshot has otherwise
    append(state, [2])
    changed = [i for i, page in state._pages[0].items() if page is not snapshot.pages[0][i]]
    assert changed == [10]
    check(state)
    state.restore(snapshot)
    check(state)
    del snapshot  # alone now, it may write anywhere
    state.trim(10 * PAGE_ROWS + 1)
    append(state, [3])
    snapshot = state.snapshot()
    append(state, [4])
    assert state._pages[0] == snapshot.pages[0]


def test_of_a_page_that_others_hold_only_the_rows_before_the_next_one_are_copied() -> None:
    layout = StateLayout([heads_of(2, WIDTH)], "f32")
    pool = PagePool(lambda n: np.full(n, 7, np.uint8), layout.page_bytes)
    state, other = (SequenceState(layout, pool, NumpyState, 4096) for _ in range(2))
    append(state, range(1, 6))
    other.restore(state.snapshot())
    other.trim(3)
    append(other, [9])
    check(other)
    page = other._pages[0][0].memory.reshape(2, 2, PAGE_ROWS, -1)  # keys and values of 2 heads
    assert (page[:, :, 4:] == 7).all()


def test_of_sequences_with_the_same_beginning_one_goes_on_in_its_pages() -> None:
    first = whole()
    append(first, range(150))
    snapshot = first.snapshot()
    page = snapshot.pages[0][2]
    others = [another(first), another(first)]
    for other in others:
        other.restore(snapshot)
    first.clear()
    append(others[0], [7])
    append(others[1], [8])
    append(first, range(5))
    assert [other._pages[0][2] is page for other in others] == [True, False]
    others[0].restore(snapshot)  # and lets the place after the snapshot go
    for state in (first, *others):
        check(state)
    append(others[1], [9])
    first.restore(snapshot)
    check(first)


def test_another_sequence_may_begin_with_a_snapshot() -> None:
    first = whole()
    append(first, range(150))
    snapshot = first.snapshot()
    second = another(first)
    second.restore(snapshot)
    append(first, [1, 2, 3])
    append(second, [7, 8])
    check(first)
    check(second)
    assert second.tokens[150:] == [7, 8]


@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupt_while_pages_go_spoils_no_other_sequence(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = whole()
    append(state, range(600))
    snapshot = state.snapshot()
    append(state, range(600, 900))
    pool, released = state._pool, list[Page]()

    def release(page: Page) -> None:
        if len(released) == at:
            raise KeyboardInterrupt
        released.append(page)
        PagePool.release(pool, page)

    monkeypatch.setattr(pool, "release", release)
    with pytest.raises(KeyboardInterrupt):
        state.clear()
    monkeypatch.undo()
    other = another(state)
    append(other, range(300))  # in the pages that went
    append(state, [7] * 700)
    check(state)
    check(other)
    other.restore(snapshot)
    check(other)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_steps_leaves_the_states_of_the_tokens(seed: int) -> None:
    rng = random.Random(seed)
    windows = (heads_of(1, WIDTH, WINDOW), RECURRENT) if seed % 2 else ()
    first = state_with(heads_of(1, WIDTH), *windows)
    states = [first, another(first), another(first)]
    snapshots = []
    for _ in range(60):
        state = rng.choice(states)
        match rng.randrange(5):
            case 0 | 1:
                append(state, [rng.randrange(1000) for _ in range(rng.choice((1, 3, 70, 300)))])
            case 2:
                wanted = max(state.length - rng.choice((1, 3, 70, 3000)), 0)
                assert state.trim(wanted) <= wanted
            case 3:
                snapshots.append((state.snapshot(), list(state.tokens)))
            case 4 if snapshots:
                snapshot, tokens = rng.choice(snapshots)
                state.restore(snapshot)
                assert state.tokens == tokens
                if rng.randrange(2):
                    snapshots.remove((snapshot, tokens))
        if state.length > 3500:
            state.clear()
        for each in states:
            check(each)

"""The tree of what was evaluated: it finds the longest beginning that may be used, and forgets."""

import gc
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from sequence_states import heads_of
from test_sequence_state import RECURRENT, WIDTH, append, keys, new_state

from airllm.backends.numpy_backend import NumpyBackend
from airllm.graph.state import LayerState
from airllm.state.layout import PAGE_ROWS, StateLayout
from airllm.state.pages import PagePool
from airllm.state.prefix_tree import PrefixTree, keys_of
from airllm.state.sequence import SequenceState, Snapshot

MUCH = 1 << 30
LAYERS = {
    "whole": [heads_of(1, WIDTH), heads_of(1, WIDTH)],
    "windowed": [heads_of(1, WIDTH, 100), heads_of(1, WIDTH)],
    "recurrent": [RECURRENT, heads_of(1, WIDTH)],
}


class Forest:
    """Sequences of one kind of model, and a tree of them."""

    def __init__(self, layers: Sequence[LayerState], most_bytes: int = MUCH) -> None:
        backend = NumpyBackend()
        self.layout = StateLayout(layers, "f32")
        self.pool = PagePool(backend.memory, self.layout.page_bytes)
        self._make = lambda: SequenceState(self.layout, self.pool, backend.sequence_state, 4096)
        self.tree = PrefixTree(self.layout, most_bytes)
        self.state = self._make()

    def add(self, tokens: Sequence[int], kind: int = 7, piece: int = 50) -> None:
        """Evaluate tokens, after what the tree has of them, and keep them."""
        self.state.clear()
        found = self.tree.find(keys_of(tokens, kind), lambda most: most)
        if found is not None:
            self.state.restore(found[0])
            assert self.state.trim(len(found[1])) == len(found[1])
        for at in range(self.state.length, len(tokens), piece):
            append(self.state, tokens[at : at + piece])
        self.tree.add(keys_of(self.state.tokens, kind), self.state.snapshot())

    def longest(
        self,
        tokens: Sequence[int],
        usable: Callable[[int], int] = lambda most: most,
        kind: int = 7,
        *,
        any_kind: bool = False,
    ) -> int:
        """The length of what the tree finds, which is restored and looked at."""
        found = self.tree.find(keys_of(tokens, kind), usable, any_kind=any_kind)
        if found is None:
            return 0
        snapshot, its = found
        state = self._make()
        state.restore(snapshot)
        assert state.trim(len(its)) == len(its)
        assert state.tokens == list(tokens[: len(its)]) == (its & 0xFFFFFFFF).tolist()
        for layer, place in enumerate(self.layout.layers):
            if place.keys is not None:
                first, _ = state.rows_needed(place.keys, len(its))
                assert keys(state, layer) == state.tokens[first:]
        if self.layout.recurrent_floats:
            assert state.recurrent[0] == sum(state.tokens)
        return len(its)


@pytest.fixture(params=LAYERS)
def forest(request):
    return Forest(LAYERS[request.param])


@pytest.fixture
def whole():
    return Forest(LAYERS["whole"])


def numbers(n: int, first: int = 0) -> list[int]:
    return list(range(first, first + n))


def test_an_empty_tree_finds_nothing(forest):
    assert forest.longest(numbers(10)) == 0
    assert len(forest.tree) == 0


def test_a_sequence_that_goes_on_finds_all_of_it(forest):
    forest.add(numbers(300))
    assert forest.longest(numbers(400)) == 300


def test_what_is_kept_again_counts_once(forest):
    for _ in range(2):
        forest.add(numbers(100))
        before = forest.tree.nbytes
    assert forest.tree.nbytes == before
    forest.tree.shrink(0)
    assert (len(forest.tree), forest.tree.nbytes) == (0, 0)


def test_a_sequence_that_can_be_cut_serves_all_its_beginnings(whole):
    whole.add(numbers(300))
    assert [whole.longest(numbers(n)) for n in (1, 63, 64, 65, 299)] == [1, 63, 64, 65, 299]
    assert whole.longest([*numbers(130), 9, 9]) == 130
    assert whole.longest([5]) == 0


def test_recurrent_memory_goes_on_from_its_snapshots_only():
    forest = Forest(LAYERS["recurrent"])
    forest.add(numbers(100))
    forest.add(numbers(200))
    assert forest.longest([*numbers(150), 9]) == 100
    assert forest.longest(numbers(99)) == 0
    assert forest.longest(numbers(300)) == 200


def test_a_window_can_be_cut_as_far_as_its_pages_reach():
    forest = Forest(LAYERS["windowed"])
    forest.add(numbers(90))
    assert forest.longest([*numbers(50), 9]) == 50  # nothing has left the window
    forest.add(numbers(1000, 500))
    assert forest.longest([*numbers(980, 500), 9]) == 980
    assert forest.longest([*numbers(300, 500), 9]) == 0


def test_only_tokens_of_the_same_kind_are_found_unless_any_will_do(forest):
    forest.add(numbers(100), kind=1)
    assert forest.longest(numbers(200), kind=2) == 0
    assert forest.longest(numbers(200), kind=2, any_kind=True) == 100
    forest.add(numbers(150), kind=2)
    assert forest.longest(numbers(200), kind=1) == 100
    assert forest.longest(numbers(200), kind=3, any_kind=True) == 150


def test_what_is_found_is_no_longer_than_is_usable(whole):
    whole.add(numbers(300))
    assert whole.longest(numbers(400), lambda most: min(most, 256)) == 256
    assert whole.longest(numbers(400), lambda most: most // 100 * 100) == 300
    assert whole.longest(numbers(400), lambda most: 0) == 0


def test_a_longer_sequence_takes_the_place_of_its_beginnings(whole):
    for n in (100, 200, 300):
        whole.add(numbers(n))
    whole.add(numbers(150))
    assert len(whole.tree) == 1
    assert whole.tree.nbytes == -(-300 // PAGE_ROWS) * whole.layout.page_bytes[0]


def test_sequences_that_begin_alike_share_their_pages(whole):
    whole.add(numbers(256))
    alone = whole.tree.nbytes
    for last in range(8):
        whole.add([*numbers(256), 1000 + last])
    assert len(whole.tree) == 8
    assert whole.tree.nbytes == alone + 8 * whole.layout.page_bytes[0]


def test_the_least_recently_used_go_first(whole):
    page = whole.layout.page_bytes[0]
    whole.tree.most_bytes = 3 * page
    for first in (1000, 2000, 3000):
        whole.add(numbers(60, first))
    assert whole.longest(numbers(100, 1000)) == 60  # used
    whole.add(numbers(60, 4000))
    found = [whole.longest(numbers(100, first)) for first in (1000, 2000, 3000, 4000)]
    assert found == [60, 0, 60, 60]
    whole.tree.shrink(page)
    assert len(whole.tree) == 1
    assert whole.tree.nbytes == page


@pytest.mark.parametrize("more", [0, 1])
def test_a_sequence_that_is_too_long_is_kept_as_far_as_it_fits(whole, more):
    whole.tree.most_bytes = 2 * whole.layout.page_bytes[0] + more
    whole.add(numbers(1000))
    assert whole.longest(numbers(1000)) == 2 * PAGE_ROWS


def test_what_cannot_be_cut_and_is_too_long_is_not_kept():
    forest = Forest(LAYERS["recurrent"], 1000)
    forest.add(numbers(1000))
    assert len(forest.tree) == forest.tree.nbytes == 0


def test_nothing_goes_for_what_is_too_long_to_be_kept():
    forest = Forest(LAYERS["recurrent"])
    forest.add(numbers(10, 500))
    forest.tree.most_bytes = forest.tree.nbytes
    forest.add(numbers(1000))
    assert forest.longest(numbers(20, 500)) == 10
    forest.tree.most_bytes = 2 * forest.layout.page_bytes[0]  # without the recurrent memory
    forest.add(numbers(100))
    assert forest.longest(numbers(20, 500)) == 10


def test_what_shares_nothing_is_not_found_and_not_used(whole):
    for first in (1000, 2000):
        whole.add(numbers(60, first))
    assert whole.tree.find(keys_of([5], 7), lambda most: most) is None
    assert whole.tree.find(keys_of(numbers(9, 1000), 7), lambda most: 0) is None
    whole.tree.shrink(whole.layout.page_bytes[0])
    assert whole.longest(numbers(60, 2000)) == 60


def test_a_beginning_that_comes_again_is_a_use_of_the_longer_sequence(whole):
    for first in (1000, 2000):
        whole.add(numbers(60, first))
    whole.state.clear()
    append(whole.state, numbers(30, 1000))
    whole.tree.add(keys_of(whole.state.tokens, 7), whole.state.snapshot())
    whole.tree.shrink(whole.layout.page_bytes[0])
    assert whole.longest(numbers(60, 1000)) == 60


def test_few_snapshots_are_asked_whether_they_can_be_cut_where_the_prompt_leaves_them():
    forest = Forest(LAYERS["recurrent"])
    for last in range(40):
        forest.add([1, 2, 3, 100 + last])
    asked = []

    def usable(most: int) -> int:
        asked.append(most)
        return most

    assert forest.tree.find(keys_of([1, 2, 3, 9], 7), usable) is None
    assert 0 < asked.count(3) <= 16


def test_a_tree_that_forgets_gives_all_pages_back(forest):
    for first in range(5):
        forest.add([first, *numbers(300)])
    forest.state.clear()
    forest.tree.shrink(0)
    gc.collect()
    forest.pool.shrink()
    assert (forest.pool.nbytes, forest.tree.nbytes, len(forest.tree)) == (0, 0, 0)
    assert not forest.tree._root.children


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("name", LAYERS)
def test_it_finds_what_a_search_of_all_that_was_kept_finds(name, seed):
    """Random sequences over few tokens, against a list."""
    random_ = random.Random(seed)
    forest = Forest(LAYERS[name])
    kept: list[tuple[list[int], int]] = []
    for step in range(400):
        tokens = [random_.choice([1, 1, 2]) for _ in range(random_.randrange(1, 40))]
        kind = random_.choice([1, 2])
        if random_.random() < 0.4:
            forest.add(tokens, kind, piece=10)
            kept.append((tokens, kind))
            continue
        any_kind = random_.random() < 0.5
        least = random_.choice([0, 0, 3])

        def usable(most: int, n: int = len(tokens) - least) -> int:
            return max(0, min(most, n))

        best = 0
        for other, its_kind in kept:
            shared = 0
            if any_kind or its_kind == kind:
                while shared < min(len(tokens), len(other)) and tokens[shared] == other[shared]:
                    shared += 1
            if name != "recurrent":
                best = max(best, usable(shared))
            elif shared == len(other) == usable(shared):
                best = max(best, shared)
        assert forest.longest(tokens, usable, kind, any_kind=any_kind) == best, step
    assert len(forest.tree) <= len(kept)


@pytest.mark.parametrize("name", LAYERS)
def test_whatever_comes_and_goes_each_node_leads_to_snapshots_and_each_byte_counts_once(name):
    random_ = random.Random(3)
    forest = Forest(LAYERS[name])
    tree = forest.tree
    for _ in range(200):
        forest.add([random_.choice([1, 2]) for _ in range(random_.randrange(1, 90))], piece=40)
        if random_.random() < 0.1:
            tree.shrink(random_.randrange(tree.nbytes))
        found, waiting = [], [tree._root]
        while waiting:
            node = waiting.pop()
            below = list(node.all_children())
            waiting += below
            if node.snapshot is not None:
                found.append(node.snapshot)
            elif node.parent is not None:
                assert len(below) > 1
            if node.parent is not None:
                assert node.depth == node.parent.depth + len(node.keys)
        pages = {id(page): len(page.memory) for each in found for page in each.all_pages()}
        assert len(tree) == len(found)
        assert tree.nbytes == sum(pages.values()) + sum(each.recurrent.nbytes for each in found)


def test_a_snapshots_beginning_shares_its_pages():
    state = new_state(NumpyBackend(), LAYERS["whole"], 4096, "f32")
    append(state, numbers(300))
    snapshot = state.snapshot()
    beginning = snapshot.beginning(state.layout, 100)
    assert isinstance(beginning, Snapshot)
    assert list(beginning.all_pages()) == list(snapshot.all_pages())[:2]
    assert np.all(np.array(beginning.tokens) == np.arange(100))


def test_the_pages_of_a_snapshots_beginning_stay_as_long_as_it() -> None:
    state = new_state(NumpyBackend(), LAYERS["whole"], 4096, "f32")
    append(state, numbers(300))
    snapshot = state.snapshot()
    beginning = snapshot.beginning(state.layout, 100)
    state.clear()
    del snapshot
    gc.collect()
    assert {page.holders for page in beginning.all_pages()} == {1}

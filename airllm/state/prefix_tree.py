"""What was evaluated before, by its tokens: a tree of snapshots, the least recently used go first.

Each token has a kind, the way in which its batch rounded (airllm.engine.pieces): who asks for the
same bits is given only what was evaluated in the same way. A key is a token with its kind.

The snapshots share the pages of what they begin with alike. A sequence of keys and values can be
cut at any length, so that one snapshot serves all its beginnings. Windows and recurrent memory
allow few lengths or one, so that such a sequence has snapshots at several lengths.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from airllm.state.layout import StateLayout
from airllm.state.sequence import Snapshot
from airllm.state.table import PAGE_ROWS

__all__ = ["Keys", "PrefixTree", "keys_of", "kinds_of"]

Keys = NDArray[np.int64]
_KIND_SHIFT, _TOKEN = 32, 0xFFFFFFFF
# The most snapshots below a branch that are asked whether they can be cut there.
_MOST_ASKED = 16


def keys_of(tokens: Sequence[int] | NDArray[np.int32], kinds: ArrayLike) -> Keys:
    """kinds: of each token, or of all of them."""
    return np.asarray(tokens, np.int64) | np.left_shift(np.asarray(kinds, np.int64), _KIND_SHIFT)


def kinds_of(keys: Keys) -> NDArray[np.int64]:
    return np.right_shift(keys, _KIND_SHIFT)


@dataclass(eq=False, slots=True)
class _Node:
    """A branch. keys: between `parent` and this. depth: the number of keys from the root to here.
    children: by their first token; several if their kinds differ."""

    keys: Keys
    depth: int
    parent: "_Node | None"
    children: dict[int, list["_Node"]] = field(default_factory=dict)
    snapshot: Snapshot | None = None

    def all_children(self) -> Iterator["_Node"]:
        for same_token in self.children.values():
            yield from same_token

    def snapshots(self) -> Iterator["_Node"]:
        """The nodes from here on that have a snapshot."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if node.snapshot is not None:
                yield node
            waiting += node.all_children()


class PrefixTree:
    """For one thread at a time. most_bytes: of the snapshots' pages and recurrent memory; pages
    that running sequences share with them count, too."""

    def __init__(self, layout: StateLayout, most_bytes: int) -> None:
        self._layout, self.most_bytes = layout, most_bytes
        self._root = _Node(np.zeros(0, np.int64), 0, None)
        self._by_use: OrderedDict[int, _Node] = OrderedDict()  # id of a node with a snapshot
        self._holders: dict[int, int] = {}  # id of a page's memory: snapshots that have it
        self.nbytes = 0
        self.n_added = 0  # snapshots so far

    def __len__(self) -> int:
        """The number of snapshots."""
        return len(self._by_use)

    def snapshots(self) -> Iterator[tuple[Callable[[], Keys], Snapshot]]:
        """All, the least recently used first; each with a function that collects its keys."""
        for node in self._by_use.values():
            assert node.snapshot is not None
            yield partial(_path, node), node.snapshot

    # ---- finding -------------------------------------------------------------------------------

    def find(
        self, keys: Keys, usable: Callable[[int], int], *, any_kind: bool = False
    ) -> tuple[Snapshot, Keys] | None:
        """The snapshot that shares the longest usable beginning with `keys`, and the snapshot's
        keys as far as they are usable.

        usable(most): the longest beginning of the keys, up to `most` tokens, that the caller can
        use. any_kind: kinds need not agree.
        """
        found: tuple[_Node, int] | None = None
        for shared, branch in self._meet(keys, any_kind):
            if found is not None and shared <= found[1]:
                break
            for node in islice(branch.snapshots(), _MOST_ASKED):
                length = self._usable(node, min(shared, node.depth), usable)
                if length > (found[1] if found is not None else 0):
                    found = node, length
                if length == shared:
                    break
        if found is None or found[0].snapshot is None:
            return None
        self._by_use.move_to_end(id(found[0]))
        return found[0].snapshot, _path(found[0])[: found[1]]

    def _usable(self, node: _Node, shared: int, usable: Callable[[int], int]) -> int:
        length, snapshot = usable(shared), node.snapshot
        if snapshot is None or snapshot.continues_at(self._layout, length):
            return length
        # It can go on from its own end, if that is within what is shared.
        at_end = node.depth == shared and usable(shared) == shared
        return shared if at_end else 0

    def _meet(self, keys: Keys, any_kind: bool) -> list[tuple[int, _Node]]:
        """Where the way of the keys leaves the tree or ends, and all branches on it: (number of
        keys that all below the branch share with `keys`, branch), the most first."""
        mask = _TOKEN if any_kind else -1
        met, waiting = [], [self._root]
        while waiting:
            node = waiting.pop()
            met.append((node.depth, node))
            if node.depth == len(keys):
                continue
            rest = keys[node.depth :]
            for child in node.children.get(int(rest[0]) & _TOKEN, ()):
                common = _common(child.keys, rest, mask)
                if common == len(child.keys):
                    waiting.append(child)
                elif common:
                    met.append((node.depth + common, child))
        return sorted(met, key=lambda each: -each[0])

    # ---- growing -------------------------------------------------------------------------------

    def add(self, keys: Keys, snapshot: Snapshot) -> None:
        """keys: of all tokens of the snapshot. A snapshot that is larger than the tree may be is
        cut, or not kept."""
        if self._layout.can_be_cut and self._layout.page_bytes:
            room = self.most_bytes // self._layout.page_bytes[0] * PAGE_ROWS
            if room < len(keys):
                keys, snapshot = keys[:room], snapshot.beginning(self._layout, room)
        if not len(keys) or snapshot.nbytes > self.most_bytes:
            return
        node = self._grow(keys)
        serves = self._layout.can_be_cut
        if serves and node.children:  # a longer snapshot has all that this one has
            self._by_use.move_to_end(id(next(node.snapshots())))
            self._prune(node)
            return
        if node.snapshot is not None:
            self._drop(node)
        self._keep(node, snapshot)
        above = node.parent
        # Where sequences can be cut, only leaves have snapshots: none lies further above.
        if serves and above is not None and above.snapshot is not None:
            self._drop(above)
            self._prune(above)
        self.shrink(self.most_bytes)

    def shrink(self, most_bytes: int) -> None:
        """Forget the least recently used snapshots until the others have at most most_bytes."""
        while self._by_use and self.nbytes > most_bytes:
            node = next(iter(self._by_use.values()))
            self._drop(node)
            self._prune(node)

    def _grow(self, keys: Keys) -> _Node:
        """The node of the keys, new if there was none."""
        node = self._root
        while node.depth < len(keys):
            rest = keys[node.depth :]
            same_token = node.children.setdefault(int(rest[0]) & _TOKEN, [])
            child = next((each for each in same_token if each.keys[0] == rest[0]), None)
            if child is None:
                child = _Node(rest.copy(), len(keys), node)
                same_token.append(child)
            else:
                common = _common(child.keys, rest, -1)
                if common < len(child.keys):
                    child = self._split(child, common)
            node = child
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """A new node after the first `at` keys of the node, in its place; its parent."""
        parent = node.parent
        assert parent is not None
        upper = _Node(node.keys[:at].copy(), parent.depth + at, parent)
        same_token = parent.children[int(node.keys[0]) & _TOKEN]
        same_token[same_token.index(node)] = upper
        node.keys, node.parent = node.keys[at:].copy(), upper
        upper.children[int(node.keys[0]) & _TOKEN] = [node]
        return upper

    def _prune(self, node: _Node) -> None:
        """Remove the nodes from here up that lead to no snapshot or only to one other node."""
        parent = node.parent
        while parent is not None and node.snapshot is None:
            below = list(node.all_children())
            if len(below) > 1:
                return
            first = int(node.keys[0]) & _TOKEN
            same_token = parent.children[first]
            if below:
                child = below[0]
                child.keys, child.parent = np.concatenate([node.keys, child.keys]), parent
                same_token[same_token.index(node)] = child
                return
            same_token.remove(node)
            if not same_token:
                del parent.children[first]
            node, parent = parent, parent.parent

    def _keep(self, node: _Node, snapshot: Snapshot) -> None:
        node.snapshot = snapshot
        self._by_use[id(node)] = node
        self.n_added += 1
        self.nbytes += snapshot.recurrent.nbytes
        for page in snapshot.all_pages():
            n = self._holders.get(id(page), 0)
            self._holders[id(page)] = n + 1
            self.nbytes += 0 if n else len(page.memory)

    def _drop(self, node: _Node) -> None:
        snapshot, node.snapshot = node.snapshot, None
        assert snapshot is not None
        del self._by_use[id(node)]
        self.nbytes -= snapshot.recurrent.nbytes
        for page in snapshot.all_pages():
            n = self._holders[id(page)] - 1
            if n:
                self._holders[id(page)] = n
            else:
                del self._holders[id(page)]
                self.nbytes -= len(page.memory)


def _path(node: _Node) -> Keys:
    parts: list[Keys] = []
    at: _Node | None = node
    while at is not None:
        parts.append(at.keys)
        at = at.parent
    return np.concatenate(parts[::-1])


def _common(a: Keys, b: Keys, mask: int) -> int:
    """How many of the first keys are equal, in the bits of the mask."""
    n = min(len(a), len(b))
    differ = np.flatnonzero((a[:n] ^ b[:n]) & mask)
    return int(differ[0]) if len(differ) else n

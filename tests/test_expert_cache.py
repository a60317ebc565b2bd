"""The experts that are kept: which one makes room, and what a disk that fails leaves."""

from dataclasses import dataclass
from typing import Any

import pytest

from airllm.weights.expert_cache import ExpertCache
from airllm.weights.ring import Matrix


@dataclass(frozen=True)
class Room:
    offset: int
    shape: tuple[int, int] = (1, 1)
    nbytes: int = 64


class FakeBackend:
    """It notes what is read, and fails when told to."""

    def __init__(self) -> None:
        self.reads: list[list[int]] = []  # of each push: the offsets in the file
        self.fails = False
        self.open = 0

    def memory(self, nbytes: int) -> int:
        return nbytes

    def matrix_in(self, memory: int, offset: int, type: str, shape: Any) -> tuple[Any, Any]:
        assert 0 <= offset < memory
        return Room(offset), offset

    def stream(self, files: Any, sections: Any, *, endless: bool) -> "FakeBackend":
        self.open += 1
        return self

    def push(self, section: list[Any]) -> None:
        self.reads.append([at for _, at, _, _ in section])

    def take(self) -> None:
        if self.fails:
            raise OSError(5, "Input/output error")

    def release(self) -> None:
        pass

    def close(self) -> None:
        self.open -= 1


def expert(number: int) -> list[Matrix]:
    return [Matrix("m", "experts", "w", "f32", (1, 1), 0, 100 * number, 64, 64)]


EXPERTS = [expert(number) for number in range(4)]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def cache(backend: FakeBackend) -> ExpertCache:
    """With four places."""
    return ExpertCache(backend, [], 4, 64)  # type: ignore[arg-type]


def test_only_what_is_missing_is_read(cache: ExpertCache, backend: FakeBackend) -> None:
    cache.fetch(0, EXPERTS, [0, 1])
    cache.fetch(0, EXPERTS, [1, 2])
    assert backend.reads == [[0, 100], [200]]
    assert (cache.hits, cache.misses) == (1, 3)


def test_the_expert_that_was_not_used_for_longest_makes_room(
    cache: ExpertCache, backend: FakeBackend
) -> None:
    cache.fetch(0, EXPERTS, [0, 1, 2, 3])
    cache.fetch(0, EXPERTS, [0])  # now 1 is the oldest
    cache.fetch(1, EXPERTS, [0])
    backend.reads.clear()
    cache.fetch(0, EXPERTS, [0, 2, 3])
    assert backend.reads == []
    cache.fetch(0, EXPERTS, [1])
    assert backend.reads == [[100]]


def test_an_expert_that_is_wanted_does_not_make_room_for_another(
    cache: ExpertCache, backend: FakeBackend
) -> None:
    cache.fetch(0, EXPERTS, [0, 1, 2, 3])
    rooms = cache.fetch(1, EXPERTS, [0, 1, 2, 3])["m"]
    assert len(set(rooms)) == 4
    cache.fetch(0, EXPERTS, [3])  # in the place of the other layer's first
    kept = cache.fetch(1, EXPERTS, [1, 2, 3, 0])["m"]
    assert len(set(kept)) == 4


def test_a_disk_that_fails_costs_no_place_and_the_next_read_begins_anew(
    cache: ExpertCache, backend: FakeBackend
) -> None:
    cache.fetch(0, EXPERTS, [0])
    backend.fails = True
    for _ in range(5):
        with pytest.raises(OSError, match="Input/output error"):
            cache.fetch(0, EXPERTS, [1, 2, 3])
        assert backend.open == 0
    backend.fails = False
    backend.reads.clear()
    rooms = cache.fetch(0, EXPERTS, [0, 1, 2, 3])["m"]
    assert backend.reads == [[100, 200, 300]]
    assert len(set(rooms)) == 4
    assert backend.open == 1

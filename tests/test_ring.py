"""The ring that matrices pass through: what is taken is what was added, whatever came before."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp

from airllm.backends import load_backend
from airllm.weights.ring import Matrix, Ring, aligned_bytes

N_SECTIONS, SHAPE = 3, (4, 32)
NBYTES = 4 * SHAPE[0] * SHAPE[1]


class Binder:
    """An executor that binds weights as they are."""

    def bind(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(weights)


@pytest.fixture(params=["numpy", "cpp"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpp":
        require_cpp()
    return load_backend(request.param)


@pytest.fixture
def ring(backend: Any, tmp_path: Path) -> Iterator[Ring]:
    """Sections 10, 20 and 30 of a matrix each, all of whose values are that number."""
    values = [np.full(SHAPE, 10 * (1 + at), "<f4") for at in range(N_SECTIONS)]
    path = tmp_path / "weights"
    path.write_bytes(b"".join(value.tobytes() for value in values))
    descriptor = os.open(path, os.O_RDONLY)
    room = aligned_bytes(backend.packed_bytes("f32", SHAPE))
    ring = Ring(backend, [(descriptor, str(path))], slots=2, slot_bytes=room)
    for at in range(N_SECTIONS):
        matrix = Matrix("w", "matrix", "w", "f32", SHAPE, 0, at * NBYTES, NBYTES, room)
        ring.add(10 * (1 + at), Binder(), {"kept": at}, [matrix])  # type: ignore[arg-type]
    ring.start()
    yield ring
    ring.close()
    os.close(descriptor)


def taken(ring: Ring, number: int) -> float:
    bound = ring.take(number)
    try:
        assert bound["kept"] == number // 10 - 1
        values = np.asarray(bound["w"].dequantize())
        assert np.ptp(values) == 0
        return float(values.flat[0])
    finally:
        ring.release()


@pytest.mark.parametrize(
    "numbers",
    [
        [10, 20, 30, 10, 20, 30, 10],
        [10, 20, 10, 20, 30],  # a pass that did not come to its end
        [10, 30, 10, 30],
        [30, 20, 10],
    ],
)
def test_what_is_taken_is_what_was_asked_for(ring: Ring, numbers: list[int]) -> None:
    assert [taken(ring, number) for number in numbers] == numbers


def test_a_pass_that_begins_anew_takes_nothing_that_it_does_not_need(ring: Ring) -> None:
    for number in (10, 20, 10):
        taken(ring, number)
    assert ring.stats()["bytes_taken"] == 3 * NBYTES


class Watched:
    """A stream whose rewinds are counted, and whose next takes fail."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.rewinds, self.failures = stream, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def take(self) -> tuple[int, int]:
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is on fire")
        found: tuple[int, int] = self._stream.take()
        return found

    def rewind(self) -> None:
        self.rewinds += 1
        self._stream.rewind()


@pytest.fixture
def watched(ring: Ring) -> Watched:
    stream = Watched(ring._stream)
    ring._stream = stream
    return stream


def test_a_pass_goes_on_with_what_was_read_ahead_at_the_end_of_the_last(
    ring: Ring, watched: Watched
) -> None:
    for number in (10, 20, 30) * 3:
        taken(ring, number)
    assert watched.rewinds == 0


@pytest.mark.parametrize("before", [(), (10,), (10, 20, 30)])
def test_after_a_disk_that_failed_the_next_pass_begins_anew(
    ring: Ring, watched: Watched, before: tuple[int, ...]
) -> None:
    for number in before:
        taken(ring, number)
    watched.failures = 1
    with pytest.raises(OSError, match="on fire"):
        ring.take(20)
    assert [taken(ring, number) for number in (10, 20, 30)] == [10, 20, 30]
    assert watched.rewinds == 1


def test_a_ring_knows_its_numbers_and_gives_nothing_before_it_is_started(backend: Any) -> None:
    ring = Ring(backend, [], slots=2, slot_bytes=64)
    ring.add(7, Binder(), {}, [])  # type: ignore[arg-type]
    assert 7 in ring
    assert 8 not in ring
    with pytest.raises(RuntimeError, match="not started"):
        ring.take(7)
    ring.close()

"""What stays in memory and what streams, of parts that are needed one after the other."""

import pytest

from airllm.weights.residency import least_bytes, read_buffer_bytes, reside


@pytest.mark.parametrize(
    ("nbytes", "budget", "n_pinned", "slots"),
    [
        ([10, 10, 10, 10], 40, 4, 0),
        ([10, 10, 10, 10], 39, 1, 2),
        ([10, 10, 10, 10], 20, 0, 2),
        ([10, 10, 10, 10], 19, 0, 1),
        ([10, 10, 50, 50], 119, 1, 2),
        ([10, 10, 10, 50], 79, 1, 2),  # the largest is kept, so that slots are small
        ([50, 10, 10], 100, 3, 0),
        ([], 0, 0, 0),
    ],
)
def test_as_many_parts_stay_as_fit_beside_the_slots(
    nbytes: list[int], budget: int, n_pinned: int, slots: int
) -> None:
    found = reside(nbytes, budget, reads=0)
    assert found is not None
    assert (len(found.pinned), found.slots) == (n_pinned, slots)
    assert found.pinned_bytes == sum(nbytes[index] for index in found.pinned)
    assert found.streamed_bytes == sum(nbytes) - found.pinned_bytes
    assert found.pinned_bytes + found.ring_bytes <= budget


def test_parts_that_stay_are_spread_among_those_that_stream() -> None:
    found = reside([10] * 8, 60, reads=0)
    assert found is not None
    assert found.pinned == {1, 3, 5, 7}


def test_the_reads_under_way_are_of_the_budget() -> None:
    found = reside([10] * 8, 63, reads=3)
    assert found is not None
    assert (len(found.pinned), found.ring_bytes) == (4, 23)


@pytest.mark.parametrize("nbytes", [[10] * 4, [10, 10, 50], [50, 10, 1]])
@pytest.mark.parametrize("reads", [0, 7, 1000])
def test_the_least_budget_is_enough_and_a_byte_less_is_not(nbytes: list[int], reads: int) -> None:
    least = least_bytes(nbytes, reads)
    assert reside(nbytes, least, reads) is not None
    assert reside(nbytes, least - 1, reads) is None


def test_reads_have_whole_pages_and_no_more_than_a_mebibyte_each() -> None:
    assert read_buffer_bytes(1) == 10 * 3 * 4096
    assert read_buffer_bytes(1 << 30) == 10 * ((1 << 20) + 2 * 4096)

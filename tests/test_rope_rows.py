"""Rows of cosines and sines that are kept: those of rope_table, however they are asked for."""

import numpy as np

from airllm.models.rope import Rotation
from airllm.models.rope_rows import RopeRows
from airllm.numpy_ops import rope_table

INV_FREQ = 10000.0 ** (-np.arange(8) / 8)


def test_rows_are_those_of_rope_table_in_any_order_of_asking():
    rope = RopeRows(Rotation(INV_FREQ), 5000)
    for stretches in (
        [(0, 3)],
        [(700, 1)],
        [(699, 3)],
        [(4000, 900)],
        [(10, 2), (3000, 1), (0, 4)],
    ):
        positions = np.concatenate([np.arange(start, start + n) for start, n in stretches])
        np.testing.assert_array_equal(rope.rows(stretches), rope_table(positions, INV_FREQ))


def test_memory_follows_the_positions_that_were_asked_for():
    rope = RopeRows(Rotation(INV_FREQ), 2**20)
    rope.rows([(0, 1)])
    assert rope.nbytes == 256 * 16 * 4
    rope.rows([(300, 1)])
    assert rope.nbytes == 512 * 16 * 4
    small = RopeRows(Rotation(INV_FREQ), 40)
    small.rows([(0, 2)])
    assert small.nbytes == 40 * 16 * 4

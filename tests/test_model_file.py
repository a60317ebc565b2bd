"""Tensors of open files, whatever their place: ModelParts by itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from airllm.formats.mapped_file import MappedFile
from airllm.formats.model_file import Extent, ModelParts, Tensor
from airllm.util.metadata import FormatError, Metadata

VALUES = np.arange(1, 9, dtype="<f4")
Open = Callable[[int], ModelParts]


@pytest.fixture
def open_at(tmp_path: Path) -> Iterator[Open]:
    """A model whose only tensor, of eight floats, begins at that offset of its file."""
    opened: list[ModelParts] = []

    def open_one(offset: int) -> ModelParts:
        path = tmp_path / f"{offset}.bin"
        path.write_bytes(bytes(offset) + VALUES.tobytes())
        tensor = Tensor("w", "f32", (2, 4), 16, 32, (Extent(0, offset, 32),))
        part = MappedFile.open(path, hint="")
        opened.append(ModelParts(path, Metadata("", {}), [tensor], [part]))
        return opened[-1]

    yield open_one
    for model in opened:
        model.close()


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 64])
def test_values_stand_at_an_address_where_they_can_be_used(open_at: Open, offset: int) -> None:
    """A safetensors file may have them anywhere; a load from there is undefined in C++."""
    data = open_at(offset).data("w")
    assert data.ctypes.data % 4 == 0
    assert data.view("<f4").reshape(-1).tolist() == VALUES.tolist()
    assert not data.flags.writeable


def test_values_at_such_an_address_are_not_copied(open_at: Open) -> None:
    model = open_at(64)
    assert np.shares_memory(model.data("w"), model.data("w"))


def test_rows_are_read_without_those_before_them(open_at: Open) -> None:
    memory = np.zeros(16, np.uint8)
    found = open_at(3).read("w", memory, (1, 2))
    assert found.view("<f4").reshape(-1).tolist() == VALUES[4:].tolist()


@pytest.mark.parametrize("step", [7, 1000, 20_000, 300_000])
def test_strips_are_read_whether_their_rows_are_near_or_far_apart(tmp_path, step):
    """The last row of the file ends with the strip."""
    rows = np.random.default_rng(9).integers(0, 256, (600_000 // step + 2, step), np.uint8)
    (tmp_path / "f").write_bytes(rows.tobytes()[: rows.size - step + 6])
    with MappedFile.open(tmp_path / "f", hint="") as file:
        found = np.empty((len(rows), 4), np.uint8)
        file.read_strip(2, found, step, "w")
        np.testing.assert_array_equal(found, rows[:, 2:6])
        with pytest.raises(FormatError, match="'w' cannot be read to its end"):
            file.read_strip(3, found, step, "w")

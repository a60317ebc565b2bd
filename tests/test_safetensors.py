"""The safetensors reader: what it gives for good files, and what it says of bad ones."""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hf_folder import safetensors_bytes, table_bytes
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_gguf_mutations import (
    Mutation,
    flip,
    overwrite,
    remove,
    rewrite,
    sampling,
    splice,
    truncate,
)
from test_gguf_mutations import evil_numbers as evil_numbers
from test_gguf_mutations import traced as traced
from traced_memory import traced_memory

from airllm.formats.mapped_file import MappedFile
from airllm.formats.safetensors import StoredTensor, read_table
from airllm.util.metadata import FormatError

TENSORS = {
    "a.weight": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
    "b": ("BF16", np.arange(5, dtype=np.uint16)),
    "scalar": ("I64", np.array(7)),
    "empty": ("F16", np.zeros((0, 4), np.float16)),
    "c": ("F16", np.ones((2, 2), np.float16)),
}
FILE = safetensors_bytes(TENSORS, {"format": "pt"})


def table(path: Path, raw: bytes) -> list[StoredTensor]:
    path.write_bytes(raw)
    file = MappedFile.open(path, hint="")
    try:
        return read_table(file)
    finally:
        file.close()


def refusal(path: Path, raw: bytes) -> str:
    with pytest.raises(FormatError) as error:
        table(path, raw)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_every_tensor_has_its_type_shape_and_place(path: Path) -> None:
    found = {tensor.name: tensor for tensor in table(path, FILE)}
    assert found.keys() == TENSORS.keys()
    for name, (dtype, array) in TENSORS.items():
        tensor = found[name]
        assert (tensor.dtype, tensor.shape) == (dtype, array.shape)
        assert FILE[tensor.offset : tensor.offset + tensor.nbytes] == array.tobytes()


def test_the_order_is_that_of_the_data_whatever_the_headers(path: Path) -> None:
    length = int.from_bytes(FILE[:8], "little")
    header = json.loads(FILE[8 : 8 + length])
    turned = json.dumps(dict(reversed(header.items()))).encode()
    found = table(path, table_bytes(turned) + FILE[8 + length :])
    assert [tensor.name for tensor in found] == ["a.weight", "b", "scalar", "empty", "c"]


def entry(**changes: object) -> bytes:
    valid = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return table_bytes(json.dumps({"w": valid | changes}).encode()) + bytes(8)


HOSTILE = {
    "is empty": b"",
    "not a safetensors file: it begins with": b"hello world",
    "but a GGUF file": b"GGUF" + bytes(20),
    "but a Git LFS pointer": b"version https://git-lfs",
    "its header needs 9,223,372,036,854,775,807 bytes": struct.pack("<Q", 2**63 - 1) + b"{}",
    "its header needs 3 bytes": struct.pack("<Q", 3) + b"{}",
    "not the JSON that was expected": table_bytes(b'{"w": '),
    "nested too deeply": table_bytes(b'{"w": ' + b"[" * 100_000),
    "'w' is there twice": table_bytes(b'{"w": {}, "w": {}}'),
    "is not described by dtype, shape and data_offsets": table_bytes(b'{"w": {"dtype": "F32"}}'),
    "is not described by dtype": entry(more=1),
    "of type Q4_0, which is not known": entry(dtype="Q4_0"),
    "a dtype that is no name": entry(dtype="F32\n" * 100),
    "a dtype that is no": entry(dtype=7),
    "a shape that is no list": entry(shape="2"),
    "shape that is no": entry(shape=[-2]),
    "shape that is": entry(shape=[True]),
    "a shape": entry(shape=[2.0]),
    "at most 8 sizes": entry(shape=[1] * 9),
    "of at most 8 sizes": entry(shape=[2**63]),
    "no beginning and end": entry(data_offsets=[8, 0]),
    "data_offsets that are no beginning and end": entry(data_offsets=[0, 8, 8]),
    "and shape [3] has 8 bytes; expected 12": entry(shape=[3]),
    "has 8 bytes; expected 85,070,591,730,234,615,598,365,862,789,153,554,460": entry(
        shape=[2**63 - 1, 2**61 - 7]
    ),
    "'w' ends at 80, but the file at 88": entry() + bytes(8),
    "the header ends at 16, but the file at 24": table_bytes(b"{}") + bytes(8),
    "leaves a gap after the header": entry(data_offsets=[8, 16]) + bytes(8),
    "it is truncated or damaged": FILE[:-1],
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_file_is_refused_by_its_fault(path: Path, fault: str) -> None:
    assert fault in refusal(path, HOSTILE[fault])


def test_more_tensors_than_any_model_has_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airllm.formats.safetensors.MAX_TENSORS", 1)
    entries = {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in ("a", "b")}
    raw = table_bytes(json.dumps(entries).encode())
    assert "has 2 tensors; at most 1" in refusal(path, raw)


def test_tensors_that_overlap_are_refused(path: Path) -> None:
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    two = {"dtype": "U8", "shape": [4], "data_offsets": [3, 7]}
    raw = table_bytes(json.dumps({"a": one, "b": two}).encode()) + bytes(7)
    assert "tensor 'b' overlaps 'a'" in refusal(path, raw)


def test_a_huge_sparse_file_buys_no_memory_for_its_claims(path: Path) -> None:
    """64 GiB that take no disk, and a header that would fit them."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**35) + b"{")
        file.truncate(2**36)
    started = time.process_time()
    refused = pytest.raises(FormatError, match="claims a header of 34,359,738,368 bytes")
    with traced_memory() as traced, refused:
        read_table(MappedFile.open(path, hint=""))
    assert time.process_time() - started < 1
    assert traced.peak < 2**20


places = st.integers(0, len(FILE))
lengths = st.integers(1, 64)
numbers = st.builds(
    lambda at, number: lambda raw: raw[:at] + str(number).encode() + raw[at + 1 :],
    places,
    evil_numbers,
)
mutations = st.one_of(
    st.builds(flip, places, st.integers(1, 255)),
    st.builds(truncate, places),
    st.builds(rewrite, st.just(0), st.just("<Q"), evil_numbers),
    numbers,
    st.builds(remove, places, lengths),
    st.builds(splice, places, lengths, places),
    st.builds(overwrite, places, lengths, places),
)


damages = given(st.lists(mutations, min_size=1, max_size=3))


@settings(sampling, max_examples=100)
@damages
def test_a_damaged_file_opens_whole_or_is_refused(
    path: Path, traced: None, damage: list[Mutation]
) -> None:
    check_damaged(path, damage)


@pytest.mark.fuzz
@settings(sampling, max_examples=1000)
@damages
def test_many_damaged_files_open_whole_or_are_refused(
    path: Path, traced: None, damage: list[Mutation]
) -> None:
    check_damaged(path, damage)


def check_damaged(path: Path, damage: list[Mutation]) -> None:
    raw = FILE
    for mutate in damage:
        raw = mutate(raw)

    started = time.process_time()
    with traced_memory() as memory:
        refused = read_whole(path, raw)

    assert time.process_time() - started < 1
    assert memory.peak < 256 * 1024
    event("refused" if refused else "opened")
    assert refused is None or refused.startswith(f"{path}: ")
    assert len(refused or "") < 700 + len(str(path))


def read_whole(path: Path, raw: bytes) -> str | None:
    """The message if the file is refused; else its data must belong to one tensor each."""
    try:
        found = table(path, raw)
    except FormatError as error:
        return str(error)
    owned = sum(tensor.nbytes for tensor in found)
    assert owned == len(raw) - 8 - int.from_bytes(raw[:8], "little")
    return None

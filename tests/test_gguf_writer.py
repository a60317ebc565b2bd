"""Files that GGUFWriter writes are those that the format's description asks for."""

import gguf_writer as independent
import numpy as np
import pytest

from airllm.formats.gguf import GGUFFile
from airllm.formats.gguf_writer import GGUFWriter, TensorInfo

METADATA = {
    "general.architecture": "llama",
    "text": "äß∂",
    "truth": True,
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "number": 0.25,
    "wide": np.float64(0.1),
    "bytes": np.arange(5, dtype=np.uint8),
    "scores": -np.arange(3, dtype=np.float32),
    "words": ["a", "", "▁b"],
}
TENSORS = [
    TensorInfo("first", "f32", (3, 5)),
    TensorInfo("second", "q8_0", (2, 64)),
    TensorInfo("third", "f16", (7,)),
]


def data_of(tensor):
    return np.random.default_rng(len(tensor.name)).integers(0, 256, tensor.nbytes, np.uint8)


def test_the_file_is_byte_for_byte_what_the_independent_writer_makes(tmp_path):
    path = tmp_path / "model.gguf"
    with GGUFWriter(path, METADATA, TENSORS) as writer:
        for tensor in TENSORS:
            writer.write(tensor.name, data_of(tensor))
    specs = [(t.name, t.type, t.shape, data_of(t)) for t in TENSORS]
    # The reader may end the file after the last tensor or pad it: both are valid.
    expected = independent.gguf_bytes(METADATA, specs)
    assert path.read_bytes().rstrip(b"\0") == expected.rstrip(b"\0")


def test_tensors_may_come_in_pieces_and_are_read_back(tmp_path):
    path = tmp_path / "model.gguf"
    with GGUFWriter(path, METADATA, TENSORS) as writer:
        for tensor in TENSORS:
            for piece in np.array_split(data_of(tensor), 3):
                writer.write(tensor.name, piece)
    with GGUFFile.open(path) as gguf:
        for tensor in TENSORS:
            assert gguf.tensors[tensor.name].shape == tensor.shape
            read = gguf.data(tensor.name).reshape(-1)
            np.testing.assert_array_equal(read, data_of(tensor))
        assert gguf.metadata.texts("words") == ["a", "", "▁b"]
        assert gguf.metadata["large"] == 2**40


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([], "0 bytes for first; expected 60"),
        ([("first", 59)], "59 bytes for first; expected 60"),
        ([("first", 61)], "61 bytes for first; expected 60"),
        ([("second", 1)], "data for second; expected first"),
        ([("first", 60), ("second", 136), ("third", 14), ("third", 1)], "expected nothing more"),
    ],
)
def test_what_is_not_the_announced_data_is_refused_and_leaves_no_file(tmp_path, writes, message):
    def write():
        with GGUFWriter(tmp_path / "model.gguf", METADATA, TENSORS) as writer:
            for name, n_bytes in writes:
                writer.write(name, np.zeros(n_bytes, np.uint8))

    with pytest.raises(ValueError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the old model")

    def write():
        with GGUFWriter(path, METADATA, TENSORS):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"the old model"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "value", [None, {}, 2**70, [1, 2], np.zeros((2, 2)), np.zeros(2, np.complex64)]
)
def test_metadata_that_gguf_has_no_type_for_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match="metadata key: "):
        GGUFWriter(tmp_path / "model.gguf", {"key": value}, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorInfo("w", "q9_9", (1, 32)), "there is no type 'q9_9'"),
        (TensorInfo("w", "q4_0", (1, 33)), "rows of 33 values; q4_0 needs a multiple of 32"),
    ],
)
def test_a_tensor_that_cannot_be_stored_is_refused(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=message):
        GGUFWriter(tmp_path / "model.gguf", {}, [tensor])
    assert list(tmp_path.iterdir()) == []

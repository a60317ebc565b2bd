"""The GGUF reader: what it gives for good files, and what it says of bad ones."""

import contextlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_writer import gguf_bytes, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from traced_memory import traced_memory

from airllm.formats import mapped_file
from airllm.formats.ggml_types import SUPPORTED_TYPES
from airllm.formats.gguf import FormatError, GGUFFile
from airllm.formats.gguf_header import read_header
from airllm.formats.mapped_file import MappedFile
from airllm.formats.safetensors import read_table

GIB = 2**30

# Of every supported type: how many values a short row has, and its bytes.
SHORT_ROWS = {
    **{"f32": (32, 128), "f16": (32, 64), "bf16": (32, 64)},
    **{"q8_0": (32, 34), "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24)},
    **{"q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144)},
    **{"q5_k": (256, 176), "q6_k": (256, 210)},
    **{"iq4_nl": (32, 18), "iq4_xs": (256, 136), "mxfp4": (32, 17)},
    **{"iq3_xxs": (256, 98), "iq3_s": (256, 110)},
    **{"iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82)},
    **{"iq1_s": (256, 50), "iq1_m": (256, 56)},
    **{"tq1_0": (256, 54), "tq2_0": (256, 66), "nvfp4": (64, 36)},
}


def small_model() -> bytes:
    """A valid file with a value of every metadata type and a tensor of every supported type."""
    rng = np.random.default_rng(7)
    metadata = {
        "general.architecture": "llama",
        "count": 42,
        "negative": -42,
        "large": 2**40,
        "eps": np.float32(1e-5),
        "exact": np.float64(1e-5),
        "small": np.int8(-3),
        "flag": True,
        "tokens": ["<s>", "", "Ġhello", "日本"],
        "scores": np.array([0.5, -1.0], np.float32),
        "types": np.array([1, 3, 6], np.int32),
        "flags": np.array([True, False]),
    }
    tensors = [
        (f"blk.0.{kind}", kind, (1, k), rng.integers(0, 256, (1, row_bytes), np.uint8))
        for kind, (k, row_bytes) in SHORT_ROWS.items()
    ]
    tensors.append(("norm", "f32", (5,), rng.standard_normal(5).astype(np.float32)))
    return gguf_bytes(metadata, tensors)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_model())
    return path


def refused(path: Path, raw: bytes, *, sparse: int = 0) -> str:
    """The message with which a file of these bytes, and then `sparse` zeros, is refused."""
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + sparse)
    with pytest.raises(FormatError) as error:
        GGUFFile.open(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


def header(n_tensors: int, n_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def entry(name: str = "w", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; dims as the file has them, the fastest first."""
    dims_raw = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + dims_raw + struct.pack("<IQ", kind, offset)


# What a good file gives.


def test_metadata_comes_back_with_its_types(model: Path) -> None:
    metadata = GGUFFile.open(model).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["count"] == 42
    assert metadata["negative"] == -42
    assert metadata["large"] == 2**40
    assert metadata["eps"] == np.float32(1e-5)
    assert metadata["exact"] == 1e-5
    assert metadata["small"] == -3
    assert metadata["flag"] is True
    assert metadata["tokens"] == ["<s>", "", "Ġhello", "日本"]
    np.testing.assert_array_equal(metadata["scores"], np.array([0.5, -1.0], np.float32))
    np.testing.assert_array_equal(metadata["types"], np.array([1, 3, 6], np.int32))
    np.testing.assert_array_equal(metadata["flags"], [True, False])
    assert isinstance(metadata["types"], np.ndarray)
    assert metadata["types"].dtype == np.int32


def test_read_puts_the_files_bytes_into_memory_that_is_used_again(model: Path) -> None:
    memory = np.empty(4096, np.uint8)
    with GGUFFile.open(model) as file:
        for name in file.tensors:
            read = file.read(name, memory)
            assert np.shares_memory(read, memory)
            np.testing.assert_array_equal(read, file.data(name))


def test_a_matrix_has_the_shape_of_its_rows_and_the_files_bytes(tmp_path: Path) -> None:
    rows = np.arange(3 * 40, dtype=np.uint8).reshape(3, 40)
    path = write_gguf(tmp_path / "m.gguf", {}, [("w", "q4_1", (3, 64), rows)])
    with GGUFFile.open(path) as file:
        tensor = file.tensors["w"]
        assert (tensor.type, tensor.shape, tensor.nbytes) == ("q4_1", (3, 64), 120)
        np.testing.assert_array_equal(file.data("w"), rows)


def test_rows_of_every_supported_type_are_as_long_as_the_type_says(model: Path) -> None:
    assert set(SUPPORTED_TYPES) == SHORT_ROWS.keys()
    with GGUFFile.open(model) as file:
        for kind, (_, row_bytes) in SHORT_ROWS.items():
            assert file.data(f"blk.0.{kind}").shape == (1, row_bytes)


def test_a_vector_is_one_row_of_bytes(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    path = write_gguf(tmp_path / "m.gguf", {}, [("norm", "f32", (7,), values)])
    with GGUFFile.open(path) as file:
        np.testing.assert_array_equal(file.data("norm").view(np.float32), values)


def test_data_is_a_read_only_view_that_outlives_the_file(model: Path) -> None:
    with GGUFFile.open(model) as file:
        data = file.data("norm")
        again = file.data("norm")
    assert np.shares_memory(data, again)
    assert not data.flags.writeable
    assert data.nbytes == 20
    assert int(data.sum()) > 0


def test_gate_and_up_of_experts_in_one_tensor_are_told_apart(tmp_path: Path) -> None:
    both = np.arange(3 * 8 * 4, dtype=np.float32).reshape(3, 8, 4)
    spec = ("blk.5.ffn_gate_up_exps.weight", "f32", both.shape, both)
    with GGUFFile.open(write_gguf(tmp_path / "m.gguf", {}, [spec])) as file:
        assert list(file.tensors) == ["blk.5.ffn_gate_exps.weight", "blk.5.ffn_up_exps.weight"]
        for name, half in zip(file.tensors, (both[:, :4], both[:, 4:]), strict=True):
            assert file.tensors[name].shape == half.shape
            np.testing.assert_array_equal(file.data(name).view(np.float32), half)
            memory = np.empty(file.tensors[name].nbytes, np.uint8)
            rows = file.read(name, memory, (3, 9)).view(np.float32)
            np.testing.assert_array_equal(rows, half.reshape(12, 4)[3:9])


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((3, 7, 4), []),  # no halves
        ((6, 4), []),  # no experts
        ((2**12 + 1, 2, 1), []),
        ((3, 8, 4), ["blk.5.ffn_gate_exps.weight"]),
        ((3, 8, 4), ["blk.5.ffn_up_exps.weight"]),
    ],
)
def test_what_is_no_gate_and_up_keeps_its_name(
    tmp_path: Path, shape: tuple[int, ...], others: list[str]
) -> None:
    names = ["blk.5.ffn_gate_up_exps.weight", *others]
    specs = [(name, "f32", shape, np.zeros(shape, np.float32)) for name in names]
    with GGUFFile.open(write_gguf(tmp_path / "m.gguf", {}, specs)) as file:
        assert list(file.tensors) == names


def test_tensors_keep_the_order_of_the_file(model: Path) -> None:
    names = list(GGUFFile.open(model).tensors)
    assert names[:2] == ["blk.0.f32", "blk.0.f16"]
    assert names[-1] == "norm"


STRINGS = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\0"), max_size=9)


@given(st.lists(STRINGS | st.sampled_from(["", "x" * 255, "y" * 256, "\0" * 8]), max_size=40))
def test_arrays_of_any_strings_come_back(tmp_path_factory, strings: list[str]) -> None:
    path = write_gguf(tmp_path_factory.getbasetemp() / "strings.gguf", {"a": strings, "b": ["z"]})
    with GGUFFile.open(path) as file:
        assert file.metadata["a"] == strings
        assert file.metadata["b"] == ["z"]


@pytest.mark.parametrize("odd", ["", "\0", "x" * 300])
@pytest.mark.parametrize("at", [0, 9_000, 19_999])
def test_a_long_array_comes_back_whatever_is_in_it(tmp_path: Path, odd: str, at: int) -> None:
    strings = [f"Ġ{number}" for number in range(20_000)]
    strings[at] = odd
    path = write_gguf(tmp_path / "strings.gguf", {"a": strings, "b": 7})
    with GGUFFile.open(path) as file:
        assert file.metadata["a"] == strings
        assert file.metadata["b"] == 7


@pytest.mark.parametrize("at", [0, 9_000, 19_999])
def test_a_string_that_is_no_utf8_is_named_by_its_number(tmp_path: Path, at: int) -> None:
    strings = ["good"] * 20_000
    strings[at] = "evil"
    path = write_gguf(tmp_path / "strings.gguf", {"a": strings})
    path.write_bytes(path.read_bytes().replace(b"evil", b"ev\xffl"))
    with pytest.raises(FormatError, match=rf"'a'\[{at}\] is not UTF-8"):
        GGUFFile.open(path)


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_every_alignment_is_honoured(tmp_path: Path, alignment: int) -> None:
    tensors = [
        (name, "f32", (3,), np.full(3, value, np.float32)) for name, value in (("a", 1), ("b", 2))
    ]
    path = write_gguf(tmp_path / "m.gguf", {}, tensors, alignment=alignment)
    with GGUFFile.open(path) as file:
        assert file.tensors["b"].offset % alignment == 0
        np.testing.assert_array_equal(file.data("b").view(np.float32), [2, 2, 2])


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"key": "value"}, version=2)
    assert GGUFFile.open(path).metadata["key"] == "value"


def test_a_file_without_tensors_is_a_vocabulary(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"key": "value"})
    assert not GGUFFile.open(path).tensors


def test_an_unknown_tensor_name_is_a_key_error(model: Path) -> None:
    with pytest.raises(KeyError, match="nonesuch"):
        GGUFFile.open(model).data("nonesuch")


# Files that change under our feet.


def test_an_unchanged_file_passes_the_check(model: Path) -> None:
    GGUFFile.open(model).check_unchanged()


def test_a_file_truncated_after_opening_is_noticed(model: Path) -> None:
    file = GGUFFile.open(model)
    os.truncate(model, 100)
    with pytest.raises(FormatError, match=r"model\.gguf: the file was changed while it was in use"):
        file.check_unchanged()


def test_a_file_written_to_after_opening_is_noticed(model: Path) -> None:
    file = GGUFFile.open(model)
    before = model.stat()
    model.write_bytes(small_model())
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(FormatError, match="changed"):
        file.check_unchanged()


@pytest.mark.parametrize("read", [read_header, read_table])
def test_a_file_that_is_cut_before_its_header_is_read_is_an_error_not_a_crash(
    model: Path, read: Callable[[MappedFile], object]
) -> None:
    with MappedFile.open(model, hint="") as file:
        os.truncate(model, 0)
        with pytest.raises(FormatError, match=f"{model.name}: "):
            read(file)


def test_a_file_that_is_cut_before_it_is_mapped_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_file, "_identity", lambda descriptor: (10**6, 0))  # as it was
    with pytest.raises(FormatError, match="was changed while it was opened"):
        GGUFFile.open(model)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moment: it was whole when it was checked, and is not when it is read."""
    file = GGUFFile.open(model)
    last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
    check = file.check_unchanged

    def check_and_shrink() -> None:
        check()
        os.truncate(model, last.offset + last.nbytes - 1)

    monkeypatch.setattr(file, "check_unchanged", check_and_shrink)
    with pytest.raises(FormatError, match=f"{last.name!r} cannot be read to its end"):
        file.read(last.name, np.empty(4096, np.uint8))


def test_a_deleted_file_stays_readable_under_the_map(model: Path) -> None:
    file = GGUFFile.open(model)
    model.unlink()
    file.check_unchanged()
    assert file.data("norm").shape == (20,)


def test_a_closed_file_says_so(model: Path) -> None:
    file = GGUFFile.open(model)
    file.close()
    file.close()
    with pytest.raises(RuntimeError, match="the file is closed"):
        file.check_unchanged()


# Things that are no file, or no GGUF file.


def test_a_missing_file_is_a_file_not_found_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        GGUFFile.open(tmp_path / "nowhere.gguf")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is a directory"):
        GGUFFile.open(tmp_path)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(FormatError, match="not a regular file"):
        GGUFFile.open(pipe)


@contextlib.contextmanager
def as_somebody() -> Iterator[None]:
    """For root, who may read every file: as a user without privileges."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_an_unreadable_file_is_a_permission_error(model: Path) -> None:
    model.chmod(stat.S_IWUSR)
    with as_somebody(), pytest.raises(PermissionError, match=r"model\.gguf"):
        GGUFFile.open(model)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refused(tmp_path / "m.gguf", b"")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"PK\x03\x04", "ZIP archive"),
        (b"tjgg\x03\0\0\0", "older GGML format"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x13\x37", "begins with b'\\x137'"),
        (b"GGU", "begins with b'GGU'"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, start: bytes, message: str) -> None:
    assert message in refused(tmp_path / "m.gguf", start)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(10_000)
    assert "not a GGUF file" in refused(tmp_path / "m.gguf", noise)


def test_big_endian_files_are_refused_by_name(tmp_path: Path) -> None:
    raw = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    assert "big-endian" in refused(tmp_path / "m.gguf", raw)


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
def test_other_versions_are_refused_by_number(tmp_path: Path, version: int) -> None:
    message = refused(tmp_path / "m.gguf", header(0, 0, version))
    assert f"GGUF version {version}; versions 2 and 3 are supported" in message


# Damaged and hostile files.


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = small_model()
    for length in range(1, len(raw), 7):
        refused(tmp_path / "m.gguf", raw[:length])


HOSTILE = {
    "claims 9,223,372,036,854,775,808 tensors": header(2**63, 0),
    "claims 18,446,744,073,709,551,615 metadata keys": header(0, 2**64 - 1),
    "the name of metadata key 0 needs 1,099,511,627,776 bytes": header(0, 1)
    + struct.pack("<Q", 2**40),
    "the name of metadata key 0 is not UTF-8": header(0, 1) + struct.pack("<Q", 1) + b"\xff",
    "metadata 'k' has type 13, which GGUF does not define": header(0, 1)
    + string("k")
    + struct.pack("<I", 13),
    "metadata 'k' is an array of arrays": header(0, 1)
    + string("k")
    + struct.pack("<IIQ", 9, 9, 1) * 1000,
    "metadata 'k' has 4,611,686,018,427,387,904 strings": header(0, 1)
    + string("k")
    + struct.pack("<IIQ", 9, 8, 2**62),
    "metadata 'k' needs 8,000,000 bytes": header(0, 1)
    + string("k")
    + struct.pack("<IIQ", 9, 8, 1_000_000),
    "metadata 'k' needs 18,446,744,073,709,551,608 bytes": header(0, 1)
    + string("k")
    + struct.pack("<IIQ", 9, 12, 2**61 - 1),
    "metadata 'k'[1] ends past the end": header(0, 1)
    + string("k")
    + struct.pack("<IIQ", 9, 8, 2)
    + string("fine")
    + struct.pack("<Q", 2**64 - 1),
    "metadata 'k'[0] is not UTF-8": header(0, 1)
    + string("k")
    + struct.pack("<IIQQ", 9, 8, 1, 2)
    + b"\xc3(",
    "metadata 'k' has a bool that is neither 0 nor 1": header(0, 1)
    + string("k")
    + struct.pack("<IB", 7, 2),
    "metadata key 'k' is there twice": header(0, 2) + (string("k") + struct.pack("<IB", 0, 1)) * 2,
    "general.alignment is 12": gguf_bytes({"general.alignment": 12}),
    "general.alignment is 0": gguf_bytes({"general.alignment": 0}),
    "general.alignment is the string 'x'": gguf_bytes({"general.alignment": "x"}),
    "split.no is missing": gguf_bytes({"split.count": np.uint16(3)}),
    "tensor 'w' has 0 dims": header(1, 0) + entry(dims=()),
    "tensor 'w' has 5 dims": header(1, 0) + entry(dims=(1, 1, 1, 1, 1)),
    "tensor 'w' has shape (0, 32)": header(1, 0) + entry(dims=(32, 0)),
    "tensor 'w' is of type Q1_0; supported are F32": header(1, 0) + entry(kind=41),
    "tensor 'w' is of type Q4_0_4_8": header(1, 0) + entry(kind=32),
    "tensor 'w' is of type NUMBER 999": header(1, 0) + entry(kind=999),
    "tensor 'w' has rows of 33 elements; Q4_1 needs a multiple of 32": header(1, 0)
    + entry(dims=(33,), kind=3),
    "tensor 'w' has rows of 288 elements; Q4_K needs a multiple of 256": header(1, 0)
    + entry(dims=(288,), kind=12),
    "tensor 'w' of shape (18446744073709551615, 18446744073709551615) ends at": header(1, 0)
    + entry(dims=(2**64 - 1, 2**64 - 1))
    + bytes(1000),
    "tensor 'w' starts at 4, no multiple of 32": header(1, 0) + entry(offset=4) + bytes(1000),
    "tensor 'w' of shape (32,) ends at": header(1, 0) + entry(offset=2**64 - 32) + bytes(1000),
    "tensor 'w' is there twice": header(2, 0) + entry() + entry(offset=128) + bytes(1000),
    "tensors 'a' and 'b' overlap": header(2, 0)
    + entry("b", offset=96)
    + entry("a", offset=0)
    + bytes(1000),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_file_is_refused_by_its_fault(tmp_path: Path, fault: str) -> None:
    assert fault in refused(tmp_path / "m.gguf", HOSTILE[fault])


def test_a_long_name_is_shortened_in_the_message(tmp_path: Path) -> None:
    message = refused(tmp_path / "m.gguf", header(1, 0) + entry("n" * 5000, kind=12))
    assert len(message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(struct.pack("<IIQ", 9, 0, 32 * GIB), id="numbers"),
        pytest.param(struct.pack("<IIQ", 9, 8, 4 * GIB), id="strings"),
        pytest.param(struct.pack("<IQ", 8, 32 * GIB), id="one string"),
    ],
)
def test_a_huge_sparse_file_buys_no_memory_for_its_claims(tmp_path: Path, value: bytes) -> None:
    """64 GiB that take no disk: every length is within the file, and absurd all the same."""
    started = time.process_time()
    with traced_memory() as traced:
        refused(tmp_path / "m.gguf", header(0, 1) + string("k") + value, sparse=64 * GIB)
    assert time.process_time() - started < 1
    assert traced.peak < 2**20

"""llama.cpp's importance files, in both formats, and what `airllm convert` makes of them."""

import json
import struct

import numpy as np
import pytest
from extension import require_cpp
from gguf_writer import write_gguf
from tiny_model import WIDE, write_tiny_model

from airllm import numpy_ops
from airllm.cli import main
from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.formats.importance import Importance
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError

DOWN = "blk.0.ffn_down.weight"


def write_newer(path, vectors, counts, **keys):
    """vectors: sums by name, [n matrices, k]."""
    tensors = []
    for name, sums in vectors.items():
        count = np.asarray(counts.get(name, [1]), np.float32).reshape(-1, 1)
        sums = np.asarray(sums, np.float32)
        tensors += [(f"{name}.in_sum2", "f32", sums.shape, sums)]
        tensors += [(f"{name}.counts", "f32", count.shape, count)]
    return write_gguf(path, {"general.type": "imatrix", "imatrix.chunk_count": 3, **keys}, tensors)


def dat_bytes(vectors, n_chunks=4):
    raw = struct.pack("<i", len(vectors))
    for name, sums in vectors.items():
        values = np.asarray(sums, "<f4").reshape(-1)
        raw += struct.pack("<i", len(name)) + name.encode()
        raw += struct.pack("<ii", n_chunks, values.size) + values.tobytes()
    return raw + struct.pack("<ii", n_chunks, 4) + b"text"


def write_older(path, vectors, n_chunks=4):
    path.write_bytes(dat_bytes(vectors, n_chunks))
    return path


def test_a_newer_file_has_sums_and_counts(tmp_path):
    sums = np.arange(512, dtype=np.float32).reshape(1, 512)
    found = Importance.read(write_newer(tmp_path / "i.gguf", {DOWN: sums}, {DOWN: [8]}))
    np.testing.assert_array_equal(found.vectors[DOWN], sums[0] / 8)


def test_experts_have_a_vector_each_and_those_without_input_ones(tmp_path):
    sums = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = write_newer(tmp_path / "i.gguf", {"e": sums}, {"e": [2, 0, 4]})
    expected = [*(sums[0] / 2), 1, 1, 1, 1, *(sums[2] / 4)]
    np.testing.assert_array_equal(Importance.read(path).vectors["e"], expected)


def test_an_older_file_has_means_times_the_number_of_chunks(tmp_path):
    sums = np.arange(512, dtype=np.float32)
    for n_chunks, divisor in ((4, 4), (0, 1)):
        path = write_older(tmp_path / "i.dat", {DOWN: sums, "b": sums[:3]}, n_chunks)
        found = Importance.read(path)
        np.testing.assert_array_equal(found.vectors[DOWN], sums / divisor)
        assert list(found.vectors) == [DOWN, "b"]


def write_experts(path):
    """A Qwen3-MoE of one layer is too much for these tests: only a matrix of experts."""
    x = np.random.default_rng(0).standard_normal((3, 5, 256)).astype(np.float32)
    name = "blk.0.ffn_up_exps.weight"
    write_gguf(path, {"general.architecture": "x"}, [(name, "f32", x.shape, x)])
    return x, name


@pytest.mark.parametrize("named", ["blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight"])
def test_each_expert_is_quantised_by_its_own_importance(tmp_path, named, monkeypatch):
    x, name = write_experts(tmp_path / "m.gguf")
    importance = np.random.default_rng(1).random((3, 256), np.float32)
    read = Importance.read(write_newer(tmp_path / "i.gguf", {named: importance}, {named: [1] * 3}))
    monkeypatch.setattr("airllm.formats.model_file.PIECE_VALUES", 7 * 256)  # across experts
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        done = convert(file, tmp_path / "new.gguf", "q4_k_s", importance=read)
    assert done.not_weighted == []
    with GGUFFile.open(tmp_path / "new.gguf") as new:
        for expert in range(3):
            expected = numpy_ops.quantize(x[expert], "q4_k", importance[expert])
            np.testing.assert_array_equal(new.data(name)[expert], expected)
        assert new.metadata["quantize.imatrix.file"] == "i.gguf"
        assert new.metadata["quantize.imatrix.entries_count"] == 1


@pytest.fixture
def wide(tmp_path):
    return write_tiny_model(tmp_path, sizes=WIDE)


def vectors_of(model, value=1.0):
    """For all matrices but the embedding and the head."""
    return {
        name: np.full((1, tensor.shape[-1]), value)
        for name, tensor in model.tensors.items()
        if tensor.ndim > 1 and "blk." in name
    }


def command(model, out, imatrix, type="q4_k_m", *more):
    paths = ["-m", str(model.path), "-o", str(out), "--imatrix", str(imatrix)]
    return ["convert", *paths, "--type", type, "--force", *more]


def test_the_same_importance_for_all_changes_nothing(tmp_path, wide, capsys):
    path = write_newer(tmp_path / "i.gguf", vectors_of(wide), {})
    assert main(command(wide, tmp_path / "new.gguf", path)) == 0
    assert "without importance" not in capsys.readouterr().err
    with open_model(wide.path) as source:
        convert(source, tmp_path / "plain.gguf", "q4_k_m")
    with GGUFFile.open(tmp_path / "new.gguf") as new, GGUFFile.open(tmp_path / "plain.gguf") as old:
        for name in old.tensors:
            np.testing.assert_array_equal(new.data(name), old.data(name), name)


def test_what_the_file_does_not_name_is_listed_once(tmp_path, wide, capsys):
    vectors = vectors_of(wide)
    del vectors[DOWN], vectors["blk.1.attn_q.weight"]
    path = write_older(tmp_path / "i.dat", vectors)
    assert main(command(wide, tmp_path / "new.gguf", path, "q3_k_m", "--json")) == 0
    said, notes = capsys.readouterr()
    listed = f"has nothing on {DOWN}, blk.1.attn_q.weight; these are quantised without importance"
    assert listed in " ".join(notes.split())
    assert json.loads(said)["not_weighted"] == [DOWN, "blk.1.attn_q.weight"]


def refused(wide, tmp_path, capsys, path, type="q4_k_m"):
    out = tmp_path / "new.gguf"
    assert main(command(wide, out, path, type)) == 1
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_number_that_is_no_importance_is_refused_by_the_tensors_name(tmp_path, wide, capsys, bad):
    vectors = vectors_of(wide)
    vectors[DOWN][0, 5] = bad
    for path in (
        write_newer(tmp_path / "i.gguf", vectors, {}),
        write_older(tmp_path / "i.dat", vectors, 1),
    ):
        said = refused(wide, tmp_path, capsys, path)
        assert f"the importance of '{DOWN}' is {bad} at 5; expected finite numbers" in said


def test_another_number_of_columns_is_refused_by_the_tensors_name(tmp_path, wide, capsys):
    vectors = {**vectors_of(wide), DOWN: np.ones((1, 96))}
    said = refused(wide, tmp_path, capsys, write_newer(tmp_path / "i.gguf", vectors, {}))
    assert f"the importance of '{DOWN}' has 96 values; expected 512, one for each column" in said


def test_another_number_of_experts_is_refused(tmp_path):
    _, name = write_experts(tmp_path / "m.gguf")
    read = Importance.read(
        write_newer(tmp_path / "i.gguf", {name: np.ones((2, 256))}, {name: [1, 1]})
    )
    with (
        GGUFFile.open(tmp_path / "m.gguf") as file,
        pytest.raises(FormatError, match="has 512 values; expected 3 times 256, for 3 matrices"),
    ):
        convert(file, tmp_path / "new.gguf", "q4_k_s", importance=read)


def test_the_file_of_another_model_is_refused(tmp_path, wide, capsys):
    path = write_newer(tmp_path / "i.gguf", {"blk.77.attn_q.weight": np.ones((1, 256))}, {})
    said = refused(wide, tmp_path, capsys, path)
    assert "has nothing on 'blk.0.attn_k.weight' or any other" in said
    assert "it is the importance file of another model" in said


@pytest.mark.parametrize("type", ["q8_0", "f16"])
def test_importance_for_a_type_that_does_not_search_is_refused(tmp_path, wide, capsys, type):
    path = write_newer(tmp_path / "i.gguf", vectors_of(wide), {})
    said = refused(wide, tmp_path, capsys, path, type)
    assert f"importance means nothing to {type}" in said


# Damaged files.


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"general.type": "model"}, "general.type is 'model'; expected 'imatrix'"),
        ({"general.type": 5}, "general.type is int 5; expected a string"),
    ],
)
def test_a_gguf_file_of_another_kind_is_refused(tmp_path, keys, says):
    path = write_newer(tmp_path / "i.gguf", {DOWN: np.ones((1, 512))}, {}, **keys)
    with pytest.raises(FormatError, match=says):
        Importance.read(path)


def test_sums_without_counts_are_refused(tmp_path):
    tensors = [("a.in_sum2", "f32", (1, 4), np.ones((1, 4), np.float32))]
    path = write_gguf(tmp_path / "i.gguf", {"general.type": "imatrix"}, tensors)
    with pytest.raises(FormatError, match=r"tensor 'a.counts' is missing"):
        Importance.read(path)
    path = write_gguf(tmp_path / "i.gguf", {"general.type": "imatrix"}, [])
    with pytest.raises(FormatError, match=r"has no tensor whose name ends in '.in_sum2'"):
        Importance.read(path)


def test_sums_of_another_type_are_refused(tmp_path):
    half = np.ones((1, 4), np.float16)
    tensors = [
        ("a.in_sum2", "f16", (1, 4), half),
        ("a.counts", "f32", (1, 1), np.ones((1, 1), "f4")),
    ]
    path = write_gguf(tmp_path / "i.gguf", {"general.type": "imatrix"}, tensors)
    with pytest.raises(FormatError, match=r"tensor 'a.in_sum2' is f16; expected f32"):
        Importance.read(path)


@pytest.mark.parametrize("counts", [[1, 1, 1], [-1], [np.nan], [np.inf]])
def test_counts_that_make_no_sense_are_refused(tmp_path, counts):
    path = write_newer(tmp_path / "i.gguf", {"a": np.ones((1, 4))}, {"a": counts})
    with pytest.raises(FormatError, match=r"tensor 'a.counts' has . values"):
        Importance.read(path)


def test_an_older_file_that_ends_anywhere_is_refused(tmp_path):
    raw = dat_bytes({"ab": np.ones(3), "c": np.ones(2)})
    path = tmp_path / "i.dat"
    for end in range(1, len(raw) - 12):  # the number of chunks and the text's name may be missing
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError, match=r"i\.dat: .* needs .* bytes at offset"):
            Importance.read(path)
    path.write_bytes(raw[:-12])
    assert list(Importance.read(path).vectors) == ["ab", "c"]


@pytest.mark.parametrize("count", [-1, 0, 2**31 - 1])
def test_a_false_number_of_matrices_is_refused(tmp_path, count):
    path = tmp_path / "i.dat"
    path.write_bytes(struct.pack("<i", count) + bytes(64))
    with pytest.raises(FormatError, match=r"is no importance file of llama.cpp"):
        Importance.read(path)


def test_lengths_that_are_false_take_no_memory(tmp_path):
    path = tmp_path / "i.dat"
    for length in (-1, 2**31 - 1):
        path.write_bytes(struct.pack("<ii", 1, length) + bytes(64))
        with pytest.raises(FormatError, match=r"the length of a name|a name needs"):
            Importance.read(path)


# The mixes in a whole conversion.


def test_a_warning_names_what_has_other_blocks(tmp_path, capsys):
    model = write_tiny_model(tmp_path)  # rows of 64 and 96
    out = tmp_path / "new.gguf"
    assert (
        main(["convert", "-m", str(model.path), "-o", str(out), "--type", "q4_k_m", "--json"]) == 0
    )
    said, notes = capsys.readouterr()
    notes = " ".join(notes.split())
    says = "token_embd.weight and 21 more: rows are no whole blocks of q4_k, q6_k"
    assert f"{says}; written as q5_0, q8_0" in notes
    assert json.loads(said)["fallbacks"][DOWN] in ("q5_0", "q8_0")


def test_what_keeps_its_type_has_no_other_blocks(tmp_path):
    model = write_tiny_model(tmp_path, "q4_1")
    with open_model(model.path) as source:
        done = convert(source, tmp_path / "new.gguf", "q4_k_m", keep_quantized=True)
    assert done.fallbacks == {}


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_mix_runs_as_it_is_read_and_from_a_file(tmp_path, wide, backend):
    from airllm.layer_engine import LayerWiseInferenceEngine

    if backend == "cpp":
        require_cpp()
    with open_model(wide.path) as source:
        convert(source, tmp_path / "new.gguf", "q3_k_m")
    exact = {"kv_type": "f32", "activations": "f32", "backend": backend}
    with (
        LayerWiseInferenceEngine(wide.path, quantize="q3_k_m", **exact) as read,
        LayerWiseInferenceEngine(tmp_path / "new.gguf", **exact) as file,
    ):
        tensors = read._model.planned.file.tensors
        assert {tensor.type for tensor in tensors.values()} >= {"q3_k", "q4_k", "q5_k", "q6_k"}
        assert file._model.planned.file.metadata["general.file_type"] == 12
        np.testing.assert_array_equal(read.forward([1, 2, 3]), file.forward([1, 2, 3]))

"""airllm convert and quantize=: the same model in another type, complete or not there at all."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_blocks
import reference_model
from extension import require_cpp
from gguf_writer import gguf_bytes, write_gguf
from hf_folder import write_folder
from split_model import write_split
from test_model_families import EXACT, TOKENS, error, logits_of
from tiny_model import FAMILIES, TinyModel, write_tiny_model
from traced_memory import traced_memory

from airllm.cli import main, options
from airllm.formats import convert as convert_module
from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.formats.gguf_writer import GGUFWriter
from airllm.formats.mixes import CONVERTIBLE, FILE_TYPES
from airllm.formats.numbers import FLOATS, decode
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.plan import BudgetError

QUANTISED = reference_blocks.WRITTEN
Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def converted(source: Path, out: Path, type: str) -> GGUFFile:
    with open_model(source) as model:
        convert(model, out, type)
    return GGUFFile.open(out)


def values(file: GGUFFile) -> dict[str, np.ndarray]:
    return {
        name: decode(file.data(name).reshape(-1, tensor.row_bytes), tensor.type)
        .astype(np.float64)
        .reshape(tensor.shape)
        for name, tensor in file.tensors.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_becomes_the_gguf_file_of_the_same_model(tmp_path, backend, family):
    model = write_tiny_model(tmp_path, sizes=FAMILIES[family])
    folder = write_folder(tmp_path / "hf", model, n_shards=2)
    with converted(folder, tmp_path / "new.gguf", "f32") as file:
        found = values(file)
        assert found.keys() == model.tensors.keys()
        for name, expected in model.tensors.items():
            np.testing.assert_array_equal(found[name], expected, name)  # Q and K in GGUF's order
    expected = reference_model.forward(model.tensors, model.sizes, TOKENS)
    new = TinyModel(tmp_path / "new.gguf", model.sizes, model.tensors)
    assert error(logits_of(new, backend, [TOKENS]), expected) <= EXACT


def test_metadata_and_tokens_are_the_folders(tmp_path):
    model = write_tiny_model(tmp_path)
    folder = write_folder(tmp_path / "hf", model)
    converted(folder, tmp_path / "new.gguf", "q8_0").close()
    with (
        LayerWiseInferenceEngine(tmp_path / "new.gguf", backend="numpy") as new,
        LayerWiseInferenceEngine(model.path, backend="numpy") as old,
    ):
        chat = [{"role": "user", "content": "hello 12 <|im_end|>"}]
        for prompt in ("hello world", "<|im_start|>", chat):
            assert new.tokenize(prompt) == old.tokenize(prompt)
        assert new.config.context_length == old.config.context_length
        assert new._model.planned.file.metadata["general.file_type"] == 7
        assert new._model.planned.file.metadata["general.quantization_version"] == 2
        assert "airllm.rope.interleaved" not in new._model.planned.file.metadata


@pytest.mark.parametrize("type", QUANTISED)
def test_blocks_are_those_of_ggml(tmp_path, type):
    model = write_tiny_model(tmp_path)
    with converted(model.path, tmp_path / "new.gguf", type) as file:
        tensor = file.tensors["blk.0.ffn_up.weight"]
        assert tensor.type == type
        values = model.tensors[tensor.name].astype(np.float32)
        np.testing.assert_array_equal(
            file.data(tensor.name), reference_blocks.quantize(values, type)
        )


def test_vectors_routers_and_the_head_keep_more_bits(tmp_path):
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    with converted(model.path, tmp_path / "new.gguf", "q4_0") as file:
        types = {name: tensor.type for name, tensor in file.tensors.items()}
    assert types["output.weight"] == "q8_0"
    assert types["token_embd.weight"] == "q4_0"
    assert types["blk.0.ffn_up_exps.weight"] == "q4_0"
    assert types["blk.0.ffn_gate_inp.weight"] == "f32"
    assert types["blk.0.attn_norm.weight"] == "f32"
    model = write_tiny_model(tmp_path, tied=True)
    with converted(model.path, tmp_path / "tied.gguf", "q4_1") as file:
        assert file.tensors["token_embd.weight"].type == "q8_0"


def test_the_biases_of_experts_stay_float32(tmp_path):
    biases = [("blk.0.ffn_up_exps.bias", "f32", (4, 64), np.ones((4, 64), "f4"))]
    matrix = [("w", "f32", (4, 64), np.ones((4, 64), "f4"))]
    path = write_gguf(tmp_path / "m.gguf", {}, biases + matrix)
    with converted(path, tmp_path / "new.gguf", "q4_0") as file:
        types = {name: tensor.type for name, tensor in file.tensors.items()}
    assert types == {"blk.0.ffn_up_exps.bias": "f32", "w": "q4_0"}


def test_rows_that_are_no_whole_blocks_are_f16(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {}, [("w", "f32", (2, 40), np.ones((2, 40), "f4"))])
    with converted(path, tmp_path / "new.gguf", "q4_0") as file:
        assert file.tensors["w"].type == "f16"


@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_16_bit_weights_are_the_nearest(tmp_path, type):
    model = write_tiny_model(tmp_path)
    with converted(model.path, tmp_path / "new.gguf", type) as file:
        found = values(file)["blk.1.attn_v.weight"]
    expected = model.tensors["blk.1.attn_v.weight"]
    bits = 11 if type == "f16" else 8
    assert (np.abs(found - expected) <= 2.0**-bits * np.abs(expected) + 2.0**-25).all()
    assert (found != expected).any()


def test_what_has_the_type_already_is_copied_byte_for_byte(tmp_path):
    model = write_tiny_model(tmp_path, "q4_1")
    with (
        converted(model.path, tmp_path / "new.gguf", "q4_1") as new,
        GGUFFile.open(model.path) as old,
    ):
        name = "blk.2.ffn_down.weight"
        np.testing.assert_array_equal(new.data(name), old.data(name))


def test_a_k_quant_becomes_another_type_by_its_values(tmp_path):
    model = write_tiny_model(tmp_path, "q6_k")
    with open_model(model.path) as source:
        assert convert(source, tmp_path / "new.gguf", "f32").requantized == "q6_k"
    with GGUFFile.open(tmp_path / "new.gguf") as file:
        for name, found in values(file).items():
            np.testing.assert_allclose(found, model.tensors[name], rtol=1e-6, atol=1e-7)


def test_a_split_model_becomes_one_file(tmp_path):
    data = np.arange(64, dtype=np.float32).reshape(2, 32)
    parts = [[("a", "f32", (2, 32), data)], [("b", "f32", (2, 32), data + 1)]]
    first = write_split(tmp_path, {"general.architecture": "llama"}, parts)
    with converted(first, tmp_path / "new.gguf", "f32") as file:
        assert set(file.tensors) == {"a", "b"}
        assert not [key for key in file.metadata if key.startswith("split.")]
        np.testing.assert_array_equal(file.data("b").view("<f4"), data + 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_values_that_the_type_cannot_hold_are_refused_by_the_tensors_name(tmp_path, bad):
    data = np.ones((2, 32), np.float32)
    data[1, 3] = bad
    path = write_gguf(tmp_path / "m.gguf", {}, [("w", "f32", (2, 32), data)])
    with open_model(path) as source, pytest.raises(FormatError, match="tensor 'w' has values"):
        convert(source, tmp_path / "new.gguf", "q8_0")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.gguf"]


# Memory and disk.


def test_memory_does_not_grow_with_the_tensor(tmp_path):
    """A matrix of 64 MB (and one row of 2 MB) in 14 MB."""
    for shape in ((8192, 4096), (3, 2**20)):
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf_bytes({}, [("w", "f16", shape, np.zeros(0, np.float16))]))
        os.truncate(path, path.stat().st_size + 2 * shape[0] * shape[1])
        with open_model(path) as source, traced_memory() as traced:
            convert(source, tmp_path / "new.gguf", "q4_0")
        assert traced.peak < 24 * 2**20


def test_progress_counts_the_new_files_bytes(tmp_path):
    model = write_tiny_model(tmp_path)
    steps: list[tuple[int, int]] = []
    with open_model(model.path) as source:
        convert(source, tmp_path / "n.gguf", "q8_0", on_progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    assert 0 <= (tmp_path / "n.gguf").stat().st_size - steps[-1][1] < 30_000  # metadata


def test_a_disk_without_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    model = write_tiny_model(tmp_path)
    usage = convert_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage)
    with open_model(model.path) as source, pytest.raises(OSError, match="0 MB left") as error:
        convert(source, tmp_path / "new.gguf", "q8_0")
    assert error.value.filename == str(tmp_path / "new.gguf")
    assert not (tmp_path / "new.gguf.partial").exists()


def test_what_a_killed_convert_left_behind_is_room(tmp_path, monkeypatch):
    model = write_tiny_model(tmp_path)
    out = tmp_path / "new.gguf"
    out.with_name("new.gguf.partial").write_bytes(b"airllm's unfinished file" + bytes(1_000_000))
    usage = convert_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: usage)
    with open_model(model.path) as source:
        convert(source, out, "q8_0")
    GGUFFile.open(out).close()


def _as_link(path, target):
    path.symlink_to(target)


def _as_hard_link(path, target):
    path.hardlink_to(target)


def _as_pipe(path, target):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_as_link, _as_hard_link, _as_pipe])
def test_a_link_or_pipe_in_the_place_of_the_partial_file_is_left_alone(tmp_path, make):
    model = write_tiny_model(tmp_path)
    (tmp_path / "precious").write_bytes(b"precious")
    make(tmp_path / "new.gguf.partial", tmp_path / "precious")
    with open_model(model.path) as source, pytest.raises(FileExistsError, match="is a link or no"):
        convert(source, tmp_path / "new.gguf", "q8_0")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "new.gguf.partial").exists()


CONVERT = """
import os, signal, sys
from airllm.formats.convert import convert
from airllm.models.opening import open_model
def at_half(done, total):
    if len(sys.argv) > 3 and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    convert(open_model(sys.argv[1]), sys.argv[2], "q8_0", on_progress=at_half)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


def test_a_write_that_fails_leaves_nothing(tmp_path):
    model = write_tiny_model(tmp_path)
    out = tmp_path / "new.gguf"
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, model.path, out],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"{out}.partial: File too large\n"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_killed_convert_leaves_no_half_file_and_the_next_one_cleans_up(tmp_path):
    model = write_tiny_model(tmp_path)
    out, partial = tmp_path / "new.gguf", tmp_path / "new.gguf.partial"
    command = [sys.executable, "-c", CONVERT, model.path, out]
    done = subprocess.run([*command, "kill"])
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert partial.stat().st_size > 0
    assert subprocess.run(command).returncode == 0
    GGUFFile.open(out).close()
    assert not partial.exists()


@pytest.mark.parametrize("content", [b"GGUF", b"my notes", b"\0", b"airllm's finished file!!"])
def test_a_partial_file_of_something_else_is_not_taken_over(tmp_path, content):
    path, partial = tmp_path / "new.gguf", tmp_path / "new.gguf.partial"
    partial.write_bytes(content)
    with pytest.raises(FileExistsError, match="is no unfinished file of this program") as error:
        GGUFWriter(path, {}, [])
    assert error.value.filename == str(partial)
    assert partial.read_bytes() == content
    assert not path.exists()


def test_an_unfinished_file_is_no_gguf_file(tmp_path):
    with GGUFWriter(tmp_path / "new.gguf", {}, []):
        partial = tmp_path / "new.gguf.partial"
        assert partial.read_bytes().startswith(b"airllm's unfinished file")
        with pytest.raises(FormatError, match="not a GGUF file"):
            GGUFFile.open(partial)


def test_a_link_or_a_pipe_in_the_partial_files_place_is_left_alone(tmp_path):
    path, partial = tmp_path / "new.gguf", tmp_path / "new.gguf.partial"
    (tmp_path / "mine").write_bytes(b"")
    partial.symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is a link or no regular file") as error:
        GGUFWriter(path, {}, [])
    assert error.value.filename == str(partial)
    partial.unlink()
    os.mkfifo(partial)
    with pytest.raises(FileExistsError, match="is a link or no regular file"):
        GGUFWriter(path, {}, [])
    assert partial.is_fifo()


def test_the_data_last_before_the_name_does(tmp_path, monkeypatch):
    done: list[str] = []
    replace = Path.replace
    monkeypatch.setattr("os.fsync", lambda _: done.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda *paths: done.append("rename") or replace(*paths))
    with GGUFWriter(tmp_path / "new.gguf", {}, []):
        pass
    assert done == ["fsync", "rename", "fsync"]  # the file, its name, the folder


def test_a_disk_that_fails_at_the_end_is_named(tmp_path, monkeypatch):
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fails)
    with (
        pytest.raises(OSError, match="Input/output error") as error,
        GGUFWriter(tmp_path / "new.gguf", {}, []),
    ):
        pass
    assert error.value.filename == str(tmp_path / "new.gguf.partial")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "new.gguf"
    with GGUFWriter(path, {}, []), pytest.raises(OSError, match="another process is writing it"):
        GGUFWriter(path, {}, [])
    GGUFFile.open(path).close()


def test_a_directory_or_pipe_is_not_replaced(tmp_path, capsys: Capture):
    model = write_tiny_model(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        command = ["convert", "-m", str(model.path), "-o", str(tmp_path / name), "--type", "q8_0"]
        for force in ([], ["--force"]):
            assert main([*command, *force]) == 1
            assert f"{name}: is there, and is no regular file" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.gguf", "folder", "pipe"}


# On the way in.


@pytest.mark.parametrize("family", ["llama", "qwen3moe", "gemma3"])
def test_a_folder_is_quantised_while_it_is_read(tmp_path, backend, family):
    """To what convert writes, but for the order of a Llama's Q and K."""
    model = write_tiny_model(tmp_path, sizes=FAMILIES[family])
    folder = write_folder(tmp_path / "hf", model, dtype="BF16")
    converted(folder, tmp_path / "new.gguf", "q8_0").close()
    exact = {"kv_type": "f32", "activations": "f32", "backend": backend}
    with (
        LayerWiseInferenceEngine(folder, quantize="q8_0", **exact) as hf,
        LayerWiseInferenceEngine(tmp_path / "new.gguf", **exact) as gguf,
    ):
        assert {tensor.type for tensor in hf._model.planned.file.tensors.values()} <= {
            "q8_0",
            "f32",
            "bf16",
            "f16",
        }
        assert hf._model.planned.file.tensors["blk.0.attn_q.weight"].type == "q8_0"
        expected = gguf.forward(TOKENS, last_only=False)
        assert error(hf.forward(TOKENS, last_only=False), expected) <= EXACT
        assert hf._model.planned.file.fingerprint() != open_model(folder).fingerprint()


def test_rows_of_a_quantised_tensor_are_those_of_the_whole(tmp_path):
    model = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"])
    with open_model(model.path, quantize="q4_0") as file:
        name = "blk.0.ffn_up_exps.weight"
        whole = file.data(name).reshape(-1, file.tensors[name].row_bytes)
        rows = file.read(name, np.empty(10_000, np.uint8), rows=(30, 70))
        np.testing.assert_array_equal(rows, whole[30:70])


def test_what_cannot_be_quantised_is_refused(tmp_path):
    model = write_tiny_model(tmp_path, "q4_1")
    with pytest.raises(ValueError, match=r"quantised already \(q4_1\); `airllm convert`"):
        open_model(model.path, quantize="q8_0")
    with pytest.raises(ValueError, match="quantize is 'iq4_xs'; expected one of q8_0, q6_k"):
        open_model(model.path, quantize="iq4_xs")


# The command.


def test_the_command_says_where_the_file_is(tmp_path, capsys: Capture):
    folder = write_folder(tmp_path / "hf", write_tiny_model(tmp_path))
    out = tmp_path / "new.gguf"
    assert main(["convert", "-m", str(folder), "-o", str(out), "--type", "q4_0"]) == 0
    said, notes = capsys.readouterr()
    assert said == f"{out}\n"
    assert "30 tensors" in notes
    assert main(["convert", "-m", str(out), "-o", str(out), "--type", "f16"]) == 1
    assert f"{out}: the file exists; --force replaces it" in capsys.readouterr().err
    again = ["convert", "-m", str(out), "-o", str(out), "--type", "f16", "--force", "--json"]
    assert main(again) == 0
    said, notes = capsys.readouterr()
    assert "was quantised already (q4_0)" in notes
    found = json.loads(said)
    assert found == {
        "path": str(out),
        "tensors": 30,
        "bytes": out.stat().st_size,
        "type": "f16",
        "requantized_from": "q4_0",
        "fallbacks": {},
        "not_weighted": [],
    }


def test_a_model_that_cannot_run_is_not_converted(tmp_path, capsys: Capture):
    model = write_tiny_model(tmp_path, tensors={"blk.1.attn_q.weight": None})
    out = tmp_path / "new.gguf"
    assert main(["convert", "-m", str(model.path), "-o", str(out), "--type", "q4_0"]) == 1
    assert "tensor blk.1.attn_q.weight is missing" in capsys.readouterr().err
    assert not out.exists()


def test_every_type_that_is_offered_can_be_written(tmp_path):
    model = write_tiny_model(tmp_path)
    assert set(options.QUANTIZED_TYPES) | set(FLOATS) == set(CONVERTIBLE) == set(FILE_TYPES)
    for type in CONVERTIBLE:
        converted(model.path, tmp_path / f"{type}.gguf", type).close()


def test_a_folder_runs_in_a_budget_as_it_does_without(tmp_path):
    """What is quantised on the way in has no place in a file, and is kept; the rest is streamed."""
    require_cpp()
    model = write_tiny_model(tmp_path, sizes=FAMILIES["gemma3"])
    folder = write_folder(tmp_path / "hf", model, dtype="BF16", n_shards=3)
    for quantize in (None, "q8_0"):
        settings = {"backend": "cpp", "quantize": quantize, "batch_size": 8, "context": 96}
        with pytest.raises(BudgetError) as refused:
            LayerWiseInferenceEngine(folder, ram_budget=1000, **settings)
        with (
            LayerWiseInferenceEngine(folder, ram_budget=refused.value.minimum, **settings) as least,
            LayerWiseInferenceEngine(folder, **settings) as whole,
        ):
            assert (least.stream_stats() is not None) == (quantize is None)
            expected = whole.forward(TOKENS, last_only=False)
            np.testing.assert_array_equal(least.forward(TOKENS, last_only=False), expected)

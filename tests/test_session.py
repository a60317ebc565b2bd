"""Sessions on disk: what comes back is what was saved, and anything else is refused."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from extension import require_cpp
from tiny_model import Sizes, write_tiny_model

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.util.metadata import FormatError

Engine = LayerWiseInferenceEngine
Open = Callable[..., Engine]
CHAT = [{"role": "user", "content": "hello"}]
HEADER = struct.Struct("<8sI8s32sII32s")
HEADER_1 = struct.Struct("<8sIIII8sII32s")
GREEDY = {"temperature": 0, "max_new_tokens": 6}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path, sizes=Sizes(head_dim=32, rope_dims=32)).path


@pytest.fixture
def open_engine(model: Path) -> Iterator[Open]:
    """Opens the model, on NumPy unless told otherwise; closed after the test."""
    engines = []

    def open_one(path: Path = model, **settings: object) -> Engine:
        engines.append(LayerWiseInferenceEngine(path, **({"backend": "numpy"} | settings)))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def saved(open_engine: Open, tmp_path: Path) -> Path:
    """A session of five tokens and a message."""
    engine = open_engine()
    engine.forward([5, 6, 7, 8, 9])
    engine.save_session(tmp_path / "chat.session", messages=CHAT)
    return tmp_path / "chat.session"


def signed(data: bytes) -> bytes:
    """The file with the checksum that its contents have."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def with_header(data: bytes, **changes: object) -> bytes:
    names = ["magic", "version", "kv_type", "kept", "tokens", "said", "model"]
    fields = dict(zip(names, HEADER.unpack(data[: HEADER.size]), strict=True)) | changes
    return signed(HEADER.pack(*fields.values()) + data[HEADER.size :])


def of_version_1(data: bytes, layers: int = 3, heads: int = 2, head_dim: int = 32) -> bytes:
    """The same session as older versions have written it."""
    magic, _, kv_type, _, *rest = HEADER.unpack(data[: HEADER.size])
    header = HEADER_1.pack(magic, 1, layers, heads, head_dim, kv_type, *rest)
    return signed(header + data[HEADER.size :])


# ---- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_after_loading_the_model_goes_on_as_if_nothing_had_been(
    open_engine: Open, tmp_path: Path, backend: str, kv_type: str
) -> None:
    if backend == "cpp":
        require_cpp()
    first = open_engine(backend=backend, kv_type=kv_type)
    first.forward([5, 6, 7, 8, 9])
    first.save_session(tmp_path / "s")
    second = open_engine(backend=backend, kv_type=kv_type)
    second.forward([1, 2])  # must be forgotten
    second.load_session(tmp_path / "s")
    assert second.position == 5
    np.testing.assert_array_equal(second.forward([10]), first.forward([10]))


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_chat_that_is_loaded_evaluates_only_its_new_turn(
    open_engine: Open, tmp_path: Path, backend: str
) -> None:
    if backend == "cpp":
        require_cpp()
    first = open_engine(backend=backend)
    answer = first.generate(CHAT, **GREEDY)
    said = [*CHAT, {"role": "assistant", "content": answer.text}]
    first.save_session(tmp_path / "s", messages=said)
    second = open_engine(backend=backend)
    goes_on = [*second.load_session(tmp_path / "s"), {"role": "user", "content": "world"}]
    assert goes_on[:-1] == said
    expected = first.generate(goes_on, **GREEDY)
    found = second.generate(goes_on, **GREEDY)
    assert found.reused_tokens == expected.reused_tokens >= answer.prompt_tokens
    assert found.tokens == expected.tokens


def test_a_session_of_one_backend_goes_on_in_the_other(open_engine: Open, saved: Path) -> None:
    require_cpp()
    numpy, cpp = open_engine(), open_engine(backend="cpp", activations="f32")
    numpy.load_session(saved)
    cpp.load_session(saved)
    np.testing.assert_allclose(cpp.forward([10]), numpy.forward([10]), rtol=1e-3, atol=1e-3)


def test_a_larger_context_and_a_renamed_model_are_no_hindrance(
    open_engine: Open, saved: Path, model: Path
) -> None:
    engine = open_engine(model.rename(model.with_name("renamed.gguf")), context=6)
    assert engine.load_session(saved) == CHAT
    assert engine.position == 5


def test_an_empty_session_is_one_too(open_engine: Open, tmp_path: Path) -> None:
    engine = open_engine()
    engine.save_session(tmp_path / "s")
    engine.forward([5])
    assert engine.load_session(tmp_path / "s") == []
    assert engine.position == 0


# ---- the file ------------------------------------------------------------------------------------


def test_only_the_used_positions_are_written(saved: Path) -> None:
    tokens, messages = 5 * 4, len(json.dumps(CHAT))
    rows = 3 * 2 * 2 * 5 * 32 * 2  # layers, K and V, KV heads, tokens, head_dim, f16
    assert saved.stat().st_size == HEADER.size + tokens + messages + rows + 32


def test_the_file_is_as_the_module_says(saved: Path) -> None:
    data = saved.read_bytes()
    fields = HEADER.unpack(data[: HEADER.size])
    assert fields[:3] == (b"AIRLLMKV", 2, b"f16".ljust(8, b"\0"))
    assert fields[4:-1] == (5, len(json.dumps(CHAT)))
    assert data[HEADER.size :][:20] == struct.pack("<5i", 5, 6, 7, 8, 9)
    assert data[HEADER.size + 20 :].startswith(json.dumps(CHAT).encode())
    assert data == signed(data)


def test_only_the_user_may_read_what_was_said(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o600


def test_saving_replaces_the_file_at_once_or_not_at_all(
    open_engine: Open, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, folder = saved.read_bytes(), sorted(saved.parent.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    engine = open_engine()
    engine.forward([1])
    with pytest.raises(OSError, match="No space left"):
        engine.save_session(saved)
    assert saved.read_bytes() == before
    assert sorted(saved.parent.iterdir()) == folder


def test_what_is_no_file_is_neither_read_nor_replaced(open_engine: Open, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    engine = open_engine()
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(FormatError, match="is not a regular file"):
            engine.save_session(path)
        with pytest.raises(FormatError, match="is not a regular file"):
            engine.load_session(path)


def test_a_folder_that_is_not_there_is_named(open_engine: Open, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere'$"):
        open_engine().save_session(tmp_path / "nowhere" / "s")


def test_a_session_of_version_1_gives_the_same(
    open_engine: Open, saved: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    older.write_bytes(of_version_1(saved.read_bytes()))
    logits = []
    for path in (saved, older):
        engine = open_engine()
        assert engine.load_session(path) == CHAT
        logits.append(engine.forward([1]))
    np.testing.assert_array_equal(*logits)


# ---- what is refused -----------------------------------------------------------------------------


def refused(engine: Engine, path: Path, message: str) -> None:
    """Refused with that message and the file's name, and the cache as it was."""
    engine.forward([1, 2])
    with pytest.raises(FormatError, match=message) as error:
        engine.load_session(path)
    assert str(error.value).startswith(f"{path}: ")
    assert engine._model.decoder is not None
    assert engine._model.decoder.state.tokens == [1, 2]


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"general.name": "other"}}, {"type": "f16"}, {"tied": True}],
    ids=["metadata", "types", "tensors"],
)
def test_another_models_session_is_refused(
    open_engine: Open, saved: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "other").mkdir()
    sizes = Sizes(head_dim=32, rope_dims=32)
    other = write_tiny_model(tmp_path / "other", **({"sizes": sizes} | change))
    refused(open_engine(other.path), saved, "saved with another model's file")


def test_a_model_of_other_weights_alone_is_another_model(
    open_engine: Open, saved: Path, model: Path
) -> None:
    data = bytearray(model.read_bytes())
    offset = open_engine()._model.planned.file.tensors["blk.1.attn_q.weight"].offset
    data[offset : offset + 4] = bytes(4)
    other = model.with_name("other.gguf")
    other.write_bytes(data)
    refused(open_engine(other), saved, "saved with another model's file")


def test_another_kv_type_is_refused_with_both(open_engine: Open, saved: Path) -> None:
    refused(open_engine(kv_type="q8_0"), saved, "has kv_type 'f16'; expected 'q8_0'")


def test_more_tokens_than_the_context_has_room_for_are_refused(
    open_engine: Open, saved: Path
) -> None:
    refused(open_engine(context=4), saved, "has 5 tokens; the context has room for 4. context=5")


@pytest.mark.parametrize("size", [8, 40, 79, 80, 100, -33, -32, -1])
def test_a_truncated_file_is_refused(open_engine: Open, saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    refused(open_engine(), saved, "truncated")


def test_a_longer_file_is_refused(open_engine: Open, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    refused(open_engine(), saved, "truncated or damaged")


@pytest.mark.parametrize("at", [92, 110, 500, -33, -1])
def test_a_flipped_bit_anywhere_in_the_data_is_refused(
    open_engine: Open, saved: Path, at: int
) -> None:
    data = bytearray(saved.read_bytes())
    data[at] ^= 1
    saved.write_bytes(data)
    refused(open_engine(), saved, "its checksum is wrong")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"GGUF\0\0\0\0"}, "not a saved session: it begins with b'GGUF"),
        ({"version": 3}, "session of version 3; expected 2 or 1"),
        ({"kept": bytes(32)}, "layers keep other keys and values"),
        ({"kv_type": b"\xff" * 8}, "kv_type '\ufffd+'"),
        ({"tokens": 96}, r"bytes, and its header says [\d,]+; it is truncated or damaged"),
        ({"tokens": 2**32 - 1}, "has 4294967295 tokens; the context has room for 96"),
        ({"said": 2**32 - 1}, "claims 4,294,967,295 bytes of messages"),
        ({"said": 2**20}, "its header says 1,0"),
    ],
)
def test_a_header_that_claims_what_is_not_there_is_refused_before_anything_is_read(
    open_engine: Open, saved: Path, changes: dict[str, object], message: str
) -> None:
    saved.write_bytes(with_header(saved.read_bytes(), **changes))
    refused(open_engine(), saved, message)


@pytest.mark.parametrize("changes", [{"layers": 4}, {"heads": 2**32 - 1}, {"head_dim": 64}])
def test_a_session_of_version_1_with_other_layers_is_refused(
    open_engine: Open, saved: Path, changes: dict[str, int]
) -> None:
    saved.write_bytes(of_version_1(saved.read_bytes(), **changes))
    refused(open_engine(), saved, "layers keep other keys and values")


@pytest.mark.parametrize("token", [-1, 268])
def test_a_token_that_the_model_does_not_have_is_refused(
    open_engine: Open, saved: Path, token: int
) -> None:
    data = bytearray(saved.read_bytes())
    data[HEADER.size : HEADER.size + 4] = struct.pack("<i", token)
    saved.write_bytes(signed(bytes(data)))
    refused(open_engine(), saved, "tokens that are not in the vocabulary")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"{", "not a JSON list of objects"),
        (b"\xff", "not a JSON list of objects"),
        (b"[" * 100_000, "not a JSON list of objects"),
        (b"{}", "not a JSON list of objects"),
        (b"[1]", "not a JSON list of objects"),
        (b'[{"role": 1}]', "not a JSON list of objects"),
    ],
)
def test_messages_that_are_none_are_refused(
    open_engine: Open, saved: Path, said: bytes, message: str
) -> None:
    data, start = saved.read_bytes(), HEADER.size + 20
    end = start + len(json.dumps(CHAT))
    saved.write_bytes(with_header(data[:start] + said + data[end:], said=len(said)))
    refused(open_engine(), saved, message)


def test_a_session_is_not_for_an_engine_that_is_busy(open_engine: Open, saved: Path) -> None:
    engine = open_engine()
    stream = engine.stream("hello", seed=1)
    next(stream)
    for use in (engine.save_session, engine.load_session):
        with pytest.raises(RuntimeError, match="busy"):
            use(saved)

"""A session's file alone, without a model: what is loaded can be saved, whatever a file says."""

import contextlib
import copy
import hashlib
import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequence_states import heads_of, new_state
from traced_memory import traced_memory

from airllm.backends.numpy_backend import NumpyBackend
from airllm.state import session
from airllm.state.sequence import SequenceState
from airllm.util.metadata import FormatError

MODEL = bytes(range(32))
HEADER = struct.Struct("<8sI8s32sII32s")
CHAT = [
    {"role": "system", "content": 'Ünïcödé "quoted" \\ \n'},
    {"role": "user", "content": "", "name": "Ada"},
]


def fresh(n_tokens: int = 0) -> SequenceState:
    """Two layers that keep a head of 4 values, with room for 8 tokens."""
    state = new_state(NumpyBackend(), [heads_of(1, 4)] * 2, 8)
    state.make_room(0, 2, 0, n_tokens)
    state.advance(list(range(n_tokens)))
    for rows in memory_of(state):
        rows[:] = 7
    return state


def memory_of(state: SequenceState) -> list[Any]:
    """The rows of keys and values, in the order of the file."""
    places = [layer.keys for layer in state.layout.layers]
    return [rows for p in places if p for rows in chain(*state.heads_rows(p, 0, state.length))]


KEPT = session._kept(fresh())  # a hash of what the layers keep


def saved(path: Path, messages: Any = CHAT, n_tokens: int = 3) -> Path:
    session.save(path, fresh(n_tokens), MODEL, messages)
    return path


def with_messages(path: Path, said: bytes) -> Path:
    """A session whose messages are `said`, with the sizes and the checksum that belong to it."""
    fields = (b"AIRLLMKV", 2, b"f16".ljust(8, b"\0"), KEPT, 0, len(said), MODEL)
    data = HEADER.pack(*fields) + said
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


def load(path: Path) -> list[dict[str, str]]:
    return session.load(path, fresh(), MODEL, 100)


def attempt(do: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it returns, or the message of a FormatError."""
    try:
        return do(), None
    except FormatError as error:
        return None, str(error)


# ---- what is loaded can be saved -----------------------------------------------------------------


def test_messages_come_back_as_they_were(tmp_path: Path) -> None:
    assert load(saved(tmp_path / "s")) == CHAT


texts = st.text(max_size=5) | st.sampled_from(["role", "content", "\ud800", '"', "\\", "\0"])
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
messages = st.fixed_dictionaries({"role": texts, "content": texts}, optional={"name": texts})


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(messages, max_size=3) | st.lists(messages | values, max_size=3) | values)
def test_what_json_says_is_loaded_and_saved_or_neither(tmp_path: Path, value: Any) -> None:
    path = with_messages(tmp_path / "s", json.dumps(value).encode())
    found, refusal = attempt(lambda: load(path))
    if refusal is None:
        assert found == value
        assert load(saved(tmp_path / "again", found)) == value
        return
    assert refusal.startswith(f"{path}: ")
    if isinstance(value, list):
        with pytest.raises(ValueError, match=r"messages\[\d\] "):
            saved(tmp_path / "again", value)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            r'[{"role": "user", "content": "\ud800"}]',
            r"message 0 has half of a character, '\\ud800'",
        ),
        (r'[{"role": "u", "content": "", "\udfff": ""}]', "message 0 has half of a character"),
        ('[{"role": "user"}]', "from message 0 on"),
        (
            '[{"role": "u", "name": "x"}]',
            r"message 0 has \['name', 'role'\]; expected role, content",
        ),
        ('[{"role": "u", "content": "", "role": "v"}]', "message 0 has a name twice"),
        ('[{"role": "u", "content": ""}, {}]', "from message 1 on"),
        ('[{"role": "u", "content": ""},]', "from message 1 on"),
        ('[{"role": "u", "content": ""}', "from message 1 on"),
        ('[{"role": "u", "content": ""}] x', "from message 1 on"),
        ('[{"role": "u", "content": "\t"}]', "message 0 is no JSON"),
        (r'[{"role": "u", "content": "\x"}]', "message 0 is no JSON"),
        ("", "not a JSON list of objects"),
    ],
)
def test_messages_that_could_not_be_saved_are_not_loaded(
    tmp_path: Path, said: str, fault: str
) -> None:
    path = with_messages(tmp_path / "s", said.encode())
    with pytest.raises(FormatError, match=fault):
        load(path)


@pytest.mark.parametrize(
    "bad",
    [
        {"role": "user", "content": "\ud800"},
        {"role": "user"},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": "", 1: "x"},
        {"role": "u", "content": "", **{f"n{i}": "" for i in range(15)}},
        "user",
    ],
    ids=range(6),
)
def test_messages_that_could_not_be_loaded_are_not_saved(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path / 's'}: messages\[1\] "):
        saved(tmp_path / "s", [CHAT[0], bad])
    assert list(tmp_path.iterdir()) == []


def test_too_many_messages_are_refused_both_ways(tmp_path: Path) -> None:
    one = {"role": "u", "content": ""}
    most = [one] * session.MAX_MESSAGES
    assert len(load(saved(tmp_path / "s", most))) == len(most)
    with pytest.raises(ValueError, match="65,537 messages"):
        saved(tmp_path / "s", [*most, one])
    path = with_messages(tmp_path / "s", json.dumps([*most, one]).encode())
    with pytest.raises(FormatError, match="more than 65,536 messages"):
        load(path)


@pytest.mark.parametrize(
    "said",
    [
        b"[" + b",".join([b"{}"] * 10**6) + b"]",
        b"[" + b",".join([b"[]"] * 10**6) + b"]",
        b'[{"role":' + b"[" * 10**6,
        b"[" + b",".join([b'{"role":"ab","content":"cd"}'] * 30_000) + b"]",
        b"[" + b'{"a":"","b":""},' * 50_000,
        b'[{"role":"' + b"\\u1234" * 200_000 + b'","content":""}]',
    ],
    ids=["objects", "lists", "depth", "messages", "names", "escapes"],
)
def test_messages_take_a_small_multiple_of_their_bytes(tmp_path: Path, said: bytes) -> None:
    path = with_messages(tmp_path / "s", said)
    with traced_memory() as traced, contextlib.suppress(FormatError):
        load(path)
    assert traced.peak < 12 * len(said) + 2 * 2**20  # with chunks of 1 MiB for the checksum


# ---- structural mutations ------------------------------------------------------------------------

Mutation = Callable[[dict[str, Any]], None]
numbers = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 2**31, 2**32 - 1])


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.dictionaries(st.sampled_from(["version", "tokens", "said"]), numbers),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9),
    st.binary(max_size=40) | st.just(json.dumps(CHAT).encode()),
    st.integers(-200, 200),
)
def test_a_changed_structure_is_a_whole_session_or_refused_and_changes_nothing(
    tmp_path: Path, header: dict[str, int], tokens: list[int], said: bytes, more: int
) -> None:
    fields = {"magic": b"AIRLLMKV", "version": 2, "kv_type": b"f16".ljust(8, b"\0"), "kept": KEPT}
    fields |= {"tokens": len(tokens), "said": len(said)}
    fields |= {"model": MODEL, **header}
    data = HEADER.pack(*fields.values()) + struct.pack(f"<{len(tokens)}i", *tokens) + said
    data += bytes(max(2 * 2 * len(tokens) * 8 + more, 0))
    path = tmp_path / "s"
    path.write_bytes(data + hashlib.sha256(data).digest())
    state = fresh(3)
    before = copy.deepcopy(state.tokens)
    _, refusal = attempt(lambda: session.load(path, state, MODEL, 100))
    if refusal is None:
        assert state.tokens == tokens
        assert all(0 <= token < 100 for token in tokens)
    else:
        assert refusal.startswith(f"{path}: ")
        assert state.tokens == before


def test_the_hash_of_what_is_kept_is_that_of_sessions_from_before_there_were_chunks() -> None:
    shape = "(1, 4, 4, 5, False)"  # heads, widths of a key and a value, window, values in keys
    window = new_state(NumpyBackend(), [heads_of(1, 4, 5)], 8)
    assert session._kept(window) == hashlib.sha256(f"[({shape}, 0)]".encode()).digest()
    chunks = new_state(NumpyBackend(), [heads_of(1, 4, 5, chunked=True)], 8)
    assert session._kept(chunks) != session._kept(window)


# ---- other files, and disks that are full --------------------------------------------------------


@pytest.mark.parametrize("content", [b"GGUF", b"AIRLLM", b"my diary", b"\0", b"airllmkv!"])
def test_another_file_is_not_replaced_by_a_session(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"^{path}: is there, and is no session"):
        saved(path)
    assert path.read_bytes() == content
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(FormatError, match="is no session"):
        saved(tmp_path / "link")
    assert path.read_bytes() == content


def test_an_empty_file_and_a_session_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch()
    assert load(saved(path)) == CHAT
    assert load(saved(path, [])) == []


FULL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_session_file import CHAT, saved
try:
    saved(Path(sys.argv[1]), CHAT * 1000)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


def test_a_full_disk_names_the_session_and_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    path = saved(tmp_path / "s")
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, Path(__file__).parent],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"{path}: File too large\n"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "tempfile.mkstemp", "pathlib.Path.replace"])
def test_whatever_fails_names_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, fails)
    with pytest.raises(OSError, match="No space left on device") as error:
        saved(tmp_path / "s")
    assert error.value.filename == str(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_read_that_fails_names_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "s")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(session._Session, "check_sum", fails)
    with pytest.raises(OSError, match="Input/output error") as error:
        load(path)
    assert error.value.filename == str(path)


def test_a_session_lasts_before_its_name_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that lasts longer than the data would be an empty file after a power cut."""
    done: list[str] = []
    replace = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", lambda _: done.append("fsync"))
    monkeypatch.setattr(Path, "replace", renamed)
    saved(tmp_path / "s")
    assert done == ["fsync", "rename", "fsync"]  # the file, its name, the folder

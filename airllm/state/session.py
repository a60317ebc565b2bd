"""Sessions on disk: the tokens so far and their state, which need not be evaluated again.

The file, little-endian throughout:

    "AIRLLMKV", u32 version = 2
    8 bytes kv_type ("f16", padded with zeros), 32 bytes SHA-256 of what each layer keeps (`_kept`)
    u32 tokens, u32 bytes of messages, 32 bytes fingerprint of the model's file
    tokens: i32 each
    messages: JSON, a list of {"role", "content"}, with which a chat can go on; an object may have
        more names with texts, up to 16 in all
    keys and values: for each layer that has its own the keys, then the values if they are not part
        of the keys; for each KV head the rows of the tokens; of a layer with a window, only the
        tokens that the next token sees; then, if the layer has them, the keys of its index, those
        that groups of tokens have together, and what the next groups will be made of
    recurrent memory: float32 of each layer
    32 bytes SHA-256 of everything before it

Version 1, which is still read, has u32 layers, u32 KV heads and u32 head_dim before kv_type and no
hash after it. It has the rows of all tokens, and no recurrent memory.

`load` trusts nothing in a file. Before it reads on, it compares the header with the sequence, and
the file's size with the size that follows from the header. Before it uses anything, it compares the
checksum. `load` and `save` accept the same messages.
"""

import errno
import hashlib
import json
import os
import re
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from airllm.graph.state import KeysValues
from airllm.state.layout import KeysPlace, LayerPlace
from airllm.state.sequence import SequenceState
from airllm.util.durable import naming, sync_directory
from airllm.util.metadata import FormatError
from airllm.util.shown import shown

__all__ = ["Message", "load", "save"]

Message: TypeAlias = dict[str, str]  # "role", "content" and other texts, for a chat template

MAGIC = b"AIRLLMKV"
VERSION = 2
MAX_MESSAGE_BYTES = 64 << 20  # of all messages; a context of a million tokens is some 4 MB of text
MAX_MESSAGES = 1 << 16
MAX_TEXTS = 16  # of a message: role, content, and more for the chat template
_START = struct.Struct("<8sI")  # magic, version
_HEADER = struct.Struct("<8s32sII32s")
_HEADER_1 = struct.Struct("<III8sII32s")
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_CHUNK = 1 << 20

# These patterns split the list of messages, so that each is parsed alone. The JSON parser would
# make an object of 70 bytes of each "{}" in the list before the list could be refused. The repeats
# never backtrack (*+), so that a hostile text takes no longer than any other.
_TEXT = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PAIR = rb"\s*+%b\s*+:\s*+%b\s*+" % (_TEXT, _TEXT)
_MESSAGE = rb"(\{%b(?:,%b){1,%d}+\})" % (_PAIR, _PAIR, MAX_TEXTS - 1)
_FIRST = re.compile(rb"\s*+\[\s*+" + _MESSAGE, re.DOTALL)
_NEXT = re.compile(rb"\s*+,\s*+" + _MESSAGE, re.DOTALL)
_NONE = re.compile(rb"\s*+\[\s*+\]\s*+")
_PAIRS = json.JSONDecoder(object_pairs_hook=list)
_END = re.compile(rb"\s*+\]\s*+")


def save(
    path: str | os.PathLike[str],
    state: SequenceState,
    fingerprint: bytes,
    messages: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a sequence's tokens and its state to `path`, readable for the user alone.

    The complete file replaces an older session. OSError, which names `path`, if it cannot be
    written; ValueError for messages that `load` would refuse; FormatError, a ValueError, if `path`
    holds something other than a session, which stays.
    """
    path = Path(path).resolve()  # replaces the target of a link, not the link
    if path.exists():
        _check_replaceable(path)
    elif not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    said = _as_json(path, messages)
    tokens = np.array(state.tokens, "<i4")
    kv_type, kept = _kv_type(state), _kept(state)
    header = _START.pack(MAGIC, VERSION)
    header += _HEADER.pack(kv_type, kept, len(tokens), len(said), fingerprint)
    with naming(path):
        try:
            descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:  # without the name of the temporary file
            raise OSError(error.errno, error.strerror) from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = hashlib.sha256()
                parts: list[bytes | memoryview] = [header, tokens.data, said]
                parts += [rows.data for rows in _rows(state, len(tokens))]
                parts.append(state.recurrent.data)
                for part in parts:
                    digest.update(part)
                    file.write(part)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def load(
    path: str | os.PathLike[str], state: SequenceState, fingerprint: bytes, vocab_size: int
) -> list[Message]:
    """Replace the contents of a sequence with a saved session; returns its messages.

    FormatError, and the sequence is unchanged, for a file that is not a session, is damaged,
    belongs to another model or kv_type, or has more tokens than the sequence has room for.
    """
    path = Path(path)
    _check_regular(path)
    with naming(path), path.open("rb") as file:
        session = _Session.open(path, file, state, fingerprint)
        session.check_sum()
        tokens = session.tokens(vocab_size)
        messages = session.messages()
        state.load(tokens, session.read_state)
    return messages


class _Session:
    """A file whose header fits the sequence, and whose size fits the header."""

    def __init__(
        self, path: Path, file: IO[bytes], version: int, size: int, n_tokens: int, n_said: int
    ) -> None:
        self._path, self._file, self._version, self._size = path, file, version, size
        self._n_tokens, self._n_said = n_tokens, n_said
        self._begin = file.tell()

    @classmethod
    def open(cls, path: Path, file: IO[bytes], state: SequenceState, fingerprint: bytes) -> Self:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_START.size)
        if not start.startswith(MAGIC):
            raise FormatError(f"{path}: not a saved session: it begins with {start[:8]!r}")
        version = _START.unpack(start)[1] if len(start) == _START.size else VERSION
        if version not in (1, VERSION):
            raise FormatError(f"{path}: a session of version {version}; expected {VERSION} or 1")
        layout = _HEADER if version == VERSION else _HEADER_1
        header = file.read(layout.size)
        if len(header) < layout.size:
            raise FormatError(f"{path}: it ends in its header; it is truncated")
        *shape, n_tokens, n_said, model = layout.unpack(header)
        if model != fingerprint:
            raise FormatError(f"{path}: this session was saved with another model's file")
        _check_shape(path, shape, state)
        if n_tokens > state.capacity:
            raise FormatError(
                f"{path}: this session has {n_tokens} tokens; the context has room for "
                f"{state.capacity}. context={n_tokens} or more makes it larger"
            )
        if n_said > MAX_MESSAGE_BYTES:
            raise FormatError(f"{path}: claims {n_said:,} bytes of messages; it is damaged")
        begin = _START.size + layout.size
        rows = _state_bytes(state, n_tokens, all_tokens=version == 1)
        expected = begin + 4 * n_tokens + n_said + rows + _CHECKSUM_BYTES
        if size != expected:
            raise FormatError(
                f"{path}: it has {size:,} bytes, and its header says {expected:,}; it is truncated "
                "or damaged"
            )
        return cls(path, file, version, size, n_tokens, n_said)

    def check_sum(self) -> None:
        """Compare the checksum, then seek to the beginning of the tokens."""
        self._file.seek(0)
        digest, left = hashlib.sha256(), self._size - _CHECKSUM_BYTES
        while left:
            chunk = self._read(min(_CHUNK, left))
            digest.update(chunk)
            left -= len(chunk)
        if self._read(_CHECKSUM_BYTES) != digest.digest():
            raise FormatError(f"{self._path}: its checksum is wrong; it is damaged")
        self._file.seek(self._begin)

    def tokens(self, vocab_size: int) -> list[int]:
        tokens = np.frombuffer(self._read(4 * self._n_tokens), "<i4")
        if ((tokens < 0) | (tokens >= vocab_size)).any():
            raise FormatError(f"{self._path}: has tokens that are not in the vocabulary")
        ids: list[int] = tokens.tolist()
        return ids

    def messages(self) -> list[Message]:
        return _from_json(self._path, self._read(self._n_said))

    def read_state(self, state: SequenceState, length: int) -> None:
        """Reads keys, values and recurrent memory into a sequence that has room for them."""
        for place in _own_keys(state):
            first, end = state.rows_needed(place, length)
            for rows in state.heads_rows(place, first, end):
                if self._version == 1 and rows:  # the rows that a window has left behind
                    row_bytes = sum(part.nbytes for part in rows) // (end - first)
                    self._file.seek(first * row_bytes, os.SEEK_CUR)
                for part in rows:
                    self._read_into(part)
        self._read_into(state.recurrent.view(np.uint8))

    def _read_into(self, memory: NDArray[np.uint8]) -> None:
        if self._file.readinto(memory) != memory.nbytes:  # type: ignore[attr-defined]
            raise FormatError(f"{self._path}: it was truncated while it was read")

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise FormatError(f"{self._path}: it was truncated while it was read")
        return data


def _kv_type(state: SequenceState) -> bytes:
    return state.layout.kv_type.encode().ljust(8, b"\0")


def _kept(state: SequenceState) -> bytes:
    """A hash of what each layer keeps."""
    kept = [
        (
            *(layer.keys and _words(layer.keys.shape), layer.recurrent_floats),
            *([_words(layer.index.shape)] if layer.index else []),
            *(_words(place.shape) for place in _of_groups(layer)),
        )
        for layer in state.layout.layers
    ]
    return hashlib.sha256(repr(kept).encode()).digest()


def _words(shape: KeysValues) -> tuple[Any, ...]:
    """What a layer keeps. Sessions from before there were chunks and groups say nothing of them."""
    *words, chunked, every, exact = astuple(shape)
    more = [("chunked",)] * chunked + [("every", every)] * (every > 1) + [("exact",)] * exact
    return (*words, *(word for group in more for word in group))


def _of_groups(layer: LayerPlace) -> list[KeysPlace]:
    """Keys that several positions have together, and what they will be made of."""
    found = layer.groups, layer.pending, layer.index_pending
    return [place for place in found if place is not None]


def _own_keys(state: SequenceState) -> list[KeysPlace]:
    """Of each layer that does not read another layer's, then of its index, and so on."""
    places = [place for layer in state.layout.layers for place in layer.places]
    return list(dict.fromkeys(places))


def _rows(state: SequenceState, length: int) -> Iterator[NDArray[np.uint8]]:
    for place in _own_keys(state):
        for rows in state.heads_rows(place, *state.rows_needed(place, length)):
            yield from rows


def _state_bytes(state: SequenceState, length: int, *, all_tokens: bool) -> int:
    """Bytes of the state in a file. all_tokens: also those that a window has left behind."""
    total = state.recurrent.nbytes
    for place in _own_keys(state):
        first, end = state.rows_needed(place, length)
        total += (end if all_tokens else end - first) * state.row_bytes(place)
    return total


def _check_shape(path: Path, shape: Sequence[Any], state: SequenceState) -> None:
    """Compares the fields in which a session and a sequence must agree. shape: kv_type and the hash
    of what is kept; of version 1 layers, KV heads, head_dim and kv_type. FormatError."""
    kv_type = next(field for field in shape if isinstance(field, bytes))
    if kv_type != _kv_type(state):
        name = kv_type.rstrip(b"\0").decode(errors="replace")
        raise FormatError(
            f"{path}: this session has kv_type {name!r}; expected {state.layout.kv_type!r}"
        )
    if len(shape) == 2:
        fits = shape[1] == _kept(state)
    else:
        n_layers, n_kv_heads, head_dim, _ = shape
        keys = [layer.keys.shape if layer.keys else None for layer in state.layout.layers]
        fits = n_layers == len(keys) and all(
            own is not None
            and (own.n_kv_heads, own.head_dim, own.value_dim) == (n_kv_heads, head_dim, head_dim)
            for own in keys
        )
    if not fits:
        raise FormatError(
            f"{path}: this session's layers keep other keys and values; it is damaged"
        )


def _as_json(path: Path, messages: Sequence[Mapping[str, str]]) -> bytes:
    """The messages as JSON. ValueError names the first invalid message."""
    found = [dict(each) if isinstance(each, Mapping) else each for each in messages]
    for number, message in enumerate(found):
        if fault := _fault_of(message):
            raise ValueError(f"{path}: messages[{number}] {fault}")
    said = json.dumps(found, ensure_ascii=False).encode()
    if len(said) > MAX_MESSAGE_BYTES or len(found) > MAX_MESSAGES:
        raise ValueError(
            f"{path}: {len(found):,} messages of {len(said):,} bytes; {MAX_MESSAGES:,} of "
            f"{MAX_MESSAGE_BYTES:,} bytes together are allowed"
        )
    return said


def _from_json(path: Path, said: bytes) -> list[Message]:
    """Parses one message at a time, so that a list that is refused costs little memory.
    FormatError."""
    messages: list[Message] = []
    if _NONE.fullmatch(said):
        return messages
    at, next_message = 0, _FIRST
    while found := next_message.match(said, at):
        if len(messages) == MAX_MESSAGES:
            raise FormatError(f"{path}: has more than {MAX_MESSAGES:,} messages")
        messages.append(_message(f"{path}: its message {len(messages)}", found[1]))
        at, next_message = found.end(), _NEXT
    if not messages or not _END.fullmatch(said, at):
        raise FormatError(
            f"{path}: from message {len(messages)} on, its messages are not a JSON list of objects "
            "with texts as values"
        )
    return messages


def _message(what: str, said: bytes) -> Message:
    try:
        pairs = _PAIRS.decode(said.decode())
    except ValueError as error:
        raise FormatError(f"{what} is no JSON: {error}") from None
    message = {sys.intern(name): text for name, text in pairs}
    fault = _fault_of(message) if len(message) == len(pairs) else "has a name twice"
    if fault:
        raise FormatError(f"{what} {fault}")
    return message


def _fault_of(message: object) -> str | None:
    """Why a chat template or a session could not take the message; None if it can."""
    if not isinstance(message, dict) or not all(
        isinstance(text, str) for pair in message.items() for text in pair
    ):
        return f"is {shown(message)}; expected texts by name"
    if not message.keys() >= {"role", "content"} or len(message) > MAX_TEXTS:
        return f"has {shown(sorted(message))}; expected role, content and up to 14 more"
    try:
        "".join(text for pair in message.items() for text in pair).encode()
    except UnicodeEncodeError as error:
        return f"has half of a character, {error.object[error.start]!r}, which is no text"
    return None


def _check_regular(path: Path) -> None:
    """Refuses other kinds of file before they are opened: opening a named pipe would wait for a
    writer, and a device must not be replaced."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FormatError(f"{path}: is not a regular file")


def _check_replaceable(path: Path) -> None:
    """Refuses to overwrite another file of the user whose name was given by mistake."""
    _check_regular(path)
    with path.open("rb") as file:
        beginning = file.read(len(MAGIC))
    if beginning not in (MAGIC, b""):
        raise FormatError(
            f"{path}: is there, and is no session: it begins with {beginning!r}. Give another name"
        )

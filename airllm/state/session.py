"""Sessions on disk: the tokens so far and their KV cache, which need not be evaluated again.

The file, little-endian throughout:

    "AIRLLMKV", u32 version = 1
    u32 layers, u32 KV heads, u32 head_dim, 8 bytes kv_type ("f16", padded with zeros)
    u32 tokens, u32 bytes of messages, 32 bytes fingerprint of the model's file
    tokens: i32 each
    messages: JSON, a list of {"role", "content"}, with which a chat can go on; an object may have
        more names with texts, up to 16 in all
    keys and values: for each layer the keys, then the values; for each KV head the rows of the
        tokens, in the layout of the cache
    32 bytes SHA-256 of everything before it

`load` trusts nothing in a file. Before it reads on, it compares the header with the cache, and the
file's size with the size that follows from the header. Before it uses anything, it compares the
checksum. Keys and values are read into the memory that the cache already has. `load` and `save`
accept the same messages.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from airllm.state.kv_cache import KVCache
from airllm.util.durable import naming, sync_directory
from airllm.util.metadata import FormatError
from airllm.util.shown import shown

__all__ = ["Message", "load", "save"]

Message: TypeAlias = dict[str, str]  # "role", "content" and other texts, for a chat template

MAGIC = b"AIRLLMKV"
VERSION = 1
MAX_MESSAGE_BYTES = 64 << 20  # of all messages; a context of a million tokens is some 4 MB of text
MAX_MESSAGES = 1 << 16
MAX_TEXTS = 16  # of a message: role, content, and more for the chat template
_HEADER = struct.Struct("<8sIIII8sII32s")
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
    cache: KVCache,
    fingerprint: bytes,
    messages: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a cache's tokens, keys and values to `path`, readable for the user alone.

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
    tokens = np.array(cache.tokens, "<i4")
    header = _HEADER.pack(MAGIC, VERSION, *_shape(cache), len(tokens), len(said), fingerprint)
    with naming(path):
        try:
            descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:  # without the name of the temporary file
            raise OSError(error.errno, error.strerror) from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = hashlib.sha256()
                parts: list[bytes | memoryview] = [header, tokens.data, said]
                parts += [rows.data for rows in cache.rows(len(tokens))]
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
    path: str | os.PathLike[str], cache: KVCache, fingerprint: bytes, vocab_size: int
) -> list[Message]:
    """Replace the contents of a cache with a saved session; returns its messages.

    FormatError, and the cache is unchanged, for a file that is not a session, is damaged, belongs
    to another model or kv_type, or has more tokens than the cache has room for.
    """
    path = Path(path)
    _check_regular(path)
    with naming(path), path.open("rb") as file:
        session = _Session.open(path, file, cache, fingerprint)
        session.check_sum()
        tokens = session.tokens(vocab_size)
        messages = session.messages()
        cache.clear()  # the cache stays empty if the file is truncated during the reads
        for rows in cache.rows(len(tokens)):
            session.read_into(rows)
        cache.tokens.extend(tokens)
    return messages


class _Session:
    """A file whose header fits the cache, and whose size fits the header."""

    def __init__(self, path: Path, file: IO[bytes], size: int, n_tokens: int, n_said: int) -> None:
        self._path, self._file, self._size = path, file, size
        self._n_tokens, self._n_said = n_tokens, n_said

    @classmethod
    def open(cls, path: Path, file: IO[bytes], cache: KVCache, fingerprint: bytes) -> Self:
        size = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER.size)
        if not header.startswith(MAGIC):
            raise FormatError(f"{path}: not a saved session: it begins with {header[:8]!r}")
        if len(header) < _HEADER.size:
            raise FormatError(f"{path}: it ends in its header; it is truncated")
        _, version, *shape, n_tokens, n_said, model = _HEADER.unpack(header)
        if version != VERSION:
            raise FormatError(f"{path}: a session of version {version}; expected {VERSION}")
        if model != fingerprint:
            raise FormatError(f"{path}: this session was saved with another model's file")
        if tuple(shape) != _shape(cache):
            raise FormatError(
                f"{path}: this session has {_in_words(shape)}; expected {_in_words(_shape(cache))}"
            )
        if n_tokens > cache.capacity:
            raise FormatError(
                f"{path}: this session has {n_tokens} tokens; the context has room for "
                f"{cache.capacity}. context={n_tokens} or more makes it larger"
            )
        if n_said > MAX_MESSAGE_BYTES:
            raise FormatError(f"{path}: claims {n_said:,} bytes of messages; it is damaged")
        rows = sum(part.nbytes for part in cache.rows(n_tokens))
        expected = _HEADER.size + 4 * n_tokens + n_said + rows + _CHECKSUM_BYTES
        if size != expected:
            raise FormatError(
                f"{path}: it has {size:,} bytes, and its header says {expected:,}; it is truncated "
                "or damaged"
            )
        return cls(path, file, size, n_tokens, n_said)

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
        self._file.seek(_HEADER.size)

    def tokens(self, vocab_size: int) -> list[int]:
        tokens = np.frombuffer(self._read(4 * self._n_tokens), "<i4")
        if ((tokens < 0) | (tokens >= vocab_size)).any():
            raise FormatError(f"{self._path}: has tokens that are not in the vocabulary")
        ids: list[int] = tokens.tolist()
        return ids

    def messages(self) -> list[Message]:
        return _from_json(self._path, self._read(self._n_said))

    def read_into(self, rows: NDArray[np.uint8]) -> None:
        if self._file.readinto(rows) != rows.nbytes:  # type: ignore[attr-defined]
            raise FormatError(f"{self._path}: it was truncated while it was read")

    def _read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise FormatError(f"{self._path}: it was truncated while it was read")
        return data


def _shape(cache: KVCache) -> tuple[Any, ...]:
    """The fields of the header in which a session and a cache must agree."""
    return cache.n_layers, cache.n_kv_heads, cache.head_dim, cache.kv_type.encode().ljust(8, b"\0")


def _in_words(shape: Sequence[Any]) -> str:
    n_layers, n_kv_heads, head_dim, kv_type = shape
    name = kv_type.rstrip(b"\0").decode(errors="replace")
    return f"{n_layers} layers, {n_kv_heads} KV heads of {head_dim}, kv_type {name!r}"


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

"""How events become bytes: server-sent events, and JSON by lines."""

import json
from typing import Any

__all__ = ["HEARTBEAT", "as_json", "json_line", "sse"]

# json.dumps with other than its defaults makes an encoder each time, which took half its time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
HEARTBEAT = b": still here\n\n"  # a comment, which clients skip


def as_json(value: Any) -> bytes:
    """JSON in UTF-8. Halves of surrogate pairs, which UTF-8 lacks, become question marks."""
    return _encode(value).encode("utf-8", "replace")


def sse(value: Any, event: str | None = None) -> bytes:
    """A server-sent event with JSON as its data."""
    name = f"event: {event}\n".encode() if event is not None else b""
    return name + b"data: " + as_json(value) + b"\n\n"


def json_line(value: Any) -> bytes:
    return as_json(value) + b"\n"

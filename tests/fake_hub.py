"""A hub of the tests' own on loopback, with the few endpoints that a pull asks, and with lies."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

COMMIT = "c0" * 20
ENDLESS = 1 << 40  # bytes; nobody waits for the end


@dataclass
class HubLies:
    """What the hub does otherwise than a good one."""

    listed_sizes: dict[str, int] = field(default_factory=dict)  # path -> size in the listing
    hashes: dict[str, str] = field(default_factory=dict)  # path -> sha256 in the listing
    further_names: list[str] = field(default_factory=list)  # in the listing
    endless: set[str] = field(default_factory=set)  # "listing", or paths
    cut_after: dict[str, int] = field(default_factory=dict)  # path -> bytes, the first time
    always_cut: set[str] = field(default_factory=set)  # paths of which no byte comes
    cut_always_after: dict[str, int] = field(default_factory=dict)
    holds: dict[str, threading.Event] = field(default_factory=dict)  # path, or "listing": until set
    knows_no_ranges: bool = False
    refuses_ranges: bool = False
    status: int = 200  # of everything
    error_code: str = ""
    status_of_files: int = 200
    listing: bytes | None = None  # in place of the true one


class FakeHub:
    """files: path -> content of the repository "org/repo". asked: "GET /path RANGE" of each."""

    def __init__(self, files: dict[str, bytes], lies: HubLies, token: str | None) -> None:
        self.files, self.lies, self.token = files, lies, token
        self.asked: list[str] = []
        self.sent: dict[str, int] = {}  # bytes of each path
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, "HEAD")

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    hub.answer(self, "GET")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: http.server.BaseHTTPRequestHandler, method: str) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(f"{method} {path} {request.headers.get('Range', '')}".strip())
        lies = self.lies
        if lies.status != 200:
            return self._refuse(request, lies.status, lies.error_code)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._refuse(request, 401, "RepoNotFound")
        if path == "/api/models/org/repo":
            body = self.true_listing() if lies.listing is None else lies.listing
            return self._send(request, method, body, "listing")
        prefix = f"/org/repo/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in self.files:
            return self._refuse(request, 404, "RepoNotFound")
        if lies.status_of_files != 200:
            return self._refuse(request, lies.status_of_files, lies.error_code)
        return self._send(request, method, self.files[name], name)

    def true_listing(self) -> bytes:
        siblings = []
        for path, content in self.files.items():
            size = self.lies.listed_sizes.get(path, len(content))
            entry: dict[str, Any] = {"rfilename": path, "size": size}
            if path.endswith((".gguf", ".safetensors")):
                sha256 = self.lies.hashes.get(path, hashlib.sha256(content).hexdigest())
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
            else:
                blob = b"blob %d\0" % len(content) + content
                entry["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
            siblings.append(entry)
        for path in self.lies.further_names:
            lfs = {"sha256": "0" * 64, "size": 10}
            siblings.append({"rfilename": path, "size": 10, "lfs": lfs})
        return json.dumps({"id": "org/repo", "sha": COMMIT, "siblings": siblings}).encode()

    def _refuse(self, request: http.server.BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _send(
        self, request: http.server.BaseHTTPRequestHandler, method: str, body: bytes, name: str
    ) -> None:
        start = 0
        wanted = request.headers.get("Range")
        if wanted and self.lies.refuses_ranges:
            self._refuse(request, 416, "")
            return
        if wanted and not self.lies.knows_no_ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
        is_endless = name in self.lies.endless
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        length = ENDLESS if is_endless and method == "GET" else len(body) - start
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if method == "HEAD":
            return
        if is_endless:
            block = b"x" * (1 << 20)
            while True:  # until the client leaves
                request.wfile.write(block)
                self.sent[name] = self.sent.get(name, 0) + len(block)
        cut = 0 if name in self.lies.always_cut else self.lies.cut_after.pop(name, None)
        cut = self.lies.cut_always_after.get(name, cut)
        if cut is not None:
            request.wfile.write(body[start:cut])
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
            return
        if name in self.lies.holds:
            half = (start + len(body)) // 2
            request.wfile.write(body[start:half])
            request.wfile.flush()
            assert self.lies.holds[name].wait(30)
            start = half
        request.wfile.write(body[start:])
        self.sent[name] = self.sent.get(name, 0) + len(body) - start


@contextlib.contextmanager
def fake_hub(
    files: dict[str, bytes], lies: HubLies | None = None, token: str | None = None
) -> Iterator[FakeHub]:
    hub = FakeHub(files, lies or HubLies(), token)
    try:
        yield hub
    finally:
        hub.close()

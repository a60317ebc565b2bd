"""Admission: a thread that accepts every connection and turns most of them away.

The root is the first visitor that sends as many bytes as the shortest handshake has. A visitor that
stays silent or sends fewer bytes (a port scan) delays nobody. While a root is served, visitors are
turned away, unless they may be the other workers that the root announced; peers.py tells these
apart. Every connection must come from an allowed network.
"""

import contextlib
import errno
import ipaddress
import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from airllm.cluster.link import Link, LinkError
from airllm.util.private import open_own_folder

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Visitor = tuple[socket.socket, str]  # connection, and its address

LOOPBACK: tuple[Network, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
)
_MOST_VISITORS = 64  # that wait at a time, in addition to the expected workers
_SHORTEST_HANDSHAKE = 8  # bytes
_WORDLESS = "it left without a word"
_GRACE_SECONDS = 0.25  # for which a root may wait while the run before it ends
_LONGEST_PATH = 103  # of a Unix socket, on all systems
_LOGGED_PER_SECOND = 3  # visitors that were turned away


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip.version == network.version and ip in network for network in networks)


class Door:
    """Open from construction to close(). All methods but stop() are for the thread that serves."""

    def __init__(
        self,
        host: str,
        port: int,
        networks: Sequence[Network],
        *,
        silence: float,
        log: Callable[[str], None],
        status: Callable[[], bytes],
        status_path: Path | None = None,
    ) -> None:
        """silence: seconds in which a visitor must send a handshake. status: returns what the
        socket at status_path sends to each visitor. OSError if an address cannot be bound."""
        self._networks, self._silence, self._log, self._status = networks, silence, log, status
        self._status_path = status_path
        self._status_listener: socket.socket | None = None
        self._status_file = (0, 0)
        with contextlib.ExitStack() as opened:  # is closed where the rest cannot be opened
            self._listener = opened.enter_context(_listen(host, port))
            self.host, self.port = self._listener.getsockname()[:2]
            if status_path is not None:
                self._status_listener = opened.enter_context(_listen_locally(status_path))
                self._status_file = _identity(status_path)
                opened.callback(self._remove_status_socket)
            self._wake_read, self.wake = _pipe(opened)  # a byte to `wake` ends the thread
            self._news_read, self._news = _pipe(opened)  # a byte for each visitor that was let in
            opened.pop_all()
        for fd in (self.wake, self._news):
            os.set_blocking(fd, False)
        self._lock = threading.Lock()
        self._idle = True
        self._expected = 0  # other workers
        self._others: dict[int, Visitor] = {}  # by descriptor; visitors that may be these
        self._talkative: set[int] = set()  # of them: have sent bytes, are polled no longer
        self._let_in: deque[Visitor] = deque()
        self._waiting: dict[int, tuple[socket.socket, str, float]] = {}
        self._turned_away: deque[float] = deque()
        self._not_logged = 0
        self.on_stop: Callable[[], None] = lambda: None  # called in the door's thread
        self.stopped = False
        self._thread = threading.Thread(target=self._work, name="door", daemon=True)
        self._thread.start()

    def wait_root(self) -> Visitor | None:
        """The next root; None when the door is being closed."""
        while not self.stopped:
            with self._lock:
                if self._let_in:
                    return self._let_in.popleft()
            self._wait_news([self._news_read])
        return None

    def expect(self, n: int) -> None:
        """From now on keeps visitors that may be one of n other workers."""
        with self._lock:
            self._expected = n

    def wait_workers(self, n: int, seconds: float, root: Link) -> None:
        """Waits until n visitors that may be workers are connected. LinkError if they are fewer
        after `seconds`, or if the root leaves."""
        deadline = time.monotonic() + max(seconds, 0.0)
        watched = [self._news_read, root.sock.fileno()]
        while not self.stopped:
            with self._lock:
                if len(self._others) >= n:
                    return
            if not self._wait_news(watched, deadline, root):
                raise LinkError("another worker did not connect in time")

    def workers(self) -> list[Visitor]:
        """All visitors that may be the other workers, in order of arrival. Keeps no more."""
        with self._lock:
            self._expected = 0
            found = list(self._others.values())
            self._others.clear()
            self._talkative.clear()
            return found

    def reopen(self) -> None:
        """The run is over: the next visitor may be a root."""
        with self._lock:
            self._idle = True
            self._expected = 0
            for sock, _ in (*self._let_in, *self._others.values()):
                sock.close()
            self._let_in.clear()
            self._others.clear()
            self._talkative.clear()
        _drain(self._news_read)
        _write(self.wake, b"\0")  # visitors that wait may come in

    def stop(self) -> None:
        """Close soon; from any thread, and from a signal handler."""
        if not self.stopped:
            _write(self.wake, b"x")

    def close(self) -> None:
        self.stop()
        self._thread.join()
        for fd in (self._wake_read, self.wake, self._news_read, self._news):
            os.close(fd)

    def _wait_news(
        self, watched: list[int], deadline: float | None = None, root: Link | None = None
    ) -> bool:
        """Waits until a visitor was let in, or the root sends bytes or leaves (LinkError).

        False if the deadline has passed. A root that has sent bytes is removed from `watched`, as
        its bytes are read later.
        """
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        ready = select.select(watched, [], [], left)[0]
        if self._news_read in ready:
            os.read(self._news_read, 1)
        if root is not None and len(watched) > 1 and watched[1] in ready:
            root.check_open()
            watched.pop()
        return True

    # ---- the door's thread ----

    def _work(self) -> None:
        try:
            while not self.stopped:
                self._wait_and_act()
        finally:
            self.stopped = True
            self._listener.close()
            if self._status_listener is not None:
                self._status_listener.close()
                self._remove_status_socket()
            for sock, _, _ in self._waiting.values():
                sock.close()
            with self._lock:
                for sock, _ in self._others.values():
                    sock.close()
            self.on_stop()
            _write(self._news, b"x")

    def _wait_and_act(self) -> None:
        poll = select.poll()
        for thing in (self._listener, self._status_listener):
            if thing is not None:
                poll.register(thing, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        if self._idle:
            for fd in self._waiting:
                poll.register(fd, select.POLLIN)
        with self._lock:
            for fd in self._others.keys() - self._talkative:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._milliseconds_to_wait())}
        if self._wake_read in ready and any(os.read(self._wake_read, 64)):
            self.stopped = True
            return
        for fd in ready & self._waiting.keys():
            self._has_spoken(fd)
        self._check_others(ready)
        if self._listener.fileno() in ready:
            self._accept()
        if self._status_listener is not None and self._status_listener.fileno() in ready:
            self._tell_status(self._status_listener)
        self._review()

    def _milliseconds_to_wait(self) -> float | None:
        if self._not_logged or (self._waiting and not self._idle):
            return 50
        return 1000 * min(self._silence, 1.0) if self._waiting else None

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the visitor has left already
        except OSError as error:  # for instance, no descriptors are left
            self._log(f"cannot accept a connection: {error.strerror}")
            time.sleep(0.05)
            return
        name = f"{address[0]}:{address[1]}"
        if not is_allowed(address[0], self._networks):
            self._turn_away(sock, name, "its network is not allowed (--allow)")
            return
        with self._lock:
            if self._expected > 0:
                self._others[sock.fileno()] = sock, name
                _write(self._news, b"x")
                if len(self._others) <= self._expected + _MOST_VISITORS:
                    return
                fd = next(iter(self._talkative or self._others))
                self._talkative.discard(fd)
                crowded = self._others.pop(fd)
                self._turn_away(*crowded, "too many others wait")
                return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _SHORTEST_HANDSHAKE)
        if len(self._waiting) >= _MOST_VISITORS:
            self._leaves(next(iter(self._waiting)), "too many others wait")
        self._waiting[sock.fileno()] = sock, name, time.monotonic()

    def _has_spoken(self, fd: int) -> None:
        """Lets a visitor in as the root if it sent a handshake's bytes and no root is served."""
        sock = self._waiting[fd][0]
        if (said := _peek(sock, _SHORTEST_HANDSHAKE)) is None:
            return
        if len(said) < _SHORTEST_HANDSHAKE:
            self._leaves(fd, "it left before it had said a handshake" if said else _WORDLESS)
            return
        with self._lock:
            if not self._idle:
                return
            self._idle = False
            sock, name, _ = self._waiting.pop(fd)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self._let_in.append((sock, name))
            _write(self._news, b"x")

    def _check_others(self, ready: set[int]) -> None:
        """Drops candidates for workers that have left; stops polling those that sent bytes."""
        with self._lock:
            for fd in ready & self._others.keys():
                said = _peek(self._others[fd][0], 1)
                if said:
                    self._talkative.add(fd)
                elif said is not None:
                    self._turn_away(*self._others.pop(fd), _WORDLESS)

    def _review(self) -> None:
        """Turns away visitors that have waited for too long, and logs how many were not logged."""
        reason, seconds = f"it said no handshake for {self._silence:g} s", self._silence
        if not self._idle:
            reason, seconds = "a root is being served", _GRACE_SECONDS
        limit = time.monotonic() - seconds
        for fd, (_, _, since) in list(self._waiting.items()):
            if since < limit:
                self._leaves(fd, reason)
        self._log_the_rest()

    def _leaves(self, fd: int, why: str) -> None:
        sock, name, _ = self._waiting.pop(fd)
        self._turn_away(sock, name, why)

    def _turn_away(self, sock: socket.socket, name: str, why: str) -> None:
        sock.close()
        now = time.monotonic()
        self._log_the_rest()
        if len(self._turned_away) >= _LOGGED_PER_SECOND and now - self._turned_away[0] < 1:
            self._not_logged += 1
            return
        self._turned_away.append(now)
        if len(self._turned_away) > _LOGGED_PER_SECOND:
            self._turned_away.popleft()
        self._log(f"turned away {name}: {why}")

    def _log_the_rest(self) -> None:
        if self._not_logged and time.monotonic() - self._turned_away[0] >= 1:
            self._log(f"turned away {self._not_logged} more")
            self._not_logged = 0

    def _remove_status_socket(self) -> None:
        """Unless another worker, on the same port of another address, has put its own there."""
        path = self._status_path
        with contextlib.suppress(OSError):
            if path is not None and _identity(path) == self._status_file:
                path.unlink()

    def _tell_status(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(0.2)
                sock.sendall(self._status())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    sock.setblocking(False)  # a visitor may be gone before it is accepted
    return sock


def _listen_locally(path: Path) -> socket.socket:
    """A socket for this user alone. It replaces a socket that a killed worker left behind. OSError
    if the folder is not this user's alone, or if the path is something else than a socket."""
    os.close(open_own_folder(path.parent, create=True))
    if len(os.fsencode(path)) > _LONGEST_PATH:
        text = f"longer than the {_LONGEST_PATH} bytes of a socket's path; set XDG_RUNTIME_DIR"
        raise OSError(errno.ENAMETOOLONG, text, str(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
                text = "is no socket of a worker of yours; remove it, or set XDG_RUNTIME_DIR"
                raise FileExistsError(errno.EEXIST, text, str(path))
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)  # before anybody can connect
        sock.listen(8)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    """The ends to read from and to write to."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        opened.callback(os.close, end)
    return reading, writing


def _identity(path: Path) -> tuple[int, int]:
    """The device and the inode of the file at `path`."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def _peek(sock: socket.socket, n: int) -> bytes | None:
    """The next bytes, up to n; empty if the other side has left, None if no byte has come."""
    try:
        return sock.recv(n, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError, OSError):
        os.write(fd, data)


def _drain(fd: int) -> None:
    while select.select([fd], [], [], 0)[0]:
        os.read(fd, 64)

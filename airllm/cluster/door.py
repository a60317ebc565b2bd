"""Who may come in: a thread that accepts connections all the time, and turns away most of them.

The first visitor who says something is the root; one that connects and is silent (a port scan)
holds nobody up. While a root is served, others are sent away, except that the other workers it
announced are let in. Whoever connects must come from a network that is allowed.
"""

import contextlib
import ipaddress
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from airllm.cluster.link import Link, LinkError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Visitor = tuple[socket.socket, str]  # and its address

LOOPBACK: tuple[Network, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
)
_MOST_VISITORS = 64  # that wait
_GRACE_SECONDS = 0.25  # for a root whose predecessor is just leaving
_LOGGED_PER_SECOND = 3  # of those turned away


def is_allowed(address: str, networks: Sequence[Network]) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return any(ip.version == network.version and ip in network for network in networks)


class Door:
    """Open from construction to close(). Methods are for one thread, the one that serves."""

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
        """silence: seconds after which a visitor who says nothing is sent away. status: what the
        socket at status_path tells whoever connects. OSError where an address cannot be had."""
        self._networks, self._silence, self._log, self._status = networks, silence, log, status
        self._listener = _listen(host, port)
        self.host, self.port = self._listener.getsockname()[:2]
        self._status_path = status_path
        self._status_listener: socket.socket | None = None
        try:
            if status_path is not None:
                self._status_listener = _listen_locally(status_path)
            self._wake_read, self.wake = os.pipe()  # a byte to `wake` ends the thread
            self._news_read, self._news = os.pipe()  # a byte for each visitor that was let in
        except OSError:
            self._listener.close()
            raise
        for fd in (self.wake, self._news):
            os.set_blocking(fd, False)
        self._lock = threading.Lock()
        self._idle = True
        self._expected = 0  # other workers
        self._let_in: deque[Visitor] = deque()
        self._waiting: dict[int, tuple[socket.socket, str, float]] = {}
        self._turned_away: deque[float] = deque()
        self._not_logged = 0
        self.on_stop: Callable[[], None] = lambda: None  # in the door's thread
        self.stopped = False
        self._thread = threading.Thread(target=self._work, name="door", daemon=True)
        self._thread.start()

    def wait_root(self) -> Visitor | None:
        """The next root; None when the door is being closed."""
        return self._next(None)

    def expect(self, n: int) -> None:
        """Let in n other workers, from now on."""
        with self._lock:
            self._expected = n

    def next_worker(self, seconds: float, root: Link) -> Visitor:
        """LinkError where none comes in that time, or the root leaves."""
        visitor = self._next(max(seconds, 0.0), root)
        if visitor is None:
            raise LinkError("another worker did not connect in time")
        return visitor

    def reopen(self) -> None:
        """The run is over: the next visitor may be a root."""
        with self._lock:
            self._idle = True
            self._expected = 0
            while self._let_in:
                self._let_in.popleft()[0].close()
        _drain(self._news_read)
        _write(self.wake, b"\0")  # those that wait may come in

    def stop(self) -> None:
        """Close soon; from any thread, and from a signal handler."""
        if not self.stopped:
            _write(self.wake, b"x")

    def close(self) -> None:
        self.stop()
        self._thread.join()
        for fd in (self._wake_read, self.wake, self._news_read, self._news):
            os.close(fd)

    def _next(self, seconds: float | None, root: Link | None = None) -> Visitor | None:
        deadline = None if seconds is None else time.monotonic() + seconds
        watched = [self._news_read] if root is None else [self._news_read, root.sock.fileno()]
        while not self.stopped:
            with self._lock:
                if self._let_in:
                    return self._let_in.popleft()
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            ready = select.select(watched, [], [], left)[0]
            if self._news_read in ready:
                os.read(self._news_read, 1)
            if root is not None and len(watched) == 2 and watched[1] in ready:
                root.check_open()
                watched.pop()  # it goes on to talk; what it says is read later
        return None

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
                if self._status_path is not None:
                    self._status_path.unlink(missing_ok=True)
            for sock, _, _ in self._waiting.values():
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
        ready = {fd for fd, _ in poll.poll(self._milliseconds_to_wait())}
        if self._wake_read in ready and any(os.read(self._wake_read, 64)):
            self.stopped = True
            return
        for fd in ready & self._waiting.keys():
            self._has_spoken(fd)
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
            return  # gone again
        except OSError as error:  # no descriptors are left, say
            self._log(f"cannot accept a connection: {error.strerror}")
            time.sleep(0.05)
            return
        name = f"{address[0]}:{address[1]}"
        if not is_allowed(address[0], self._networks):
            self._turn_away(sock, name, "its network is not allowed (--allow)")
            return
        with self._lock:
            if self._expected > 0:
                self._expected -= 1
                self._let_in.append((sock, name))
                _write(self._news, b"x")
                return
        if len(self._waiting) >= _MOST_VISITORS:
            self._leaves(next(iter(self._waiting)), "too many others wait")
        self._waiting[sock.fileno()] = sock, name, time.monotonic()

    def _has_spoken(self, fd: int) -> None:
        """Who speaks first, while no root is served, is the root."""
        with contextlib.suppress(OSError):
            if not self._waiting[fd][0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                self._leaves(fd, "it left without a word")
                return
        with self._lock:
            if not self._idle:
                return
            self._idle = False
            sock, name, _ = self._waiting.pop(fd)
            self._let_in.append((sock, name))
            _write(self._news, b"x")

    def _review(self) -> None:
        """Send away who has waited for too long, and log those whom a flood left uncounted."""
        reason, seconds = f"it said nothing for {self._silence:g} s", self._silence
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
    """A socket for this user alone; one that a killed worker left behind is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise PermissionError(f"{path.parent} belongs to another user; set XDG_RUNTIME_DIR")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(8)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _write(fd: int, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError, OSError):
        os.write(fd, data)


def _drain(fd: int) -> None:
    while select.select([fd], [], [], 0)[0]:
        os.read(fd, 64)

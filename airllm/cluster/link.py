"""A connection to the root or to another worker: exact reads, timeouts, and both ways at once.

Timeouts are the kernel's (SO_RCVTIMEO), which cost no system call of their own, unlike Python's.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

_CHUNK = 1 << 16
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # seconds, seconds


class LinkError(Exception):
    """The other side closed the connection, or was silent for too long."""


class Link:
    """name: what errors call the other side."""

    def __init__(self, sock: socket.socket, name: str, timeout: float) -> None:
        self.sock, self.name = sock, name
        self._buffer = memoryview(b"")
        self._deadline: float | None = None
        self._timeout = 0.0
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that was switched off says nothing: the kernel notices after a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.set_timeout(timeout)

    def set_timeout(self, seconds: float) -> None:
        """How long the other side may be silent, or not take what is sent."""
        if seconds != self._timeout:
            self._timeout = seconds
            value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def set_deadline(self, deadline: float | None) -> None:
        """When `take` gives up, by time.monotonic(), however many bytes still come; None: never."""
        self._deadline = deadline

    def take(self, n: int) -> bytes:
        """The next n bytes. For messages: reads ahead."""
        if n <= len(self._buffer):
            data, self._buffer = self._buffer[:n], self._buffer[n:]
            return bytes(data)
        parts = [bytes(self._buffer)]
        missing = n - len(self._buffer)
        self._buffer = memoryview(b"")
        while missing > 0:
            if self._deadline is not None:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise self._fault(BlockingIOError())
                self.set_timeout(max(left, 0.001))
            received = self._receive(bytearray(_CHUNK))
            parts.append(bytes(received[:missing]))
            self._buffer = received[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def read_into(self, view: memoryview) -> None:
        """Fill a view of bytes, and read no further."""
        if self._buffer:
            n = min(len(self._buffer), len(view))
            view[:n] = self._buffer[:n]
            self._buffer = self._buffer[n:]
            view = view[n:]
        while len(view):
            try:
                n = self.sock.recv_into(view, 0, socket.MSG_WAITALL)
            except OSError as error:
                raise self._fault(error) from None
            if n == 0:
                raise LinkError(f"{self.name} closed the connection")
            view = view[n:]

    def read_soon(self, view: memoryview, seconds: float) -> None:
        """read_into, looking for the first bytes for so long before it sleeps: to be woken takes as
        long as a small sync. Others who want this processor get it meanwhile."""
        end = time.perf_counter() + seconds
        while not (n := self.read_some(view)) and time.perf_counter() < end:
            os.sched_yield()
        if n < len(view):
            self.read_into(view[n:])

    def send(self, data: bytes | memoryview) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise self._fault(error) from None

    def send_some(self, view: memoryview) -> int:
        """Send what fits without waiting; the number of bytes."""
        try:
            return self.sock.send(view, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault(error) from None

    def read_some(self, view: memoryview) -> int:
        """Read what is there without waiting; the number of bytes."""
        if self._buffer:
            n = min(len(self._buffer), len(view))
            self.read_into(view[:n])
            return n
        try:
            n = self.sock.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault(error) from None
        if n == 0:
            raise LinkError(f"{self.name} closed the connection")
        return n

    def check_open(self) -> None:
        """LinkError where the other side has closed, and all that it sent has been read."""
        try:
            if self._buffer or self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError as error:
            raise self._fault(error) from None
        raise LinkError(f"{self.name} closed the connection")

    def shutdown(self) -> None:
        """End all waiting on the connection, from any thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()

    @property
    def timeout(self) -> float:
        return self._timeout

    def _receive(self, memory: bytearray) -> memoryview:
        try:
            n = self.sock.recv_into(memory)
        except OSError as error:
            raise self._fault(error) from None
        if n == 0:
            raise LinkError(f"{self.name} closed the connection")
        return memoryview(memory)[:n]

    def _fault(self, error: OSError) -> LinkError:
        if isinstance(error, BlockingIOError):  # what SO_RCVTIMEO and SO_SNDTIMEO give
            if self._deadline is not None:
                return LinkError(f"{self.name} did not complete the handshake in time")
            return LinkError(f"{self.name} was silent for {self._timeout:g} s")
        return LinkError(f"{self.name}: {error.strerror or error}")


Piece = tuple[Link, memoryview]


def transfer(sends: Sequence[Piece], receives: Sequence[Piece], spin: float = 0.0) -> None:
    """Send and receive, without waiting for the one before the other is done: a peer may read only
    when it has written, and what both write may be more than sockets hold. spin: see read_soon."""
    unsent = []
    for link, view in sends:
        n = link.send_some(view)
        if n < len(view):
            unsent.append((link, view[n:]))
    if unsent:
        _transfer_slowly(unsent, list(receives))
        return
    for link, view in receives:
        link.read_soon(view, spin)


def _transfer_slowly(sends: list[Piece], receives: list[Piece]) -> None:
    while sends or receives:
        poll = select.poll()
        events: dict[int, int] = {}
        for pieces, event in ((sends, select.POLLOUT), (receives, select.POLLIN)):
            for link, _ in pieces:
                fd = link.sock.fileno()
                if fd < 0:
                    raise LinkError(f"{link.name}: the connection was closed")
                events[fd] = events.get(fd, 0) | event
        for fd, event in events.items():
            poll.register(fd, event)
        link = (sends or receives)[0][0]
        if not poll.poll(link.timeout * 1000):
            raise LinkError(f"{link.name} was silent for {link.timeout:g} s")
        sends = [(link, rest) for link, view in sends if (rest := view[link.send_some(view) :])]
        receives = [
            (link, rest) for link, view in receives if (rest := view[link.read_some(view) :])
        ]

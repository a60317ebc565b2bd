"""A connection to the root or to another worker: exact reads, timeouts, sending while receiving.

Timeouts are the kernel's (SO_RCVTIMEO): unlike Python's, they cost no system call of their own.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from airllm.util.errors import AirllmError

_CHUNK = 1 << 16
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # seconds, seconds
# A poll and a yield take 3 us. If they take longer than this, another thread had the processor: its
# time slice is some ms.
_CROWDED_SECONDS = 200e-6

DEFAULT_RATE = 10_000.0  # bytes a second; far below the slowest network of a cluster


class LinkError(AirllmError):
    """The other side closed the connection, was silent for too long, or too slow."""


class Patience:
    """The time left to wait for a side that may drip.

    It starts at `seconds`, and each byte adds 1 / rate of a second, up to the start value. So the
    time is over after `seconds` of silence, and at r < rate bytes a second after
    seconds / (1 - r / rate).
    """

    def __init__(self, seconds: float, rate: float) -> None:
        self.left = self._most = seconds
        self._rate = rate

    def spend(self, seconds: float, n_bytes: int) -> None:
        self.left = min(self._most, self.left - seconds + n_bytes / self._rate)


class Link:
    """name: of the other side, for errors. rate: the least bytes a second while it sends a message
    or takes one; see Patience."""

    def __init__(
        self, sock: socket.socket, name: str, timeout: float, rate: float = DEFAULT_RATE
    ) -> None:
        self.sock, self.name = sock, name
        self._buffer = memoryview(b"")
        self._deadline: float | None = None
        self._patience: Patience | None = None
        self._timeout, self._rate = 0.0, rate
        self._limit = 0.0  # seconds; the timeout that the socket has now
        self._crowded_until = 0.0  # time.perf_counter(); until then, do not poll
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that was switched off says nothing: the kernel notices after a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.set_timeout(timeout)

    def set_timeout(self, seconds: float) -> None:
        """seconds: for how long the other side may be silent, or not take bytes that we send."""
        self._timeout = seconds
        self._set_limit(seconds)

    def be_patient(self, with_all: bool) -> None:
        """with_all: all reads from now on share one Patience. Otherwise each `read_into` has its
        own."""
        self._patience = self.patience() if with_all else None
        self._set_limit(self._timeout)

    def patience(self) -> Patience:
        return Patience(self._timeout, self._rate)

    def set_deadline(self, deadline: float | None) -> None:
        """deadline: time.monotonic() at which `take` gives up, even if bytes come; None: never."""
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
                self._set_limit(left)
            memory = memoryview(bytearray(_CHUNK))
            received = memory[: self._receive(memory, 0, self._patience)]
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
        patience = self._patience
        while len(view):
            n = self._receive(view, socket.MSG_WAITALL, patience)
            view = view[n:]
            if len(view) and patience is None:  # timed out with some of the bytes
                patience = self.patience()
                patience.spend(self._timeout, n)
        if patience is not self._patience:
            self._set_limit(self._timeout)

    def read_soon(self, view: memoryview, seconds: float, timeout: float | None = None) -> None:
        """Like read_into, but polls for the first bytes for `seconds` before it sleeps, because
        waking takes as long as a small sync.

        It yields the processor after each poll. If another thread takes it, reads sleep at once
        for the next second, because a thread that sleeps gets the processor back earlier than a
        thread that yields. timeout: replaces the connection's if polling finds no byte.
        """
        n = self.read_some(view)
        now = time.perf_counter()
        if not n and now >= self._crowded_until:
            end = now + seconds
            while not (n := self.read_some(view)) and now < end:
                os.sched_yield()
                before, now = now, time.perf_counter()
                if now - before > _CROWDED_SECONDS:
                    self._crowded_until = now + 1.0
                    break
        if n == len(view):
            return
        if timeout is None or n:
            self.read_into(view[n:])
            return
        usual = self._timeout
        self.set_timeout(timeout)
        self.read_into(view)
        self.set_timeout(usual)

    def send(self, data: bytes | memoryview) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise self._fault(error) from None

    def send_some(self, view: memoryview) -> int:
        """Sends the bytes that fit without waiting; returns their number."""
        try:
            return self.sock.send(view, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault(error) from None

    def read_some(self, view: memoryview) -> int:
        """Reads the bytes that have come, without waiting; returns their number."""
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
        """LinkError if the other side has closed and all that it sent was read."""
        self.is_silent()

    def is_silent(self) -> bool:
        """Whether there are no unread bytes. LinkError if the other side has closed, too."""
        return not self._buffer and not self._peek(1)

    def has_bytes(self, n: int) -> bool:
        """Whether n bytes have come in addition to those that were read ahead."""
        with contextlib.suppress(LinkError):
            return self._peek(n) == n
        return False

    def _peek(self, n: int) -> int:
        try:
            found = len(self.sock.recv(n, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._fault(error) from None
        if not found:
            raise LinkError(f"{self.name} closed the connection")
        return found

    def shutdown(self) -> None:
        """End all waiting on the connection, from any thread."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.sock.close()

    def _receive(self, memory: memoryview, flags: int, patience: Patience | None) -> int:
        """Receives at least one byte; returns the number of bytes."""
        if patience is not None:
            if patience.left <= 0:
                raise self.too_slow()
            self._set_limit(patience.left)
        began = time.monotonic()
        try:
            n = self.sock.recv_into(memory, 0, flags)
        except OSError as error:
            if isinstance(error, BlockingIOError) and self._limit < self._timeout and patience:
                raise self.too_slow() from None
            raise self._fault(error) from None
        if n == 0:
            raise LinkError(f"{self.name} closed the connection")
        if patience is not None:
            patience.spend(time.monotonic() - began, n)
        return n

    def _set_limit(self, seconds: float) -> None:
        """Sets the timeout of the kernel for each call."""
        if seconds != self._limit:
            self._limit = seconds
            micros = max(round(seconds * 1e6), 1000)
            value = struct.pack("@ll", *divmod(micros, 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def too_slow(self) -> LinkError:
        return LinkError(f"{self.name} was slower than {self._rate:g} bytes a second for too long")

    def _fault(self, error: OSError) -> LinkError:
        if isinstance(error, BlockingIOError):  # a timeout, SO_RCVTIMEO or SO_SNDTIMEO
            if self._deadline is not None:
                return LinkError(f"{self.name} did not complete the handshake in time")
            return LinkError(f"{self.name} was silent for {self._timeout:g} s")
        return LinkError(f"{self.name}: {error.strerror or error}")


Piece = tuple[Link, memoryview]


def transfer(sends: Sequence[Piece], receives: Sequence[Piece], spin: float = 0.0) -> None:
    """Sends and receives at the same time: a peer may read only after it has written, and both
    sides may write more than the sockets hold. spin: `seconds` of read_soon."""
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
    patience = (sends or receives)[0][0].patience()
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
        if patience.left <= 0:
            raise link.too_slow()
        began, missing = time.monotonic(), _bytes_of(sends, receives)
        if not poll.poll(patience.left * 1000):
            raise LinkError(f"{link.name} was silent for {patience.left:g} s")
        sends = [(link, rest) for link, view in sends if (rest := view[link.send_some(view) :])]
        receives = [
            (link, rest) for link, view in receives if (rest := view[link.read_some(view) :])
        ]
        patience.spend(time.monotonic() - began, missing - _bytes_of(sends, receives))


def _bytes_of(*pieces: list[Piece]) -> int:
    return sum(len(view) for some in pieces for _, view in some)

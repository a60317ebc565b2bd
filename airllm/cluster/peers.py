"""Finds out which of the connections to this worker are the other workers.

A worker with a lower index connects and is silent until its first slice is due; it never says who
it is. So at first a visitor (a port scan, another program) cannot be told from a worker. Three
things are known: a worker stays; before the first step it is silent; then it sends its whole slice
without waiting for ours. All visitors that stay are kept until the first slices are due. The first
of them to send a slice are the workers.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence

from airllm.cluster.link import Link, LinkError

_MOST_PROVED = 4096  # bytes of a slice to wait for; some sockets hold few more
_WORKER_LEFT = "another worker left before its first slice"


def likely(visitors: Sequence[Link], n: int) -> list[Link]:
    """At least n visitors that may be the workers, in order of arrival: the silent visitors if they
    are enough, otherwise all that have stayed. LinkError if fewer than n have stayed."""
    silent: list[Link] = []
    talkative: list[Link] = []
    for link in visitors:
        with contextlib.suppress(LinkError):
            (silent if link.is_silent() else talkative).append(link)
    if len(silent) >= n:
        return silent
    if len(silent) + len(talkative) < n:
        raise LinkError(_WORKER_LEFT)
    return [link for link in visitors if link in silent or link in talkative]


def proved(links: Sequence[Link], n: int, slice_bytes: int, seconds: float) -> list[Link]:
    """The first n links to bring a slice (or 4096 bytes of it), in order of arrival.

    Closes the other links, and reads no bytes. LinkError if fewer than n bring a slice within
    `seconds`, or if too many leave.
    """
    needed = min(slice_bytes, _MOST_PROVED)
    deadline = time.monotonic() + seconds
    waiting = {link.sock.fileno(): link for link in links}
    found: list[Link] = []
    poll = select.poll()
    for fd, link in waiting.items():
        link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
        poll.register(fd, select.POLLIN)
    while len(found) < n:
        left = deadline - time.monotonic()
        if len(found) + len(waiting) < n:
            raise LinkError(_WORKER_LEFT)
        if left <= 0:
            raise LinkError(f"{n - len(found)} other workers were silent for {seconds:g} s")
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            link = waiting.pop(fd)
            if link.has_bytes(needed):
                found.append(link)
            else:
                link.close()  # it has left
    for link in links:
        if link not in found[:n]:
            link.close()
        else:
            link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return [link for link in links if link in found[:n]]


Meet = Callable[[int], dict[int, Link]]  # bytes of a slice -> the other workers, by node

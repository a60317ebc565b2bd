"""Who the other workers are that connected to this one.

A worker with a lower index connects, and says nothing until its first slice is due: neither before
nor then does it say who it is. So whoever connects meanwhile (a port scan, another program) cannot
be told from a worker at first. What can be known: a worker stays; before the first step it is
silent; and then it sends its whole slice without waiting for ours. All who stay are kept until the
first slices are due, and the first that bring theirs are the workers.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Sequence

from airllm.cluster.link import Link, LinkError

_MOST_PROVED = 4096  # bytes of a slice that are waited for; some sockets hold few more
_LEFT = "another worker left before its first slice"


def likely(visitors: Sequence[Link], n: int) -> list[Link]:
    """Of those who wait, n or more who may be the workers, in order of arrival: those who are
    silent where they are enough. LinkError where there are fewer than n."""
    silent: list[Link] = []
    talkative: list[Link] = []
    for link in visitors:
        with contextlib.suppress(LinkError):
            (silent if link.is_silent() else talkative).append(link)
    if len(silent) >= n:
        return silent
    if len(silent) + len(talkative) < n:
        raise LinkError(_LEFT)
    return [link for link in visitors if link in silent or link in talkative]


def proved(links: Sequence[Link], n: int, slice_bytes: int, seconds: float) -> list[Link]:
    """The first n that bring a slice of so many bytes, in order of arrival; others are closed.
    Nothing is taken off the connections. LinkError where they do not in that time, or leave."""
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
            raise LinkError(_LEFT)
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


Meet = Callable[[int], dict[int, Link]]  # the other workers by node; the bytes of a slice

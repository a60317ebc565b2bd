"""A lock for threads that share the cores: one works at a time, in the order of their coming."""

import threading
from collections import deque

__all__ = ["FairLock"]


class FairLock:
    """With threading.Lock, a thread that takes it again at once leaves the others waiting.

    Two models that answer at once take turns of a pass. Each pass has all threads of the kernels;
    with two passes at once, more threads than cores would wait for each other.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until the thread before hands over

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False

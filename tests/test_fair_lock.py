"""The lock with which models take turns."""

import threading
from collections import Counter

from airllm.engine.fair_lock import FairLock


def test_one_thread_at_a_time_has_the_lock() -> None:
    lock, inside, most = FairLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (inside, most) == (0, 1)


def test_who_takes_the_lock_again_at_once_waits_behind_the_others() -> None:
    lock, order = FairLock(), []
    waits = threading.Event()

    def other() -> None:
        waits.set()
        with lock:
            order.append("other")

    with lock:
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(10)
        while not lock._waiting:
            pass
    with lock:
        order.append("first")
    thread.join(10)
    assert order == ["other", "first"]


def test_two_threads_that_never_rest_get_as_many_turns() -> None:
    lock, turns, done = FairLock(), Counter[str](), threading.Event()

    def work(name: str) -> None:
        while not done.is_set():
            with lock:
                turns[name] += 1
                if turns.total() >= 1000:
                    done.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert min(turns.values()) > 100


def test_an_error_gives_the_lock_back() -> None:
    lock = FairLock()
    for _ in range(2):
        try:
            with lock:
                raise ValueError
        except ValueError:
            pass
